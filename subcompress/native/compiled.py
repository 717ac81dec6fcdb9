"""The compiled extension (native.c and coder.c), loaded through ctypes.

setuptools compiles it if there is a compiler. Without it `library()` is None, and torch and Python compute the same
results.
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
"""The environment variable that selects how the CPU computes."""

PATHS = "plain", "avx2", "avx512"
"""The versions of native.c by their number there, the fastest last. `plain` is what every processor of its kind has:
SSE2 on x86-64, NEON on 64-bit ARM."""

NUMPY = "numpy"
"""The value that disables all compiled code."""

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
    """native.c, segment_t: a range of rows and the values that start and scale them."""

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
    """coder.c, decoder_t: the stream being decoded and the position in it."""

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
def _load() -> ctypes.CDLL | None:
    """Load the compiled extension; None if it was not built or does not load."""
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
    """Return the compiled extension; None if it is missing or NumPy is requested."""
    return None if requested_kind() == NUMPY else _load()


def requested_kind() -> str:
    """Return the value of the environment variable SUBCOMPRESS_VECTORS, empty if it is unset.

    Raises SubcompressError for an unknown value.
    """
    value = os.environ.get(VECTORS, "")
    if value not in ("", *KINDS):
        raise SubcompressError(f"{VECTORS} must be one of {', '.join(KINDS)}, or unset; got {value!r}: unset it")
    return value


@contextmanager
def force_kind(kind: str) -> Iterator[None]:
    """Set SUBCOMPRESS_VECTORS to `kind` within the block, for all threads; an empty kind changes nothing."""
    previous = os.environ.get(VECTORS)
    os.environ[VECTORS] = kind or previous or ""
    try:
        yield
    finally:
        if previous is None:
            del os.environ[VECTORS]
        else:
            os.environ[VECTORS] = previous


def available_kinds() -> tuple[str, ...]:
    """Return the vector kinds that are compiled in and that this processor supports, the fastest last.

    Empty if nothing was compiled.
    """
    found = _load()
    bits = 0 if found is None else int(found.subcompress_paths())
    return tuple(name for i, name in enumerate(PATHS) if bits >> i & 1)


def selected_kind() -> str:
    """Return the vector kind in use: the one that SUBCOMPRESS_VECTORS requests, else the fastest.

    Raises SubcompressError if this processor does not support the requested one.
    """
    available, requested = available_kinds(), requested_kind()
    if requested and requested not in available:
        raise SubcompressError(
            f"{VECTORS}={requested}: this machine has the vectors {', '.join(available) or 'none'}; give one of them"
        )
    return requested or available[-1]


def cpu_engine() -> str:
    """Return what rebuilds weights on the CPU: a vector kind, `numpy` if requested, or `torch` without compiled code.

    Raises SubcompressError if this processor does not support the requested kind.
    """
    return NUMPY if requested_kind() == NUMPY else selected_kind() if requested_kind() or available_kinds() else "torch"
