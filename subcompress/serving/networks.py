"""Engines for packed files: a graph is traced once for all files of a network, a base is loaded once for all on it.

Tracing needs torch and the user's code, so the caller provides it as a `Trace`, which may use another process. Nothing
here is thread-safe.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from subcompress import format
from subcompress.base import (
    HUB,
    BaseReference,
    BaseTensors,
    file_location,
    find_base,
    open_base,
    release_pages,
    weights_files,
)
from subcompress.errors import SubcompressError, one_line
from subcompress.format.payload import Parsed
from subcompress.format.record import Record
from subcompress.onnx.graph_cache import Traced
from subcompress.rebuild import arrays
from subcompress.serving.engines import Engine, open_session, place_initializers, session_bytes

UNUSED = 16
"""The number of unused graphs that are kept."""

FIXED_ON_BASE = 1 << 14
"""The bytes that an engine with a shared session takes besides its tensors."""


@dataclass(frozen=True)
class Job:
    """A request to trace a network. data: the packed file; base: the source of its base; inputs: tensors that become
    inputs of the graph."""

    name: str
    data: bytes
    base: str | None = None
    inputs: tuple[str, ...] = ()


Trace = Callable[[Sequence[Job]], "list[Traced | str]"]
"""Traces a graph for each job, or returns in one line why there is none."""


@dataclass
class _Shared:
    """A session that many files on a base share, and the names of its inputs that are weights."""

    session: Any
    inputs: tuple[str, ...]


class Bases:
    """Open bases. sources: the arguments of --base; other bases are downloaded from the Hub.

    Local files are copied first, because truncating a file that is mapped would end the process.
    """

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self._unread = list(sources)
        self._errors = ""  # about sources
        self._open: dict[bytes, tuple[BaseTensors, str | None]] = {}
        self._copies: tempfile.TemporaryDirectory[str] | None = None

    @property
    def nbytes(self) -> int:
        """Dense bytes of the open bases."""
        return sum(base.layout.nbytes for base, _ in self._open.values())

    def of(self, reference: BaseReference, nbytes: int) -> tuple[BaseTensors, str | None]:
        """Return the base of a file, and its source if it was given. Raises SubcompressError if there is none."""
        while reference.digest not in self._open and self._unread:
            source = self._unread.pop(0)
            try:
                base = open_base(source) if source.startswith(HUB) else self._copy(weights_files(Path(source)))
            except SubcompressError as e:  # others may do
                self._errors += f"; {e}"
            else:
                self._open[base.digest] = (base, source)
        if reference.digest not in self._open and reference.changes:
            for base, given in list(self._open.values()):
                if (changed := base.matching(reference)) is not None:
                    self._open[reference.digest] = (changed, given)
        if reference.digest not in self._open:
            try:
                self._open[reference.digest] = (find_base(reference, nbytes), None)
            except SubcompressError as e:
                raise SubcompressError(f"{e}{self._errors}") from e
        return self._open[reference.digest]

    def _copy(self, paths: list[Path]) -> BaseTensors:
        if self._copies is None:
            self._copies = tempfile.TemporaryDirectory(prefix="subcompress-")
        folder = Path(self._copies.name) / f"{len(list(Path(self._copies.name).iterdir()))}"
        try:
            folder.mkdir()
            for path in paths:
                shutil.copyfile(path, folder / path.name)
        except OSError as e:
            raise SubcompressError(
                f"the base cannot be copied to {folder.parent} ({e.strerror or e}): free space there, or set TMPDIR"
            ) from e
        is_single = len(paths) == 1 or paths[0].name.endswith(".json")
        return open_base(folder / paths[0].name if is_single else folder, paths[0].name)

    def close(self) -> None:
        """Remove the copies."""
        if self._copies is not None:
            self._copies.cleanup()


class Packed:
    """The bytes of a packed file and what is often asked about it. Raises SubcompressError for an invalid one."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data
        parsed = self.parsed()
        self.nbytes = parsed.layout.nbytes
        self.facts, self.base, self.digest = parsed.facts, parsed.base, parsed.digest
        properties = (parsed.layout, self.facts.input_shape, self.facts.input_dtype, self.facts.inputs, self.base)
        self.key = hashlib.sha256(repr(properties).encode()).hexdigest()
        """Equal for files that one graph can serve."""

    def parsed(self) -> Parsed:
        """Parse the file; the result is not kept, because it is a hundred times as large."""
        return format.parse(self.data)


