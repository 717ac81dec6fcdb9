"""The file: a record as safetensors bytes, and back (docs/FORMAT.md)."""

from __future__ import annotations

from pathlib import Path

from subcompress.files import read_bytes, write_bytes
from subcompress.format import container, payload
from subcompress.record import Record

MAX_FILE_BYTES = 1 << 30
FORMAT_VERSION = payload.VERSION


def to_bytes(record: Record) -> bytes:
    """The file of a record. Raises SubcompressError where the record breaks a rule of the format."""
    data = container.wrap(payload.write(record))
    from_bytes(data)  # a writer that breaks a bound of the reader is found out here, not by a receiver
    return data


def from_bytes(data: bytes) -> tuple[Record, dict[str, int]]:
    """The record of a file and its ledger: bytes by part, which sum to the file's. Raises SubcompressError."""
    body = container.unwrap(data)
    record, ledger = payload.read(body)
    return record, {"safetensors header": len(data) - len(body), **ledger}


def save(record: Record, path: str | Path) -> int:
    """Write the file, whole or not at all; returns its bytes. Raises SubcompressError."""
    data = to_bytes(record)
    write_bytes(path, data)
    return len(data)


def read(path: str | Path) -> tuple[Record, dict[str, int]]:
    """The record of the file at `path` and its ledger. Raises SubcompressError."""
    return from_bytes(read_bytes(path, MAX_FILE_BYTES))
