"""Encoding a record as a payload and decoding it (docs/FORMAT.md)."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from subcompress.base import BaseReference, BaseTensors, OnBase
from subcompress.errors import SubcompressError
from subcompress.format import codec, rules
from subcompress.format.facts import Facts
from subcompress.format.record import (
    HIGHEST_SCALE,
    LOWEST_SCALE,
    MAX_SCALE_EXPONENT,
    MIN_SCALE_EXPONENT,
    SMALLEST_START,
    Coded,
    Entry,
    Factored,
    Group,
    Record,
    Stored,
    Tied,
    Unchanged,
    check_peaks,
    check_piece,
    check_start,
    check_tie,
    group_sizes,
    parts_of,
    trained,
)
from subcompress.format.rules import Rules
from subcompress.format.sections import (
    MAX_DENSE_BYTES,
    BasedLayout,
    read_facts,
    read_layout,
    write_based_layout,
    write_facts,
    write_layout,
)
from subcompress.format.wire import Reader, Writer
from subcompress.operators import EXACT, ExactOperator
from subcompress.tensors.digest import SIZE as DIGEST_SIZE
from subcompress.tensors.layout import CODED_DTYPES, Layout

MAGIC, VERSION = b"SC", 2
"""Files with factors have version 2 and all others version 1, so that older readers can still read those."""

PHILOX = 1
MAX_FROZEN = 1 << 22
MAX_GROUPS = 1 << 8
MAX_STORED_BYTES = 1 << 30
_CRC_SIZE = 4
MAX_TAGS_BYTES = 1 << 24
PALETTE = 3
Tag = tuple[int, float] | Stored | Tied
_GroupSpec = tuple[type[ExactOperator], list[int], int]
_BY_CODE: dict[int, type[ExactOperator]] = {op.code: op for op in EXACT.values()}


def write(record: Record) -> bytes:
    """Encode a record as a payload. Raises SubcompressError if the record breaks a rule of the format."""
    record.check()
    w = Writer()
    w.raw(MAGIC + bytes([version_of(record.entries)]))
    w.varint(PHILOX)
    w.varint(record.seed)
    if record.base is None:
        write_layout(w, record.layout)
    else:
        new = Layout(record.layout.tensors[len(record.base.layout) :])
        write_based_layout(w, record.base.reference, new, record.layout.nbytes)
    w.varint(len(record.groups))
    for group in record.groups:
        for number in (group.operator.code, *group.operator.parameters(), group.bits):
            w.varint(number)
    tables = _write_entries(w, record)
    write_facts(w, record.facts)
    w.varint(0 if record.test_accuracy is None else 1 + round(record.test_accuracy * 10_000))
    w.raw(record.digest)
    if tables or any(isinstance(e, Stored) for e in record.entries):
        w.deflated(tables + record.stored)
    w.raw(codec.encode((g.coordinates, g.bits) for g in record.groups))
    w.raw(zlib.crc32(w.data).to_bytes(_CRC_SIZE, "little"))
    return bytes(w.data)


def version_of(entries: Iterable[Entry]) -> int:
    """Return the format version of a file with these entries."""
    return VERSION if rules.has_factors(entries) else 1


@dataclass(frozen=True, eq=False)
class Parsed:
    """A decoded payload, complete except for the base, if it has one. ledger: bytes by part."""

    seed: int
    layout: Layout | BasedLayout
    groups: tuple[Group, ...]
    entries: tuple[Entry, ...]
    stored: bytes
    facts: Facts
    test_accuracy: float | None
    digest: bytes
    ledger: dict[str, int]
    coordinate_bits: tuple[float, ...]
    """The bits that the coordinates of each group take."""
    complete: Record | None = None
    """The checked record of a file without a base."""

    @property
    def base(self) -> BaseReference | None:
        """The reference to the base, None if the file has none."""
        return self.layout.base if isinstance(self.layout, BasedLayout) else None

    @property
    def trained(self) -> list[Group]:
        """The groups of weights; see `Record.trained`."""
        return trained(self.groups)

    @property
    def tied_bytes(self) -> int:
        """Dense bytes of tied tensors, of those whose sizes are known without a base."""
        new = self.layout.new if isinstance(self.layout, BasedLayout) else self.layout
        entries = self.entries[len(self.entries) - len(new) :]
        return sum(s.nbytes for s, e in zip(new, entries, strict=True) if isinstance(e, Tied))

    def record(self, base: BaseTensors | None = None) -> Record:
        """Return the checked record. base: the base of a file that has one. Raises SubcompressError."""
        if self.complete is not None:
            return self.complete
        assert isinstance(self.layout, BasedLayout), "without a base the record is complete"
        assert base is not None, "format.from_bytes finds it"
        base.require(self.layout.base)
        return self._record(self.layout.on(base.layout), OnBase(self.layout.base, base))

    def checked(self) -> Parsed:
        """Check everything that needs no base and return the result. Raises SubcompressError for an invalid record."""
        if isinstance(self.layout, Layout):
            return replace(self, complete=self._record(self.layout, None))
        _check_without_base(self.layout, self)
        return self

    def _record(self, layout: Layout, base: OnBase | None) -> Record:
        _check_stored(layout, self.entries, self.stored)
        facts, accuracy = self.facts, self.test_accuracy
        record = Record(
            self.seed, layout, self.groups, self.entries, self.stored, facts, accuracy, self.digest, base
        )  # fmt: skip
        record.check()
        return record


def parse(data: bytes) -> Parsed:
    """Decode a payload.

    Raises SubcompressError, before anything large is allocated, for damage, forgery and newer versions.
    """
    r = Reader(data[:-_CRC_SIZE])
    r.part("header")
    if len(data) < 16 or data[:2] != MAGIC:
        raise r.fail(f"the payload does not begin with {MAGIC.decode()}")
    if zlib.crc32(r.data).to_bytes(_CRC_SIZE, "little") != data[-_CRC_SIZE:]:
        raise SubcompressError("the file's checksum does not match: bytes were damaged on the way; fetch it again")
    r.raw(2)
    if not 1 <= (version := r.raw(1)[0]) <= VERSION:
        raise SubcompressError(
            f"the file has format version {version}, but this subcompress reads versions 1 to {VERSION}: upgrade it"
        )
    if (generator := r.varint("the generator", 1 << 32)) != PHILOX:
        raise SubcompressError(f"generator {generator} is unknown (1 is Philox4x32-10): upgrade subcompress")
    seed = r.varint("the seed", (1 << 64) - 1)
    r.part("layout")
    layout = read_layout(r)
    r.part("groups")
    specs = [_read_group(r) for _ in range(r.varint("the number of groups", MAX_GROUPS))]
    if sum(numbers[0] for _, numbers, _ in specs) > codec.MAX_D:
        raise r.fail(f"a file has at most {codec.MAX_D} coordinates")
    if sum(dict(zip(operator.limits, numbers, strict=True)).get("K", 0) for operator, numbers, _ in specs) > MAX_FROZEN:
        raise r.fail(f"a file has at most {MAX_FROZEN} frozen slots")
    r.part("tensors")
    tensor_list = _read_list(r, layout, len(specs))
    entries, group_weights = tensor_list.entries, tensor_list.sizes
    if version != version_of(entries):
        raise r.fail(f"a file with factors must have version {VERSION}, and one without version 1")
    r.part("facts")
    facts = read_facts(r)
    accuracy = r.varint("the accuracy", 10_001)
    r.part("weights digest")
    digest = r.raw(DIGEST_SIZE)
    r.part("stored")
    stored = _read_stored(r, layout, tensor_list)
    if tensor_list.rules is not None and (tables := sum(tensor_list.rules.table_sizes)):
        entries = tensor_list.rules.entries(None if isinstance(layout, BasedLayout) else layout, stored[:tables])
        stored = stored[tables:]
    operators = _operators(specs, group_weights, seed)
    r.part("coordinates")
    sizes = [(op.d, bits) for op, (_, _, bits) in zip(operators, specs, strict=True)]
    coordinate_bits: list[float] = []
    coordinates = codec.decode(r.raw(len(r.data) - r.at), sizes, coordinate_bits)
    r.part("")
    groups = tuple(Group(op, bits, c) for op, (_, bits), c in zip(operators, sizes, coordinates, strict=True))
    ledger = {k: v for k, v in {**r.ledger, "checksum": _CRC_SIZE}.items() if v}
    measured = (accuracy - 1) / 10_000 if accuracy else None
    return Parsed(
        seed, layout, groups, entries, stored, facts, measured, digest, ledger, tuple(coordinate_bits)
    ).checked()


def _read_group(r: Reader) -> _GroupSpec:
    """Read a group's operator, its parameters and its bits."""
    code = r.varint("an operator", 1 << 32)
    if code not in _BY_CODE:
        known = ", ".join(f"{c} {op.name}" for c, op in _BY_CODE.items())
        raise SubcompressError(f"operator {code} is unknown ({known}): upgrade subcompress")
    operator = _BY_CODE[code]
    numbers = [r.varint(name, limit) for name, limit in operator.limits.items()]
    bits = r.varint("the bits", codec.MAX_BITS)
    if bits < codec.MIN_BITS:
        raise r.fail(f"coordinates have {codec.MIN_BITS} to {codec.MAX_BITS} bits")
    return operator, numbers, bits


