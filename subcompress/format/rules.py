"""Tensor lists as rules: how values start and which coordinates act on them, written once for all tensors alike.

docs/FORMAT.md, section 5, kinds 4 and 5. A tensor is the number of a rule and how often the rule's scale is halved.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from subcompress.errors import SubcompressError
from subcompress.format.record import (
    HIGHEST_SCALE,
    LOWEST_SCALE,
    MAX_RANK,
    MAX_SCALE_EXPONENT,
    MIN_SCALE_EXPONENT,
    SMALLEST_START,
    Coded,
    Entry,
    Factored,
    Fixed,
    Mixed,
    Record,
    Stored,
    Tied,
    Unchanged,
    bfloat16,
)
from subcompress.format.wire import Reader, Writer
from subcompress.operators.forms import FANS, Chosen, Form, Ramp, Seeded, Table, fans, seeded_scale
from subcompress.tensors.layout import DTYPES, Layout

PLAIN, DEFLATED = 4, 5
"""The kinds of tensor lists of rules, plain and deflated."""

HALVINGS = 16
"""A rule's scale is halved fewer times than this."""

MAX_ITEMS = 255
MAX_RUNS = 1 << 20
MAX_PERIOD = 1 << 36
MAX_PIECES = 1 << 18
"""The most items in all mixed tensors of a file."""

MAX_ALL_RUNS = 1 << 20
"""The most runs in all mixed tensors of a file."""

FREE_RUNS, RUNS_A_BYTE = 1 << 16, 64
"""The most runs in all rules, and how many more per byte of the file. (Runs that repeat are written once.)"""

_STORED, _TIED, _UNCHANGED, _FIXED, _CODED, _MIXED, _FACTORED, _SKETCHED = range(8)
_ZERO, _CONSTANT, _BASE, _TABLE, _RAMP, _SEEDED = range(6)
_CODES = list(DTYPES)
_ON_BASE = "base"
"""The start in the key of a rule whose values start at the base's."""


def needs_rules(record: Record) -> bool:
    """Return whether the record needs a tensor list of rules, because the older kinds cannot express it."""
    return any(
        isinstance(e, (Fixed, Mixed, Factored))
        or (isinstance(e, Coded) and not e.plain and not e.based)
        or (isinstance(e, Stored) and e.same is not None)
        for e in record.entries
    )


def has_factors(entries: Iterable[Entry]) -> bool:
    """Return whether a file has rules of factors, which make it one of version 2."""
    return any(isinstance(e, Factored) for e in entries)


class _Fans:
    """The fans of each tensor for initializers: its own, or those of the nearest earlier tensor with two axes; None if
    there is none."""

    def __init__(self, layout: Layout) -> None:
        self._fans: list[tuple[int, int] | None] = []
        for spec in layout:
            before = self._fans[-1] if self._fans else None
            self._fans.append(fans(spec.shape) or before)

    def scale(self, number: int, at: int) -> float | None:
        """Return the scale of a seeded start of tensor `at` under an entry of FANS."""
        found = self._fans[at]
        return None if found is None else bfloat16(seeded_scale(FANS[number](*found)))


@dataclass(frozen=True)
class _Fan:
    """A seeded start around `center` whose scale is that of entry `number` of FANS."""

    number: int
    center: Chosen


_Start = Form | _Fan


# Writing


@dataclass
class _Palette:
    """The rules of a record, numbered in order of first use.

    heads: by key, the scales from which all others of that key are halvings.
    """

    fans: _Fans
    heads: dict[tuple[object, ...], list[float]] = field(default_factory=dict)
    rules: dict[tuple[object, ...], int] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    tables: list[bytes] = field(default_factory=list)

    def number(self, key: tuple[object, ...], body: bytes, table: bytes = b"") -> int:
        """Return the number of the rule with this key, adding it if it is new."""
        if key not in self.rules:
            self.rules[key] = len(self.bodies)
            self.bodies.append(body)
            self.tables += [table] if table else []
        return self.rules[key]


