"""Parsing JSON from requests, refusing deep nesting that would make a later step fail."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import orjson

from subcompress.serving.refusals import RefusedError

MOST_DEEP = 64
"""The deepest nesting of lists and objects. A request has three levels, plus one for each axis of its data."""

FEW = 64
"""The most places of one letter that are checked one by one; a search for a whole word is ten times slower."""

SHORT = 2048
"""The fewest bytes that are skipped at once faster than from place to place."""

BLOCK = 1 << 20
"""Bytes that are scanned at a time, so that the scan takes little memory."""

_OPEN, _CLOSE, _QUOTE = b"[{", b"]}", b'"'
_OTHERS = bytes(c for c in range(256) if c not in _OPEN + _CLOSE + _QUOTE)


def parse_json(data: bytes) -> Any:
    """Parse JSON. Raises RefusedError, 400, for invalid JSON and for nesting deeper than MOST_DEEP."""
    if _opened(data) > MOST_DEEP and depth(data) > MOST_DEEP:
        raise RefusedError(400, f"the JSON is nested deeper than {MOST_DEEP} levels: send flat lists")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as e:
        raise RefusedError(400, f"the request is not valid JSON ({e})") from e


def _opened(data: bytes) -> int:
    """How often a list or an object begins, counted up to a little above MOST_DEEP: the depth is at most that."""
    if len(data) < SHORT:
        return data.count(b"[") + data.count(b"{")
    return sum(sum(1 for _ in islice(_places(data, _OPEN[i : i + 1]), MOST_DEEP + 1)) for i in range(2))


def _places(data: bytes, letter: bytes) -> Any:
    at = data.find(letter)
    while at >= 0:
        yield at
        at = data.find(letter, at + 1)


def has_word(data: bytes, word: bytes) -> bool:
    """Whether the word is there: quick where its first letter is rare, as letters are in lists of numbers."""
    if len(data) < SHORT:
        return word in data
    for looked, at in enumerate(_places(data, word[:1])):
        if data.startswith(word, at):
            return True
        if looked == FEW:
            return word in data
    return False


def depth(data: bytes) -> int:
    """Return how deep lists and objects are nested, ignoring brackets within strings."""
    if b"\\" in data:  # within texts: what a backslash precedes ends none
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = np.frombuffer(data.translate(None, _OTHERS), np.uint8)
    deepest, level, quotes = 0, 0, 0
    for lo in range(0, len(marks), BLOCK):
        block = marks[lo : lo + BLOCK]
        counted = quotes + np.cumsum(block == _QUOTE[0])
        step = np.isin(block, list(_OPEN)).astype(np.int64) - np.isin(block, list(_CLOSE))
        levels = level + np.cumsum(np.where(counted % 2, 0, step))
        deepest = max(deepest, int(levels.max()))
        level, quotes = int(levels[-1]), int(counted[-1])
    return deepest