def _operators(specs: list[_GroupSpec], sizes: list[int], seed: int) -> list[ExactOperator]:
    return [
        operator.of(D, seed, group, numbers)
        for group, ((operator, numbers, _), D) in enumerate(zip(specs, sizes, strict=True))
    ]


def _write_entries(w: Writer, record: Record) -> bytes:
    """Write the tensor list, as rules if it needs them; return the bytes of their tables, which are stored."""
    if rules.needs_rules(record):
        return rules.write_rules(w, record)
    _write_tags(w, record)
    return b""


def _write_tags(w: Writer, record: Record) -> None:
    """Write the tensor list in the shortest of the kinds without rules.

    Kind 0, the scales alone: every tensor is coded in group 0 from zero. Kind 1: a tag for each tensor, then the
    scales; kind 2: the same, deflated, if that is shorter. A file on a base has kind 3, see `_write_palette`.
    """
    if record.base is not None:
        _write_palette(w, record)
        return
    if all(isinstance(e, Coded) and e.group == 0 and e.start == 0 for e in record.entries):
        w.varint(0)
        _write_scales(w, record)
        return
    body, packed = Writer(), Writer()
    for entry in record.entries:
        if isinstance(entry, Stored):
            body.varint(0)
        elif isinstance(entry, Tied):
            body.varint(1 + 2 * len(record.groups))
            body.varint(entry.index)
        elif isinstance(entry, Coded):
            start = _constant(entry)
            body.varint(1 + 2 * entry.group + (start != 0))
            if start != 0:
                body.float32(start)
    _write_scales(body, record)
    packed.deflated(bytes(body.data))
    w.varint(1 + (len(packed.data) < len(body.data)))
    w.raw(bytes(min(body.data, packed.data, key=len)))


