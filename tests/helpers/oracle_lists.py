"""The independent decoder's lists of tensors: with and without a base, by groups and by rules."""

import math
import re
import struct
from typing import Any

import numpy as np
from oracle_making import initial_scale, numbers, rows, summands, weights_digest
from oracle_terms import (
    CASTS,
    DTYPES,
    FLOATS,
    WIDTHS,
    Given,
    Group,
    Piece,
    Reader,
    Refused,
    Rule,
    Start,
    Tensor,
    converted,
    need,
)


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
    rule = Rule(reader.varint(7))
    if rule.tag == 1:
        rule.tied = reader.varint(count - 1)
    need(rule.tag != 2 or based, "a tensor of the base is kept without one")
    if rule.tag == 4:
        need(bool(groups), "no such group")
        rule.group, rule.scale = reader.varint(len(groups) - 1), read_scale(reader)
    if rule.tag in (3, 4):
        rule.start = read_start(reader, {0, 1, 3, 4, 5} | ({2} if rule.tag == 4 and based else set()))
        need(not rule.start.initializer or not based, "an initializer's scale on a base")
    need(rule.tag < 6 or based, "factors without a base")
    k = 0
    if rule.tag >= 6:
        rule.rank, k = reader.varint(256), 8 - rule.tag
        need(rule.rank >= 1, "a rank of zero")
    if rule.tag == 5:
        k = reader.varint(255)
        need(k >= 1, "a mixed rule has no items")
    rule.items = [read_code(reader, rules) for _ in range(k)]
    for item, _ in rule.items:
        need(item.start is not None and item.start.number != 2, "an item is neither fixed nor coded")
    if rule.tag == 5:
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
        need(sum(len(rule.items) for rule in mixed if rule.tag == 5) <= 2**18, "mixed tensors have too many items")
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
    elif rule.tag >= 6:
        need(tensor.given is not None and len(tensor.shape) == 2, "factors of a new tensor, or of one of other axes")
        need(tensor.dtype in FLOATS[:4], "factors of integers or complex values")
        need(bool(np.isfinite(numbers(tensor)).all()), "a value of the base, to which factors are added, is not finite")
        (rows, columns), tensor.rank, tensor.sketched = tensor.shape, rule.rank, rule.tag == 7
        need(rule.tag == 6 or max(rows, columns) <= 2**18, "too large a matrix to be sketched")
        need(rule.rank <= min(rows, columns) and rule.rank * max(rows, columns) <= 2**24, "a rank is too large")
        counts = [rule.rank * columns, rule.rank * rows] if rule.tag == 6 else [rule.rank**2]
        pieces = [Piece(r, r.scale / 2**e, n) for (r, e), n in zip(rule.items, counts, strict=True)]
        add_pieces(tensors, i, pieces, "F32")
    else:
        add_pieces(tensors, i, [Piece(rule, rule.scale / 2**halvings, tensor.reals)])


def add_pieces(tensors: list[Tensor], i: int, pieces: list[Piece], dtype: str = "") -> None:
    """dtype: that of tables and ramps, the tensor's if it is empty."""
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
            need(each.dtype in ("", dtype or tensor.real_dtype), "a table or a ramp has another dtype than its tensor")


def read_tensors(reader: Reader, tensors: list[Tensor], groups: list[Group], based: bool, version: int) -> list[Rule]:
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
    need((version == 2) == any(rule.tag >= 6 for rule in rules), "factors make version 2, and nothing else does")
    for g, group in enumerate(groups):
        D, free = sum(t.weights_of(g) for t in tensors), group.m - group.K
        need(not based or outer.varint() == D, "a group has another number of weights")
        need(1 <= group.d <= min(D, -(-D // group.m) * free), "a group has too many coordinates")
    return rules