def write_rules(w: Writer, record: Record) -> bytes:
    """Write the tensor list, deflated if that is shorter; return the bytes of its tables, which are stored."""
    palette = _Palette(_Fans(record.layout))
    palette.heads = _heads(palette, record)
    codes = [_code_of(palette, record, i) for i in range(len(record.entries))]
    body = Writer()
    body.varint(len(palette.bodies))
    body.raw(b"".join(palette.bodies))
    if len(palette.bodies) == 1:
        nibbles = [code % HALVINGS for code in codes] + [0] * (len(codes) % 2)
        body.raw(bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True)))
    else:
        for code in codes:
            body.varint(code)
    packed = Writer()
    packed.deflated(bytes(body.data))
    shorter = len(packed.data) < len(body.data)
    w.varint(DEFLATED if shorter else PLAIN)
    w.raw(bytes(packed.data if shorter else body.data))
    if record.base is not None:
        for size in record.sizes:
            w.varint(size)
    return b"".join(palette.tables)


def _parts(record: Record) -> Iterator[tuple[int, Coded | Fixed]]:
    """Yield every piece of the record with the number of its tensor."""
    for i, own in enumerate(record.pieces):
        for piece in own:
            yield i, piece.entry


def _key(palette: _Palette, record: Record, i: int, part: Coded | Fixed) -> tuple[object, ...]:
    """Return the key shared by pieces whose rules differ only by halvings of the scale."""
    start = _ON_BASE if isinstance(part, Coded) and part.based else _start_of(palette, record, i, part.start)
    return (part.group, start) if isinstance(part, Coded) else (None, start)


def _start_of(palette: _Palette, record: Record, i: int, start: Form) -> _Start:
    """Return the start, as a `_Fan` if its scale is that of an initializer."""
    if isinstance(start, Seeded) and record.base is None:
        for number in FANS:
            if palette.fans.scale(number, i) == start.scale:
                return _Fan(number, start.center)
    return start


def _heads(palette: _Palette, record: Record) -> dict[tuple[object, ...], list[float]]:
    """Return, by key, the scales from which all others of that key are halvings."""
    scales: dict[tuple[object, ...], set[float]] = {}
    for i, part in _parts(record):
        if isinstance(part, Coded):
            scales.setdefault(_key(palette, record, i, part), set()).add(part.scale)
    found: dict[tuple[object, ...], list[float]] = {}
    for key, distinct in scales.items():
        heads: list[float] = []
        for scale in sorted(distinct, reverse=True):
            if _find_head(heads, scale) is None:
                heads.append(scale)
        found[key] = heads
    return found


def _find_head(heads: list[float], scale: float) -> tuple[float, int] | None:
    """Return the head that the scale is a halving of, and how many times; None if there is none."""
    for head in heads:
        mantissa, exponent = math.frexp(head / scale)
        if mantissa == 0.5 and exponent - 1 < HALVINGS:
            return head, exponent - 1
    return None


def _code_of(palette: _Palette, record: Record, i: int) -> int:
    entry = record.entries[i]
    if isinstance(entry, Stored):
        return HALVINGS * palette.number(("stored", i if entry.same is None else entry.same), bytes([_STORED]))
    if isinstance(entry, Tied):
        body = Writer()
        body.varint(_TIED)
        body.varint(entry.index)
        return HALVINGS * palette.number(("tied", entry.index), bytes(body.data))
    if isinstance(entry, Unchanged):
        return HALVINGS * palette.number(("kept",), bytes([_UNCHANGED]))
    if isinstance(entry, Factored):
        return HALVINGS * _number_of_factored(palette, record, i, entry)
    if not isinstance(entry, Mixed):
        return _code_of_piece(palette, record, i, entry)
    body = Writer()
    body.varint(_MIXED)
    body.varint(len(entry.items))
    for item in entry.items:
        body.varint(_code_of_piece(palette, record, i, item))
    body.varint(len(entry.runs))
    for number, length in entry.runs:
        body.varint(number)
        body.varint(length)
    return HALVINGS * palette.number(("mixed", bytes(body.data)), bytes(body.data))


def _number_of_factored(palette: _Palette, record: Record, i: int, entry: Factored) -> int:
    body = Writer()
    body.varint(_SKETCHED if entry.sketched else _FACTORED)
    body.varint(entry.rank)
    for item in entry.items:
        body.varint(_code_of_piece(palette, record, i, item))
    return palette.number(("factored", bytes(body.data)), bytes(body.data))


def _code_of_piece(palette: _Palette, record: Record, i: int, part: Coded | Fixed) -> int:
    key, body, halvings = _key(palette, record, i, part), Writer(), 0
    if isinstance(part, Coded):
        found = _find_head(palette.heads[key], part.scale)
        assert found is not None, "heads were made of all scales"
        head, halvings = found
        body.varint(_CODED)
        body.varint(part.group)
        body.raw(struct.pack("<f", head)[2:])
        key = (*key, head)
    else:
        body.varint(_FIXED)
    table = _write_start(body, key[1])
    return HALVINGS * palette.number(("piece", *key), bytes(body.data), table) + halvings