def _constant(entry: Coded) -> float:
    """Return the constant that a tensor starts at; other starts need rules."""
    assert isinstance(entry.start, float), "other starts need rules"
    return entry.start


def _write_scales(w: Writer, record: Record) -> None:
    """Write one bit for each coded tensor, set if its scale differs from the previous one, then those scales."""
    scales = [e.scale for e in record.entries if isinstance(e, Coded)]
    fresh = [i == 0 or s != scales[i - 1] for i, s in enumerate(scales)]
    w.raw(np.packbits(np.array(fresh, bool), bitorder="little").tobytes())
    for scale, new in zip(scales, fresh, strict=True):
        if new:
            w.raw(struct.pack("<f", scale)[2:])


@dataclass(frozen=True)
class _TensorList:
    """A decoded tensor list: entries, group sizes, and the rules that it was made of, if it was.

    Tables are empty in the entries, because their bytes are in the stored part.
    """

    entries: tuple[Entry, ...]
    sizes: list[int]
    rules: Rules | None = None


def _read_list(r: Reader, layout: Layout | BasedLayout, groups: int) -> _TensorList:
    kind, on_base = r.varint("the kind of the tensor list", rules.DEFLATED), isinstance(layout, BasedLayout)
    if kind >= rules.PLAIN:
        return _read_ruled(r, layout, groups, kind)
    if on_base != (kind == PALETTE):
        raise r.fail(f"the tensor list of a file on a base, and of no other, is of kind {PALETTE}")
    if isinstance(layout, BasedLayout):
        entries, sizes = _read_palette(r, len(layout), groups)
        return _TensorList(entries, sizes)
    entries = _read_entries(r, layout, groups, kind)
    return _TensorList(entries, group_sizes(layout, entries, groups))


def _read_ruled(r: Reader, layout: Layout | BasedLayout, groups: int, kind: int) -> _TensorList:
    on_base = isinstance(layout, BasedLayout)
    body = r
    if kind == rules.DEFLATED:
        body = Reader(r.deflated("tensor list", MAX_TAGS_BYTES), r.bytes)
        body.part("tensors")
    found = rules.read_rules(body, len(layout), groups, on_base, MAX_STORED_BYTES)
    if body is not r and body.at != len(body.data):
        raise r.fail("a tensor list ends with the last tensor")
    if isinstance(layout, BasedLayout):
        sizes = [r.varint("the size of a group", MAX_DENSE_BYTES) for _ in range(groups)]
        return _TensorList(found.entries(None), sizes, found)
    entries = found.entries(layout)
    return _TensorList(entries, group_sizes(layout, entries, groups), found)


