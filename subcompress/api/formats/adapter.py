"""A LoRA adapter for the base, which PEFT loads: an approximation of the weights, whose error it states."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from subcompress.api.formats.base import Format, Wanted
from subcompress.errors import SubcompressError
from subcompress.format.record import Record

RANK = 16
"""The rank by default."""

NOTES = "subcompress.json"
"""The file in the folder that states the error."""


def write(record: Record, wanted: Wanted, folder: Path) -> dict[str, Any]:
    """Write adapter_config.json, adapter_model.safetensors and what was approximated. Raises SubcompressError for a
    record without a base, and for changes that PEFT cannot hold."""
    rank = RANK if wanted.rank is None else wanted.rank
    if rank < 1:
        raise SubcompressError(f"--rank must be at least 1; got {rank}")
    if record.base is None:
        raise SubcompressError(
            "an adapter is added to a base, and the file has no base: give --format transformers for the whole network"
        )
    from subcompress.api.formats.lora import Adapter  # which imports torch and peft

    told = Adapter(record, wanted, rank, _base_place(record, wanted)).write(folder)
    (folder / NOTES).write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    return told


def _base_place(record: Record, wanted: Wanted) -> tuple[str, str | None]:
    """How PEFT calls the base, and its commit."""
    from subcompress.base import HUB

    assert record.base is not None, "checked before"
    reference = record.base.reference
    if reference.source.startswith(HUB):
        return reference.source.removeprefix(HUB), reference.revision or None
    given = wanted.base
    if isinstance(given, (str, os.PathLike)) and os.path.isdir(given):
        return os.path.abspath(given), None
    return reference.source, None


FORMAT = Format("peft", "", write, ("rank", "files"))
