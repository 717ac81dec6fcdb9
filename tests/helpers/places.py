"""Where things lie that tests read."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).parent
"""What tests import and child processes are given."""

ROOT = HELPERS.parents[1]
GOLDEN = ROOT / "tests" / "golden"
EXAMPLES = ROOT / "examples"
PACKED = ROOT / "models" / "packed"
