"""The formats that `unpack` writes: a module and a line in FORMATS each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subcompress.api.formats import adapter, dense, graph, transformers_folder, unfolding_graph
from subcompress.api.formats.base import OPTIONS, Format, Wanted
from subcompress.errors import SubcompressError
from subcompress.format.record import Record
from subcompress.support.files import atomic_file, atomic_folder
from subcompress.support.suggestions import suggestion

FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        dense.FORMAT,
        graph.FORMAT,
        unfolding_graph.FORMAT,
        transformers_folder.FORMAT,
        adapter.FORMAT,
    )
}
"""The formats by name."""


def chosen(name: str | None, output: Path, self_unfolding: bool) -> Format:
    """The format of that name; without one, that of the output's suffix. Raises SubcompressError for an unknown name,
    and for an output with another suffix."""
    if self_unfolding and name in (None, graph.FORMAT.name):
        if output.suffix == dense.FORMAT.suffix:
            raise SubcompressError(
                f"a self-unfolding graph must be an .onnx file; got {output.name}: rename the output"
            )
        name = unfolding_graph.FORMAT.name if output.suffix == unfolding_graph.FORMAT.suffix else name
    if name is None:
        return _of_suffix(output)
    if name not in FORMATS:
        raise SubcompressError(f"a format must be one of {', '.join(FORMATS)}; got {name!r}{suggestion(name, FORMATS)}")
    found = FORMATS[name]
    if self_unfolding and found is not unfolding_graph.FORMAT:
        raise SubcompressError(f"--self-unfolding writes ONNX, and --format {name} does not: leave one of them out")
    if found.suffix and output.suffix != found.suffix:
        raise SubcompressError(f"the format {name} is a {found.suffix} file; got {output.name}: rename the output")
    return found


def _of_suffix(output: Path) -> Format:
    suffixes = {found.suffix: found for found in FORMATS.values() if found.default}
    if output.suffix not in suffixes:
        folders = " or ".join(found.name for found in FORMATS.values() if not found.suffix)
        raise SubcompressError(
            f"unpack writes {' and '.join(suffixes)} files; got {output.name}: rename the output, or give "
            f"--format {folders} for a folder"
        )
    return suffixes[output.suffix]


def check_options(found: Format, wanted: Wanted, output: Path) -> None:
    """Raise SubcompressError for an option that the format does not take."""
    for field, spelled in OPTIONS.items():
        if getattr(wanted, field) is not None and field not in found.options:
            takers = [other.name for other in FORMATS.values() if field in other.options]
            raise SubcompressError(
                f"{spelled} belongs to the format {' or '.join(takers)}, but {output.name} has the format "
                f"{found.name}: leave it out"
            )


def check_place(found: Format, output: Path) -> None:
    """Raise SubcompressError for a folder that would replace something."""
    if found.suffix or not output.exists():
        return
    if not output.is_dir():
        raise SubcompressError(f"the format {found.name} writes a folder, but {output} is a file: give another place")
    if next(output.iterdir(), None) is not None:
        raise SubcompressError(f"{output} already holds files: give a new or empty folder")


def write(found: Format, record: Record, wanted: Wanted, output: Path) -> dict[str, Any]:
    """Write the output whole or not at all, and return what there is to tell of it. Raises SubcompressError."""
    with (atomic_file if found.suffix else atomic_folder)(output) as temporary:
        return found.write(record, wanted, temporary)


__all__ = ["FORMATS", "Format", "Wanted", "check_options", "check_place", "chosen", "write"]
