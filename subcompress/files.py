"""Whole files or none: write beside the target, then rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from subcompress.errors import SubcompressError

MAX_FILE_BYTES = 1 << 30
"""Of a file of ours."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes when it does not.

    Raises SubcompressError where the folder cannot be written or the disk is full.
    """
    path = Path(os.path.realpath(path))  # a link stays, what it points to is replaced
    if os.path.exists(path) and not os.path.isfile(path):
        raise SubcompressError(f"{path} is there and is no file: give another place")
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as e:
        raise SubcompressError(f"{path} cannot be written: {e.strerror or e}; give a writable place with room") from e
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file or none. Raises SubcompressError where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_bytes(path: str | Path, limit: int) -> bytes:
    """A whole file of at most `limit` bytes. Raises SubcompressError where it is missing, unreadable or larger."""
    try:
        with Path(path).open("rb") as f:
            data = f.read(limit + 1)
    except OSError as e:
        raise SubcompressError(f"{path} cannot be read: {e.strerror or e}; check the path") from e
    if len(data) > limit:
        raise SubcompressError(f"a file of ours has at most {limit} bytes; {path} is larger: is it the dense model?")
    return data
