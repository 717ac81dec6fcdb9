"""Weights in one safetensors file, or in several with an index, as transformers names them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from subcompress.api.formats.base import Wanted
from subcompress.errors import SubcompressError
from subcompress.format.record import Record
from subcompress.rebuild.dense import Part, write_parts, written_layout
from subcompress.remote.shards import INDEX
from subcompress.tensors.layout import Layout

SHARD_SIZE = 5 * 10**9
"""The most bytes of a file by default, as in transformers."""

MOST = 1_000
"""The most files: they are open at the same time."""

WHOLE = "model.safetensors"


def write_weights(record: Record, numbers: Sequence[int], wanted: Wanted, folder: Path) -> None:
    """Write the tensors of these numbers to a folder, in bounded memory. Raises SubcompressError as `write_parts`
    does, and for a size that gives too many files."""
    layout = written_layout(record.layout, wanted.dtype)
    groups = _groups(layout, numbers, SHARD_SIZE if wanted.shard_size is None else wanted.shard_size)
    parts = [Part(folder / name, group) for name, group in zip(_names(len(groups)), groups, strict=True)]
    for part in parts:
        part.path.touch()
    write_parts(record, parts, dtype=wanted.dtype, done=wanted.done)
    if len(parts) > 1:
        (folder / f"{WHOLE}{INDEX}").write_text(json.dumps(_index(layout, parts), indent=2) + "\n", "utf-8")


def _groups(layout: Layout, numbers: Sequence[int], most: int) -> list[list[int]]:
    """The tensors of each file: in their order, as many as fit; a larger tensor has a file of its own."""
    if most < 1:
        raise SubcompressError(f"--shard-size must be at least 1 byte; got {most}")
    groups: list[list[int]] = []
    used = 0
    for i in numbers:
        size = layout.tensors[i].nbytes
        if not groups or (groups[-1] and used + size > most):
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += size
    if len(groups) > MOST:
        raise SubcompressError(
            f"--shard-size of {most} bytes gives {len(groups)} files, and at most {MOST} are possible: raise it"
        )
    return groups


def _names(count: int) -> list[str]:
    if count == 1:
        return [WHOLE]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _index(layout: Layout, parts: Sequence[Part]) -> dict[str, object]:
    specs = [(layout.tensors[i], part.path.name) for part in parts for i in part.numbers]
    totals = {
        "total_parameters": sum(spec.size for spec, _ in specs),
        "total_size": sum(spec.nbytes for spec, _ in specs),
    }
    return {"metadata": totals, "weight_map": dict(sorted((spec.name, file) for spec, file in specs))}
