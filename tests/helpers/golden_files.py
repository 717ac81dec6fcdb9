"""What the golden files expand to, and the bases that they stand on."""

from __future__ import annotations

import json

from places import GOLDEN
from records import golden_bases

TRUTH = json.loads((GOLDEN / "golden.json").read_text("utf-8"))


BASES = golden_bases()
