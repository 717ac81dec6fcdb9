"""Reading rows of text files: CSV, TSV or JSON lines, by the suffix."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from subcompress.errors import SubcompressError, one_line

NEEDED, OPTIONAL = ("text", "label"), ("text_pair", "split")
"""The columns of texts with labels that are read; others are ignored."""

NAMED = ("text", "prompt", "completion", "messages", "split")
"""Columns of language models."""

Rows = Iterator[tuple[int, dict[str, Any]]]
"""The number of each line, and its fields by name."""


@dataclass(frozen=True)
class Row:
    """A row and the line on which it begins. pair, split: None if the file has no such column."""

    line: int
    text: str
    label: str
    pair: str | None = None
    split: str | None = None


def rows_of(path: Path, most: int) -> Iterator[Row]:
    """Read the rows of a file of at most `most` bytes. Raises SubcompressError with the line number."""
    kind, read = KINDS.get(path.suffix.lower(), KINDS[".csv"])
    for line, row in _read_whole(path, kind, lambda f: read(path, f, TextColumns()), most):
        yield row_of(path, line, row)


def _read_whole(path: Path, kind: str, read: Callable[[Any], Rows], most: int) -> Rows:
    """The lines of a file. Raises SubcompressError for one that is too large, cannot be read, or is not in UTF-8."""
    try:
        if (size := path.stat().st_size) > most:
            raise SubcompressError(f"a {kind} file may have at most {most} bytes; {path} has {size}: use fewer rows")
        with path.open(encoding="utf-8-sig", newline="") as f:
            yield from read(f)
    except OSError as e:
        raise SubcompressError(f"{path} cannot be read: {e.strerror or e}; check the path") from e
    except UnicodeDecodeError as e:
        raise SubcompressError(f"{path} is not in UTF-8 ({one_line(e)}): convert it") from e


def fields_of(path: Path, most: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read all columns of a file of at most `most` bytes: the number of each line and its fields by name, as JSON has
    them. Raises SubcompressError with the line number."""
    kind, read = KINDS.get(path.suffix.lower(), KINDS[".csv"])
    yield from _read_whole(path, kind, lambda f: read(path, f, AnyColumns()), most)


def row_of(path: str | Path, line: int, row: Mapping[str, str]) -> Row:
    """Build a row. Raises SubcompressError for an empty field; only the second text may be empty."""
    for name in NEEDED:
        if not row[name].strip():
            raise SubcompressError(f"{path}, line {line}: the {name} is empty: fill it in")
    split = row.get("split")
    pair = row.get("text_pair")
    return Row(line, row["text"], row["label"].strip(), pair, None if split is None else split.strip())


class Columns(Protocol):
    """Which columns of a file are read, and what its fields are. everywhere: those that all lines have, or none."""

    everywhere: frozenset[str]

    def of_header(self, path: Path, header: list[str]) -> dict[str, int]: ...
    def of_object(self, path: Path, line: int, found: Any) -> dict[str, Any]: ...


class TextColumns:
    """text and label, and text_pair and split where they are there."""

    everywhere = frozenset((*NEEDED, *OPTIONAL))

    def of_header(self, path: Path, header: list[str]) -> dict[str, int]:
        """Raises SubcompressError if one is missing or duplicated."""
        return _columns(path, header)

    def of_object(self, path: Path, line: int, found: Any) -> dict[str, Any]:
        """Raises SubcompressError if one is missing or no text."""
        return _fields(path, line, found)


class AnyColumns:
    """All columns."""

    everywhere = frozenset(NAMED)

    def of_header(self, path: Path, header: list[str]) -> dict[str, int]:
        """Raises SubcompressError if one is duplicated."""
        if twice := next((name for name in header if header.count(name) > 1), None):
            raise SubcompressError(f"{path} names the column {twice} twice in its first line: rename one")
        return {name: i for i, name in enumerate(header)}

    def of_object(self, path: Path, line: int, found: Any) -> dict[str, Any]:
        """Raises SubcompressError for anything but an object."""
        if not isinstance(found, dict):
            raise SubcompressError(
                f"{path}, line {line}: each line must be a JSON object; this one is a {type(found).__name__}"
            )
        return found


def _csv(path: Path, f: Any, columns: Columns) -> Rows:
    return _separated(path, csv.reader(f, strict=True), "put texts that contain commas in quotes", columns)


def _tsv(path: Path, f: Any, columns: Columns) -> Rows:
    """Quotes are of the text: a field holds no tab and no end of a line."""
    reader = csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    return _separated(path, reader, "remove tabs from the texts", columns)


def _separated(path: Path, reader: Any, remedy: str, wanted: Columns) -> Rows:
    line = 1
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        columns = wanted.of_header(path, header)
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise SubcompressError(
                    f"{path}, line {line}: {len(row)} fields, where the header has {len(header)}: {remedy}"
                )
            if row:  # else an empty line
                yield line, {name: row[at] for name, at in columns.items()}
            line = reader.line_num + 1
    except csv.Error as e:
        raise SubcompressError(f"{path}, line {line}: {one_line(e)}: fix the quotes, or cut the text") from e


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Return the indices of the columns. Raises SubcompressError if one is missing or duplicated."""
    for name in (*NEEDED, *OPTIONAL):
        if header.count(name) > 1 or (name in NEEDED and name not in header):
            raise SubcompressError(
                f"{path} must begin with a line that names the columns text and label (optionally text_pair and "
                f"split), each once; it names {', '.join(header)[:200] or 'nothing'}"
            )
    return {name: header.index(name) for name in (*NEEDED, *OPTIONAL) if name in header}


def _json_lines(path: Path, f: Any, columns: Columns) -> Rows:
    """Read one object per line. Raises SubcompressError for invalid lines, and if only some lines have a field."""
    first: frozenset[str] | None = None
    for line, text in enumerate(f, 1):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise SubcompressError(f"{path}, line {line}: {one_line(e, 160)}: each line must be a JSON object") from e
        row = columns.of_object(path, line, found)
        names = columns.everywhere & row.keys()
        first = names if first is None else first
        if odd := sorted(first ^ names):
            raise SubcompressError(
                f"{path}, line {line}: {odd[0]} is in some lines only: give it in all lines, or in none"
            )
        yield line, row


def _fields(path: Path, line: int, found: Any) -> dict[str, str]:
    """Return the fields of an object as text, with true and false as 1 and 0."""
    if not isinstance(found, dict) or not all(name in found for name in NEEDED):
        has = ", ".join(map(str, found))[:200] if isinstance(found, dict) else f"a {type(found).__name__}"
        raise SubcompressError(
            f"{path}, line {line}: each line must have text and label; this one has {has or 'nothing'}"
        )
    row = {}
    for name in (*NEEDED, *OPTIONAL):
        if name in found:
            value = found[name]
            if isinstance(value, (int, float)) and name == "label":
                value = str(int(value) if isinstance(value, bool) else value)
            if value is not None and not isinstance(value, str):
                raise SubcompressError(f"{path}, line {line}: {name} must be a text; got a {type(value).__name__}")
            row[name] = value or ""
    return row


Read = Callable[[Path, Any, Columns], Rows]

KINDS: dict[str, tuple[str, Read]] = {
    ".csv": ("CSV", _csv),
    ".tsv": ("TSV", _tsv),
    ".jsonl": ("JSON lines", _json_lines),
    ".ndjson": ("JSON lines", _json_lines),
}
"""The end of a file's name -> the name of the format, and its reader."""
