"""From packed files to engines: a graph is traced once for all files of a network, a base is held once for all on it.

Tracing takes torch and the user's code, so it is somebody else's: `Trace`, in a process of its own where memory counts.
Not for several threads at once.
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
from subcompress.base import HUB, Base, BaseReference, file_location, find_base, open_base, release_pages, weights_files
from subcompress.errors import SubcompressError, one_line
from subcompress.format.payload import Parsed
from subcompress.format.record import Record
from subcompress.rebuild import arrays
from subcompress.serving.engines import Engine, open_session, place_initializers, session_bytes

UNUSED = 16
"""Graphs that are kept though no file needs them."""

FIXED_ON_BASE = 1 << 14
"""Bytes that an engine takes beside its tensors where the session is shared."""


@dataclass(frozen=True)
class Job:
    """A packed file whose network is to be traced, the source of its base where it stands on one, and the tensors that
    are to be inputs of the graph."""

    name: str
    data: bytes
    base: str | None = None
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Traced:
    """See `subcompress.onnx.weightless.WeightlessGraph`. network: what it was traced from, for people."""

    graph: bytes
    names: tuple[str, ...]
    general: bool
    network: str


Trace = Callable[[Sequence[Job]], "list[Traced | str]"]
"""Graphs for jobs, or why there is none, in one line each."""


@dataclass
class _Shared:
    """A session that many files on a base share, and its inputs that are weights."""

    session: Any
    inputs: tuple[str, ...]


class Bases:
    """Bases that are open. sources: what was given with --base; others are fetched from the Hub, where they lie there.

    What lies in a file here is copied first: one that is cut short under a process that maps it would end it.
    """

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self._unread = list(sources)
        self._wrong = ""  # with sources
        self._open: dict[bytes, tuple[Base, str | None]] = {}
        self._copies: tempfile.TemporaryDirectory[str] | None = None

    @property
    def nbytes(self) -> int:
        """Of those that are open, when dense."""
        return sum(base.layout.nbytes for base, _ in self._open.values())

    def of(self, reference: BaseReference, nbytes: int) -> tuple[Base, str | None]:
        """The base of a file, and its source where one was given. Raises SubcompressError where it cannot be had."""
        while reference.digest not in self._open and self._unread:
            source = self._unread.pop(0)
            try:
                base = open_base(source) if source.startswith(HUB) else self._copy(weights_files(Path(source)))
            except SubcompressError as e:  # others may do
                self._wrong += f"; {e}"
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
                raise SubcompressError(f"{e}{self._wrong}") from e
        return self._open[reference.digest]

    def _copy(self, paths: list[Path]) -> Base:
        if self._copies is None:
            self._copies = tempfile.TemporaryDirectory(prefix="subcompress-")
        folder = Path(self._copies.name) / f"{len(list(Path(self._copies.name).iterdir()))}"
        try:
            folder.mkdir()
            for path in paths:
                shutil.copyfile(path, folder / path.name)
        except OSError as e:
            raise SubcompressError(
                f"a base is copied to {folder.parent} ({e.strerror or e}): give it room, TMPDIR"
            ) from e
        whole = len(paths) == 1 or paths[0].name.endswith(".json")
        return open_base(folder / paths[0].name if whole else folder, paths[0].name)

    def close(self) -> None:
        """Remove the copies."""
        if self._copies is not None:
            self._copies.cleanup()


class Packed:
    """A packed file that was read: its bytes, and what is asked of it often. Raises SubcompressError for a bad one."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data
        parsed = self.parsed()
        self.nbytes = parsed.layout.nbytes
        self.facts, self.base, self.digest = parsed.facts, parsed.base, parsed.digest
        said = (parsed.layout, self.facts.input_shape, self.facts.input_dtype, self.facts.inputs, self.base)
        self.key = hashlib.sha256(repr(said).encode()).hexdigest()
        """What files have in common that one graph serves."""

    def parsed(self) -> Parsed:
        """What it says: not kept, it is a hundred times the file."""
        return format.parse(self.data)


