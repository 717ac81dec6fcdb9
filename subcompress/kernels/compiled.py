"""The compiled part of the package, native.c and coder.c, through ctypes.

setuptools compiles it where there is a compiler; elsewhere `library()` is None, and torch and Python compute the same.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p


class Blocks(Structure):
    """native.c, blocks_t: an operator."""

    _fields_ = [
        ("key", c_uint32 * 2),
        ("stream", c_uint32),
        ("log2_m", c_int32),
        ("K", c_int32),
        ("used", c_int32),
        ("d", c_int64),
        ("columns", c_void_p),
        ("slots", c_void_p),
    ]


class Rows(Structure):
    """native.c, segment_t: rows of a group and their numbers."""

    _fields_ = [
        ("lo", c_int64),
        ("hi", c_int64),
        ("data", c_void_p),
        ("starts", c_void_p),
        ("start", c_float),
        ("scale", c_float),
        ("dtype", c_int32),
    ]


class Decoder(Structure):
    """coder.c, decoder_t: what is being read, and where it stands."""

    _fields_ = [("data", c_char_p), ("size", c_int64), ("at", c_int64), ("range", c_uint64), ("code", c_uint64)]


BLOCKS = POINTER(Blocks), POINTER(Rows)
SIGNATURES = {
    "subcompress_tile": (c_int64, []),
    "subcompress_log2_near": (c_int64, []),
    "subcompress_scratch": (c_int64, [BLOCKS[0]]),
    "subcompress_fill": (None, [BLOCKS[0], c_void_p, c_float, BLOCKS[1], c_int64, c_int64, c_int64, c_int32, c_void_p]),
    "subcompress_adjoint": (None, [BLOCKS[0], BLOCKS[1], c_int64, c_int64, c_int64, c_void_p, c_void_p]),
    "subcompress_decode": (None, [POINTER(Decoder), c_int32, c_int64, c_void_p]),
}


@functools.cache
def library() -> ctypes.CDLL | None:
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
