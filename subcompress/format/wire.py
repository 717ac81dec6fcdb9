"""Bytes in and out: variable-length integers, little-endian numbers, bounded deflate, and a ledger of the parts."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from subcompress.errors import SubcompressError


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads, which takes the last of two equal keys: raises ValueError instead."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate JSON keys")
    return found


class Writer:
    """Appends to one buffer; `part` names what follows, for the ledger."""

    def __init__(self) -> None:
        self.data = bytearray()

    def raw(self, data: bytes) -> None:
        self.data += data

    def varint(self, value: int) -> None:
        """Unsigned LEB128: seven bits a byte, low first, the top bit set on all but the last."""
        while value > 0x7F:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def float32(self, value: float) -> None:
        self.data += struct.pack("<f", value)

    def deflated(self, data: bytes) -> None:
        """Length of the data, length of its raw deflate stream, the stream."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        stream = packer.compress(data) + packer.flush()
        self.varint(len(data))
        self.varint(len(stream))
        self.raw(stream)


class Reader:
    """Reads one buffer front to back; every length is checked before it is used."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.ledger: dict[str, int] = {}
        self._part, self._since = "", 0

    def part(self, name: str) -> None:
        """What follows is counted under that name."""
        if self._part:
            self.ledger[self._part] = self.ledger.get(self._part, 0) + self.at - self._since
        self._part, self._since = name, self.at

    def fail(self, rule: str) -> SubcompressError:
        """The error for a broken rule of the part being read."""
        return SubcompressError(f"{rule}, in the {self._part} part: the file is damaged or forged; fetch it again")

    def raw(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise self.fail("bytes are missing")
        self.at += n
        return self.data[self.at - n : self.at]

    def varint(self, what: str, limit: int) -> int:
        """An unsigned LEB128 integer of at most `limit`, in its shortest form."""
        value = shift = 0
        while True:
            byte = self.raw(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise self.fail(f"{what} is longer than ten bytes")
        if shift > 7 and byte == 0:
            raise self.fail(f"{what} is not in its shortest form")
        if value > limit:
            raise self.fail(f"{what} is at most {limit}, given {value}")
        return value

    def float32(self) -> float:
        return float(struct.unpack("<f", self.raw(4))[0])

    def deflated(self, what: str, limit: int) -> bytes:
        """What `Writer.deflated` wrote; never more than `limit` bytes are made."""
        size = self.varint(f"the size of the {what}", limit)
        stream = self.raw(self.varint(f"the packed size of the {what}", len(self.data)))
        unpacker = zlib.decompressobj(-15)
        try:
            data = unpacker.decompress(stream, size + 1)
        except zlib.error as e:
            raise self.fail(f"the {what} does not inflate") from e
        if len(data) != size or not unpacker.eof or unpacker.unused_data:
            raise self.fail(f"the {what} does not inflate to the {size} bytes it claims")
        return data
