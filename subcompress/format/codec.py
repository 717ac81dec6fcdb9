"""Entropy coding of coordinates: an adaptive binary range coder in integers only (docs/FORMAT.md, "Coordinates").

Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979, in the carry-propagating
binary form of LZMA (Pavlov), with 16-bit probabilities from Krichevsky-Trofimov counts in place of shifts. A coordinate
is coded as binary decisions: zero?, sign, class of the magnitude (floor of its log2), then the bits below the leading
one. Signs share the contexts of the magnitude, which halves the cost of adaptation.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.native.compiled import Decoder, library

MIN_BITS, MAX_BITS = 2, 12
_TOP = 1 << 24  # the range is kept at or above this

MAX_D = 1 << 22
"""The most coordinates in a file."""

FREE_DECISIONS, DECISIONS_A_BYTE = 1 << 19, 1 << 8
"""The most decisions that the nonzero coordinates of a file may take after their first, and how many more per byte.

A coordinate takes at most 23, so a file whose signs cost a bit each stays far below. Without a bound, a few hundred
bytes of equal coordinates would take as many decisions, and as long to decode, as fifty megabytes.
"""

FEW_ALIKE = 512
"""Decisions of equal coordinates in a row after which further ones are decoded in batches."""

MANY_DECISIONS = 1 << 12
"""The most decisions that are decoded in one batch."""


class _Contexts:
    """The adaptive state of a group: half-counts [zeros, ones] for each kind of decision."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.zero = [1, 1]
        self.sign = [1, 1]
        self.classes = [[1, 1] for _ in range(bits)]
        self.mantissa = [[[1, 1] for _ in range(4)] for _ in range(bits)]


class _Encoder:
    """A binary range encoder."""

    def __init__(self) -> None:
        self.low, self.range, self.bytes = 0, 0xFFFFFFFF, bytearray()
        self.pending = b""  # the last byte written and the 0xFF bytes after it: a carry may still change them

    def bit(self, context: list[int], value: int) -> int:
        """Encode a decision and count it."""
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
        """Move the top byte of `low` to the output."""
        carry, top = self.low >> 32, (self.low >> 24) & 0xFF
        if carry and self.pending:
            self.pending = bytes([self.pending[0] + 1]) + bytes(len(self.pending) - 1)
        if top == 0xFF:
            self.pending += b"\xff"
        else:
            self.bytes += self.pending
            self.pending = bytes([top])
        self.low = (self.low << 8) & 0xFFFFFFFF

    def finish(self) -> bytes:
        """Return the shortest bytes that decode: the value in the final range with the most trailing zero bytes."""
        last = self.low + self.range - 1
        self.low = next(v for k in (32, 24, 16, 8, 0) if (v := last >> k << k) >= self.low)
        for _ in range(5):
            self._shift()
        return bytes(self.bytes + self.pending).rstrip(b"\0")


