"""An ONNX graph of a few kilobytes that computes its own weights, or what it adds to those of a base beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from subcompress.api.formats.base import Format, Wanted
from subcompress.errors import SubcompressError
from subcompress.format.record import Record
from subcompress.support.files import atomic_file

LINKED, COPIED, FOUND = "hard link", "copy", "there already"
"""How a file of the base was placed beside a graph."""


def write(record: Record, wanted: Wanted, path: Path) -> dict[str, Any]:
    """Trace the network and write its graph, and place the files of its base beside it."""
    from subcompress.onnx import export_self_unfolding  # onnx is loaded only where it is needed

    if record.base is None:
        export_self_unfolding(record, wanted.traced(record), path)
        return {}
    from subcompress.onnx.on_base import converted, files_of

    with placed(files_of(record), path.parent) as how:
        export_self_unfolding(record, wanted.traced(record), path)
    files = [{"name": n, "bytes": (path.parent / n).stat().st_size, "placed": how[n]} for n in how]
    return {"base_files": files, "converted_bytes": converted(record)}


@contextmanager
def placed(files: dict[str, Path], folder: Path) -> Iterator[dict[str, str]]:
    """Within and afterwards, the files lie in a folder under their names: as hard links, or as copies where the file
    system has none; yields how each came there. Those that came are removed if the block fails.

    ONNX Runtime refuses symbolic links that lead out of the folder, as those of the Hub's cache do. Raises
    SubcompressError where another file of that name lies there.
    """
    made: list[Path] = []
    try:
        how = {}
        for name, source in files.items():
            target = folder / name
            if os.path.lexists(target):
                _require_same(target, source)
                how[name] = FOUND
            else:
                how[name] = _place(source, target)
                made.append(target)
        yield how
    except BaseException:
        for target in made:
            target.unlink(missing_ok=True)
        raise


def _require_same(target: Path, source: Path) -> None:
    from subcompress.onnx.outside import sha256_of

    if os.path.dirname(os.path.realpath(target)) != os.path.realpath(target.parent):
        raise SubcompressError(
            f"{target} is a symbolic link to another folder, which ONNX Runtime refuses: give another folder "
            "with --output"
        )
    if not os.path.samefile(target, source) and sha256_of(target) != sha256_of(source):
        raise SubcompressError(
            f"{target} already exists and is not the base's {source}: give another folder with --output, or remove it"
        )


def _place(source: Path, target: Path) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    real = os.path.realpath(source)  # in the Hub's cache, a file is a link to a blob
    with suppress(OSError):
        os.link(real, target)
        return LINKED
    with atomic_file(target) as temporary:
        shutil.copyfile(real, temporary)
    return COPIED


FORMAT = Format("self-unfolding", ".onnx", write)
