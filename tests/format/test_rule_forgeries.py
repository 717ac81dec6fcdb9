"""Tensor lists of rules that somebody made by hand: what is sound, what is broken, and anything between."""

from __future__ import annotations

import re
import struct
import tracemalloc
import zlib

import numpy as np
import oracle
import pytest
from forged_rules import deflated, number, refusal, scale, with_weights_digest
from records import TABLES, of_bytes, plain_base
from timing import takes_at_most

from subcompress import SubcompressError, format
from subcompress.base import BaseTensors
from subcompress.format import container
from subcompress.rebuild.expand import expand_checked
from subcompress.tensors.layout import raw_bytes

# --- forgeries, one rule of the text at a time ---

HELD = plain_base([("a", "F32", (3, 4)), ("b", "I64", (2,)), ("c", "F32", (5,))])


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def ramp(first: float, step: float, period: int = 4, dtype: int = 0) -> bytes:
    return bytes([4, dtype]) + struct.pack("<dd", first, step) + number(period)


HALF = scale(0.5)


ZERO, ONE = b"\0", b"\1" + floats(1.0)


CODED = b"\4\0" + HALF  # in group 0; a start follows


FIXED = b"\3"


TENSORS = b"\4" + b"\0\1a\0\2\3\4" + b"\0\1b\4\1\2" + b"\0\1c\0\1\5" + b"\0\1d\1\1\2"
"""a F32 [3, 4], b I64 [2], c F32 [5], d F16 [2]."""


MIXED = b"\5\2\0\x13" + b"\2\0\3\1\2"  # rule 0, and rule 1 halved three times: three values of one, two of the other


PARTS: dict[str, bytes] = {
    "begin": b"SC\1\1\0",
    "layout": b"\0" + deflated(TENSORS),
    "groups": b"\1\1" + bytes([6, 4, 0, 0]) + b"\4",
    "kind": b"\4",
    "count": b"\5",
    "rules": FIXED + b"\3\0\3" + CODED + b"\5\1" + ZERO + MIXED + b"\0" + CODED + ramp(0, 1, dtype=1),
    "codes": bytes([0x12, 0x30, 0x20, 0x44]),
    "sizes": b"",
    "facts": b"\0",
    "accuracy": b"\0",
    "weights": bytes(16),
    "stored": deflated(floats(1, 2, 3) + struct.pack("<qq", 5, -6)),
    "coordinates": b"",
}
"""Rules: a fixed table, coded from an initializer, a mix of both, stored, coded from a ramp."""


def forged(base: dict | None = None, **changes: bytes) -> bytes:
    """The file of PARTS, changed, with the digest of its weights where it has any."""
    return with_weights_digest({**PARTS, **changes}, base)


def tensors_of(data: bytes, base: dict | None = None) -> dict[str, bytes]:
    return {n: bytes(raw_bytes(t)) for n, t in expand_checked(format.from_bytes(data, base)[0]).items()}


def test_the_hand_made_file_is_sound():
    truth = oracle.decode(forged(), TABLES).tensors
    assert tensors_of(forged()) == {n: t[2] for n, t in truth.items()}
    packed = forged(kind=b"\5", count=b"", codes=b"", rules=deflated(PARTS["count"] + PARTS["rules"] + PARTS["codes"]))
    assert tensors_of(packed) == tensors_of(forged())


def only(rule: bytes, code: bytes = b"\0", **changes: bytes) -> dict[str, bytes]:
    """One rule for a F32 [3, 4] and c F32 [5], or for the tensors of `layout`."""
    return {"layout": PAIR, "count": b"\1", "rules": rule, "codes": code, "stored": b"", **changes}


def listed(tensors: bytes) -> bytes:
    return b"\0" + deflated(tensors)


PAIR = listed(b"\2" + b"\0\1a\0\2\3\4" + b"\0\1c\0\1\5")


NO_GROUPS = {"groups": b"\0"}


def mixes(mixed: bytes, before: bytes = CODED + ZERO, count: int = 2, **changes: bytes) -> dict[str, bytes]:
    """Rule 0, and the last one mixed: a has rule 0, c is mixed."""
    return {
        "layout": PAIR, "count": bytes([count]), "rules": before + mixed, "stored": b"",
        "codes": b"\0" + number(16 * (count - 1)), **changes,
    }  # fmt: skip