def _write_start(w: Writer, start: object) -> bytes:
    """Write a start; returns the bytes of its table, if it has one."""
    if start == _ON_BASE:
        w.varint(_BASE)
    elif isinstance(start, float):
        w.varint(_ZERO if start == 0 else _CONSTANT)
        if start != 0:
            w.float32(start)
    elif isinstance(start, Table):
        w.varint(_TABLE)
        w.varint(_CODES.index(start.dtype))
        w.varint(start.period)
        return start.data
    elif isinstance(start, Ramp):
        w.varint(_RAMP)
        w.varint(_CODES.index(start.dtype))
        w.raw(struct.pack("<dd", start.first, start.step))
        w.varint(start.period)
    else:
        assert isinstance(start, (Seeded, _Fan))
        w.varint(_SEEDED)
        w.varint(start.number if isinstance(start, _Fan) else 0)
        if isinstance(start, Seeded):
            w.raw(struct.pack("<f", start.scale)[2:])
        return _write_start(w, start.center)
    return b""


# Reading


@dataclass(frozen=True)
class _Rule:
    """A decoded rule.

    part: its piece, with empty tables; index: the tensor that one is tied to; codes, runs: of a mixed one; codes, rank:
    of one with factors; fan: the entry of FANS that gives the scale, 0 for none; table: the number of its table.
    """

    tag: int
    part: Coded | Fixed | None = None
    index: int = 0
    codes: tuple[int, ...] = ()
    runs: tuple[tuple[int, int], ...] = ()
    fan: int = 0
    table: int | None = None
    rank: int = 0

    @property
    def items(self) -> int:
        """The number of items of a mixed one."""
        return len(self.codes) if self.tag == _MIXED else 0


@dataclass(frozen=True)
class Rules:
    """A decoded tensor list of rules. sizes: of the groups, on a base; table_sizes: bytes of each table."""

    rules: tuple[_Rule, ...]
    codes: tuple[int, ...]
    table_sizes: tuple[int, ...]
    sizes: tuple[int, ...] = ()

    def entries(self, layout: Layout | None, stored: bytes = b"") -> tuple[Entry, ...]:
        """Return the entry of each tensor.

        layout: that of the file, None on a base; stored: bytes that begin with the tables; if empty, tables are empty
        too. Raises SubcompressError for a list that does not fit the layout.
        """
        builder = _EntryBuilder(self, layout, stored)
        return tuple(builder.entry(code, i) for i, code in enumerate(self.codes))


