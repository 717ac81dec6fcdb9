"""The compiled part of the package, native.c and coder.c, through ctypes.

setuptools compiles it where there is a compiler; elsewhere `library()` is None, and torch and Python compute the same.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p

from subcompress.errors import SubcompressError

VECTORS = "SUBCOMPRESS_VECTORS"
"""The environment variable that chooses among the ways to compute on a CPU."""

PATHS = "plain", "avx2", "avx512"
"""The versions of native.c by their number there, the fastest last. `plain` is what every processor of its kind has:
SSE2 on x86-64, NEON on 64-bit ARM."""

NUMPY = "numpy"
"""Asks for no compiled code at all."""

KINDS = *PATHS, NUMPY


class Blocks(Structure):
    """native.c, blocks_t: an operator."""

    _fields_ = [
        ("key", c_uint32 * 2),
        ("stream", c_uint32),
        ("log2_m", c_int32),
        ("K", c_int32),
        ("used", c_int32),
        ("d", c_int64),
        ("near", c_void_p),
        ("columns", c_void_p),
        ("slots", c_void_p),
        ("signs", c_void_p),
        ("sums", c_void_p),
    ]


class Rows(Structure):
    """native.c, segment_t: rows of a group and their numbers."""

    _fields_ = [
        ("lo", c_int64),
        ("hi", c_int64),
        ("data", c_void_p),
        ("starts", c_void_p),
        ("seeded", c_void_p),
        ("seeded_row", c_int64),
        ("start", c_float),
        ("scale", c_float),
        ("unit", c_float),
        ("dtype", c_int32),
    ]


class Decoder(Structure):
    """coder.c, decoder_t: what is being read, and where it stands."""

    _fields_ = [
        ("data", c_char_p),
        ("size", c_int64),
        ("at", c_int64),
        ("range", c_uint64),
        ("code", c_uint64),
        ("left", c_int64),
    ]


BLOCKS = POINTER(Blocks), POINTER(Rows)
SIGNATURES = {
    "subcompress_paths": (c_int64, []),
    "subcompress_tile": (c_int64, []),
    "subcompress_log2_near": (c_int64, []),
    "subcompress_scratch": (c_int64, [BLOCKS[0]]),
    "subcompress_fill": (
        None,
        [c_int32, BLOCKS[0], c_void_p, c_int32, c_float, BLOCKS[1], c_int64, c_int64, c_int64, c_int32, c_void_p],
    ),
    "subcompress_adjoint": (None, [c_int32, *BLOCKS, c_int64, c_int64, c_int64, c_void_p, c_void_p]),
    "subcompress_decode": (None, [POINTER(Decoder), c_int32, c_int64, c_void_p]),
}


@functools.cache
def _loaded() -> ctypes.CDLL | None:
    """The compiled part, None where it was not built or does not load."""
    spec = importlib.util.find_spec("subcompress._native")
    if spec is None or spec.origin is None:
        return None
    try:
        found = ctypes.CDLL(spec.origin)
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):  # for another machine, or of another version
        return None
    return found


def library() -> ctypes.CDLL | None:
    """The compiled part, None where it was not built or does not load, and where NumPy is asked for."""
    return None if requested_kind() == NUMPY else _loaded()


def requested_kind() -> str:
    """What the environment variable SUBCOMPRESS_VECTORS asks for, empty where it does not.

    Raises SubcompressError for what is none of its values.
    """
    said = os.environ.get(VECTORS, "")
    if said not in ("", *KINDS):
        raise SubcompressError(f"{VECTORS} is one of {', '.join(KINDS)}, or unset; given {said!r}: unset it")
    return said


@contextmanager
def force_kind(kind: str) -> Iterator[None]:
    """Within it SUBCOMPRESS_VECTORS asks for that kind, in all threads; an empty one leaves it as it is."""
    before = os.environ.get(VECTORS)
    os.environ[VECTORS] = kind or before or ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[VECTORS]
        else:
            os.environ[VECTORS] = before


def available_kinds() -> tuple[str, ...]:
    """The kinds of vectors that the compiled part has code for and this processor runs, the fastest last; empty where
    nothing was compiled."""
    found = _loaded()
    bits = 0 if found is None else int(found.subcompress_paths())
    return tuple(name for i, name in enumerate(PATHS) if bits >> i & 1)


def selected_kind() -> str:
    """The one that is taken: what SUBCOMPRESS_VECTORS asks for, else the fastest.

    Raises SubcompressError where this processor does not run what was asked for.
    """
    here, said = available_kinds(), requested_kind()
    if said and said not in here:
        raise SubcompressError(f"{VECTORS}={said}: vectors here are {', '.join(here) or 'none'}; ask for one of them")
    return said or here[-1]


def cpu_engine() -> str:
    """What weights are rebuilt with on the CPU: a kind of vectors, `numpy` where that is asked for, and `torch` where
    nothing was compiled and nothing is asked for.

    Raises SubcompressError where this processor does not run what was asked for.
    """
    return NUMPY if requested_kind() == NUMPY else selected_kind() if requested_kind() or available_kinds() else "torch"
