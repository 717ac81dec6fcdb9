"""An independent decoder of docs/FORMAT.md: it shares no code with the package it is compared with."""

import hashlib
import json
import math
import re
import struct
import zlib
from collections import defaultdict
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


def read_shell(data: bytes) -> bytes:
    need(8 <= len(data) <= 2**30, "the file has too few or too many bytes")
    start = 8 + int.from_bytes(data[:8], "little")
    need(data[8:start] == SHELL.format(len(data) - start).encode(), "the shell has another form")
    payload = data[start:]
    need(len(payload) >= 4, "the payload has no checksum")
    need(zlib.crc32(payload[:-4]) == int.from_bytes(payload[-4:], "little"), "the checksum differs")
    return payload[:-4]


def text_of(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Refused("a name is not UTF-8") from error
    need(all(character >= " " for character in text), "a name has control characters")
    return text


def read_list(listed: Reader) -> list[Tensor]:
    tensors, raw = [], b""
    for _ in range(listed.varint(min(65536, 16_384 + 4 * listed.bytes))):
        kept = listed.varint(len(raw))
        raw = raw[:kept] + listed.take(listed.varint(1024 - kept))
        dtype = DTYPES[listed.varint(len(DTYPES) - 1)]
        tensors.append(Tensor(text_of(raw), dtype, tuple(listed.varint() for _ in range(listed.varint(16)))))
    return tensors


def check_layout(tensors: list[Tensor]) -> list[Tensor]:
    need(len(tensors) <= 65536, "too many tensors")
    for tensor in tensors:
        need(math.prod(max(1, axis) for axis in tensor.shape) <= 2**36, "a tensor is too large")
        need(tensor.name != "__metadata__", "a name is reserved")
        need(len(tensor.name.encode()) <= 1024, "a name is too long")
    need(len({t.name for t in tensors}) == len(tensors), "two tensors have one name")
    need(sum(t.nbytes for t in tensors) <= 2**36, "the tensors are too large")
    return tensors


def read_layout(reader: Reader, tables: dict[str, Any], base: Given | None) -> tuple[list[Tensor], bool]:
    """The tensors, and whether they are on a base."""
    number = reader.varint()
    if number == 7:
        return read_based(reader, base), True
    if number:
        need(str(number) in tables["layouts"], "unknown layout")
        return [Tensor(n, t, tuple(shape)) for n, t, shape in tables["layouts"][str(number)]["tensors"]], False
    listed = Reader(reader.deflated(2**24), reader.bytes)
    tensors = check_layout(read_list(listed))
    need(listed.at == len(listed.data), "bytes follow the last tensor of the list")
    return tensors, False


def read_based(reader: Reader, base: Given | None) -> list[Tensor]:
    called = text_of(reader.take(reader.varint(1024)))
    need(called != "", "the base has no name")
    if reader.varint(1):
        reader.take(20)
    digest, n = reader.take(16), reader.varint(65536)
    stripped, added = (text_of(reader.take(reader.varint(1024))) for _ in range(2))
    cast = CASTS[reader.varint(4)]
    unused, at = set(), -1
    for _ in range(reader.varint(n)):
        at += 1 + reader.varint()
        need(at < n, "an unused tensor is none of the base's")
        unused.add(at)
    new, dense = read_list(reader), reader.varint(2**36)
    check_layout(new)
    if base is None:
        raise Refused("the base is not given")
    base = changed(called, base)
    given = [Tensor(name, *base[name][:2]) for name in sorted(base, key=str.encode)]
    need(len(given) == n, "the base has another number of tensors")
    need(weights_digest(given, [base[t.name][2] for t in given]) == digest, "the base has another digest")
    tensors = []
    for i, tensor in enumerate(given):
        if i not in unused:
            need(tensor.name.startswith(stripped), "a tensor of the base does not begin with the prefix")
            dtype, raw = converted(tensor.dtype, base[tensor.name][2], cast)
            name = added + tensor.name[len(stripped) :]
            tensors.append(Tensor(name, dtype, tensor.shape, given=raw))
    check_layout(tensors + new)
    need(sum(t.nbytes for t in tensors + new) == dense, "the dense tensors have another number of bytes")
    return tensors + new


def changed(called: str, base: Given) -> Given:
    """The base with what stands behind its name."""
    name, mark, text = called.rpartition("#")
    parts = text.split(",")
    if not (name and mark and all(re.fullmatch("[^>:]*>[^>:]*|[0-9]+:[0-9]+", part) for part in parts)):
        return base
    order = sorted(base, key=str.encode)
    sized = {int(part.split(":")[0]): int(part.split(":")[1]) for part in parts if ":" in part}
    taken, found = set(base), {}
    for i, own in enumerate(order):
        new = renamed(own, [part.split(">") for part in parts if ">" in part])
        new = own if new in taken else new
        taken.add(new)
        tensor = base[own]
        found[new] = resized(*tensor, sized[i]) if i in sized and tensor[1] else tensor
    return found


def renamed(name: str, renames: list[list[str]]) -> str:
    parts = ["^", *name.split(".")]
    for old, new in renames:
        sought, given, kept = old.split("."), new.split(".") if new else [], list[str]()
        while parts:
            if parts[: len(sought)] == sought:
                kept, parts = kept + given, parts[len(sought) :]
            else:
                kept, parts = kept + parts[:1], parts[1:]
        parts = kept
    return ".".join(parts[1:] if parts[:1] == ["^"] else parts) or name


def resized(dtype: str, shape: tuple[int, ...], raw: bytes, n: int) -> tuple[str, tuple[int, ...], bytes]:
    """A tensor cut, or grown, to n rows."""
    row, more = math.prod(shape[1:]), max(0, n - shape[0])
    found = raw[: n * row * WIDTHS[dtype]] + bytes(more * row * WIDTHS[dtype])
    if more and len(shape) > 1 and dtype in FLOATS[:4]:
        first = summands(dtype, raw[: 4096 * row * WIDTHS[dtype]]).astype(np.float32)
        a = float(np.sort(np.abs(first))[len(first) // 2]) if len(first) else 0.0
        w = rows(shape[0], 256, Group(0, 64, 63, 1, 2), more * row, np.zeros(0, np.int32))
        s = math.sqrt((1.4826 * a) ** 2 / 63) if math.isfinite(a) else 0.0
        found = raw + converted("F64", (s * w.astype(np.float64)).tobytes(), dtype)[1]
    return dtype, (n, *shape[1:]), found


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


def read_groups(reader: Reader) -> list[Group]:
    groups = []
    for _ in range(reader.varint(256)):
        operator = reader.varint()
        need(operator in (1, 2), "unknown operator")
        d, m = reader.varint(2**22), 2 ** reader.varint(20)
        groups.append(Group(d, m, reader.varint(m - 1), reader.varint(2**15 - 1), reader.varint(12), operator))
        need(groups[-1].bits >= 2, "bits is below 2")
    need(sum(group.d for group in groups) <= 2**22, "too many coordinates")
    need(sum(group.K for group in groups) <= 2**22, "too many frozen slots")
    return groups


def read_tag(reader: Reader, groups: list[Group], based: bool, count: int) -> Tensor:
    """What follows a tag, as a tensor without a name."""
    entry, G = Tensor("", "", ()), len(groups)
    tag = reader.varint(2 + 3 * G if based else 1 + 2 * G)
    entry.group = (tag - 1) // 2 if 0 < tag < 1 + 2 * G else None
    if tag == 1 + 2 * G:
        entry.tied = reader.varint(count - 1)
    elif tag == 2 + 2 * G:
        entry.kept = True
    elif tag > 2 + 2 * G:
        entry.group, entry.moved = tag - 3 - 2 * G, True
    elif entry.group is not None and tag % 2 == 0:
        (entry.start,) = struct.unpack("<f", reader.take(4))
        need(2.0**-126 <= abs(entry.start) < math.inf, "a start is zero, subnormal or not finite")
    return entry


def read_scale(reader: Reader) -> float:
    (scale,) = struct.unpack("<f", b"\0\0" + reader.take(2))
    need(2.0**-60 <= scale < 2.0**31, "a scale is out of bounds")
    return float(scale)


def apply_entry(tensors: list[Tensor], i: int, entry: Tensor) -> None:
    """Tensor i is made as the entry says."""
    tensor = tensors[i]
    for key in ("group", "start", "scale", "tied", "moved", "kept"):
        setattr(tensor, key, getattr(entry, key))
    if tensor.tied is not None:
        need(tensor.tied < i and tensors[tensor.tied].tied is None, "tied to a later tensor or a tied one")
        other = tensors[tensor.tied]
        need((tensor.dtype, tensor.shape) == (other.dtype, other.shape), "tied to a tensor of another shape")
    need(tensor.group is None or tensor.dtype in FLOATS, "integers are coded")
    need(tensor.given is not None or not (tensor.kept or tensor.moved), "a new tensor is said to be the base's")
    if tensor.moved:
        assert tensor.given is not None
        need(bool(np.isfinite(numbers(tensor)).all()), "a value of the base, at which one starts, is not finite")


def read_scales(reader: Reader, tensors: list[Tensor]) -> None:
    coded = [tensor for tensor in tensors if tensor.group is not None]
    count = (len(coded) + 7) // 8
    changes = int.from_bytes(reader.take(count), "little")
    need(changes >> len(coded) == 0 and (not coded or changes & 1 == 1), "the scale bits are wrong")
    scale = 0.0
    for i, tensor in enumerate(coded):
        scale = read_scale(reader) if changes >> i & 1 else scale
        tensor.scale = scale


def read_entries(reader: Reader, tensors: list[Tensor], groups: list[Group]) -> None:
    """The tensors of a file on a base (kind 3)."""
    entries = []
    for _ in range(reader.varint(len(tensors))):
        entries.append(read_tag(reader, groups, True, len(tensors)))
        if entries[-1].group is not None:
            entries[-1].scale = read_scale(reader)
    for i in range(len(tensors)):
        apply_entry(tensors, i, entries[reader.varint(len(entries) - 1)])


def read_code(reader: Reader, rules: list[Rule]) -> tuple[Rule, int]:
    return checked_code(reader.varint(), rules)


def checked_code(code: int, rules: list[Rule]) -> tuple[Rule, int]:
    """A rule and how often its scale is halved."""
    need(code // 16 < len(rules), "no such rule")
    rule, halvings = rules[code // 16], code % 16
    need(halvings == 0 or rule.tag == 4, "a rule without a scale is halved")
    need(rule.tag != 4 or rule.scale / 2**halvings >= 2.0**-60, "a halved scale is out of bounds")
    return rule, halvings


def read_start(reader: Reader, numbers: set[int]) -> Start:
    start = Start(reader.varint())
    need(start.number in numbers, "a start is unknown, or may not stand here")
    if start.number == 1:
        (start.value,) = struct.unpack("<f", reader.take(4))
        need(2.0**-126 <= abs(start.value) < math.inf, "a start is zero, subnormal or not finite")
    if start.number in (3, 4):
        start.dtype = DTYPES[reader.varint(3)]
    if start.number == 4:
        start.a, start.b = struct.unpack("<dd", reader.take(16))
    if start.number in (3, 4):
        start.p = reader.varint(2**36)
        need(start.p >= 1, "a table or a ramp has no values")
        need(start.number == 4 or start.p * WIDTHS[start.dtype] <= 2**30, "a table is too large")
        ends = (start.a, start.b, start.a + start.b * start.p)
        need(all(abs(end) < 1e30 for end in ends), "a ramp is too large, or not a number")
    if start.number == 5:
        start.initializer = reader.varint(4)
        start.scale = 0.0 if start.initializer else read_scale(reader)
        start.center = read_start(reader, {0, 1, 3, 4})
    return start


def read_rule(reader: Reader, rules: list[Rule], groups: list[Group], based: bool, count: int) -> Rule:
    """The next rule, after those before it, of a file of so many tensors."""
    rule = Rule(reader.varint(5))
    if rule.tag == 1:
        rule.tied = reader.varint(count - 1)
    need(rule.tag != 2 or based, "a tensor of the base is kept without one")
    if rule.tag == 4:
        need(bool(groups), "no such group")
        rule.group, rule.scale = reader.varint(len(groups) - 1), read_scale(reader)
    if rule.tag in (3, 4):
        rule.start = read_start(reader, {0, 1, 3, 4, 5} | ({2} if rule.tag == 4 and based else set()))
        need(not rule.start.initializer or not based, "an initializer's scale on a base")
    if rule.tag == 5:
        k = reader.varint(255)
        need(k >= 1, "a mixed rule has no items")
        rule.items = [read_code(reader, rules) for _ in range(k)]
        for item, _ in rule.items:
            need(item.start is not None and item.start.number != 2, "an item is neither fixed nor coded")
        rule.runs = [(reader.varint(k - 1), reader.varint()) for _ in range(reader.varint(2**20))]
        need(all(length for _, length in rule.runs), "a run has no length")
        need({item for item, _ in rule.runs} == set(range(k)), "an item has no run")
    return rule


def read_rules(reader: Reader, tensors: list[Tensor], groups: list[Group], based: bool) -> list[Rule]:
    """The tensors of kinds 4 and 5, and the rules that make them."""
    rules: list[Rule] = []
    for _ in range(reader.varint(len(tensors) + 2**18)):
        rules.append(read_rule(reader, rules, groups, based, len(tensors)))
        need(sum(len(rule.runs) for rule in rules) <= 65_536 + 64 * reader.bytes, "rules have too many runs")
    if len(rules) == 1:
        packed = reader.take((len(tensors) + 1) // 2)
        codes = [code for byte in packed for code in (byte & 15, byte >> 4)]
        need(not any(codes[len(tensors) :]), "the last four bits of the codes are not zero")
        chosen = [checked_code(code, rules) for code in codes[: len(tensors)]]
    else:
        chosen = [read_code(reader, rules) for _ in tensors]
    for i, (rule, halvings) in enumerate(chosen):
        apply_rule(tensors, i, rule, halvings)
    for mixed in ([rule for rule, _ in chosen], rules):
        need(sum(len(rule.items) for rule in mixed) <= 2**18, "mixed tensors have too many items")
        need(sum(len(rule.runs) for rule in mixed) <= 2**20, "mixed tensors have too many runs")
    used = {id(rule) for rule, _ in chosen} | {id(item) for rule, _ in chosen for item, _ in rule.items}
    need(len(used) == len(rules), "a rule is used by no tensor")
    return rules


def apply_rule(tensors: list[Tensor], i: int, rule: Rule, halvings: int) -> None:
    """Tensor i is made as the rule says."""
    tensor = tensors[i]
    tensor.group = None
    if rule.tag == 0 and rule.stored is None:
        rule.stored = i
    elif rule.tag in (0, 1):
        tensor.tied, tensor.ties = (rule.tied, True) if rule.tag == 1 else (rule.stored, False)
        assert tensor.tied is not None
        need(tensor.tied < i, "tied to itself or a later tensor")
        other = tensors[tensor.tied]
        need(other.tied is None or not other.ties, "tied to a tied tensor")
        need((tensor.dtype, tensor.shape) == (other.dtype, other.shape), "equal to a tensor of another shape")
    elif rule.tag == 2:
        need(tensor.given is not None, "a new tensor is said to be the base's")
        tensor.kept = True
    elif rule.tag == 5:
        lengths = [length for _, length in rule.runs]
        need(sum(lengths) <= tensor.reals, "the runs are longer than the tensor")
        once = np.repeat([item for item, _ in rule.runs], lengths)
        tensor.which = np.resize(once, tensor.reals)
        counts = np.bincount(tensor.which, minlength=len(rule.items)).tolist()
        add_pieces(tensors, i, [Piece(r, r.scale / 2**e, n) for (r, e), n in zip(rule.items, counts, strict=True)])
    else:
        add_pieces(tensors, i, [Piece(rule, rule.scale / 2**halvings, tensor.reals)])


def add_pieces(tensors: list[Tensor], i: int, pieces: list[Piece]) -> None:
    tensor = tensors[i]
    need(tensor.dtype in FLOATS, "integers are fixed, coded or mixed")
    tensor.pieces = pieces
    for piece in pieces:
        start = piece.rule.start
        assert start is not None
        if start.number == 2:
            need(tensor.given is not None, "a new tensor starts at the base's values")
            need(bool(np.isfinite(numbers(tensor)).all()), "a value of the base, at which one starts, is not finite")
        if start.initializer:
            initial_scale(tensors, i, start.initializer)
        for each in (start, start.center or start):
            need(each.dtype in ("", tensor.real_dtype), "a table or a ramp has another dtype than its tensor")


def initial_scale(tensors: list[Tensor], i: int, f: int) -> float:
    """The scale of seeded values that an initializer's formula gives."""
    shapes = [t.shape for t in tensors[: i + 1] if len(t.shape) >= 2 and t.size]
    need(bool(shapes), "no tensor of two axes gives the initializer its scale")
    inputs = math.prod(shapes[-1][1:])
    outputs = math.prod(shapes[-1]) // shapes[-1][1]
    variance = [1 / (3 * inputs), 2 / inputs, 2 / (inputs + outputs), 1 / inputs][f - 1]
    word = np.array([math.sqrt(variance / 63)], np.float32).view(np.uint32)
    return float(widened(narrowed(word))[0])


def read_tensors(reader: Reader, tensors: list[Tensor], groups: list[Group], based: bool) -> list[Rule]:
    kind = reader.varint(5)
    need(kind > 3 or (kind == 3) == based, "kind 3 without a base, or kinds 0 to 2 with one")
    outer, reader = reader, Reader(reader.deflated(2**24), reader.bytes) if kind in (2, 3, 5) else reader
    rules = []
    if kind > 3:
        rules = read_rules(reader, tensors, groups, based)
    elif based:
        read_entries(reader, tensors, groups)
    else:
        for i in range(len(tensors)):
            need(kind > 0 or len(groups) > 0, "no such group")
            apply_entry(tensors, i, read_tag(reader, groups, False, len(tensors)) if kind else Tensor("", "", ()))
        read_scales(reader, tensors)
    need(reader is outer or reader.at == len(reader.data), "bytes follow the last scale")
    for g, group in enumerate(groups):
        D, free = sum(t.weights_of(g) for t in tensors), group.m - group.K
        need(not based or outer.varint() == D, "a group has another number of weights")
        need(1 <= group.d <= min(D, -(-D // group.m) * free), "a group has too many coordinates")
    return rules


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len(dict(pairs)) == len(pairs), "a fact is given twice")
    return dict(pairs)


def read_facts(reader: Reader, tables: dict[str, Any]) -> dict[str, Any]:
    number = reader.varint()
    if number != 1:
        need(number == 0 or str(number) in tables["facts"], "unknown facts")
        return dict(tables["facts"][str(number)]["facts"]) if number else {}
    try:
        facts = json.loads(reader.deflated(2**20).decode(), object_pairs_hook=unique)  # which refuses a mark
    except (ValueError, RecursionError) as error:
        raise Refused("the facts are not JSON in UTF-8") from error
    need(isinstance(facts, dict), "the facts are not an object")
    kinds = {"input_shape": int, "mean": float, "std": float, "labels": str}
    for key, value in facts.items():
        if key == "inputs":
            need(isinstance(value, list) and len(value) <= 4_096, "inputs are not a list, or too long a one")
            for each in value:
                need(isinstance(each, list) and len(each) == 3, "an input is not three things")
                name, dtype, shape = each
                need(isinstance(name, str) and not re.search("[\ud800-\udfff]", name), "a name is not text")
                need(isinstance(dtype, str) and dtype in DTYPES, "an input's dtype is not a dtype")
                need(isinstance(shape, list) and all(type(k) is int and k >= 0 for k in shape), "a shape is wrong")
                sound = len(shape) <= 16 and math.prod(max(1, k) for k in shape) <= 2**26
                need(sound, "a shape is out of bounds")
            given = [name for name, _, _ in value if name]
            need(len(set(given)) == len(given), "two inputs have one name")
        elif key == "input_dtype":
            need(isinstance(value, str) and value in DTYPES, "input_dtype is not a dtype")
        else:
            need(key in kinds and isinstance(value, list), "an unknown fact, or one that is not a list")
            need(all(type(item) is kinds[key] for item in value), f"{key} has an item of the wrong type")
            need(key == "labels" or all(math.isfinite(item) for item in value), "a number is not finite")
            if key == "input_shape":
                sound = len(value) <= 16 and all(item >= 0 for item in value)
                need(sound and math.prod(max(1, item) for item in value) <= 2**26, "input_shape is out of bounds")
            need(key != "std" or all(item > 0 for item in value), "std is not positive")
            need(key != "labels" or not re.search("[\ud800-\udfff]", "".join(value)), "a label is not text")
    return facts


class RangeDecoder:
    def __init__(self, stream: bytes) -> None:
        self.stream, self.at, self.range = stream, 4, 2**32 - 1
        self.further = 0  # decisions of nonzero coordinates beside their first
        self.code = int.from_bytes(stream[:4].ljust(4, b"\0"), "big")

    def decide(self, counts: list[int]) -> int:
        p = min(max(counts[0] * 65536 // (counts[0] + counts[1]), 1), 65535)
        bound = self.range * p >> 16
        decision = int(self.code >= bound)
        self.further += 1
        self.code -= decision * bound
        self.range = self.range - bound if decision else bound
        counts[decision] += 2
        while self.range < 2**24:
            self.range *= 256
            self.code = self.code * 256 + (self.stream[self.at] if self.at < len(self.stream) else 0)
            self.at += 1
        return decision

    def coordinate(self, bits: int, kept: dict[str, list[int]]) -> int:
        self.further -= 1
        if self.decide(kept["Z"]) == 0:
            return 0
        negative, k, i = self.decide(kept["S"]), 0, 1
        while k < bits - 2 + negative and self.decide(kept[f"C{k}"]):
            k += 1
        if k == bits - 1:
            return -(2**k)
        for _ in range(k):
            i = 2 * i + self.decide(kept[f"M{k},{i}"] if i < 4 else [1, 1])
        return -i if negative else i


def read_coordinates(stream: bytes, groups: list[Group]) -> list[np.ndarray]:
    need(not stream.endswith(b"\0"), "the coordinates end in a zero byte")
    coder, coordinates = RangeDecoder(stream), []
    most = 524_288 + 256 * len(stream)
    need(coder.code < coder.range and (bool(groups) or not stream), "the stream is not a range coder's")
    for group in groups:
        kept: dict[str, list[int]] = defaultdict(lambda: [1, 1])
        values = []
        for _ in range(group.d):
            values.append(coder.coordinate(group.bits, kept))
            need(coder.further <= most, "nonzero coordinates take too many decisions")
        coordinates.append(np.array(values, np.int32))
    need(coder.at >= len(stream), "bytes follow the last coordinate")
    return coordinates


def philox(seed: int, stream: int, count: int) -> np.ndarray:
    q, low, half = np.arange((count + 3) // 4, dtype=np.uint64), np.uint64(2**32 - 1), np.uint64(32)
    c0, c1, c2, c3 = q & low, q >> half, np.full_like(q, stream), np.zeros_like(q)
    for turn in range(10):
        k0 = np.uint64(((seed & 0xFFFFFFFF) + turn * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64(((seed >> 32) + turn * 0xBB67AE85) & 0xFFFFFFFF)
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> half) ^ c1 ^ k0, b & low, (a >> half) ^ c3 ^ k1, a & low
    return np.stack([c0, c1, c2, c3], axis=1).reshape(-1)[:count].astype("<u4")


def sequency(u: int, n: int) -> int:
    s = t = 0
    for i in range(n):
        t ^= u >> i & 1
        s = 2 * s + t
    return s


def columns(seed: int, g: int, group: Group) -> list[int]:
    """The column of each slot, frozen ones first."""
    m, K, h = group.m, group.K, (group.m.bit_length() - 1) // 2
    w0, w1, w2, w3 = (int(word) for word in philox(seed, 2 * g + 1, 4))
    if group.operator == 2:
        found, half = [], math.ceil(math.log2(m) / 2)
        for j in range(K + min(group.d, m - K)):
            x = ((w0 | 1) * j + w1) % m
            for w in (w2, w3):
                x = (x ^ (x >> half)) * (w | 1) % m
            found.append(x)
        return found
    a = m.bit_length() - 1 - h
    along_x = [(sequency(x, a) * (2**h - 1)) ** 2 for x in range(2**a)]
    along_y = [(sequency(y, h) * (2**a - 1)) ** 2 for y in range(2**h)]
    V = sorted(range(m), key=lambda v: (along_x[v % 2**a] + along_y[v >> a], v))
    Q = max(m // 4, 1)
    while Q < K:
        Q *= 2
    frozen = [V[((w0 | 1) * j + w1) % Q] for j in range(K)]
    taken = set(frozen)
    return frozen + [v for v in V if v not in taken]


def rows(seed: int, g: int, group: Group, D: int, c: np.ndarray) -> np.ndarray:
    """The D integers of group g (section 9)."""
    d, m, K, f, B = group.d, group.m, group.K, group.m - group.K, -(-D // group.m)
    j = np.arange(min(d, f))
    slots = np.full((B, K + len(j)), group.A, np.int32)
    slots[:, K:] = c[j] if d <= f else c[(np.arange(B)[:, None] * f + j) % d]
    need(bool((np.abs(slots).sum(axis=1, dtype=np.int64) < 2**16).all()), "the slots of a block are too large")
    signs = np.unpackbits(philox(seed, 2 * g, (B * m + 31) // 32).view(np.uint8), bitorder="little")
    slots[signs[: B * m].reshape(B, m)[:, : slots.shape[1]] == 1] *= -1
    block = np.zeros((B, m), np.int32)
    block[:, columns(seed, g, group)[: slots.shape[1]]] = slots
    half = 1
    while half < m:
        pairs = block.reshape(-1, 2, half)
        block = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return block.reshape(-1)[:D]


def numbers(tensor: Tensor) -> np.ndarray:
    """The base's values, as what they are added in."""
    assert tensor.given is not None
    return summands(tensor.real_dtype, tensor.given)


def summands(dtype: str, raw: bytes) -> np.ndarray:
    """Values of a dtype, as what they are added in."""
    if dtype == "BF16":
        return widened(raw)
    value = np.frombuffer(raw, NUMPY[dtype])
    return value if dtype == "F64" else value.astype(np.float32)


def weights(tensor: Tensor, w: np.ndarray) -> bytes:
    product = np.float32(tensor.scale) * w.astype(np.float32)
    if tensor.moved:
        return rounded(tensor.dtype, moved(tensor.dtype, numbers(tensor), product))
    return rounded(tensor.dtype, np.float32(tensor.start) + product)


def moved(dtype: str, start: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Products added to what they start at, as on a base."""
    if dtype == "F64":
        return start.astype(np.float64) + product.astype(np.float64)
    value = np.where(np.abs(start) < 2.0**-126, np.float32(0), start) + product
    return np.where(np.abs(value) < 2.0**-126, np.float32(0), value)


def rounded(dtype: str, value: np.ndarray) -> bytes:
    if dtype == "BF16":
        return narrowed(value.view(np.uint32))
    with np.errstate(over="ignore"):
        return value.astype(NUMPY[dtype]).tobytes()


class Making:
    """Makes the tensors of rules, in order: each takes what follows of the integers of a group, and of the seeded."""

    def __init__(self, seed: int, tensors: list[Tensor], integers: list[np.ndarray]) -> None:
        self.tensors, self.integers, self.at = tensors, integers, defaultdict(int)
        seeded = sum(p.count for t in tensors for p in t.pieces if p.rule.start and p.rule.start.number == 5)
        self.seeded = rows(seed, 256, Group(0, 64, 63, 1, 2), seeded, np.zeros(0, np.int32))

    def take(self, g: int, count: int) -> np.ndarray:
        self.at[g] += count
        source = self.seeded if g == 256 else self.integers[g]
        return source[self.at[g] - count : self.at[g]].astype(np.float32)

    def tensor(self, i: int) -> bytes:
        tensor = self.tensors[i]
        made = [self.piece(i, piece) for piece in tensor.pieces]
        if tensor.which is None:
            return made[0]
        words = np.zeros(tensor.reals, f"u{WIDTHS[tensor.real_dtype]}")
        for item, raw in enumerate(made):
            words[tensor.which == item] = np.frombuffer(raw, words.dtype)
        return words.tobytes()

    def piece(self, i: int, piece: Piece) -> bytes:
        dtype, rule = self.tensors[i].real_dtype, piece.rule
        start, exact = self.start(i, rule.start, piece.count)
        if rule.tag == 3:
            return exact or rounded(dtype, start)
        product = np.float32(piece.scale) * self.take(rule.group, piece.count)
        assert rule.start is not None
        return rounded(dtype, start + product if rule.start.number < 2 else moved(dtype, start, product))

    def start(self, i: int, start: Start | None, n: int) -> tuple[np.ndarray, bytes]:
        """The values of a start as what they are added in, and their own bytes if it has the tensor's dtype."""
        assert start is not None
        tensor = self.tensors[i]
        if start.number == 2:
            return numbers(tensor), b""
        if start.number in (3, 4):
            raw = ramp(start, n) if start.number == 4 else repeated(start, n)
            return summands(start.dtype, raw), raw
        if start.number == 5:
            return self.seeds(i, start, n), b""
        return np.full(n, start.value, np.float32), b""

    def seeds(self, i: int, start: Start, n: int) -> np.ndarray:
        scale = initial_scale(self.tensors, i, start.initializer) if start.initializer else start.scale
        product = np.float32(scale) * self.take(256, n)
        assert start.center is not None
        with np.errstate(over="ignore"):
            center = self.start(i, start.center, n)[0].astype(np.float32)
        return center + product if start.center.number < 2 else moved("F32", center, product)


def repeated(start: Start, n: int) -> bytes:
    return np.resize(np.frombuffer(start.table, f"u{WIDTHS[start.dtype]}"), n).tobytes()


def ramp(start: Start, n: int) -> bytes:
    k = np.arange(n) % min(start.p, 2**62)
    return converted("F64", (start.a + start.b * k.astype(np.float64)).tobytes(), start.dtype)[1]


def weights_digest(tensors: list[Tensor], values: list[bytes]) -> bytes:
    text = "".join(f"{t.name} {t.dtype} {','.join(map(str, t.shape))}\n" for t in tensors)
    leaves = [value[at : at + 2**22] for value in values for at in range(0, len(value), 2**22)]
    parts = [hashlib.sha256(part).digest() for part in [text.encode(), *leaves]]
    return hashlib.sha256(b"".join(parts)).digest()[:16]


def read_stored(reader: Reader, tensors: list[Tensor], rules: list[Rule]) -> Reader:
    """The values of the stored tensors, after the tables that go to the rules."""
    stored = [t for t in tensors if t.group is None and t.tied is None and not t.kept and not t.pieces]
    starts = [each for rule in rules if rule.start for each in (rule.start, rule.start.center)]
    tables = [start for start in starts if start and start.number == 3]
    total = sum(table.p * WIDTHS[table.dtype] for table in tables) + sum(tensor.nbytes for tensor in stored)
    need(total <= 2**30, "the stored part is too large")
    data = reader.deflated(total) if stored or tables else b""
    need(len(data) == total, "the stored part has another length")
    values = Reader(data)
    for table in tables:
        table.table = values.take(table.p * WIDTHS[table.dtype])
        need(bool(np.isfinite(summands(table.dtype, table.table)).all()), "a value of a table is not finite")
    return values


def decode(data: bytes, tables: dict[str, Any], base: Given | None = None) -> Decoded:
    reader = Reader(read_shell(data))
    need(reader.take(3) == b"SC\1" and reader.varint() == 1, "unknown magic, version or generator")
    seed = reader.varint()
    (tensors, based), groups = read_layout(reader, tables, base), read_groups(reader)
    rules = read_tensors(reader, tensors, groups, based)
    facts, accuracy, digest = read_facts(reader, tables), reader.varint(10_001), reader.take(16)
    stored = read_stored(reader, tensors, rules)
    coordinates = read_coordinates(reader.take(len(reader.data) - reader.at), groups)
    sizes = [sum(tensor.weights_of(g) for tensor in tensors) for g in range(len(groups))]
    integers = [rows(seed, g, groups[g], sizes[g], coordinates[g]) for g in range(len(groups))]
    making, values = Making(seed, tensors, integers), []
    for i, tensor in enumerate(tensors):
        if tensor.pieces:
            values.append(making.tensor(i))
        elif tensor.tied is not None:
            values.append(values[tensor.tied])
        elif tensor.kept:
            assert tensor.given is not None
            values.append(tensor.given)
        elif (g := tensor.group) is None:
            values.append(stored.take(tensor.nbytes))
            need(tensor.dtype != "BOOL" or not values[-1].strip(b"\0\1"), "a BOOL is neither 0 nor 1")
        else:
            values.append(weights(tensor, integers[g][: tensor.reals]))
            integers[g] = integers[g][tensor.reals :]
    need(weights_digest(tensors, values) == digest, "the weights are not those that were packed")
    named = {t.name: (t.dtype, t.shape, value) for t, value in zip(tensors, values, strict=True)}
    return Decoded(seed, coordinates, named, digest, facts, (accuracy - 1) / 10_000 if accuracy else None)
