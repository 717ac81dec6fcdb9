"""The file format: a record as the bytes of a safetensors file, and back (docs/FORMAT.md)."""

from __future__ import annotations

import os
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

RUN = "run.json"
"""The file by which a folder is known for a finished run."""


def to_bytes(record: Record) -> bytes:
    """Encode a record as a file. Raises SubcompressError if the record breaks a rule of the format."""
    data = container.wrap(payload.write(record))
    # Read it back, so that a file that readers would refuse is never handed out.
    parse(data).record(record.base.base if record.base is not None else None)
    return data


def parse(data: bytes) -> Parsed:
    """Decode a file without opening its base, if it has one. The ledger sums to the file's bytes. Raises
    SubcompressError."""
    body = container.unwrap(data)
    found = payload.parse(body)
    return replace(found, ledger={"safetensors header": len(data) - len(body), **found.ledger})


def from_bytes(data: bytes, base: Any = None) -> tuple[Record, dict[str, int]]:
    """Decode a file into its record and its ledger: bytes by part, which sum to the file's bytes.

    base: the base of a file that has one, see `subcompress.base.find_base`; None for others. Raises SubcompressError.
    """
    parsed = parse(data)
    if parsed.base is None:
        if base is not None:
            raise SubcompressError("the file has no base: leave --base out")
        return parsed.record(), parsed.ledger
    return parsed.record(find_base(parsed.base, parsed.layout.nbytes, base)), parsed.ledger


def save(record: Record, path: str | Path) -> int:
    """Write the file atomically and return its size in bytes. Raises SubcompressError."""
    data = to_bytes(record)
    write_bytes(path, data)
    return len(data)


def file_bytes(path: str | Path) -> bytes:
    """Return the bytes of a packed file at a path or in `hub:ORG/NAME[@REV]`. Raises SubcompressError."""
    if isinstance(path, str) and path.startswith(HUB):
        path = download(Reference.of(path)).path
    if os.path.isdir(path):
        then = f"make one with subcompress pack {path} -o FILE" if os.path.isfile(Path(path) / RUN) else "name the file"
        raise SubcompressError(f"{path} is a folder, not a packed file: {then}")
    return read_bytes(path, MAX_FILE_BYTES)


def contents(path: str | Path) -> Parsed:
    """Parse the file at a path or in `hub:ORG/NAME[@REV]`. Raises SubcompressError."""
    return parse(file_bytes(path))


def read(path: str | Path, base: Any = None) -> tuple[Record, dict[str, int]]:
    """Read the file at a path or in `hub:ORG/NAME[@REV]`; see `from_bytes`. Raises SubcompressError."""
    return from_bytes(file_bytes(path), base)
