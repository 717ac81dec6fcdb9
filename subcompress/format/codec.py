"""Coordinates as bytes: an adaptive binary range coder in integers only (docs/FORMAT.md, "Coordinates").

Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979, in the carry-propagating
binary form of LZMA (Pavlov), with 16-bit probabilities from Krichevsky-Trofimov counts in place of shifts. A
coordinate is spelt as decisions: zero?, sign, class of the magnitude (floor of its log2), then the bits below the
leading one. Signs share the contexts of the magnitude, which halves what the adaptation costs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.native.compiled import Decoder, library

MIN_BITS, MAX_BITS = 2, 12
_TOP = 1 << 24  # the range is kept at or above this


class _Contexts:
    """One group's adaptive state: a pair of half-counts [zeros, ones] for each kind of decision."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.zero = [1, 1]
        self.sign = [1, 1]
        self.classes = [[1, 1] for _ in range(bits)]
        self.mantissa = [[[1, 1] for _ in range(4)] for _ in range(bits)]


class _Encoder:
    def __init__(self) -> None:
        self.low, self.range, self.bytes = 0, 0xFFFFFFFF, bytearray()
        self.held = b""  # the last byte written and the 0xFF bytes after it: a carry may still change them

    def bit(self, context: list[int], value: int) -> int:
        """Code one decision and count it."""
        bound = (self.range * _probability(context)) >> 16
        if value:
            self.low += bound
            self.range -= bound
        else:
            self.range = bound
        context[value] += 2
        while self.range < _TOP:
            self.range <<= 8
            self._shift()
        return value

    def _shift(self) -> None:
        """Move the top byte of `low` out."""
        carry, top = self.low >> 32, (self.low >> 24) & 0xFF
        if carry and self.held:
            self.held = bytes([self.held[0] + 1]) + bytes(len(self.held) - 1)
        if top == 0xFF:
            self.held += b"\xff"
        else:
            self.bytes += self.held
            self.held = bytes([top])
        self.low = (self.low << 8) & 0xFFFFFFFF

    def finish(self) -> bytes:
        """The shortest bytes that decode: of the values left in the range the one that ends in most zero bytes."""
        last = self.low + self.range - 1
        self.low = next(v for k in (32, 24, 16, 8, 0) if (v := last >> k << k) >= self.low)
        for _ in range(5):
            self._shift()
        return bytes(self.bytes + self.held).rstrip(b"\0")


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.range = data, 4, 0xFFFFFFFF
        self.code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def bit(self, context: list[int], value: int) -> int:
        """Read one decision and count it; `value` is not used."""
        bound = (self.range * _probability(context)) >> 16
        if self.code < bound:
            self.range, value = bound, 0
        else:
            self.code -= bound
            self.range -= bound
            value = 1
        context[value] += 2
        while self.range < _TOP:
            self.range <<= 8
            self.code = self.code << 8 | (self.data[self.at] if self.at < len(self.data) else 0)
            self.at += 1
        return value


def _probability(context: list[int]) -> int:
    """Of a zero, in 65,536ths, never 0 nor 1."""
    zeros, ones = context
    return min(max((zeros << 16) // (zeros + ones), 1), 65535)


def _coordinate(coder: _Encoder | _Decoder, c: _Contexts, value: int) -> int:
    """Spell one coordinate: the encoder writes `value`, the decoder ignores it; both return what was coded."""
    bit = coder.bit
    if not bit(c.zero, int(value != 0)):
        return 0
    negative = bit(c.sign, int(value < 0))
    magnitude = abs(value)
    # Two's complement: only a negative value reaches 2^(bits-1), the one member of the last class.
    last = c.bits - 1 if negative else c.bits - 2
    k, want = 0, magnitude.bit_length() - 1
    while k < last and bit(c.classes[k], int(want > k)):
        k += 1
    m = 1
    for i in reversed(range(k if k < c.bits - 1 else 0)):
        # The two bits below the leading one adapt, finer ones are even: a fresh, uncounted context.
        m = m << 1 | bit(c.mantissa[k][m] if m < 4 else [1, 1], magnitude >> i & 1)
    if k == c.bits - 1:
        m = 1 << k
    return -m if negative else m


def _reader(coder: _Decoder) -> Callable[[int, int], np.ndarray]:
    """(d, bits) -> the next group; compiled where it can be."""
    native = library()
    if native is None:

        def plainly(d: int, bits: int) -> np.ndarray:
            contexts = _Contexts(bits)
            return np.fromiter((_coordinate(coder, contexts, 0) for _ in range(d)), np.int32, d)

        return plainly
    read, held = native.subcompress_decode, Decoder(coder.data, len(coder.data), coder.at, coder.range, coder.code)

    def compiled(d: int, bits: int) -> np.ndarray:
        out = np.empty(d, np.int32)
        read(ctypes.byref(held), bits, d, out.ctypes.data)
        coder.at, coder.range, coder.code = held.at, held.range, held.code
        return out

    return compiled


def encode(groups: Iterable[tuple[np.ndarray, int]]) -> bytes:
    """Groups of coordinates, each (d,) integers of `bits` bits in two's complement -> bytes.

    Raises SubcompressError for a coordinate outside its bits.
    """
    coder = _Encoder()
    for values, bits in groups:
        top = 1 << (bits - 1)
        if len(values) and (int(values.min()) < -top or int(values.max()) >= top):
            raise SubcompressError(
                f"coordinates of {bits} bits lie in [{-top}, {top - 1}]; "
                f"these reach from {int(values.min())} to {int(values.max())}: pack with more bits"
            )
        contexts = _Contexts(bits)
        for v in values.tolist():
            _coordinate(coder, contexts, v)
    return coder.finish()


def decode(data: bytes, groups: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Bytes and (d, bits) of each group -> the coordinates, int32 (d,) each.

    Raises SubcompressError where the bytes are not what `encode` would have written for so many coordinates.
    """
    coder = _Decoder(data)
    read = _reader(coder)
    if coder.code >= coder.range or (data and not groups):
        raise SubcompressError("the coordinates are not what a range coder writes: the file is damaged or forged")
    out = [read(d, bits) for d, bits in groups]
    if coder.at < len(data) or data.endswith(b"\0"):
        raise SubcompressError("the payload holds more than d coordinates: the file is damaged or forged")
    return out
