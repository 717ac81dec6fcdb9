"""Pieces of lists of rules, made by hand."""

from __future__ import annotations

import struct

import pytest

from subcompress import SubcompressError
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
