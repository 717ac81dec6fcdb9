"""Pieces of lists of rules, made by hand."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from records import with_digest

from subcompress import SubcompressError, format
from subcompress.format import container
from subcompress.format.wire import Writer


def refusal(call, *args) -> str:
    with pytest.raises(SubcompressError) as error:
        call(*args)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 420
    return line


def number(value: int) -> bytes:
    w = Writer()
    w.varint(value)
    return bytes(w.data)


def deflated(data: bytes) -> bytes:
    w = Writer()
    w.deflated(data)
    return bytes(w.data)


def scale(value: float) -> bytes:
    return struct.pack("<f", value)[2:]


def with_weights_digest(parts: dict[str, bytes], base: Any = None) -> bytes:
    """The file of these parts, with the digest of its weights as the part `weights` where it has any."""

    def sealed(found: dict[str, bytes]) -> bytes:
        body = b"".join(found.values())
        return container.wrap(body + zlib.crc32(body).to_bytes(4, "little"))

    try:
        record, _ = format.from_bytes(sealed(parts), base)
    except SubcompressError:
        return sealed(parts)
    return sealed({**parts, "weights": with_digest(record).digest})