class _Decoder:
    """A binary range decoder. left: decisions that nonzero coordinates may still take after their first; negative once
    exceeded."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.range = data, 4, 0xFFFFFFFF
        self.code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self.left = FREE_DECISIONS + DECISIONS_A_BYTE * len(data)

    def bit(self, context: list[int], value: int) -> int:
        """Decode a decision and count it; `value` is ignored."""
        bound = (self.range * _probability(context)) >> 16
        if self.code < bound:
            self.range, value = bound, 0
        else:
            self.code -= bound
            self.range -= bound
            value = 1
        context[value] += 2
        if self.range < _TOP:
            self._refill()
        return value

    def zeros(self, context: list[int], most: int) -> int:
        """Decode decisions while they are 0, at most `most`; return how many."""
        zeros, ones = context
        code, width, read = self.code, self.range, 0
        while read < most:
            p = (zeros << 16) // (zeros + ones)
            bound = width * (p if p < 65535 else 65535) >> 16
            if code >= bound:
                break
            width, zeros, read = bound, zeros + 2, read + 1
            if width < _TOP:
                self.code, self.range = code, width
                self._refill()
                code, width = self.code, self.range
        self.range, context[0] = width, zeros
        return read

    def repeat(self, path: list[tuple[list[int], int]], most: int) -> int:
        """Decode coordinates that equal the previous one, at most `most`, until the range must be refilled; return how
        many.

        path: (context, value) of each decision of that coordinate. A decision takes (a * range + b) >> 16 off the
        range. All ranges are guessed at once and recomputed from the guess until nothing changes: each round corrects
        the first wrong one, and usually far more, because a range that is off by a little takes the same off.
        """
        decisions = len(path)
        counts = np.array([context for context, _ in path], np.int64)
        values = np.array([value for _, value in path], np.int64)
        zeros, ones = (counts[:, i] + np.arange(0, 2 * most, 2)[:, None] * (values == i) for i in (0, 1))
        p = np.clip((zeros << 16) // (zeros + ones), 1, 65535)
        a = np.where(values == 1, p, 65536 - p).reshape(-1)
        a = a[: int(np.searchsorted(np.cumsum(a), 65536)) // decisions * decisions]  # a range that falls by a third
        is_one = np.broadcast_to(values == 1, p.shape).reshape(-1)[: len(a)]
        b = np.where(is_one, 0, 65535)
        ranges = np.empty(len(a) + 1, np.int64)
        ranges[0] = self.range
        # What rounding takes off is half a unit each time, on average.
        ranges[1:] = self.range * np.cumprod(1 - a / 65536) - np.cumsum(b / 65536 - 0.5)
        decrements = (a * ranges[:-1] + b) >> 16
        while True:
            ranges[1:] = self.range - np.cumsum(decrements)
            recomputed = (a * ranges[:-1] + b) >> 16
            if np.array_equal(recomputed, decrements):
                break
            decrements = recomputed
        codes = np.full(len(ranges), self.code, np.int64)
        codes[1:] -= np.cumsum(np.where(is_one, decrements, 0))
        fits = (ranges[1:] >= _TOP) & np.where(is_one, codes[1:] >= 0, codes[1:] < ranges[1:])
        read = len(a) // decisions if fits.all() else int(np.argmin(fits)) // decisions
        self.range, self.code = int(ranges[read * decisions]), int(codes[read * decisions])
        for context, value in path:
            context[value] += 2 * read
        return read

    @property
    def bits_consumed(self) -> float:
        """The bits of the stream that were consumed."""
        return 8 * self.at - math.log2(self.range)

    def _refill(self) -> None:
        while self.range < _TOP:
            self.range <<= 8
            self.code = self.code << 8 | (self.data[self.at] if self.at < len(self.data) else 0)
            self.at += 1


def _probability(context: list[int]) -> int:
    """Return the probability of a zero in 65,536ths, never 0 or 1."""
    zeros, ones = context
    return min(max((zeros << 16) // (zeros + ones), 1), 65535)


def _code_coordinate(coder: _Encoder | _Decoder | _PathRecorder, c: _Contexts, value: int) -> int:
    """Code one coordinate: the encoder writes `value`, the decoder ignores it; both return the coded value."""
    bit = coder.bit
    if not bit(c.zero, int(value != 0)):
        return 0
    negative = bit(c.sign, int(value < 0))
    magnitude = abs(value)
    # Two's complement: only a negative value reaches 2^(bits-1), the one member of the last class.
    last = c.bits - 1 if negative else c.bits - 2
    k, value_class = 0, magnitude.bit_length() - 1
    while k < last and bit(c.classes[k], int(value_class > k)):
        k += 1
    m = 1
    for i in reversed(range(k if k < c.bits - 1 else 0)):
        # The two bits below the leading one adapt, finer ones are even: a fresh, uncounted context.
        m = m << 1 | bit(c.mantissa[k][m] if m < 4 else [1, 1], magnitude >> i & 1)
    if k == c.bits - 1:
        m = 1 << k
    return -m if negative else m


class _PathRecorder:
    """Records the decisions that code a coordinate, without coding or counting them."""

    def __init__(self) -> None:
        self.decisions: list[tuple[list[int], int]] = []

    def bit(self, context: list[int], value: int) -> int:
        """Record a decision."""
        self.decisions.append((context, value))
        return value


def _group_decoder(coder: _Decoder) -> Callable[[int, int], np.ndarray]:
    """Return a function (d, bits) -> the next group, compiled if possible."""
    native = library()
    if native is None:
        return lambda d, bits: _decode_group(coder, d, bits)
    decode = native.subcompress_decode
    state = Decoder(coder.data, len(coder.data), coder.at, coder.range, coder.code, coder.left)

    def compiled(d: int, bits: int) -> np.ndarray:
        out = np.zeros(d, np.int32)
        decode(ctypes.byref(state), bits, d, out.ctypes.data)
        coder.at, coder.range, coder.code, coder.left = state.at, state.range, state.code, state.left
        return out

    return compiled


def _decode_group(coder: _Decoder, d: int, bits: int) -> np.ndarray:
    """Decode the next group in Python; zero from where `left` is exhausted. Repeated coordinates are decoded in
    batches."""
    contexts, out = _Contexts(bits), np.zeros(d, np.int32)
    paths = {0: [(contexts.zero, 0)]}
    last = repeats = at = 0
    while at < d and coder.left >= 0:
        if read := coder.zeros(contexts.zero, min(FEW_ALIKE, d - at)):
            value = 0
        else:
            value, read = _code_coordinate(coder, contexts, 0), 1
            out[at] = value
        if (path := paths.get(value)) is None:
            path = paths[value] = _decisions_of(contexts, value)
        at, repeats, last = at + read, repeats + read if value == last else read, value
        coder.left -= len(path) - 1
        k = abs(value).bit_length() - 1
        # Classes between these have decisions without a context, each a whole bit of the file: they are few.
        if repeats * len(path) >= FEW_ALIKE and (k <= 2 or k == bits - 1):
            at, repeats = _decode_repeats(coder, path, out, at), 0
    return out


def _decisions_of(contexts: _Contexts, value: int) -> list[tuple[list[int], int]]:
    """Return the decisions that code a coordinate."""
    recorder = _PathRecorder()
    _code_coordinate(recorder, contexts, value)
    return recorder.decisions


def _decode_repeats(coder: _Decoder, path: list[tuple[list[int], int]], out: np.ndarray, at: int) -> int:
    """Decode coordinates while they equal the one before `at`, whose decisions are `path`, doubling the batch each
    time.

    Returns the index of the first that differs, or before which the range must be refilled.
    """
    most, cost = FEW_ALIKE // len(path), len(path) - 1
    while at < len(out) and coder.left >= 0:
        most = min(2 * most, len(out) - at, MANY_DECISIONS // len(path), coder.left // cost + 1 if cost else MAX_D)
        read = coder.repeat(path, most)
        out[at : at + read] = out[at - 1]
        at, coder.left = at + read, coder.left - cost * read
        if read < most:
            break
    return at


def encode(groups: Iterable[tuple[np.ndarray, int]]) -> bytes:
    """Encode groups of coordinates, each (d,) integers of `bits` bits in two's complement.

    Raises SubcompressError for a coordinate that does not fit its bits.
    """
    coder = _Encoder()
    for values, bits in groups:
        top = 1 << (bits - 1)
        if len(values) and (int(values.min()) < -top or int(values.max()) >= top):
            raise SubcompressError(
                f"coordinates of {bits} bits must lie in [{-top}, {top - 1}]; these reach from "
                f"{int(values.min())} to {int(values.max())}: pack with more bits"
            )
        contexts = _Contexts(bits)
        for v in values.tolist():
            _code_coordinate(coder, contexts, v)
    return coder.finish()


def decode(
    data: bytes, groups: Sequence[tuple[int, int]], bits_consumed: list[float] | None = None
) -> list[np.ndarray]:
    """Decode groups given as (d, bits) into int32 (d,) coordinates. bits_consumed: receives the bits that each group
    took.

    Raises SubcompressError if `encode` would not have written these bytes for this number of coordinates.
    """
    coder = _Decoder(data)
    read = _group_decoder(coder)
    if coder.code >= coder.range or (data and not groups):
        raise SubcompressError(
            "the coordinates are not written as a range coder writes them: the file is damaged or forged"
        )
    out = []
    for d, bits in groups:
        before = coder.bits_consumed
        out.append(read(d, bits))
        if bits_consumed is not None:
            bits_consumed.append(coder.bits_consumed - before)
    if coder.left < 0:
        raise SubcompressError(
            f"the nonzero coordinates take more than {FREE_DECISIONS} decisions and {DECISIONS_A_BYTE} per "
            "byte: the file is forged"
        )
    if coder.at < len(data) or data.endswith(b"\0"):
        raise SubcompressError("the payload holds more than d coordinates: the file is damaged or forged")
    return out
