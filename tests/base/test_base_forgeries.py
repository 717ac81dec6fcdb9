"""Files on a base that somebody made by hand: both decoders refuse what breaks a rule, in one line."""

from __future__ import annotations

import re

import oracle
import pytest
from forged_bases import HELD, PARTS, deflated, forged, number, raw, refusal, scale, text
from records import TABLES, of_bytes

from subcompress import format
from subcompress.rebuild.expand import expand_checked


def test_the_hand_made_file_is_sound():
    record, _ = format.from_bytes(forged(), HELD)
    assert [s.name for s in record.layout] == ["a", "b", "c", "w"]
    truth = oracle.decode(forged(), TABLES, of_bytes(HELD)).tensors
    assert {n: raw(t) for n, t in expand_checked(record).items()} == {n: t[2] for n, t in truth.items()}


LISTED = b"\0" + deflated(b"\1" + b"\0\1w" + b"\0\1\x14")
"""A layout without a base, of w F32 [20]."""


STANDING = ("name", "revision", "digest", "count", "strip", "add", "cast", "unused", "new", "dense", "sizes")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": text(b"")}, "a base has a name"),
        ({"name": text(b"a\nb")}, "no control characters"),
        ({"name": text(b"\xff")}, "is UTF-8"),
        ({"name": text(b"n" * 1025)}, "at most 1024"),
        ({"strip": text(b"m\x00")}, "no control characters"),
        ({"add": text(b"\xc3")}, "is UTF-8"),
        ({"add": text(b"n" * 1025)}, "at most 1024"),
        ({"add": text(b"n" * 1024)}, "not a valid name"),
        ({"strip": text(b"m.a"), "add": text(b"__metadata__"), "unused": b"\3\1\0\0", "dense": number(60),
          "entries": b"\2\5" + scale(0.5) + b"\1" + scale(0.25) + b"\0\1", "sizes": number(15)}, "not a valid name"),
        ({"revision": b"\2"}, "at most 1"),
        ({"count": b"\5", "unused": b"\2\3\0"}, "with the digest"),
        ({"count": number(65_537)}, "at most 65536"),
        ({"digest": bytes(16)}, "with the digest"),
        ({"strip": text(b"x.")}, "does not begin with 'x.' as the file says"),
        ({"strip": text(b"")}, ""),
        ({"cast": b"\5"}, "a dtype of floats is at most 4"),
        ({"cast": b"\2"}, "that it states"),
        ({"unused": b"\5\0\0\0\0\0"}, "at most 4"),
        ({"unused": b"\1\4"}, "are among those of the base"),
        ({"unused": b"\2\3\0"}, "are among those of the base"),
        ({"unused": b"\0"}, "bytes are missing"),
        ({"unused": b"\0", "entries": PARTS["entries"][:-1] + b"\1\2"}, "does not begin with"),
        ({"new": b"\1\0\1w\x0b\1\3"}, "a dtype is at most 10"),
        ({"new": b"\1\0\1a\0\1\3"}, "names a tensor twice"),
        ({"new": b"\2\0\1w\0\1\3\1\0\0\1\3"}, "names each tensor once"),
        ({"new": b"\1\0\1\n\0\1\3"}, "no control characters"),
        ({"new": number(65_535)}, "the file is damaged or forged"),
        ({"dense": number(95)}, "that it states"),
        ({"dense": number(97)}, "that it states"),
        ({"dense": number(2**36 + 1)}, "at most 68719476736"),
        ({"groups": b"\1\1" + bytes([21, 4, 0, 0]) + b"\4"}, "take 1 to 20 coordinates"),
        ({"kind": b"\1"}, "is of kind 3"),
        ({"kind": b"\4"}, "a rule of tag 14 is unknown .*upgrade"),
        ({"sizes": number(21)}, "agree; got 20 weights"),
        ({"sizes": number(16), "dense": number(80)}, "that it states"),
        ({"sizes": number(2**36 + 1)}, "the size of a group"),
        ({"entries": b"\5" + b"\4" * 5 + b"\0\0\0\0"}, "the number of entries is at most 4"),
        ({"entries": b"\1\6\0\0\0\0"}, "a tensor's tag is at most 5"),
        ({"entries": b"\1\5" + scale(0.5) + b"\0\1\0\2"}, "the number of an entry is at most 0"),
        ({"entries": b"\0"}, "an entry a tensor"),
        ({"entries": PARTS["entries"] + b"\0"}, "ends with the last"),
        ({"entries": PARTS["entries"][:-1]}, "bytes are missing"),
        ({"entries": b"\3\5" + scale(0.5) + b"\4\1" + scale(0.25) + b"\0\0\0\2", "sizes": number(22)}, "be coded"),
        ({"entries": b"\2\5" + scale(0.5) + b"\4\0\1\0\0"}, "the base lacks it"),
        ({"entries": b"\2\5" + scale(0.5) + b"\4\0\1\0\1", "sizes": number(17)}, "the base lacks it"),
        ({"entries": b"\3\5" + b"\xc0\x7f" + b"\4\1" + scale(0.25) + b"\0\1\0\2"}, "a scale is in"),
        ({"entries": b"\4\5" + scale(0.5) + b"\4\1" + scale(0.25) + b"\5\0\0\0\1\0\2"}, "a scale is in"),
        ({"entries": b"\4\5" + scale(0.5) + b"\4\1" + scale(0.25) + b"\3\4\0\1\0\2"}, "at most 3"),
        ({"entries": b"\3\3\2\4\1" + scale(0.25) + b"\2\1\0\0", "sizes": number(12)}, "an earlier tensor"),
        ({"entries": b"\3\3\1\4\1" + scale(0.25) + b"\2\1\0\2", "sizes": number(15)}, "dtypes or shapes differ"),
        ({"entries": b"\2\2\0\0\0\0\1", "groups": b"\0", "sizes": b"", "stored": deflated(bytes(11))}, "bytes, but 11"),
        ({"entries": b"\2\2\0\0\0\0\1", "groups": b"\0", "sizes": b"", "stored": deflated(bytes(97))}, "at most 96"),
        ({"coordinates": b"\1" * 30}, "more than d coordinates"),
        (dict.fromkeys(STANDING, b"") | {"number": LISTED}, "and of no other"),
    ],
)  # fmt: skip
def test_forgeries_are_refused_by_both_decoders(changes, words):
    data = forged(**changes)
    if not words:  # the same tensors under other names
        assert "m.a" in expand_checked(format.from_bytes(data, HELD)[0])
        oracle.decode(data, TABLES, of_bytes(HELD))
        return
    assert re.search(words, refusal(format.from_bytes, data, HELD))
    with pytest.raises(oracle.Refused) as error:
        oracle.decode(data, TABLES, of_bytes(HELD))
    assert "packed" not in str(error.value)


def test_all_tensors_of_a_file_are_counted():
    new = b"".join(b"\0" + text(str(i).zfill(6).encode()) + b"\0\1\0" for i in range(30_000))
    changes = {
        "count": number(40_000),
        "unused": b"\0",
        "new": number(30_000) + new,
        "dense": b"\0",
        "groups": b"\0",
        "entries": b"\2\2\0" + bytes(40_000) + b"\1" * 30_000,
        "sizes": b"",
        "stored": deflated(b""),
    }
    assert "at most 65536 tensors" in refusal(format.parse, forged(**changes))
