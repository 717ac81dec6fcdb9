"""Atomic writes: a file or folder is written next to its target and renamed. All output goes through here."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from subcompress.errors import SubcompressError

MAX_FILE_BYTES = 1 << 30
"""The largest packed file that is read."""


@contextmanager
def create_parents(path: Path) -> Iterator[None]:
    """Create the missing parent folders of an output; remove them again, if empty, when the block fails.

    Raises OSError if one cannot be created.
    """
    missing = [folder for folder in path.parents if not os.path.lexists(folder)]  # the innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block succeeds and is deleted when it fails.

    Missing parent folders are created. Raises SubcompressError if the folder cannot be written or the disk is full.
    """
    path = Path(os.path.realpath(path))  # replace the target of a symbolic link, not the link
    if os.path.exists(path) and not os.path.isfile(path):
        raise SubcompressError(f"{path} exists and is not a file: give another place")
    try:
        with create_parents(path), _temporary_sibling(path) as temporary:
            yield temporary
            with temporary.open("rb") as f:
                os.fsync(f.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
    except OSError as e:
        raise _write_error(path, e) from e


@contextmanager
def _temporary_sibling(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file in the same folder and delete it at the end."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _write_error(path: Path, e: OSError) -> SubcompressError:
    return SubcompressError(f"{path} cannot be written: {e.strerror or e}; give a writable place with room")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically. Raises SubcompressError if it cannot be written."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder that replaces whatever is at `path` when the block succeeds.

    A missing parent is created. Another program may watch that parent and use every folder in it, so the new folder is
    staged next to the parent, and inside it only if the folder above is on another disk or is not writable. Raises
    SubcompressError.
    """
    path = Path(os.path.abspath(path))
    try:
        with create_parents(path), _staging_folder(path) as (new, old):
            yield new
            try:
                if os.path.lexists(path):
                    path.rename(old)
                new.rename(path)
            except BaseException:
                if os.path.lexists(old) and not os.path.lexists(path):
                    old.rename(path)
                raise
    except OSError as e:
        raise _write_error(path, e) from e


@contextmanager
def _staging_folder(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield paths for the new folder and the one it replaces, on the same disk as `path`; delete both at the end."""
    grandparent = path.parent.parent
    outside = os.access(grandparent, os.W_OK) and grandparent.stat().st_dev == path.parent.stat().st_dev
    stage = Path(tempfile.mkdtemp(prefix=".subcompress.", suffix=".part", dir=grandparent if outside else path.parent))
    try:
        (stage / "new").mkdir()
        yield stage / "new", stage / "old"
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def read_bytes(path: str | Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes. Raises SubcompressError if it is missing, unreadable or larger."""
    try:
        with Path(path).open("rb") as f:
            data = f.read(limit + 1)
    except OSError as e:
        raise SubcompressError(f"{path} cannot be read: {e.strerror or e}; check the path") from e
    if len(data) > limit:
        if limit == MAX_FILE_BYTES:
            raise SubcompressError(f"{path} has more than the {limit} bytes of a packed file: is it the dense model?")
        raise SubcompressError(f"{path} has more than {limit} bytes, the most for a file of this kind: check the path")
    return data
