"""The models of a server: rebuilt on first use, dropped least recently used when memory is full, reloaded when files
change."""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError, memory_ran_out, one_line
from subcompress.onnx.runtime import give_back
from subcompress.serving import catalog
from subcompress.serving.batching import Batches
from subcompress.serving.catalog import GRAPH, Content, FoundFile
from subcompress.serving.engines import FIXED, Engine
from subcompress.serving.networks import Networks, Packed
from subcompress.serving.refusals import RefusedError, shown
from subcompress.serving.trial import DIED, Trials, open_graph_file, try_once
from subcompress.support.threads import thread_count

RECENT = 256
"""The number of latencies of a model from which its median and 99th percentile are computed."""

TRIM = 1 << 24
"""The bytes of dropped weights after which freed memory is returned to the system."""

Log = Callable[[str], None]


class Model:
    """A served model. state: idle, loading, loaded, unavailable or unloaded."""

    def __init__(self, content: Content, pool: Executor, most: int, ran: Callable[[int], None]) -> None:
        self.content = content
        self.batches = Batches(pool, most, self._count_run)
        self.engine: Engine | None = None
        self.memory = 0  # bytes of the engine
        self.users = 0  # requests that need it now
        self.loading = False
        self.unloaded = False
        self.file_error = ""  # what is wrong with the file; an earlier version may still be served
        self.load_error = ""  # why the last attempt to rebuild it failed
        self.trial_error: str | None = None  # None before the first trial, empty once it has run, else why it failed
        self.requests = self.failed = self.runs = self.examples = 0
        self.seconds = 0.0  # of runs
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.last: float | None = None
        self._ran = ran

    def _count_run(self, examples: int, seconds: float) -> None:
        self.runs += 1
        self.examples += examples
        self.seconds += seconds
        self._ran(examples)

    @property
    def name(self) -> str:
        """The name in requests."""
        return self.content.found.name

    @property
    def reason(self) -> str:
        """Why the model is not served, or not as in its file."""
        return self.file_error or self.load_error or self.trial_error or ""

    @property
    def is_graph(self) -> bool:
        """Whether it is an .onnx file."""
        path = self.content.found.path
        return path is not None and path.suffix == GRAPH

    @property
    def readable(self) -> bool:
        """Whether there is something to serve: the file's present content or an earlier one."""
        graph = self.is_graph and not self.content.found.wrong
        return self.content.packed is not None or (graph and self.content.nbytes > 0)

    @property
    def ready(self) -> bool:
        """Whether requests are answered: it has run."""
        return self.readable and not self.unloaded and self.trial_error == ""

    @property
    def is_untried(self) -> bool:
        """Whether it is still unknown if it runs."""
        return self.readable and not self.unloaded and self.trial_error is None

    @property
    def state(self) -> str:
        """The state as the page and the index show it."""
        if self.unloaded:
            return "unloaded"
        if not self.readable or self.trial_error:
            return "unavailable"
        return "loading" if self.loading else "idle" if self.engine is None else "loaded"