class Networks:
    """The graphs and engines of packed files."""

    def __init__(self, trace: Trace, bases: Bases | None = None) -> None:
        self.bases = bases or Bases()
        self._trace = trace
        self._traced: dict[str, Traced | str] = {}
        self._changed_bytes: dict[
            str, dict[str, int]
        ] = {}  # key of files on a base -> the tensors that any of them changes, and their bytes
        self._noted: WeakSet[Packed] = WeakSet()  # files whose changes were recorded, which takes milliseconds
        self._shared: dict[str, _Shared] = {}

    def prepare(self, files: Iterable[Packed], again: bool = False) -> dict[str, str]:
        """Trace the graphs that these files lack, all at once; return why files cannot be served, by name.

        again: also retry graphs that could not be traced before.
        """
        files = list(files)
        missing: dict[str, Packed] = {}
        previous_changes: dict[str, dict[str, int]] = {}
        for file in files:
            known, own = self._traced.get(file.key), self._traced.get(_own_key(file))
            if not again and (isinstance(known, str) or isinstance(own, str)):
                continue
            previous_changes.setdefault(file.key, dict(self._changed_bytes.get(file.key, {})))
            try:
                if file.base is not None:
                    self.bases.of(file.base, file.nbytes)
            except SubcompressError as e:  # fails all files on this base, so that it is not fetched again for each
                self._traced[file.key] = str(e)
                continue
            try:
                if self._note_changes(file) or known is None or isinstance(known, str):
                    missing.setdefault(file.key, file)
                elif not known.general and not isinstance(own, Traced):
                    missing[_own_key(file)] = file
            except Exception as e:  # an error in one file must not affect the others
                self._traced[_own_key(file)] = one_line(e)
        jobs = [self._job(file) for file in missing.values()]
        for (key, file), traced in zip(missing.items(), self._trace(jobs) if jobs else [], strict=True):
            if isinstance(traced, str) and isinstance(
                self._traced.get(key), Traced
            ):  # the old graph still serves other files
                self._traced[_own_key(file)] = traced
                self._reset_changes(key, previous_changes[key])
                continue
            self._traced[key] = traced
            self._shared.pop(key, None)
            if isinstance(traced, Traced):
                self._traced.pop(_own_key(file), None)
                if not traced.general:  # it serves this file, and none of the others
                    self._traced[_own_key(file)] = traced
        reasons = {f.name: self._traced.get(_own_key(f)) or self._traced.get(f.key) for f in files}
        return {name: reason for name, reason in reasons.items() if isinstance(reason, str)}

    def discard_unused(self, files: Iterable[Packed]) -> None:
        """Discard what no file needs, except a few graphs, because a file may disappear and return."""
        used = {key for file in files for key in (file.key, _own_key(file))}
        for key in [k for k in self._shared if k not in used]:
            del self._shared[key]
        for key in [k for k in self._traced if k not in used][:-UNUSED]:
            del self._traced[key]
            self._reset_changes(key, None)

    def outdated(self, file: Packed, engine: Engine) -> bool:
        """Return whether the engine shares a session that new engines do not use."""
        if file.base is None or not isinstance(traced := self._traced.get(file.key), Traced) or not traced.general:
            return False
        shared = self._shared.get(file.key)
        return shared is None or not engine.shares(shared.session)

    def engine(self, file: Packed) -> Engine:
        """Rebuild the weights, check their digest, and open a session. Raises SubcompressError."""
        self.prepare([file])
        self.prepare([file])  # another file may have shown that each needs a graph of its own
        record = self._record(file)
        traced = self._graph_of(file)
        if record.base is None:
            weights = arrays.rebuild(record)
            return Engine(open_session(traced.graph, {n: weights[n] for n in traced.names}))
        shared = self._shared.get(file.key) if traced.general else None
        if shared is None:
            inputs = tuple(n for n in self._changed_bytes[file.key] if n in traced.names)
            outside = {n: record.base.array(n) for n in traced.names if n not in inputs}
            shared = _Shared(_open_shared_session(traced.graph, outside), inputs)
            if traced.general:
                self._shared[file.key] = shared
        return Engine(shared.session, arrays.rebuild(record, shared.inputs))

    def engine_bytes(self, file: Packed) -> int:
        """Return the bytes of memory that an engine will take, without its base."""
        if file.base is not None:
            return sum(self._changed_bytes.get(file.key, {}).values()) + FIXED_ON_BASE
        traced = self._traced.get(file.key)
        return session_bytes(file.nbytes, len(traced.graph) if isinstance(traced, Traced) else 0)

    def network(self, file: Packed) -> str:
        """Return the name of the network that the graph was traced from, empty if it is not traced yet."""
        traced = self._traced.get(file.key)
        return traced.network if isinstance(traced, Traced) else ""

    def close(self) -> None:
        """Stop a trace that is under way, if it can be stopped; may be called from another thread."""
        if (close := getattr(self._trace, "close", None)) is not None:
            close()

    def _graph_of(self, file: Packed) -> Traced:
        traced, own = self._traced.get(file.key), self._traced.get(_own_key(file))
        if isinstance(own, str) or (isinstance(traced, Traced) and not traced.general):
            traced = own
        if traced is None or isinstance(traced, str):
            raise SubcompressError(traced or "its network could not be traced")
        return traced

    def _job(self, file: Packed) -> Job:
        source = None if file.base is None else self.bases.of(file.base, file.nbytes)[1]
        return Job(file.name, file.data, source, tuple(self._changed_bytes.get(file.key, ())))

    def _record(self, file: Packed) -> Record:
        parsed = file.parsed()
        return parsed.record(None if parsed.base is None else self.bases.of(parsed.base, file.nbytes)[0])

    def _note_changes(self, file: Packed) -> bool:
        """Record which tensors of its base a file changes; return whether these are more than those of its network's
        other files."""
        if file.base is None or file in self._noted:
            return False
        known = self._changed_bytes.setdefault(file.key, {})
        before = len(known)
        record = self._record(file)
        sizes = {spec.name: spec.nbytes for spec in record.layout}
        known.update({name: sizes[name] for name in arrays.changed_names(record)})
        self._noted.add(file)
        return len(known) > before

    def _reset_changes(self, key: str, changes: dict[str, int] | None) -> None:
        """Restore the recorded changes of a network's files, None for none; the files will be recorded again."""
        if changes is None:
            self._changed_bytes.pop(key, None)
        else:
            self._changed_bytes[key] = changes
        self._noted = WeakSet(file for file in self._noted if file.key != key)


def _open_shared_session(graph: bytes, outside: dict[str, np.ndarray]) -> Any:
    """Open a session whose initializers are the base's, left in its file if they lie in one."""
    places = {n: place for n, a in outside.items() if (place := file_location(a)) is not None and a.size}
    folder = next((path.parent for path, _ in places.values()), None)
    if places:
        graph = place_initializers(graph, places)
    for array in outside.values():
        release_pages(array)  # hashing has read it into memory
    return open_session(graph, {n: a for n, a in outside.items() if n not in places}, folder)


def _own_key(file: Packed) -> str:
    """Return the key of a graph that serves only one file's weights."""
    return f"{file.key} {file.digest.hex()}"
