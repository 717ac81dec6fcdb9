"""Reading and writing bytes: variable-length integers, little-endian numbers, bounded deflate, and a ledger of
parts."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from subcompress.errors import SubcompressError

FEW = 64
"""The number of varints below which reading them one by one is faster."""

LONG = 8
"""The longest varint, in bytes, that an int64 holds."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict for json.loads (object_pairs_hook). Raises ValueError for duplicate keys, of which json keeps the
    last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate JSON keys")
    return found


class Writer:
    """An append-only buffer."""

    def __init__(self) -> None:
        self.data = bytearray()

    def raw(self, data: bytes) -> None:
        self.data += data

    def varint(self, value: int) -> None:
        """Append an unsigned LEB128 integer: seven bits per byte, low first, the top bit set on all but the last."""
        while value > 0x7F:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def float32(self, value: float) -> None:
        self.data += struct.pack("<f", value)

    def deflated(self, data: bytes) -> None:
        """Append the length of the data, the length of its raw deflate stream, and the stream."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        stream = packer.compress(data) + packer.flush()
        self.varint(len(data))
        self.varint(len(stream))
        self.raw(stream)


class Reader:
    """A cursor over a buffer that checks every length before using it."""

    def __init__(self, data: bytes, of: int | None = None) -> None:
        """of: bytes of the file that the data were inflated from; by default the data are the whole file."""
        self.data, self.at = data, 0
        self.bytes = len(data) if of is None else of
        self.ledger: dict[str, int] = {}
        self._part, self._since = "", 0

    def part(self, name: str) -> None:
        """Count the bytes that follow under this name in the ledger."""
        if self._part:
            self.ledger[self._part] = self.ledger.get(self._part, 0) + self.at - self._since
        self._part, self._since = name, self.at

    def fail(self, rule: str) -> SubcompressError:
        """Return the error for a broken rule in the current part."""
        return SubcompressError(f"{rule}, in the {self._part} part: the file is damaged or forged; fetch it again")

    def raw(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise self.fail("bytes are missing")
        self.at += n
        return self.data[self.at - n : self.at]

    def varint(self, what: str, limit: int) -> int:
        """Read an unsigned LEB128 integer of at most `limit`, in its shortest form."""
        if self.at < len(self.data) and (value := self.data[self.at]) < 0x80 and value <= limit:
            self.at += 1  # the fast path: a file of 5 kB may hold a million varints
            return value
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

    def varints(self, n: int, what: str, limit: int) -> list[int]:
        """Read n consecutive varints."""
        short = self.data[self.at : self.at + n]
        if len(short) == n and (not n or max(short) < 0x80):
            self.at += n
            found = list(short)
        else:
            found = self._multibyte_varints(n, what)
        if found and max(found) > limit:
            raise self.fail(f"{what} is at most {limit}, given {max(found)}")
        return found

    def _multibyte_varints(self, n: int, what: str) -> list[int]:
        """Read n varints, some of which may be longer than a byte."""
        if n < FEW:
            return [self.varint(what, (1 << 64) - 1) for _ in range(n)]
        remaining = np.frombuffer(self.data, np.uint8)[self.at :]
        ends = np.flatnonzero(remaining < 0x80)[:n] + 1
        lengths = np.diff(ends, prepend=0)
        if len(ends) < n or lengths.max() > LONG:  # read one by one to find the error or the long varint
            return [self.varint(what, (1 << 64) - 1) for _ in range(n)]
        if (remaining[ends - 1][lengths > 1] == 0).any():
            raise self.fail(f"{what} is not in its shortest form")
        found = np.zeros(n, np.int64)
        for i in range(int(lengths.max())):
            is_longer = lengths > i
            found[is_longer] |= (remaining[(ends - lengths)[is_longer] + i].astype(np.int64) & 0x7F) << 7 * i
        self.at += int(ends[-1])
        numbers: list[int] = found.tolist()
        return numbers

    def float32(self) -> float:
        return float(struct.unpack("<f", self.raw(4))[0])

    def deflated(self, what: str, limit: int) -> bytes:
        """Read what `Writer.deflated` wrote; never inflates to more than `limit` bytes."""
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
