"""What the independent decoder reads: tensors, rules, groups, and bytes in order."""

import math
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "C64": 8}


DTYPES = list(WIDTHS)  # in the order of their numbers


FLOATS = [*DTYPES[:4], "C64"]


NANS = {"F32": 0x7FC00000, "F16": 0x7E00, "BF16": 0x7FC0, "F64": 0x7FF8000000000000}


CASTS = [None, "F32", "F16", "BF16", "F64"]  # in the order of their numbers


NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "C64": "<f4"}  # of the real numbers of a tensor


SHELL = '{{"z":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}'


class Refused(Exception):  # noqa: N818
    """The bytes break a rule of the text."""


@dataclass
class Decoded:
    seed: int
    coordinates: list[np.ndarray]
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]]
    digest: bytes
    facts: dict[str, Any]
    accuracy: float | None


Given = dict[str, tuple[str, tuple[int, ...], bytes]]  # a base: its tensors by name


@dataclass
class Start:
    """What values start from (section 5, rules)."""

    number: int
    value: float = 0.0  # of a constant
    dtype: str = ""  # of a table or a ramp
    p: int = 0
    a: float = 0.0
    b: float = 0.0
    table: bytes = b""
    initializer: int = 0
    scale: float = 0.0
    center: "Start | None" = None


@dataclass
class Rule:
    tag: int
    tied: int = 0
    group: int = 0
    scale: float = 0.0
    start: Start | None = None
    items: "list[tuple[Rule, int]]" = field(default_factory=list)  # rules with their halvings
    runs: list[tuple[int, int]] = field(default_factory=list)  # items with their lengths
    stored: int | None = None  # the first tensor that this rule stores
    rank: int = 0  # of factors


class Piece(NamedTuple):
    """The values of a tensor that one rule makes."""

    rule: Rule
    scale: float  # halved
    count: int


@dataclass
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    group: int | None = 0  # None where the tensor is stored
    start: float = 0.0
    scale: float = 0.0
    tied: int | None = None  # to that tensor
    given: bytes | None = None  # the base's values, where it gives the tensor
    moved: bool = False  # it is coded and starts at them
    kept: bool = False  # it is them
    pieces: list[Piece] = field(default_factory=list)  # where rules make it
    which: np.ndarray | None = None  # the piece of each value, where it is mixed
    rank: int = 0  # of the factors that are added to the base's values, its pieces
    sketched: bool = False  # its one piece is between directions of the base
    ties: bool = True  # where it has `tied`: it is so by a tie, not by a rule of stored values

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def reals(self) -> int:
        return self.size * (2 if self.dtype == "C64" else 1)

    def weights_of(self, g: int) -> int:
        ruled = sum(piece.count for piece in self.pieces if piece.rule.tag == 4 and piece.rule.group == g)
        return ruled + (self.reals if self.group == g else 0)

    @property
    def real_dtype(self) -> str:
        return "F32" if self.dtype == "C64" else self.dtype

    @property
    def nbytes(self) -> int:
        return self.size * WIDTHS[self.dtype]


class Group(NamedTuple):
    d: int
    m: int
    K: int
    A: int
    bits: int
    operator: int = 1


def need(holds: bool, rule: str) -> None:
    if not holds:
        raise Refused(rule)


class Reader:
    def __init__(self, data: bytes, of: int = 0) -> None:
        self.data, self.at, self.bytes = data, 0, of or len(data)  # the bytes of the payload that they are of

    def take(self, count: int) -> bytes:
        need(count <= len(self.data) - self.at, "the bytes end too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self, limit: int = 2**64 - 1) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                need(byte > 0 or shift == 0, "a varint is not in its shortest form")
                need(value <= limit, f"a number is above {limit}")
                return value
        raise Refused("a varint is longer than ten bytes")

    def deflated(self, limit: int) -> bytes:
        length = self.varint(limit)
        stream, inflater = self.take(self.varint()), zlib.decompressobj(-15)
        try:
            data = inflater.decompress(stream, length + 1)
        except zlib.error as error:
            raise Refused("a DEFLATE stream is broken") from error
        need(len(data) == length and inflater.eof and not inflater.unused_data, "a DEFLATE stream has another length")
        return data


def converted(dtype: str, raw: bytes, cast: str | None) -> tuple[str, bytes]:
    """The base's values as what they are converted to."""
    if cast is None or cast == dtype or dtype not in FLOATS[:4]:
        return dtype, raw
    value = (widened(raw) if dtype == "BF16" else np.frombuffer(raw, NUMPY[dtype])).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if cast == "F64":
            words = value.view(np.uint64)
        else:
            single = value.astype(np.float32)
            words = single.astype("<f2").view(np.uint16) if cast == "F16" else single.view(np.uint32)
    if cast == "BF16":
        words = np.frombuffer(narrowed(words), "<u2")
    return cast, np.where(np.isnan(value), words.dtype.type(NANS[cast]), words).tobytes()


def widened(raw: bytes) -> np.ndarray:
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def narrowed(word: np.ndarray) -> bytes:
    """BF16 of the bits of float32."""
    return ((word + 0x7FFF + (word >> 16 & 1)) >> 16).astype("<u2").tobytes()