class _EntryBuilder:
    """Builds the entries of tensors in order; equal entries are one object."""

    def __init__(self, rules: Rules, layout: Layout | None, stored: bytes) -> None:
        self.rules = rules.rules
        self.fans = None if layout is None else _Fans(layout)
        self.tables: list[bytes] = []
        at = 0
        for size in rules.table_sizes:
            self.tables.append(stored[at : at + size])
            at += size
        self.first: dict[int, int] = {}
        self.pieces: dict[tuple[int, float], Coded | Fixed] = {}
        self.mixed: dict[int, Mixed] = {}
        self.factored: dict[int, Factored] = {}

    def entry(self, code: int, i: int) -> Entry:
        """Build the entry of tensor i."""
        number, halvings = divmod(code, HALVINGS)
        rule = self.rules[number]
        if halvings and rule.tag != _CODED:
            raise SubcompressError("only scales are halved: the file is damaged or forged; fetch it again")
        if rule.tag == _STORED:
            first = self.first.setdefault(number, i)
            return Stored(None if first == i else first)
        if rule.tag == _TIED:
            return Tied(rule.index)
        if rule.tag == _UNCHANGED:
            return Unchanged()
        if rule.tag == _MIXED:
            if number not in self.mixed or any(self.rules[c // HALVINGS].fan for c in rule.codes):
                self.mixed[number] = Mixed(tuple(self._piece(c, i) for c in rule.codes), rule.runs)
            return self.mixed[number]
        if rule.tag in (_FACTORED, _SKETCHED):
            if number not in self.factored:
                items = tuple(self._piece(c, i) for c in rule.codes)
                self.factored[number] = Factored(rule.rank, items, rule.tag == _SKETCHED)
            return self.factored[number]
        return self._piece(code, i)

    def _piece(self, code: int, i: int) -> Coded | Fixed:
        number, halvings = divmod(code, HALVINGS)
        rule = self.rules[number]
        scale = self._scale(rule.fan, i) if rule.fan else 0.0
        if (code, scale) not in self.pieces:
            part = rule.part
            assert part is not None, "only pieces are asked for"
            part = replace(part, start=self._start(part.start, rule, scale))
            if halvings and isinstance(part, Coded):
                part = replace(part, scale=math.ldexp(part.scale, -halvings))
            self.pieces[code, scale] = part
        return self.pieces[code, scale]

    def _scale(self, fan: int, i: int) -> float:
        """Return the scale of an initializer for tensor i."""
        found = self.fans.scale(fan, i) if self.fans is not None else None
        if found is None:
            raise SubcompressError(
                "an initializer's scale needs a tensor of two axes: the file is damaged or forged; fetch it again"
            )
        return found

    def _start(self, start: Form, rule: _Rule, scale: float) -> Form:
        """Return the start with its table and, if it names an initializer, with that scale."""
        if isinstance(start, Seeded):
            center = start.center
            if isinstance(center, Table) and rule.table is not None:
                center = replace(center, data=self.tables[rule.table])
            return Seeded(scale if rule.fan else start.scale, center)
        if isinstance(start, Table) and rule.table is not None:
            return replace(start, data=self.tables[rule.table])
        return start


def read_rules(r: Reader, tensors: int, groups: int, on_base: bool, most_bytes: int) -> Rules:
    """Read what `write_rules` wrote, from after the kind up to the sizes of the groups."""
    count = r.varint("the number of rules", tensors + MAX_PIECES)
    sizes: list[int] = []
    rules: list[_Rule] = []
    items = runs = table_bytes = 0
    for _ in range(count):
        before = len(sizes)
        rules.append(_read_rule(r, rules, tensors, groups, on_base, sizes))
        table_bytes += sum(sizes[before:])
        if table_bytes > most_bytes:
            raise r.fail(f"tables take at most {most_bytes} bytes")
        items, runs = items + rules[-1].items, runs + len(rules[-1].runs)
        _check_mixing(r, items, runs)
        if runs > FREE_RUNS + RUNS_A_BYTE * r.bytes:
            raise r.fail(f"rules have at most {FREE_RUNS} runs and {RUNS_A_BYTE} for each byte of the file")
    codes = _read_codes(r, tensors, count)
    used = Counter(code // HALVINGS for code in codes)
    _check_mixing(
        r, sum(k * rules[n].items for n, k in used.items()), sum(k * len(rules[n].runs) for n, k in used.items())
    )
    used_by_tensors = set(used)
    if len(used_by_tensors | {code // HALVINGS for n in used_by_tensors for code in rules[n].codes}) != count:
        raise r.fail("every rule is that of a tensor, or of an item of one")
    return Rules(tuple(rules), codes, tuple(sizes))


def _check_mixing(r: Reader, items: int, runs: int) -> None:
    if items > MAX_PIECES or runs > MAX_ALL_RUNS:
        raise r.fail(f"mixed tensors have at most {MAX_PIECES} items and {MAX_ALL_RUNS} runs in all")


def _read_codes(r: Reader, tensors: int, rules: int) -> tuple[int, ...]:
    """Read the code of each tensor: its rule and how often the scale is halved."""
    if rules == 0:
        if tensors:
            raise r.fail("tensors need a rule")
        return ()
    if rules > 1:
        return tuple(r.varints(tensors, "a tensor's rule", HALVINGS * rules - 1))
    packed = r.raw(-(-tensors // 2))
    if tensors % 2 and packed[-1] >> 4:
        raise r.fail("half a byte that stands for no tensor is zero")
    return tuple(packed[i // 2] >> 4 * (i % 2) & 15 for i in range(tensors))


def _read_rule(r: Reader, rules: list[_Rule], tensors: int, groups: int, on_base: bool, sizes: list[int]) -> _Rule:
    if (tag := r.varint("a rule's tag", 1 << 32)) > _SKETCHED:
        raise SubcompressError(f"a rule of tag {tag} is unknown ({_SKETCHED} is the last): upgrade subcompress")
    if tag == _TIED:
        return _Rule(tag, index=r.varint("the number of the earlier tensor that one is tied to", max(0, tensors - 1)))
    if tag == _UNCHANGED and not on_base:
        raise r.fail("only a file on a base keeps its tensors")
    if tag == _MIXED:
        return _read_mixed(r, rules)
    if tag in (_FACTORED, _SKETCHED):
        return _read_factored(r, rules, on_base, tag)
    if tag == _FIXED:
        start, fan, table = _read_start(r, on_base, sizes, False)
        return _Rule(tag, Fixed(start), fan=fan, table=table)
    if tag == _CODED:
        if not groups:
            raise r.fail("coded tensors need a group")
        group, scale = r.varint("a group's number", groups - 1), _read_scale(r)
        at = r.at
        based = on_base and r.varint("how values start", _SEEDED) == _BASE
        if based:
            return _Rule(tag, Coded(scale, group, 0.0, True))
        r.at = at  # rewind after the look-ahead
        start, fan, table = _read_start(r, on_base, sizes, False)
        return _Rule(tag, Coded(scale, group, start), fan=fan, table=table)
    return _Rule(tag)


def _read_items(r: Reader, rules: list[_Rule], count: int) -> tuple[int, ...]:
    """Read the codes of n items, each coded or fixed."""
    codes = tuple(r.varints(count, "an item's rule", HALVINGS * max(len(rules), 1) - 1))
    for code in codes:
        rule = rules[code // HALVINGS] if rules else None
        if rule is None or rule.part is None or (rule.tag == _FIXED and code % HALVINGS):
            raise r.fail("the items of a tensor are coded or fixed, by rules before it")
        if isinstance(rule.part, Coded) and rule.part.based:
            raise r.fail("no item starts at the base")
    return codes


def _read_factored(r: Reader, rules: list[_Rule], on_base: bool, tag: int) -> _Rule:
    if not on_base:
        raise r.fail("factors are added to a base")
    if not (rank := r.varint("a rank", MAX_RANK)):
        raise r.fail("a rank is 1 at least")
    return _Rule(tag, codes=_read_items(r, rules, 1 if tag == _SKETCHED else 2), rank=rank)


def _read_mixed(r: Reader, rules: list[_Rule]) -> _Rule:
    count = r.varint("the number of items", MAX_ITEMS)
    codes = _read_items(r, rules, count)
    numbers = r.varints(2 * r.varint("the number of runs", MAX_RUNS), "a run's item or length", MAX_PERIOD)
    items, lengths = numbers[::2], numbers[1::2]
    if set(items) != set(range(count)) or not count or min(lengths) < 1 or sum(lengths) > MAX_PERIOD:
        raise r.fail("runs name every item, and are not empty")
    return _Rule(_MIXED, codes=codes, runs=tuple(zip(items, lengths, strict=True)))


def _read_start(r: Reader, on_base: bool, sizes: list[int], center: bool) -> tuple[Form, int, int | None]:
    """Read a start; return it with the entry of FANS that gives its scale, and the number of its table."""
    kind = r.varint("how values start", _SEEDED)
    if kind == _ZERO:
        return 0.0, 0, None
    if kind == _CONSTANT:
        value = r.float32()
        if not SMALLEST_START <= abs(value) < math.inf:
            raise r.fail("a constant start is finite, normal and not zero")
        return value, 0, None
    if kind == _TABLE:
        dtype, period = _read_dtype(r), r.varint("the values of a table", MAX_PERIOD)
        sizes.append(period * DTYPES[dtype].itemsize)
        return Table(b"", dtype), 0, len(sizes) - 1
    if kind == _RAMP:
        dtype = _read_dtype(r)
        first, step = struct.unpack("<dd", r.raw(16))
        return Ramp(first, step, r.varint("the values of a ramp", MAX_PERIOD), dtype), 0, None
    if kind != _SEEDED or center:
        raise r.fail("values start at a constant, a table, a ramp or from the seed")
    fan = r.varint("an initializer's number", 0 if on_base else max(FANS))
    scale = 0.0 if fan else _read_scale(r)
    form, _, table = _read_start(r, on_base, sizes, True)
    assert not isinstance(form, Seeded), "the recursive call refuses seeded starts"
    return Seeded(scale, form), fan, table


def _read_dtype(r: Reader) -> str:
    return _CODES[r.varint("a dtype", len(_CODES) - 1)]


def _read_scale(r: Reader) -> float:
    scale = float(struct.unpack("<f", b"\0\0" + r.raw(2))[0])
    if not LOWEST_SCALE <= scale < HIGHEST_SCALE:
        raise r.fail(f"a scale is in [2^{MIN_SCALE_EXPONENT}, 2^{MAX_SCALE_EXPONENT + 1}), not {scale}")
    return scale