class Networks:
    """Engines of packed files."""

    def __init__(self, trace: Trace, bases: Bases | None = None) -> None:
        self.bases = bases or Bases()
        self._trace = trace
        self._traced: dict[str, Traced | str] = {}
        self._acting: dict[str, dict[str, int]] = {}  # of files on a base: bytes of what any of them changes, by name
        self._noted: WeakSet[Packed] = WeakSet()  # those whose changes are among them: to find them takes milliseconds
        self._shared: dict[str, _Shared] = {}

    def prepare(self, files: Iterable[Packed], again: bool = False) -> dict[str, str]:
        """Trace what is not traced yet for these files, all at once; why each that cannot be served cannot, by name.

        again: try once more what could not be traced before.
        """
        files = list(files)
        wanted: dict[str, Packed] = {}
        before: dict[str, dict[str, int]] = {}
        for file in files:
            known, own = self._traced.get(file.key), self._traced.get(_own(file))
            if not again and (isinstance(known, str) or isinstance(own, str)):
                continue
            before.setdefault(file.key, dict(self._acting.get(file.key, {})))
            try:
                if file.base is not None:
                    self.bases.of(file.base, file.nbytes)
            except SubcompressError as e:  # for none of those on it; to ask for it once takes long enough
                self._traced[file.key] = str(e)
                continue
            try:
                if self._widened(file) or known is None or isinstance(known, str):
                    wanted.setdefault(file.key, file)
                elif not known.general and not isinstance(own, Traced):
                    wanted[_own(file)] = file
            except Exception as e:  # one file takes none of the others along
                self._traced[_own(file)] = one_line(e)
        jobs = [self._job(file) for file in wanted.values()]
        for (key, file), found in zip(wanted.items(), self._trace(jobs) if jobs else [], strict=True):
            if isinstance(found, str) and isinstance(self._traced.get(key), Traced):  # that is still good for others
                self._traced[_own(file)] = found
                self._act(key, before[key])
                continue
            self._traced[key] = found
            self._shared.pop(key, None)
            if isinstance(found, Traced):
                self._traced.pop(_own(file), None)
                if not found.general:  # it serves this file, and none of the others
                    self._traced[_own(file)] = found
        reasons = {f.name: self._traced.get(_own(f)) or self._traced.get(f.key) for f in files}
        return {name: reason for name, reason in reasons.items() if isinstance(reason, str)}

    def keep(self, files: Iterable[Packed]) -> None:
        """Forget what no file needs any more, but for a few graphs: a file may go away and come back."""
        used = {key for file in files for key in (file.key, _own(file))}
        for key in [k for k in self._shared if k not in used]:
            del self._shared[key]
        for key in [k for k in self._traced if k not in used][:-UNUSED]:
            del self._traced[key]
            self._act(key, None)

    def outdated(self, file: Packed, engine: Engine) -> bool:
        """Whether the engine shares a session that no new one would."""
        if file.base is None or not isinstance(traced := self._traced.get(file.key), Traced) or not traced.general:
            return False
        shared = self._shared.get(file.key)
        return shared is None or not engine.shares(shared.session)

    def engine(self, file: Packed) -> Engine:
        """Rebuild the weights, compare their digest, and make them ready to run. Raises SubcompressError."""
        self.prepare([file])
        self.prepare([file])  # another file may have shown that each needs a graph of its own
        record = self._record(file)
        traced = self._of(file)
        if record.base is None:
            weights = arrays.rebuild(record)
            return Engine(open_session(traced.graph, {n: weights[n] for n in traced.names}))
        shared = self._shared.get(file.key) if traced.general else None
        if shared is None:
            inputs = tuple(n for n in self._acting[file.key] if n in traced.names)
            outside = {n: record.base.array(n) for n in traced.names if n not in inputs}
            shared = _Shared(_on_base(traced.graph, outside), inputs)
            if traced.general:
                self._shared[file.key] = shared
        return Engine(shared.session, arrays.rebuild(record, shared.inputs))

    def takes(self, file: Packed) -> int:
        """Bytes of memory that the engine of a file will take, its base not counted."""
        if file.base is not None:
            return sum(self._acting.get(file.key, {}).values()) + FIXED_ON_BASE
        traced = self._traced.get(file.key)
        return session_bytes(file.nbytes, len(traced.graph) if isinstance(traced, Traced) else 0)

    def network(self, file: Packed) -> str:
        """What its graph was traced from, empty before it is."""
        traced = self._traced.get(file.key)
        return traced.network if isinstance(traced, Traced) else ""

    def close(self) -> None:
        """End a trace that is under way, where it can be ended, from another thread."""
        if (close := getattr(self._trace, "close", None)) is not None:
            close()

    def _of(self, file: Packed) -> Traced:
        traced, own = self._traced.get(file.key), self._traced.get(_own(file))
        if isinstance(own, str) or (isinstance(traced, Traced) and not traced.general):
            traced = own
        if traced is None or isinstance(traced, str):
            raise SubcompressError(traced or "its network could not be traced")
        return traced

    def _job(self, file: Packed) -> Job:
        source = None if file.base is None else self.bases.of(file.base, file.nbytes)[1]
        return Job(file.name, file.data, source, tuple(self._acting.get(file.key, ())))

    def _record(self, file: Packed) -> Record:
        parsed = file.parsed()
        return parsed.record(None if parsed.base is None else self.bases.of(parsed.base, file.nbytes)[0])

    def _widened(self, file: Packed) -> bool:
        """Note what a file on a base changes; whether that is more than any file of its network did before."""
        if file.base is None or file in self._noted:
            return False
        known = self._acting.setdefault(file.key, {})
        before = len(known)
        record = self._record(file)
        sizes = {spec.name: spec.nbytes for spec in record.layout}
        known.update({name: sizes[name] for name in arrays.changed_names(record)})
        self._noted.add(file)
        return len(known) > before

    def _act(self, key: str, acting: dict[str, int] | None) -> None:
        """Go back to what files of a network are known to change; None for nothing. They are asked again."""
        if acting is None:
            self._acting.pop(key, None)
        else:
            self._acting[key] = acting
        self._noted = WeakSet(file for file in self._noted if file.key != key)


def _on_base(graph: bytes, outside: dict[str, np.ndarray]) -> Any:
    """A session whose initialisers are the base's, in the base's file where they lie in one."""
    places = {n: place for n, a in outside.items() if (place := file_location(a)) is not None and a.size}
    folder = next((path.parent for path, _ in places.values()), None)
    if places:
        graph = place_initializers(graph, places)
    for array in outside.values():
        release_pages(array)  # it was read to be hashed
    return open_session(graph, {n: a for n, a in outside.items() if n not in places}, folder)


def _own(file: Packed) -> str:
    """The key of a graph that serves one file's weights only."""
    return f"{file.key} {file.digest.hex()}"
