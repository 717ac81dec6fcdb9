"""The workers of a run folder: processes on one or several machines that share it, without a server.

    workers/ID.json    written by each process every few seconds: which process it is, and what it does
    claims/NAME        a job that only one of them does: created exclusively, with the ID of the worker in it

A worker is dead when its process is gone or its file has not been written for a while. Its claims can then be taken.
Ages are differences of times that the file system gives, so that clocks may differ from machine to machine.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from subcompress import __version__
from subcompress.errors import SubcompressError, shown

BEAT = 2.0
"""Seconds between two updates of a worker's file."""

STALE = 60.0
"""Seconds without an update after which a worker counts as dead."""

LONG = 5.0
"""Seconds after which a waiting worker writes a line about it."""

POLL = 0.3
"""Seconds between two checks of the folder by a waiting worker."""

TRIES = 100
"""How many times a folder is made again that leaving workers remove."""

MAX_BYTES = 1 << 14
"""The most bytes of a worker's file."""

WORKERS, CLAIMS = "workers", "claims"


@dataclass(frozen=True)
class Other:
    """Another worker in the folder. about: what its file says."""

    id: str
    about: dict[str, Any]

    def __str__(self) -> str:
        return f"process {self.about.get('pid', '?')} on {shown(str(self.about.get('host', '?')))}"