class Models:
    """All models of a server. memory: the most bytes that rebuilt models may take together.

    Its methods run on one event loop; one other thread reads files and rebuilds weights, one model at a time.
    """

    def __init__(
        self,
        sources: Sequence[str],
        networks: Networks,
        *,
        memory: int,
        most: int,
        log: Log,
        ran: Callable[[int], None] = lambda examples: None,
    ) -> None:
        self.sources, self.networks, self.limit = list(sources), networks, memory
        self.used, self.most = 0, most
        self._log, self._ran = log, ran
        self._by_name: dict[str, Model] = {}
        self._loaded: OrderedDict[str, Model] = OrderedDict()  # the least recently used first
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._pool = ThreadPoolExecutor(thread_count(), thread_name_prefix="run")
        self._trial_thread = ThreadPoolExecutor(1, thread_name_prefix="try")
        self._trials = Trials()
        self._trial_task: asyncio.Task[None] | None = None
        self.has_tried_all = False  # whether each model of the start has run once, or is known not to run
        self._lock = asyncio.Lock()  # held while loading a model or reading files
        self._idle = asyncio.Event()
        self._released: list[Engine] = []  # freed by the loader's thread
        self._released_bytes = 0
        self._has_refreshed = self._has_opened_graph = False
        self._news: list[tuple[str, str]] = []
        self._listed: dict[str, list[FoundFile]] = {}
        self._source_errors: list[str] = []  # problems with sources that were logged

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    async def in_loader(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run work in the thread that reads files and rebuilds weights."""
        return await asyncio.get_running_loop().run_in_executor(self._loader, work, *args)

    async def in_pool(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run work in one of the threads that run networks."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    async def preload(self) -> None:
        """Import what the first model would have to wait for."""
        await self.in_loader(importlib.import_module, "onnxruntime")

    async def refresh(self, again: str = "") -> None:
        """Read new and changed files, forget missing ones, and trace networks that are not known yet.

        again: the name of a model to read and trace even if that failed before.
        """
        async with self._lock:
            found, wrong = await self.in_loader(catalog.find_models, self.sources, self._listed)
            for reason in wrong:
                if reason not in self._source_errors:
                    self._log(reason)
            self._source_errors = wrong
            served = len(self._by_name)
            for name in self._by_name.keys() - found.keys():
                self._log(f"{name}: its file is gone, and it is no longer served")
                self._drop(self._by_name.pop(name))
            changed = [f for f in found.values() if f.name == again or self._has_changed(f)]
            if changed:
                read: list[Content | SubcompressError] = await self.in_loader(_read_all, changed)
                packed = [c.packed for c in read if isinstance(c, Content) and c.packed is not None]
                untraced = await self.in_loader(self._prepare, packed, again)
                for f, content in zip(changed, read, strict=True):
                    self._update(f, content, untraced.get(f.name, ""))
                self._log_news()
            if changed or len(self._by_name) < served:
                self._drop_outdated()
                await self.in_loader(
                    self.networks.discard_unused, [p for m in self if (p := m.content.packed) is not None]
                )
            await self.in_loader(self._free_released)
            self._has_refreshed = True

    def _drop_outdated(self) -> None:
        """Drop engines that share a base's session that new engines do not use."""
        for model in list(self._loaded.values()):
            file, engine = model.content.packed, model.engine
            if file is not None and engine is not None and self.networks.outdated(file, engine):
                self._drop(model)

    def _prepare(self, files: Sequence[Packed], again: str) -> dict[str, str]:
        wrong = self.networks.prepare([f for f in files if f.name != again])
        return wrong | self.networks.prepare([f for f in files if f.name == again], again=True)

    def _log_news(self) -> None:
        """Log what happened to the files, one line for all to which the same happened."""
        names: dict[str, list[str]] = {}
        for name, what in self._news:
            names.setdefault(what, []).append(name)
        self._news.clear()
        for what, of in names.items():
            more = f" and {len(of) - 2} more" if len(of) > 2 else ""
            self._log(f"{', '.join(of[:2])}{more}: {what}")

    def _new(self, content: Content) -> Model:
        return Model(content, self._pool, self.most, self._ran)

    def _has_changed(self, found: FoundFile) -> bool:
        model = self._by_name.get(found.name)
        return model is None or model.content.found != found

    def _update(self, found: FoundFile, content: Content | SubcompressError, untraced: str) -> None:
        """Serve the content of a file that was read.

        If it cannot be served, the previous content stays and the reason is recorded. untraced: why its network could
        not be traced, or empty.
        """
        model = self._by_name.get(found.name)
        reason = str(content) if isinstance(content, SubcompressError) else untraced
        if reason:
            if isinstance(content, SubcompressError) and isinstance(content.__cause__, OSError) and found.path:
                found = replace(found, signature=())  # so that the next refresh tries again
            if model is not None and model.readable and not found.wrong:
                reason = f"{reason} (what was read earlier is still served)"
                model.content.found = found
            else:
                empty = Content(found, None, 0 if isinstance(content, SubcompressError) else content.nbytes)
                if model is None:
                    model = self._by_name[found.name] = self._new(empty)
                self._drop(model)
                model.content = empty
            if model.file_error != reason:
                self._news.append((found.name, reason))
            model.file_error = reason
            return
        assert isinstance(content, Content)
        if model is None:
            self._by_name[found.name] = self._new(content)
            if self._has_refreshed:
                self._news.append((found.name, "a new file, which is now served"))
            return
        old, new = model.content.packed, content.packed
        is_same = old is not None and new is not None and old.data == new.data
        if not (is_same or (old is new is None and model.content.found == found)):
            self._news.append((found.name, "its file has changed; the new one is served from now on"))
            self._drop(model)
            model.trial_error = None
        elif model.file_error:
            self._news.append((found.name, "its file is as it was before"))
        model.content, model.file_error, model.load_error = content, "", ""

    def find(self, name: str) -> Model:
        """Return a model. Raises RefusedError: 404 for an unknown name, 503 for a model that cannot be served now."""
        model = self._by_name.get(name)
        if model is None:
            raise RefusedError(404, f"there is no model {shown(name)}: see /v2/repository/index")
        if model.unloaded:
            raise RefusedError(503, f"{name} was unloaded: load it first with POST /v2/repository/models/{name}/load")
        if not model.readable:
            raise RefusedError(503, f"{name} cannot be served: {model.reason}")
        if model.trial_error == DIED:
            raise RefusedError(503, f"{name} cannot be served: {DIED}")
        return model

    def start_trials(self) -> asyncio.Task[None]:
        """Return the task that runs every untried model once, starting it if needed; shield it when awaiting with a
        timeout."""
        if self._trial_task is None or self._trial_task.done():
            self._trial_task = asyncio.create_task(self._try_all())
        return self._trial_task

    async def _try_all(self) -> None:
        graphs = [m for m in self if m.is_untried and m.is_graph]
        await self._try_graphs(graphs)
        for model in list(self):
            if model.is_untried and not model.is_graph:
                await self._try_packed(model)
        self.has_tried_all = True

    async def require_running(self, model: Model) -> None:
        """Run the model once, unless it has run.

        A packed file that failed is tried again: a base or memory may be available now. Raises RefusedError, 503, if it
        does not run.
        """
        if model.is_graph and model.trial_error is None:
            await self._try_graphs([model])
        elif not model.is_graph and model.trial_error != "":
            await self._try_packed(model)
        if model.trial_error:
            raise RefusedError(503, f"{model.name} is not ready: {model.trial_error}")

    async def _try_graphs(self, models: Sequence[Model]) -> None:
        contents = [m.content for m in models]
        paths = [c.found.path for c in contents if c.found.path is not None]
        if not paths:
            return
        try:
            reasons = await asyncio.get_running_loop().run_in_executor(self._trial_thread, self._trials, paths)
        except Exception as e:  # the server goes on whatever happens here
            reasons = [f"it could not be tried ({type(e).__name__}: {one_line(e)})"] * len(paths)
        for model, content, reason in zip(models, contents, reasons, strict=True):
            if model.content is content:
                self._record_trial(model, reason)

    async def _try_packed(self, model: Model) -> None:
        """Rebuild it and run it once, then drop it again unless a request used it."""
        content, was_loaded = model.content, model.engine is not None
        try:
            async with self.engine_of(model) as engine:
                reason = await asyncio.get_running_loop().run_in_executor(self._pool, try_once, engine)
        except SubcompressError as e:
            reason = model.load_error or str(e)
        except Exception as e:  # an error in one model must not affect the others
            reason = f"it cannot be run ({type(e).__name__}: {one_line(e)})"
        if self._by_name.get(model.name) is not model or model.content is not content or model.unloaded:
            return
        if model.trial_error != "" and not (was_loaded or model.users):
            self._drop(model)
        self._record_trial(model, reason)

    def _record_trial(self, model: Model, reason: str) -> None:
        """Record the result of a trial, unless a request was answered meanwhile."""
        if model.trial_error == "":
            return
        if reason and reason != model.trial_error:
            self._log(f"{model.name}: not ready: {reason}")
        model.trial_error = reason

    @asynccontextmanager
    async def engine_of(self, model: Model) -> AsyncIterator[Engine]:
        """Provide the model's engine, which is not dropped while in use. Raises RefusedError, 503."""
        engine = model.engine or await self._load(model)
        # Counted only now: a user that still waits to load would keep others from making room.
        model.users += 1
        self._loaded.move_to_end(model.name)
        try:
            yield engine
        finally:
            model.users -= 1
            if not model.users:
                self._idle.set()

    async def _load(self, model: Model) -> Engine:
        async with self._lock:
            if model.engine is not None:
                return model.engine
            if self.find(model.name) is not model:
                raise RefusedError(503, f"{model.name} has changed meanwhile: ask again")
            content = model.content
            model.loading = True
            try:
                size = await self.in_loader(self._estimate_memory, content)
                self._drop_outdated()
                await self._make_room(model, size)
                engine, grown = await self.in_loader(self._build, content)
                if content.packed is None:  # how much memory a graph unfolds to is known only now
                    size = max(size, grown)
                    await self._make_room(model, size)
            except SubcompressError as e:
                model.load_error = str(e)
                raise e if isinstance(e, RefusedError) else RefusedError(503, f"{model.name}: {e}") from e
            finally:
                model.loading = False
            if model.unloaded:  # meanwhile
                self._released.append(engine)
                self.find(model.name)
            model.engine, model.memory, model.load_error = engine, size, ""
            self.used += size
            self._loaded[model.name] = model
            return engine

    def _estimate_memory(self, content: Content) -> int:
        """Return the bytes of memory that the engine will take."""
        if content.packed is None:
            return 2 * content.nbytes + FIXED
        self.networks.prepare([content.packed])
        return self.networks.engine_bytes(content.packed)

    def _build(self, content: Content) -> tuple[Engine, int]:
        """Build the engine; return it and by how many bytes the process grew."""
        self._free_released()
        path = content.found.path
        try:
            if (
                content.packed is None and not self._has_opened_graph
            ):  # opened twice, because the first graph allocates memory for all
                assert path is not None
                open_graph_file(path)
            self._has_opened_graph = True
            before = resident_bytes()
            if content.packed is not None:
                engine = self.networks.engine(content.packed)
            else:
                assert path is not None
                engine = open_graph_file(path)
        except SubcompressError:
            raise
        except Exception as e:
            if memory_ran_out(e):
                raise RefusedError(503, "there is not enough memory to rebuild its weights: lower --memory") from e
            raise SubcompressError(f"its weights cannot be rebuilt ({one_line(e)})") from e
        return engine, max(0, resident_bytes() - before)

    def _free_released(self) -> None:
        """Free the dropped engines, and return memory that the C library would keep to the system."""
        if not self._released:
            return
        self._released.clear()
        if self._released_bytes > TRIM:
            self._released_bytes = 0
            give_back()

    async def _make_room(self, model: Model, size: int) -> None:
        """Drop the least recently used models until there is room, waiting for those in use."""
        if size > self.limit:
            raise RefusedError(
                503, f"{model.name} takes {size} bytes of memory, but --memory is {self.limit}: give the server more"
            )
        while self.used + size > self.limit:
            idle = next((m for m in self._loaded.values() if not m.users), None)
            if idle is not None:
                self._drop(idle)
            else:
                self._idle.clear()
                await self._idle.wait()

    def _drop(self, model: Model) -> None:
        """Drop the model's engine, if it has one; runs under way still end."""
        if self._loaded.pop(model.name, None) is None:
            return
        assert model.engine is not None
        self._released.append(model.engine)
        self._released_bytes += model.memory
        self.used -= model.memory
        model.engine, model.memory = None, 0

    async def load(self, name: str) -> None:
        """Read the file again and rebuild its weights now. Raises RefusedError."""
        await self.refresh(again=name)
        if (model := self._by_name.get(name)) is not None:
            if model.unloaded:
                self._log(f"{name}: loaded again")
            model.unloaded, model.trial_error = False, None
        async with self.engine_of(model := self.find(name)):
            with suppress(RefusedError):  # the index says why; some inputs cannot be made up
                await self.require_running(model)
        if model.file_error:  # what is served is not what lies there
            raise RefusedError(503, f"{name} was not loaded: {model.file_error}")

    def unload(self, name: str) -> None:
        """Drop the model's weights and refuse requests to it. Raises RefusedError."""
        if (model := self._by_name.get(name)) is None:
            self.find(name)
        else:
            self._drop(model)
            if not model.unloaded:
                self._log(f"{name}: unloaded")
            model.unloaded = True
            self._loader.submit(self._free_released)

    def close(self) -> None:
        """Stop the threads once their present work is done."""
        if self._trial_task is not None:
            self._trial_task.cancel()
        self._trials.close()
        self._trial_thread.shutdown()
        self.networks.close()
        self._loader.shutdown()
        self._pool.shutdown()
        self.networks.bases.close()


def _read_all(found: Sequence[FoundFile]) -> list[Content | SubcompressError]:
    """Read the contents of files, or why they cannot be read."""
    contents: list[Content | SubcompressError] = []
    for f in found:
        try:
            contents.append(catalog.read_content(f))
        except SubcompressError as e:
            contents.append(e)
        except Exception as e:  # one file takes none of the others along, whatever is in it
            error = SubcompressError(f"{f.place} cannot be read ({type(e).__name__}: {one_line(e)})")
            error.__cause__ = e
            contents.append(error)
    return contents


def resident_bytes() -> int:
    """Return the bytes of memory that this process holds, 0 if the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def now() -> float:
    """Return the seconds of a monotonic clock."""
    return time.monotonic()
