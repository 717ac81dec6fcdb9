"""The file: a record as safetensors bytes, and back (docs/FORMAT.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from subcompress.base import HUB, find_base
from subcompress.errors import SubcompressError
from subcompress.format import container, payload
from subcompress.format.payload import Parsed
from subcompress.format.record import Record
from subcompress.remote import Reference, download
from subcompress.support.files import MAX_FILE_BYTES, read_bytes, write_bytes

FORMAT_VERSION = payload.VERSION


def to_bytes(record: Record) -> bytes:
    """The file of a record. Raises SubcompressError where the record breaks a rule of the format."""
    data = container.wrap(payload.write(record))
    # A writer that breaks a bound of the reader is found out here, not by a receiver.
    parse(data).record(record.base.base if record.base is not None else None)
    return data


def parse(data: bytes) -> Parsed:
    """What a file says, without its base where it stands on one. Its ledger sums to the file's bytes. Raises
    SubcompressError."""
    body = container.unwrap(data)
    found = payload.parse(body)
    return replace(found, ledger={"safetensors header": len(data) - len(body), **found.ledger})


def from_bytes(data: bytes, base: Any = None) -> tuple[Record, dict[str, int]]:
    """The record of a file and its ledger: bytes by part, which sum to the file's. base: what it stands on, see
    `subcompress.base.find_base`; where it stands on nothing, none is given. Raises SubcompressError."""
    found = parse(data)
    if found.base is None:
        if base is not None:
            raise SubcompressError("the file stands on no base: leave --base out")
        return found.record(), found.ledger
    return found.record(find_base(found.base, found.layout.nbytes, base)), found.ledger


def save(record: Record, path: str | Path) -> int:
    """Write the file, whole or not at all; returns its bytes. Raises SubcompressError."""
    data = to_bytes(record)
    write_bytes(path, data)
    return len(data)


def file_bytes(path: str | Path) -> bytes:
    """A whole file, at a path or of `hub:ORG/NAME[@REV]`. Raises SubcompressError."""
    if isinstance(path, str) and path.startswith(HUB):
        path = download(Reference.of(path)).path
    return read_bytes(path, MAX_FILE_BYTES)


def contents(path: str | Path) -> Parsed:
    """`parse` of the file at `path`, see `file_bytes`. Raises SubcompressError."""
    return parse(file_bytes(path))


def read(path: str | Path, base: Any = None) -> tuple[Record, dict[str, int]]:
    """The record of the file at `path`, see `file_bytes`, and its ledger, see `from_bytes`. Raises SubcompressError."""
    return from_bytes(file_bytes(path), base)