class Worker:
    """This process, as the others in the folder see it. task: what it does there, such as `fit`; log: receives lines
    for the user."""

    def __init__(self, folder: Path, task: str, log: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.log = folder, log
        self.id = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.path = folder / WORKERS / f"{self.id}.json"
        self.about: dict[str, Any] = {
            "task": task,
            "host": platform.node(),
            "pid": os.getpid(),
            "place": _place(),
            "started": _started(os.getpid()),
            "version": f"subcompress {__version__}, torch {torch.__version__}",
            "status": "",
        }
        self._end, self._thread = threading.Event(), threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Worker:
        self._write()
        self._check_exclusive()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for name in self._claims():
            self.release(name)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        for name in (WORKERS, CLAIMS):  # where nobody else is there
            with suppress(OSError):
                (self.folder / name).rmdir()

    def _check_exclusive(self) -> None:
        """Raise SubcompressError if the file system makes a file twice."""
        path = self.folder / CLAIMS / f"{self.id}.exclusive"
        try:
            if not _create(path, "") or _create(path, ""):
                raise SubcompressError(
                    f"the file system of {self.folder} cannot create files exclusively, so that two processes "
                    "could do the same work: give a folder on another file system"
                )
        finally:
            with suppress(OSError):
                path.unlink()

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with suppress(SubcompressError):  # a folder that is away for a moment
                self._write()

    def _write(self) -> None:
        """Write the file of this worker. Raises SubcompressError if that cannot be."""
        _replace(self.path, json.dumps(self.about) + "\n")

    def says(self, status: str) -> None:
        """Let the others know what this worker does."""
        self.about["status"] = status

    # --- the others ---

    def others(self) -> list[Other]:
        """The other workers that are alive."""
        self._write()
        now = self.path.stat().st_mtime
        return [
            other for other, written in workers(self.folder) if other.id != self.id and is_alive(other, now - written)
        ]

    # --- claims ---

    def claim(self, name: str) -> bool:
        """Take a claim, if no worker that is alive has it. Raises SubcompressError for a claim that is no file.

        Of several workers that see the same dead owner, the one that claims to succeed it replaces the claim.
        """
        path = self.folder / CLAIMS / name
        if _create(path, self.id):
            return True
        owner = _owner(path)
        if owner is None or self._is_held(path, owner):  # None: it was given back just now
            return False
        succession = _succession(name, owner)
        if not self.claim(succession):
            return False
        try:
            if _owner(path) != owner:
                return False
            _replace(path, self.id)
            return True
        finally:
            self._remove(succession)

    def _is_held(self, path: Path, owner: str) -> bool:
        """Whether the owner of a claim is alive. One that cannot be read is held until it is old."""
        if owner in {self.id, *(other.id for other in self.others())}:
            return True
        return owner == "" and self.path.stat().st_mtime - _written(path) <= STALE

    def release(self, name: str) -> None:
        """Give a claim back, unless another worker has taken it from this one, which was silent for too long."""
        succession = _succession(name, self.id)
        if _owner(self.folder / CLAIMS / name) == self.id and self.claim(succession):
            self._remove(name)
            self._remove(succession)

    def _remove(self, name: str) -> None:
        """Delete a claim that names this worker."""
        path = self.folder / CLAIMS / name
        if _owner(path) == self.id:
            with suppress(OSError):
                path.unlink()

    def _claims(self) -> list[str]:
        with suppress(OSError):
            return [p.name for p in (self.folder / CLAIMS).iterdir() if _owner(p) == self.id]
        return []

    def claimed(self) -> list[str]:
        """The names that other workers which are alive have claimed."""
        alive = {other.id for other in self.others()}
        with suppress(OSError):
            return sorted(p.name for p in (self.folder / CLAIMS).iterdir() if _owner(p) in alive)
        return []

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold a claim, waiting for it. Says so where the wait is long."""
        began, said = time.monotonic(), False
        while not self.claim(name):
            if not said and time.monotonic() - began > LONG:
                self.log(f"waiting for {self._holder(name)}, which holds {self.folder / CLAIMS / name}")
                said = True
            time.sleep(0.02)
        try:
            yield
        finally:
            self.release(name)

    def _holder(self, name: str) -> str:
        """The worker that has a claim, for people."""
        owner = _owner(self.folder / CLAIMS / name)
        return next((str(other) for other in self.others() if other.id == owner), "another process")


def workers(folder: Path) -> Iterator[tuple[Other, float]]:
    """The workers of a folder, dead ones too, and when each wrote its file, by the file system's clock."""
    try:
        paths = sorted((folder / WORKERS).glob("*.json"))
    except OSError:
        return
    for path in paths:
        try:
            text, written = path.read_text("utf-8")[:MAX_BYTES], path.stat().st_mtime
            about = json.loads(text)
        except (OSError, ValueError, RecursionError):
            about, written = {}, _written(path)
        yield Other(path.stem, about if isinstance(about, dict) else {}), written


def _written(path: Path) -> float:
    """When a file was written, by the file system's clock; 0 where it is gone."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def is_alive(other: Other, age: float) -> bool:
    """Whether a worker whose file has this age in seconds is alive."""
    if abs(age) > STALE:  # a file of the future was copied, or the clock was set back
        return False
    if not other.about or other.about.get("place") != _place():
        return True  # as far as can be told from here
    pid = other.about.get("pid")
    return isinstance(pid, int) and pid > 0 and _started(pid) == other.about.get("started")


@cache
def _place() -> str:
    """This system and its numbering of processes: containers have their own."""
    found = [platform.node()]
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)


def _started(pid: int) -> str | None:
    """A mark that distinguishes a process from a later one with the same number; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _create(path: Path, text: str) -> bool:
    """Make a file with that text, at once and unless it is there. Raises SubcompressError if it cannot be made."""
    try:
        draft = _draft(path, text)
        try:
            os.link(draft, path)  # exclusive on network file systems too, and the text is there from the start
        except FileExistsError:
            return False
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            return _create_without_links(path, text)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as e:
        raise _error(path, e) from e
    return True


def _create_without_links(path: Path, text: str) -> bool:
    try:
        with path.open("x") as f:
            f.write(text)
    except FileExistsError:
        return False
    return True


def _draft(path: Path, text: str) -> Path:
    """A new file with that text beside the path, whose folder is made, but not the run folder. Raises OSError."""
    draft = path.with_name(f"{secrets.token_hex(6)}.draft")
    for _ in range(TRIES):
        draft.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # a worker that leaves removes the folder if it is empty
            draft.write_text(text)
            return draft
    draft.write_text(text)
    return draft


def _replace(path: Path, text: str) -> None:
    """Replace a file by one with that text, whole. Raises SubcompressError if that cannot be."""
    try:
        draft = _draft(path, text)
        try:
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as e:
        raise _error(path, e) from e


def _error(path: Path, e: OSError) -> SubcompressError:
    """What to say of a file in one of the two folders that cannot be written."""
    folder = path.parents[1]
    if not folder.is_dir():
        return SubcompressError(f"{folder} was removed while the run was under way: give the command again")
    where = path if path.parent.is_dir() else path.parent
    return SubcompressError(
        f"{where} cannot be written: {e.strerror or e}; remove it, free the disk, or give another folder"
    )


def _owner(path: Path) -> str | None:
    """The worker that a claim names: empty if the claim cannot be read, None if there is no claim."""
    try:
        return path.read_text("utf-8")[:MAX_BYTES]
    except (OSError, ValueError):
        return "" if os.path.lexists(path) else None


def _succession(name: str, owner: str) -> str:
    """The claim to succeed an owner."""
    return f"{name}~{hashlib.sha256(owner.encode()).hexdigest()[:12]}"


__all__ = ["POLL", "Other", "Worker", "is_alive", "workers"]
