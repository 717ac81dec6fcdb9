"""Whole files or none: write beside the target, then rename. Every output goes through here."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from subcompress.errors import SubcompressError

MAX_FILE_BYTES = 1 << 30
"""Of a file of ours."""


@contextmanager
def create_parents(path: Path) -> Iterator[None]:
    """Make the folders above an output that are not there; take those away again that are empty when the block fails.

    Raises OSError where one cannot be made.
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
    """A temporary path that becomes `path` when the block ends well, and vanishes when it does not.

    Folders above it are made where they are missing. Raises SubcompressError where the folder cannot be written or the
    disk is full.
    """
    path = Path(os.path.realpath(path))  # a link stays, what it points to is replaced
    if os.path.exists(path) and not os.path.isfile(path):
        raise SubcompressError(f"{path} is there and is no file: give another place")
    try:
        with create_parents(path), _beside(path) as temporary:
            yield temporary
            with temporary.open("rb") as f:
                os.fsync(f.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
    except OSError as e:
        raise _unwritable(path, e) from e


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """An empty file in the same folder, which vanishes."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _unwritable(path: Path, e: OSError) -> SubcompressError:
    return SubcompressError(f"{path} cannot be written: {e.strerror or e}; give a writable place with room")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file or none. Raises SubcompressError where it cannot be written."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder that replaces `path`, whatever is there, when the block ends well.

    Its parent is made where it is not there. A program may take every folder in that parent for its own, so the new one
    lies beside the parent meanwhile, and in it only where that is another disk or may not be written. Raises
    SubcompressError.
    """
    path = Path(os.path.abspath(path))
    try:
        with create_parents(path), _staged(path) as (new, old):
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
        raise _unwritable(path, e) from e


@contextmanager
def _staged(path: Path) -> Iterator[tuple[Path, Path]]:
    """A new folder and a place for what is replaced, on the disk of `path`; what is left there vanishes."""
    beside = path.parent.parent
    apart = os.access(beside, os.W_OK) and beside.stat().st_dev == path.parent.stat().st_dev
    stage = Path(tempfile.mkdtemp(prefix=".subcompress.", suffix=".part", dir=beside if apart else path.parent))
    try:
        (stage / "new").mkdir()
        yield stage / "new", stage / "old"
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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
