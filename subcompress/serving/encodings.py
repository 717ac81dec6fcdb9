"""Decompressing request bodies piece by piece, so that a small body cannot expand to gigabytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from subcompress.serving.refusals import RefusedError, shown

PIECE = 1 << 20
"""Bytes that one step produces: a few milliseconds of work."""

TAKEN = "gzip, deflate"
"""The encodings that clients of the protocol use."""

_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""zlib's number for each encoding: its window, plus 16 for a gzip header."""


def is_plain(encoding: bytes) -> bool:
    """Return whether a body with this Content-Encoding is uncompressed. Raises RefusedError, 415, for an unsupported
    one."""
    encoding = encoding.strip().lower()
    if encoding not in (b"", b"identity", *_BITS):
        raise RefusedError(
            415, f"content-encoding must be {TAKEN}, or left out; got {shown(encoding.decode('latin-1'))}"
        )
    return encoding not in _BITS


def pieces(data: bytes, encoding: bytes) -> Iterator[bytes]:
    """Yield the decompressed body in pieces of at most PIECE bytes. Raises RefusedError, 400, if it is damaged."""
    name = encoding.strip().lower()
    rest = data
    try:
        while True:
            inflater = zlib.decompressobj(_BITS[name])
            while not inflater.eof:
                piece = inflater.decompress(rest, PIECE)
                rest = inflater.unconsumed_tail
                if not (piece or rest or inflater.eof):
                    raise zlib.error("it ends too early")
                if piece:
                    yield piece
            rest = inflater.unused_data
            if not rest:
                return
            if name == b"deflate":
                raise zlib.error("something follows it")
    except zlib.error as e:
        raise RefusedError(400, f"a body of content-encoding {name.decode()} cannot be read ({e})") from e
