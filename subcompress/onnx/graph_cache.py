"""A cache of traced graphs on disk, so that a server need not trace its networks again at each start.

A graph depends on the code of the network, on the files that this code reads, and on the libraries that trace it. An
entry records all three: the files that were read while the graph was traced (`Reads`), with their digests, and the
installed packages. It is used only as long as they are unchanged. The cache does not notice changes of environment
variables, or of files that compiled code opens.

Nothing here imports torch or onnx.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.support.files import write_bytes

VARIABLE = "SUBCOMPRESS_CACHE"
"""The environment variable that names the cache folder, whose contents may be deleted at any time."""

VERSION = 1
"""Version of the entries. Entries of other versions are ignored."""

MAX_BYTES = 64 << 20
"""Largest entry that is kept or read."""

MAX_ENTRIES = 256
"""Entries that are kept; beyond, those that were not used for longest are removed."""

MAX_HASHED = 16 << 20
"""Files up to this size are read again to see whether they changed. For larger ones, the size and the time of the last
change must be the same."""

MAX_READS = 1 << 14
"""Files that an entry may depend on. A network that reads more is traced each time."""

SUFFIX = ".graph"


@dataclass(frozen=True)
class Traced:
    """A graph without its weights.

    Attributes:
        graph: The graph, a serialized ONNX model.
        names: The names of the tensors that it reads from outside.
        general: Whether it serves all files of the network. If not, it serves only the file that it was traced for.
        network: The name of the network, for the user.
    """

    graph: bytes
    names: tuple[str, ...]
    general: bool
    network: str


def default_folder() -> Path:
    """Return the folder of the cache: in $SUBCOMPRESS_CACHE, otherwise in the user's cache folder."""
    if given := os.environ.get(VARIABLE):
        return Path(given) / "graphs"
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "subcompress" / "graphs"


class GraphCache:
    """A folder of traced graphs. Each entry is found by a question: a text that identifies the graph."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, str] = {}  # path -> the state of the file; a server asks for many graphs at once
        self._packages: str | None = None

    def find(self, question: str) -> Traced | None:
        """Return the graph that was kept for a question. None if there is none, or what it depends on changed."""
        path = self._path(question)
        try:
            header, graph = self._read(path)
            if header["version"] != VERSION or header["packages"] != self._installed():
                return None
            if hashlib.sha256(graph).hexdigest() != header["digest"]:
                return None
            if any(self._state(name) != state for name, state in header["reads"].items()):
                return None
            found = Traced(graph, tuple(header["names"]), bool(header["general"]), str(header["network"]))
            os.utime(path)  # the entries that are used stay
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no entry, or not one of ours
            return None
        return found

    def keep(self, question: str, found: Traced, reads: Iterable[str]) -> None:
        """Keep a graph. reads: the files that were read to trace it. A folder that cannot be written is left alone."""
        self._seen.clear()  # files may have changed since they were looked at
        names = sorted(set(reads))
        if len(names) > MAX_READS:
            return
        header = {
            "version": VERSION,
            "packages": self._installed(),
            "digest": hashlib.sha256(found.graph).hexdigest(),
            "reads": {name: self._state(name) for name in names},
            **{k: v for k, v in asdict(found).items() if k != "graph"},
        }
        data = json.dumps(header).encode() + b"\n" + found.graph
        if len(data) > MAX_BYTES:
            return
        with suppress(OSError, SubcompressError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(self.folder.stat()):
                write_bytes(self._path(question), data)
                self._remove_oldest()

    def forget_states(self) -> None:
        """Look at the files again at the next `find`, because they may have changed."""
        self._seen.clear()

    def _path(self, question: str) -> Path:
        return self.folder / (hashlib.sha256(question.encode()).hexdigest() + SUFFIX)

    def _read(self, path: Path) -> tuple[dict[str, Any], bytes]:
        """Return the header and the graph of an entry.

        Raises OSError or ValueError if another user may have written it, if it is too large, or if it is no entry.
        """
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            is_ours = status.st_uid == os.geteuid() and _is_private(self.folder.stat())
            if not is_ours or status.st_size > MAX_BYTES:
                raise ValueError("not an entry of this user's")
            line, _, graph = file.read(MAX_BYTES).partition(b"\n")
        return json.loads(line), graph

    def _installed(self) -> str:
        if self._packages is None:
            self._packages = installed_packages()
        return self._packages

    def _state(self, name: str) -> str:
        """Return the state of a file: its digest, or size and time if it is large. Empty if it cannot be read."""
        if name not in self._seen:
            self._seen[name] = _state_of(Path(name))
        return self._seen[name]

    def _remove_oldest(self) -> None:
        entries = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in entries[:-MAX_ENTRIES]:
            path.unlink(missing_ok=True)


def installed_packages() -> str:
    """Return a digest of the interpreter and of the names and versions of all installed packages."""
    names = [sys.version]
    for folder in _package_folders():
        names += sorted(entry.name for entry in folder.iterdir() if entry.name.endswith((".dist-info", ".egg-info")))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _package_folders() -> Iterator[Path]:
    """Yield the folders on the module path that packages are installed in."""
    for name in dict.fromkeys(os.path.realpath(p) for p in sys.path if p):
        folder = Path(name)
        with suppress(OSError):
            if folder.name in ("site-packages", "dist-packages") and folder.is_dir():
                yield folder


def _is_private(status: os.stat_result) -> bool:
    """Whether a folder is this user's, and nobody else can write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _state_of(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return ""
        if status.st_size > MAX_HASHED:
            return f"{status.st_size} {status.st_mtime_ns}"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


@dataclass
class Reads:
    """Records the files that this process reads from now on, except those of installed packages.

    An audit hook sees them. It stays until the process ends, so this is for processes that only trace.
    """

    _opened: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            mode = arguments[1]
            if not isinstance(mode, str) or ("w" not in mode and "x" not in mode):
                self._opened.add(os.fsdecode(arguments[0]))

    def names(self) -> list[str]:
        """Return absolute names of the files that still exist, and of the source of each imported module."""
        sources = {_source_of(module) for module in list(sys.modules.values())}
        outside = [*map(os.path.realpath, map(str, _package_folders())), *_standard_folders()]
        found = set()
        for name in map(os.path.realpath, {*self._opened, *sources} - {""}):
            if not name.startswith(tuple(f"{folder}{os.sep}" for folder in outside)) and os.path.isfile(name):
                found.add(name)
        return sorted(found)


def _source_of(module: Any) -> str:
    found = getattr(module, "__file__", None)
    return found if isinstance(found, str) else ""


def _standard_folders() -> tuple[str, ...]:
    """Return the folders of the standard library and of devices, whose files an entry does not name."""
    return *(os.path.realpath(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")), "/proc", "/sys", "/dev"


__all__ = ["GraphCache", "Reads", "Traced", "default_folder", "installed_packages"]
