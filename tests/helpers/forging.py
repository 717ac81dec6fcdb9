"""Files made by hand."""

from __future__ import annotations

import zlib

import pytest
from places import GOLDEN
from records import (
    golden_bases,
)

from subcompress import SubcompressError, format
from subcompress.format import container
from subcompress.format.wire import Writer

BASES = golden_bases()


FILES = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("*.safetensors"))}


def resealed(body: bytes) -> bytes:
    """A file around a payload whose checksum is put right: a forgery, not damage."""
    return container.wrap(body + zlib.crc32(body).to_bytes(4, "little"))


def body_of(data: bytes) -> bytes:
    return container.unwrap(data)[:-4]


def refused(data: bytes) -> str:
    with pytest.raises(SubcompressError):
        format.parse(data)  # `info` refuses what `unpack` does
    with pytest.raises(SubcompressError) as error:
        format.from_bytes(data)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 300
    return line


def shell(text: str, n: int = 10) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + bytes(n)


def forged(**changes: object) -> bytes:
    """The payload of a small record, with parts replaced by raw bytes."""
    parts: dict[str, bytes] = {
        "magic": b"SC",
        "version": b"\1",
        "generator": b"\1",
        "seed": b"\0",
        "layout": b"\2",
        "groups": b"\1\1" + bytes([10, 8, 0, 0]) + b"\4",
        "entries": b"\0",
        "scales": b"\1\0" + b"\x80\x3b",
        "facts": b"\0",
        "accuracy": b"\0",
        "digest": bytes(16),
        "coordinates": b"",
    }
    parts.update(changes)  # type: ignore[arg-type]
    return resealed(b"".join(parts.values()))


def number(value: int) -> bytes:
    w = Writer()
    w.varint(value)
    return bytes(w.data)


def layout_of(*tensors: tuple[str, int, list[int]]) -> bytes:
    """An embedded layout, written by hand."""
    body, w = Writer(), Writer()
    body.varint(len(tensors))
    for name, dtype, shape in tensors:
        for value in (0, len(name.encode())):
            body.varint(value)
        body.raw(name.encode())
        for value in (dtype, len(shape), *shape):
            body.varint(value)
    w.varint(0)
    w.deflated(bytes(body.data))
    return bytes(w.data)
