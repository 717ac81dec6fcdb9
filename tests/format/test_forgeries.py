"""Payloads that somebody made by hand: what breaks a rule is refused in one line."""

from __future__ import annotations

import re

import pytest
from forging import forged, layout_of, number, refused

from subcompress import format
from subcompress.format.wire import Writer


def test_the_hand_made_payload_is_sound():
    assert format.from_bytes(forged())[0].d == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"magic": b"SD"}, "does not begin with SC"),
        ({"version": b"\3"}, "the file has format version 3, .*: upgrade"),
        ({"version": b"\2"}, "a file with factors must have version 2, and one without version 1"),
        ({"generator": b"\2"}, "generator 2 is unknown"),
        ({"seed": b"\xff" * 9 + b"\x7f"}, "the seed"),
        ({"seed": b"\x80\0"}, "shortest form"),
        ({"layout": b"\x63"}, "layout 99 is unknown"),
        ({"groups": b"\1\x09" + bytes([10, 8, 0, 0]) + b"\4"}, "operator 9 is unknown"),
        ({"groups": b"\1\1" + bytes([10, 8, 0, 0]) + b"\1"}, "2 to 12 bits"),
        ({"groups": b"\1\1" + bytes([10, 8, 0, 0]) + b"\x0d"}, "at most 12"),
        ({"groups": b"\1\1" + bytes([10, 21, 0, 0]) + b"\4"}, "log2_m is at most 20"),
        ({"groups": b"\1\1" + number(44_427) + bytes([8, 0, 0]) + b"\4"}, "take 1 to 44426 coordinates"),
        ({"groups": b"\1\1" + bytes([0, 8, 0, 0]) + b"\4"}, "take 1 to 44426 coordinates"),
        ({"groups": b"\1\1" + number(1 << 23) + bytes([8, 0, 0]) + b"\4"}, "at most 4194304"),
        ({"groups": b"\0"}, "need a group"),
        ({"groups": b"\1\1" + bytes([10, 8, 200]) + b"\1" + number(400) + b"\4"}, "stay below 65536"),
        ({"scales": b"\1\0\x80\x7f"}, "in the tensors part|a scale is"),
        ({"scales": b"\1\0\xc0\x7f"}, "cannot be coded at scale nan"),
        ({"scales": b"\1\0\x80\xbb"}, "cannot be coded at scale"),
        ({"scales": b"\1\0\x80\x20"}, "cannot be coded at scale"),
        ({"scales": b"\1\0\x80\x53"}, "cannot be coded at scale 1099511627776"),
        ({"scales": b"\1\0\x80\x0d"}, "cannot be coded at scale 7.888"),
        ({"scales": b"\0\0"}, "brings a scale"),
        ({"scales": b"\1\x80\x80\x3b"}, "no bit stands for none"),
        ({"facts": b"\x63"}, "facts 99 are unknown"),
        ({"accuracy": number(10_002)}, "the accuracy is at most 10001"),
        ({"coordinates": b"\xff" * 30}, "range coder"),
        ({"coordinates": b"\1" * 30}, "more than d coordinates"),
        ({"layout": layout_of(("w", 0, [2**18, 2**18]))}, "at most 68719476736 bytes"),
        ({"layout": layout_of(("w", 0, [10**12]))}, "at most 68719476736"),
        ({"layout": layout_of(("w", 0, [2**35, 2**35]))}, "at most 68719476736"),
        ({"layout": layout_of(("w", 0, [3]), ("w", 0, [3]))}, "names each tensor once"),
        ({"layout": layout_of(("a\nb", 0, [300]))}, "control characters"),
        ({"layout": layout_of(("w", 4, [300]))}, "cannot be coded"),
        ({"layout": layout_of(("__metadata__", 0, [300]))}, "is not __metadata__"),
        ({"layout": layout_of(("w", 0, [2**36, 2**36, 0]))}, "at most 68719476736"),
        ({"layout": layout_of(("w", 11, [300]))}, "a dtype is at most 10"),
    ],
)
def test_forgeries_are_refused(changes, words):
    assert re.search(words, refused(forged(**changes)))


@pytest.mark.parametrize(
    "text",
    [
        '{"labels":["a"],"labels":["b"]}',
        '{"mean":[NaN]}',
        '{"mean":[1e999]}',
        '{"mean":[1]}',
        '{"std":[0.0]}',
        '{"input_shape":[-1]}',
        '{"input_shape":[true]}',
        '{"input_shape":[1000000000000000]}',
        '{"input_shape":[67108865]}',
        '{"input_shape":[67108864,67108864,0]}',
        '{"code":["x"]}',
        '{"labels":["\\ud800"]}',
        "[]",
        "7",
        '{"input_dtype":"F33"}',
        "[" * 100_000,
        '{"inputs":{}}',
        '{"inputs":[["x","F32"]]}',
        '{"inputs":[["x","F33",[1]]]}',
        '{"inputs":[[1,"F32",[1]]]}',
        '{"inputs":[["x","F32",[1.5]]]}',
        '{"inputs":[["x","F32",[-1]]]}',
        '{"inputs":[["x",["F32"],[1]]]}',
        '{"inputs":[["\\ud800","F32",[1]]]}',
        '{"inputs":[["x","F32",[67108864,2]]]}',
        '{"inputs":[["x","F32",[1]],["y","F32",[1]],["x","F32",[1]]]}',
        '{"input_dtype":""}',
        '{"input_dtype":0}',
        '{"input_dtype":false}',
        '{"input_dtype":null}',
        '{"input_dtype":[]}',
        '\ufeff{"mean":[0.5]}',
    ],
)
def test_facts_are_checked(text):
    w = Writer()
    w.varint(1)
    w.deflated(text.encode())
    assert "facts must be a JSON object" in refused(forged(facts=bytes(w.data)))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "utf-8-sig", "latin-1"])
def test_facts_are_utf8(encoding):
    w = Writer()
    w.varint(1)
    w.deflated('{"labels":["ü"]}'.encode(encoding))
    assert "facts must be a JSON object" in refused(forged(facts=bytes(w.data)))
