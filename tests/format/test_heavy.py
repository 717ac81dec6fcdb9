"""The most work that files below 5 kB can ask of `info`, on both paths.

`python tests/format/test_heavy.py` prints the seconds."""

from __future__ import annotations

import base64
import time
import zlib
from functools import cache

import numpy as np
import pytest
from forged_rules import deflated, number
from timing import takes_at_most

from subcompress import SubcompressError, format
from subcompress.format import codec, container
from subcompress.native.compiled import library

TENSORS, RUNS = 36_000, 180_000
"""About as many as 5 kB may ask for."""

GROUP = b"\1\1\1\x08\0\0\4"
SCALE = b"\x80\x3b"
ONE = b"\1\0\x80\x3b\0"  # a rule: coded in group 0, that scale, from zero


def forged(layout: bytes, entries: bytes, groups: bytes = GROUP, size: int = 4_990, **parts: bytes) -> bytes:
    """A file of that many bytes, what lacks of them being labels that do not deflate."""
    head = b"SC\1\1\0" + layout + groups + entries
    tail = b"\0" + bytes(16) + parts.get("stored", b"") + parts.get("coordinates", b"")
    noise = np.random.default_rng(0).bytes(max(0, size - len(head) - len(tail) - 130))
    facts = parts.get("facts") or b'{"labels":["%s"]}' % base64.b64encode(noise)
    body = head + b"\1" + deflated(facts) + tail
    return container.wrap(body + zlib.crc32(body).to_bytes(4, "little"))


@cache
def named(n: int, rest: bytes = b"\0\1\1") -> bytes:
    """A deflated list of so many tensors of short names."""
    out, before = bytearray(number(n)), b""
    for i in range(n):
        name = bytes([97 + (i >> 12), 64 + (i >> 6 & 63), 64 + (i & 63)])
        same = next((k for k in range(len(before)) if before[k] != name[k]), len(before))
        out += bytes([same, 3 - same]) + name[same:] + rest
        before = name
    return b"\0" + deflated(bytes(out))


def alone(values: int) -> bytes:
    """A deflated list of one tensor."""
    return b"\0" + deflated(b"\1\0\1a\0\1" + number(values))


@cache
def tags(n: int) -> bytes:
    return b"\2" + deflated(b"\1" * n + b"\1" + bytes((n + 7) // 8 - 1) + SCALE)


def of_coordinates(d: int, log2_m: int, bits: int, coordinates: bytes = b"") -> bytes:
    group = b"\1\1" + number(d) + bytes([log2_m, 0, 0, bits])
    return forged(alone(d << 2 if log2_m else d), b"\0\1" + SCALE, group, coordinates=coordinates)


def rare_and_equal(d: int, every: int) -> bytes:
    """Coordinates that are zero but for one in so many, which is always the same."""
    values = np.zeros(d, np.int32)
    values[np.random.default_rng(0).integers(0, d, d // every)] = -2
    return codec.encode([(values, 2)])


def inputs(n: int) -> bytes:
    return b'{"inputs":[%s]}' % b",".join([b'["","F32",[]]'] * n)


FILES = {
    "zeros": lambda: of_coordinates(1 << 22, 0, 12),
    "windows of zeros": lambda: of_coordinates((1 << 22) - 1, 3, 12),
    "equal": lambda: of_coordinates(43_000, 0, 12, codec.encode([(np.full(43_000, -2_048), 12)])),
    "rare": lambda: of_coordinates(700_000, 0, 2, rare_and_equal(700_000, 300)),
    "coded": lambda: forged(named(TENSORS), tags(TENSORS)),
    "sixteen axes": lambda: forged(named(20_000, b"\0\x10" + b"\1" * 16), tags(20_000)),
    "stored": lambda: forged(
        named(TENSORS), b"\2" + deflated(bytes(TENSORS)), b"\0", stored=deflated(bytes(4 * TENSORS))
    ),
    "rules": lambda: forged(named(TENSORS), b"\5" + deflated(b"\2\4" + ONE[1:] + b"\3\0\0" + b"\x10" * (TENSORS - 1))),
    "mixed": lambda: forged(
        named(TENSORS, b"\0\1\4"),
        b"\5" + deflated(b"\3\4" + ONE[1:] + b"\3\0" + b"\5\2\0\x10\2\0\1\1\1" + b"\x20" * TENSORS),
    ),
    "runs": lambda: forged(
        alone(1 << 21),
        b"\5" + deflated(b"\3\4" + ONE[1:] + b"\3\0\5\2\0\x10" + number(RUNS) + b"\0\1\1\1" * (RUNS // 2) + b"\x20"),
    ),
    "on a base": lambda: forged(
        b"\7\4base\0" + bytes(16) + number(65_536) + b"\0\0\0\0\0" + number(1 << 20),
        b"\3" + deflated(b"\2\4\5" + SCALE + b"\1" + bytes(65_535)) + number(100),
    ),
    "inputs": lambda: forged(b"\0" + deflated(b"\0"), b"\0", b"\0", facts=inputs(4_096)),
}


CODED = ("zeros", "windows of zeros", "equal", "rare")
"""Those whose coordinates take the time: of the others nothing is read by the compiled part."""


SLOW = [pytest.param(name, False, marks=pytest.mark.slow) for name in CODED[2:]]
"""Without the compiled part, each of these takes a third of a second, and is read several times."""

READ = [*((name, True) for name in FILES), *((name, False) for name in CODED[:2]), *SLOW]


@pytest.mark.parametrize(("name", "compiled"), READ)
def test_info_reads_any_small_file_in_little_time(monkeypatch, name, compiled):
    """Half a second of an idle server is seven loops; three times that here, as other tests run beside it."""
    if not compiled:
        monkeypatch.setattr(codec, "library", lambda: None)
    elif library() is None:
        pytest.skip("there is no compiled part")
    data = FILES[name]()
    assert len(data) < 5_120
    assert takes_at_most(lambda: format.parse(data), 20)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: forged(named(65_536), tags(65_536), size=0), "the number of tensors is at most"),
        (
            lambda: forged(
                alone(1 << 21),
                b"\5" + deflated(b"\3\4" + ONE[1:] + b"\3\0\5\2\0\x10" + number(1 << 20) + b"\0\1\1\1" * (1 << 19)),
                size=0,
            ),
            "at most 65536 runs and 64",
        ),
        (lambda: forged(b"\0" + deflated(b"\0"), b"\0", b"\0", facts=inputs(4_097)), "facts must be"),
    ],
)
def test_more_work_than_was_paid_for_is_refused(data, words):
    with pytest.raises(SubcompressError, match=words):
        format.parse(data())


if __name__ == "__main__":
    for name, make in FILES.items():
        data = make()
        seconds = []
        for held in (library, lambda: None):
            codec.library = held
            began = time.process_time()
            format.parse(data)
            seconds.append(time.process_time() - began)
        print(f"{name:18} {len(data):5} bytes {seconds[0]:.2f} s compiled, {seconds[1]:.2f} s without")