def _read_entries(r: Reader, layout: Layout, groups: int, kind: int) -> tuple[Entry, ...]:
    if kind < 2:
        return _read_tags_and_scales(r, layout, groups, kind)
    body = Reader(r.deflated("tensor list", MAX_TAGS_BYTES), r.bytes)
    body.part("tensors")
    entries = _read_tags_and_scales(body, layout, groups, kind)
    if body.at != len(body.data):
        raise r.fail("a tensor list ends with its last scale")
    return entries


def _read_tags_and_scales(r: Reader, layout: Layout, groups: int, kind: int) -> tuple[Entry, ...]:
    tags: list[Tag] = [(0, 0.0)] * len(layout)
    if kind:
        tags = [_read_tag(r, groups, i) for i in range(len(layout))]
    coded = sum(isinstance(t, tuple) for t in tags)
    if coded and not groups:
        raise r.fail("coded tensors need a group")
    packed = r.raw(-(-coded // 8))
    fresh = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").tolist()
    if any(fresh[coded:]) or (coded and not fresh[0]):
        raise r.fail("the first coded tensor brings a scale, and no bit stands for none")
    scale, flags = 0.0, iter(fresh)
    entries: list[Entry] = []
    shared: dict[tuple[float, int, float], Coded] = {}  # equal entries are one object, which is checked once
    for spec, tag in zip(layout, tags, strict=True):
        if not isinstance(tag, tuple):
            entries.append(tag)
            continue
        if next(flags):
            scale = struct.unpack("<f", b"\0\0" + r.raw(2))[0]
        if spec.dtype not in CODED_DTYPES or not LOWEST_SCALE <= scale < HIGHEST_SCALE:
            raise r.fail(f"{spec} cannot be coded at scale {scale}")
        key = (scale, *tag)
        if key not in shared:
            shared[key] = Coded(*key)
        entries.append(shared[key])
    return tuple(entries)


def _read_tag(r: Reader, groups: int, at: int) -> Tag:
    """Read the tag of tensor number `at`: (group, start) if it is coded."""
    return _parse_common_tag(r, r.varint("a tensor's tag", 2 * groups + 1), groups, at - 1)


def _parse_common_tag(r: Reader, tag: int, groups: int, last: int) -> Tag:
    """Decode a tag that files with and without a base share. last: the highest tensor number that one may be tied
    to."""
    if tag == 0:
        return Stored()
    if tag == 2 * groups + 1:
        return Tied(r.varint("the number of the earlier tensor that one is tied to", last))
    start = r.float32() if tag % 2 == 0 else 0.0
    if tag % 2 == 0 and not SMALLEST_START <= abs(start) < math.inf:
        raise r.fail("a constant start is finite, normal and not zero")
    return (tag - 1) // 2, start


def _write_palette(w: Writer, record: Record) -> None:
    """Write a kind 3 tensor list, of a file on a base.

    Deflated: the distinct entries, each a tag and, if coded, a scale; then the number of its entry for each tensor. The
    size of each group follows.
    """
    G = len(record.groups)
    kinds: dict[bytes, int] = {}
    chosen = Writer()
    for entry in record.entries:
        kind = Writer()
        if isinstance(entry, Stored):
            kind.varint(0)
        elif isinstance(entry, Tied):
            kind.varint(1 + 2 * G)
            kind.varint(entry.index)
        elif isinstance(entry, Unchanged):
            kind.varint(2 + 2 * G)
        elif isinstance(entry, Coded) and entry.based:
            kind.varint(3 + 2 * G + entry.group)
        elif isinstance(entry, Coded):
            start = _constant(entry)
            kind.varint(1 + 2 * entry.group + (start != 0))
            if start != 0:
                kind.float32(start)
        if isinstance(entry, Coded):
            kind.raw(struct.pack("<f", entry.scale)[2:])
        chosen.varint(kinds.setdefault(bytes(kind.data), len(kinds)))
    body = Writer()
    body.varint(len(kinds))
    body.raw(b"".join(kinds) + bytes(chosen.data))
    w.varint(PALETTE)
    w.deflated(bytes(body.data))
    for size in record.sizes:
        w.varint(size)


def _read_palette(r: Reader, tensors: int, groups: int) -> tuple[tuple[Entry, ...], list[int]]:
    """Read the entries of `tensors` tensors and the sizes of the groups."""
    body = Reader(r.deflated("tensor list", MAX_TAGS_BYTES), r.bytes)
    body.part("tensors")
    kinds: list[Entry] = []
    for _ in range(body.varint("the number of entries", tensors)):
        tag = body.varint("a tensor's tag", 2 + 3 * groups)
        if tag == 2 + 2 * groups:
            kinds.append(Unchanged())
        elif tag > 2 + 2 * groups:
            kinds.append(Coded(_read_scale(body), tag - 3 - 2 * groups, 0.0, True))
        else:
            plain = _parse_common_tag(body, tag, groups, tensors - 1)
            kinds.append(Coded(_read_scale(body), *plain) if isinstance(plain, tuple) else plain)
    entries = tuple(kinds[k] for k in body.varints(tensors if kinds else 0, "the number of an entry", len(kinds) - 1))
    if body.at != len(body.data) or len(entries) != tensors:
        raise r.fail("a tensor list has an entry a tensor and ends with the last")
    return entries, [r.varint("the size of a group", MAX_DENSE_BYTES) for _ in range(groups)]


def _read_scale(r: Reader) -> float:
    scale = float(struct.unpack("<f", b"\0\0" + r.raw(2))[0])
    if not LOWEST_SCALE <= scale < HIGHEST_SCALE:
        raise r.fail(f"a scale is in [2^{MIN_SCALE_EXPONENT}, 2^{MAX_SCALE_EXPONENT + 1}), not {scale}")
    return scale


def _read_stored(r: Reader, layout: Layout | BasedLayout, tensor_list: _TensorList) -> bytes:
    """Read the stored part, bounded by the bytes of the tables and the tensors (on a base, of all tensors)."""
    tables = 0 if tensor_list.rules is None else sum(tensor_list.rules.table_sizes)
    if not tables and not any(isinstance(e, Stored) for e in tensor_list.entries):
        return b""
    size = layout.nbytes if isinstance(layout, BasedLayout) else _stored_size(layout, tensor_list.entries)
    data = r.deflated("stored tensors", min(tables + size, MAX_STORED_BYTES))
    if len(data) < tables:
        raise r.fail("tables are stored")
    return data


def _stored_size(layout: Layout, entries: tuple[Entry, ...]) -> int:
    pairs = zip(layout, entries, strict=True)
    return sum(s.nbytes for s, e in pairs if isinstance(e, Stored) and e.same is None)


def _check_without_base(layout: BasedLayout, parsed: Parsed) -> None:
    """Raise SubcompressError for what is invalid whatever the base; only tensors that it lacks are known."""
    check_peaks(parsed.groups)
    count, tables, stored = len(layout) - len(layout.new), set[tuple[int, str]](), 0
    for i, entry in enumerate(parsed.entries):
        spec = layout.new.tensors[i - count] if i >= count else None
        what = spec or f"number {i}"
        if isinstance(entry, Tied) or (isinstance(entry, Stored) and entry.same is not None):
            check_tie(parsed.entries, i, what)
        elif isinstance(entry, Stored):
            stored += 0 if spec is None else spec.nbytes
        if spec is not None and (
            isinstance(entry, (Unchanged, Factored)) or (isinstance(entry, Coded) and entry.based)
        ):
            raise SubcompressError(f"{what} starts at the base's values, but the base lacks it: the file is forged")
        for part in parts_of(entry):
            check_start(what, part, tables)
            if spec is not None:
                check_piece(spec, part, tables, entry)
    stores_base_tensors = any(isinstance(e, Stored) and e.same is None for e in parsed.entries[:count])
    if len(parsed.stored) < stored or (len(parsed.stored) > stored and not stores_base_tensors):
        raise _stored_size_error(stored, parsed.stored)


def _stored_size_error(size: int, stored: bytes) -> SubcompressError:
    return SubcompressError(
        f"the stored tensors take {size} bytes, but {len(stored)} are there: the file is damaged or forged; "
        "fetch it again"
    )


def _check_stored(layout: Layout, entries: tuple[Entry, ...], stored: bytes) -> None:
    if len(stored) != (size := _stored_size(layout, entries)):
        raise _stored_size_error(size, stored)
    at = 0
    for spec, entry in zip(layout, entries, strict=True):
        if isinstance(entry, Stored) and entry.same is None:
            if spec.dtype == "BOOL" and stored[at : at + spec.nbytes].strip(b"\0\1"):
                raise SubcompressError(f"{spec} holds bytes that are neither 0 nor 1: the file is damaged or forged")
            at += spec.nbytes