def on_base(count: bytes, listing: bytes, codes: bytes, sizes: bytes, new: bytes = b"\0", **changes: bytes) -> dict:
    """Of a base of a F32 [3, 4], b I64 [2], c F32 [5], 84 bytes, and new tensors."""
    layout = (
        b"\7" + number(4) + b"base" + b"\0" + BaseTensors(HELD, "base").digest + b"\3" + b"\0\0" + b"\0" + b"\0" + new
        + number(84)
    )  # fmt: skip
    return {
        "layout": layout,
        "count": count,
        "rules": listing,
        "codes": codes,
        "sizes": sizes,
        "stored": b"",
        **changes,
    }


ON_BASE = on_base(b"\2", CODED + b"\2" + b"\2", b"\0\x10\0", number(17))


BEFORE = "by rules before it"


def factors(
    rule: bytes, before: bytes = CODED + ZERO, size: int = 7, codes: bytes = b"\x20\x10\x10", **changes: bytes
) -> dict:
    """Rule 0, rule 1 of kept tensors, and rule 2 with factors; a has the last one, of the base above."""
    parts = on_base(b"\3", before + b"\2" + rule, codes, number(size), **changes)
    return {"begin": b"SC\2\1\0", **parts}


SOUND: dict[str, dict[str, bytes]] = {
    "one rule, halved fifteen times": only(CODED + ONE, b"\xf0"),
    "a scale halved to the smallest": only(b"\4\0" + scale(2.0**-58) + ZERO, b"\x20"),
    "mixed": mixes(b"\5\2\0\x10" + b"\2\0\3\1\2", CODED + ZERO + FIXED + ONE, 3),
    "the runs are the tensor": mixes(b"\5\1\2" + b"\1\0\5"),
    "a seeded start of each center": only(CODED + b"\5\2" + ramp(0, 1)),
    "tied to an equal stored tensor": {
        **only(b"\0" + b"\1\1", **NO_GROUPS), "count": b"\2", "layout": listed(b"\3\0\1a\0\1\1\0\1b\0\1\1\0\1c\0\1\1"),
        "codes": b"\0\0\x10", "stored": deflated(floats(2)),
    },
    "on a base": ON_BASE,
    "factors of the highest rank on a base": factors(b"\6\3\0\1", size=21),
    "directions of a base": factors(b"\7\3\0", size=9),
    "no tensors": {"layout": listed(b"\0"), "groups": b"\0", "count": b"\0", "rules": b"", "codes": b"", "stored": b""},
}  # fmt: skip


BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "kind 6": ({"kind": b"\6"}, "at most 5"),
    "more rules than tensors can have": ({"count": number(2**18 + 5)}, "the number of rules is at most"),
    "no rules": ({"count": b"\0", "rules": b"", "codes": b"", "stored": b""}, "need a rule"),
    "an unused rule": (
        {**only(FIXED + ZERO + FIXED + ONE, **NO_GROUPS), "count": b"\2", "codes": b"\0\0"}, "every rule"
    ),
    "an unused item": (mixes(MIXED, CODED + ZERO + CODED + ONE, 3, codes=b"\0\0"), "every rule"),
    "a code without a rule": ({"codes": bytes([0x12, 0x30, 0x50, 0x44])}, "a tensor's rule is at most"),
    "a fixed rule is halved": (
        {**only(FIXED + ZERO + CODED + ZERO), "count": b"\2", "codes": b"\1\x10"}, "only scales are halved"
    ),
    "a stored rule is halved": ({"codes": bytes([0x12, 0x31, 0x20, 0x44])}, "only scales are halved"),
    "a mixed rule is halved": ({"codes": bytes([0x12, 0x30, 0x21, 0x44])}, "only scales are halved"),
    "the only rule is fixed and halved": (only(FIXED + ONE, b"\x10", **NO_GROUPS), "only scales are halved"),
    "a scale is halved too often": (only(b"\4\0" + scale(2.0**-58) + ZERO, b"\x30"), "must be a bfloat16 value"),
    "half a byte too many": (
        only(FIXED + ZERO, b"\x10", **NO_GROUPS, layout=listed(b"\1\0\1c\0\1\5")), "stands for no tensor is zero"
    ),
    "an unknown tag": (only(b"\x08"), "a rule of tag 8 is unknown .*upgrade"),
    "tied to one that is none": (only(b"\1\2", **NO_GROUPS), "tied to is at most 1"),
    "tied to itself": (only(b"\1\0", **NO_GROUPS), "an earlier tensor"),
    "tied to a tied one": (
        {**only(FIXED + ZERO + b"\1\0" + b"\1\1", **NO_GROUPS), "count": b"\3", "codes": b"\0\x10\x20",
         "layout": listed(b"\3\0\1a\0\1\1\0\1b\0\1\1\0\1c\0\1\1")}, "an earlier tensor"
    ),
    "tied to another shape": (
        {**only(FIXED + ZERO + b"\1\0", **NO_GROUPS), "count": b"\2", "codes": b"\0\x10"}, "dtypes or shapes differ"
    ),
    "stored and of another shape": (only(b"\0", **NO_GROUPS, stored=deflated(bytes(48))), "dtypes or shapes differ"),
    "kept without a base": (only(b"\2", **NO_GROUPS), "only a file on a base"),
    "no group": (only(CODED + ZERO, **NO_GROUPS), "need a group"),
    "a group that is none": (only(b"\4\1" + HALF + ZERO), "a group's number is at most 0"),
    "a scale too small": (only(b"\4\0" + scale(2.0**-61) + ZERO), "a scale is in"),
    "a scale too large": (only(b"\4\0" + scale(2.0**31) + ZERO), "a scale is in"),
    "a negative scale": (only(b"\4\0" + scale(-1.0) + ZERO), "a scale is in"),
    "a scale that is no number": (only(b"\4\0\xc0\x7f" + ZERO), "a scale is in"),
    "an unknown start": (only(CODED + b"\6"), "how values start is at most 5"),
    "a start at a base without one": (only(CODED + b"\2"), "values start at"),
    "a fixed tensor of the base": (on_base(b"\1", FIXED + b"\2", b"\0\0", number(17)), "values start at"),
    "a constant of zero": (only(CODED + b"\1" + floats(0.0)), "constant start"),
    "a subnormal constant": (only(FIXED + b"\1" + floats(1e-40), **NO_GROUPS), "a constant start"),
    "an infinite constant": (only(FIXED + b"\1" + floats(np.inf), **NO_GROUPS), "a constant start"),
    "a center that is no number": (only(FIXED + b"\5\0" + HALF + b"\1" + floats(np.nan), **NO_GROUPS), "constant"),
    "a table of no values": (only(FIXED + b"\3\0\0", **NO_GROUPS), "table"),
    "a table longer than the stored part": (only(FIXED + b"\3\0\2", **NO_GROUPS, stored=deflated(floats(1))), "stored"),
    "a table shorter than the stored part": (
        only(FIXED + b"\3\0\1", **NO_GROUPS, stored=deflated(floats(1, 1))), "is at most 4, given 8"
    ),
    "a table of another dtype": (only(FIXED + b"\3\1\2", **NO_GROUPS, stored=deflated(floats(1))), "dtype than"),
    "a table of integers": (only(FIXED + b"\3\4\1", **NO_GROUPS, stored=deflated(bytes(8))), "dtype"),
    "a complex table": (
        only(FIXED + b"\3\x0a\1", **NO_GROUPS, stored=deflated(bytes(8)), layout=listed(b"\1\0\1c\x0a\1\5")), "dtype"
    ),
    "a table that is not finite": (only(FIXED + b"\3\0\1", **NO_GROUPS, stored=deflated(floats(np.inf))), "nan or inf"),
    "a table of all memory": (only(FIXED + b"\3\0" + number(2**36), **NO_GROUPS, stored=deflated(b"")), "tables take"),
    "a table of more than all": (only(FIXED + b"\3\0" + number(2**36 + 1), **NO_GROUPS), "values of a table is at"),
    "tables of all memory together": (
        {**only((FIXED + b"\3\0" + number(2**27)) * 3, **NO_GROUPS), "count": b"\3"}, "tables take"
    ),
    "a ramp of no values": (only(FIXED + ramp(0, 1, 0), **NO_GROUPS), "table|ramp"),
    "a ramp from no number": (only(FIXED + ramp(np.nan, 1), **NO_GROUPS), "the ramp"),
    "a ramp from infinity": (only(FIXED + ramp(np.inf, 1), **NO_GROUPS), "the ramp"),
    "a ramp of an infinite step": (only(FIXED + ramp(0, -np.inf), **NO_GROUPS), "the ramp"),
    "a ramp that begins too high": (only(FIXED + ramp(1e30, -1e28), **NO_GROUPS), "the ramp"),
    "a ramp that ends too high": (only(FIXED + ramp(0, 3e29), **NO_GROUPS), "the ramp"),
    "a ramp of another dtype": (only(FIXED + ramp(0, 1, 4, 2), **NO_GROUPS), "dtype than"),
    "a ramp longer than a tensor may be": (only(FIXED + ramp(0, 0, 2**36 + 1), **NO_GROUPS), "values of a ramp is at"),
    "seeded inside seeded": (only(FIXED + b"\5\0" + HALF + b"\5\0" + HALF + ZERO, **NO_GROUPS), "values start at"),
    "seeded around the base": (on_base(b"\1", CODED + b"\5\0" + HALF + b"\2", b"\0\0", number(17)), "values start at"),
    "an unknown initializer": (only(FIXED + b"\5\5" + ZERO, **NO_GROUPS), "an initializer's number is at most 4"),
    "a seeded scale of zero": (only(FIXED + b"\5\0\0\0" + ZERO, **NO_GROUPS), "a scale is in"),
    "an initializer on a base": (on_base(b"\1", CODED + b"\5\1" + ZERO, b"\0\0", number(17)), "number is at most 0"),
    "an initializer without a weight": (
        only(FIXED + b"\5\1" + ZERO, **NO_GROUPS, layout=listed(b"\1\0\1c\0\1\5")), "a tensor of two axes"
    ),
    "an initializer after an empty weight": (
        only(FIXED + b"\5\1" + ZERO, **NO_GROUPS, layout=listed(b"\1\0\1c\0\2\5\0")), "a tensor of two axes"
    ),
    "an initializer before the weight": (
        only(FIXED + b"\5\1" + ZERO, **NO_GROUPS, layout=listed(b"\2\0\1c\0\1\5\0\1d\0\2\1\1")), "a tensor of two axes"
    ),
    "integers are coded": (only(CODED + ZERO, layout=listed(b"\1\0\1c\4\1\x11")), "cannot be coded"),
    "integers are fixed": (only(FIXED + ZERO, **NO_GROUPS, layout=listed(b"\1\0\1c\4\1\x11")), "cannot be coded"),
    "integers are mixed": (
        mixes(b"\5\1\0\1\0\1", layout=listed(b"\2\0\1a\0\2\3\4\0\1c\4\1\5")), "cannot be coded"
    ),
    "mixed of nothing": (mixes(b"\5\0\0"), "runs name every item"),
    "mixed of itself": (mixes(b"\5\1\x10\1\0\1"), "an item's rule is at most 15"),
    "mixed of a later rule": ({**mixes(b"", b"\5\1\x10\1\0\1" + CODED + ZERO), "codes": b"\x10\0"}, "an item's rule"),
    "mixed of a mixed one": (mixes(b"\5\1\0\1\0\1" + b"\5\1\x10\1\0\1", count=3), BEFORE),
    "mixed of a stored one": (mixes(b"\5\1\0\1\0\1", b"\0", stored=deflated(bytes(48)), **NO_GROUPS), BEFORE),
    "mixed of a tied one": (mixes(b"\5\1\0\1\0\1", b"\1\0", **NO_GROUPS), BEFORE),
    "mixed of a kept one": (on_base(b"\2", b"\2" + b"\5\1\0\1\0\1", b"\0\0\x10", b"", **NO_GROUPS), BEFORE),
    "mixed of the base": (
        on_base(b"\3", CODED + b"\2" + b"\2" + b"\5\1\0\1\0\1", b"\0\x10\x20", number(17)), "at the base"
    ),
    "an item that is fixed and halved": (mixes(b"\5\1\1\1\0\1", FIXED + ZERO, **NO_GROUPS), BEFORE),
    "an item that is halved too often": (mixes(b"\5\1\3\1\0\1", b"\4\0" + scale(2.0**-58) + ZERO), "a scale must be a"),
    "an item without a run": (mixes(b"\5\2\0\1\1\0\5"), "runs name every item"),
    "no runs": (mixes(b"\5\1\0\0"), "runs name every item"),
    "a run of no item": (mixes(b"\5\1\0\1\1\5"), "runs name every item"),
    "a run of no values": (mixes(b"\5\1\0\2\0\5\0\0"), "are not empty"),
    "runs longer than the tensor": (mixes(b"\5\1\0\1\0\6"), "fit into the tensor"),
    "runs longer than a tensor may be": (mixes(b"\5\1\0\2\0" + number(2**36) + b"\0\1"), "runs name|fit into"),
    "mixed and empty": (mixes(b"\5\1\0\1\0\1", layout=listed(b"\2\0\1a\0\2\3\4\0\1c\0\1\0")), "fit into the tensor"),
    "too many items": (mixes(b"\5" + number(256)), "the number of items is at most 255"),
    "too many runs": (mixes(b"\5\1\0" + number(2**20 + 1)), "the number of runs is at most"),
    "bytes after the list": (
        {"kind": b"\5", "count": b"", "codes": b"",
         "rules": deflated(PARTS["count"] + PARTS["rules"] + PARTS["codes"] + b"\0")}, "ends with the last tensor"
    ),
    "a list of too many bytes": (
        {"kind": b"\5", "count": b"", "codes": b"", "rules": number(2**24 + 1) + b"\1\0"}, "size of the tensor list"
    ),
    "factors without a base": ({**only(CODED + ZERO + b"\6\1\0\0"), "begin": b"SC\2\1\0", "count": b"\2"}, "to a base"),
    "factors in version 1": ({**factors(b"\6\1\0\0"), "begin": b"SC\1\1\0"}, "must have version 2"),
    "version 2 without factors": ({"begin": b"SC\2\1\0"}, "must have version 2"),
    "directions in version 1": ({**factors(b"\7\1\0", size=1), "begin": b"SC\1\1\0"}, "must have version 2"),
    "directions of rank 4 in 3 rows": (factors(b"\7\4\0", size=16), "larger than the smaller side"),
    "factors of rank 0": (factors(b"\6\0\0\0"), "a rank is 1 at least"),
    "factors of rank 257": (factors(b"\6" + number(257) + b"\0\0"), "a rank is at most 256"),
    "factors of rank 4 in 3 rows": (factors(b"\6\4\0\0", size=28), "larger than the smaller side"),
    "factors of integers": (factors(b"\6\1\0\0", codes=b"\x10\x20\x10"), "of two axes"),
    "factors of a vector": (factors(b"\6\1\0\0", codes=b"\x10\x10\x20"), "of two axes"),
    "factors of a new tensor": (
        factors(b"\6\1\0\0", codes=b"\x10\x10\x10\x20", new=b"\1\0\1d\0\2\1\0"), "the base lacks it"
    ),
    "factors that start at the base": (factors(b"\6\1\0\0", CODED + b"\2"), "at the base"),
    "factors of a kept rule": (factors(b"\6\1\0\x10"), BEFORE),
    "factors of factors": (factors(b"\6\1\0\x20"), "an item's rule is at most"),
    "halved factors": (factors(b"\6\1\0\0", codes=b"\x21\x10\x10"), "only scales are halved"),
    "a table of another dtype in factors": (
        factors(b"\6\1\0\0", CODED + ramp(0, 1, dtype=1)), "of another dtype than the tensor"
    ),
    "another size of factors": (factors(b"\6\1\0\0", size=6), "got 7 weights"),
    "a group of no weights": (only(FIXED + ZERO), "coordinates"),
    "sizes of groups without a base": ({"sizes": number(21)}, ""),
    "another size on a base": ({**ON_BASE, "sizes": number(16)}, "got 17 weights"),
    "no size on a base": ({**ON_BASE, "sizes": b""}, ""),
    "a new tensor is kept": (
        {**on_base(b"\2", CODED + b"\2" + b"\2", b"\0\x10\0\x10", number(17), b"\1\0\1d\0\1\0")}, "the base lacks it"
    ),
    "a new tensor starts at the base": (
        {**on_base(b"\2", CODED + b"\2" + b"\2", b"\0\x10\0\0", number(17), b"\1\0\1d\0\1\0")}, "the base lacks it"
    ),
    "integers of the base are coded": (on_base(b"\1", CODED + b"\2", b"\0\0", number(19)), "cannot be coded"),
    "nothing is stored": ({"stored": b""}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_what_is_on_the_edge_is_read(name):
    base = HELD if "base" in name else None
    data = forged(base, **SOUND[name])
    truth = oracle.decode(data, TABLES, base and of_bytes(base)).tensors
    assert tensors_of(data, base) == {n: t[2] for n, t in truth.items()}


@pytest.mark.parametrize("name", BROKEN)
def test_forgeries_are_refused_by_both_decoders(name):
    changes, words = BROKEN[name]
    base = HELD if changes.get("layout", b"")[:1] == b"\7" else None
    data = forged(base, **changes)
    tracemalloc.start()
    line = refusal(format.from_bytes, data, base)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert re.search(words, line)
    assert takes_at_most(lambda: refusal(format.from_bytes, data, base), 10)
    assert peak < 4 << 20
    with pytest.raises(oracle.Refused) as error:
        oracle.decode(data, TABLES, base and of_bytes(base))
    assert "packed" not in str(error.value)


def bodies() -> list[bytes]:
    """A few sound tensor lists, as parts of a file."""
    return [forged(), *[forged(**changes) for name, changes in SOUND.items() if "base" not in name]]


def resealed(data: bytes, body: bytes) -> bytes:
    return container.wrap(body + zlib.crc32(body).to_bytes(4, "little"))


@pytest.mark.parametrize("which", range(len(bodies())))
def test_a_list_that_ends_anywhere_is_refused(which):
    data = bodies()[which]
    body = container.unwrap(data)[:-4]
    for end in range(len(body)):
        refusal(format.from_bytes, resealed(data, body[:end]))
        with pytest.raises(oracle.Refused):
            oracle.decode(resealed(data, body[:end]), TABLES)


def mutated(rng: np.random.Generator, data: bytes) -> bytes:
    """With one to three bytes changed, dropped or added."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, kind = int(rng.integers(len(out))), rng.integers(5)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.integers(256))
        elif kind == 2:
            out[at] = int(rng.integers(7))
        elif kind == 3 and len(out) > 1:
            del out[at]
        else:
            out.insert(at, int(rng.integers(256)))
    return bytes(out)


@pytest.mark.parametrize("which", ["all", *SOUND])
def test_decoders_agree_on_whatever_is_made_of_a_list(which):
    """Accepted by both, with the same tensors, or by none."""
    rng, base = np.random.default_rng(7), HELD if "base" in which else None
    parts = {**PARTS, **SOUND.get(which, {})}
    accepted = 0
    for turn in range(250):
        listing = mutated(rng, parts["count"] + parts["rules"] + parts["codes"])
        kind, listing = (b"\5", deflated(listing)) if turn % 2 else (b"\4", listing)
        data = forged(base, **{**parts, "kind": kind, "count": b"", "rules": listing, "codes": b""})
        try:
            found = tensors_of(data, base)
        except SubcompressError:
            with pytest.raises(oracle.Refused) as error:
                oracle.decode(data, TABLES, base and of_bytes(base))
            assert "packed" not in str(error.value)
        else:
            truth = oracle.decode(data, TABLES, base and of_bytes(base)).tensors
            assert found == {n: t[2] for n, t in truth.items()}
            accepted += 1
    assert accepted or which == "no tensors"
