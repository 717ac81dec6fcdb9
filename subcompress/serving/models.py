"""The models of a server: rebuilt when first asked for, the most recently used kept within a limit of memory, and
looked at again when their files change."""

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
from subcompress.serving import catalogue
from subcompress.serving.batching import Batches
from subcompress.serving.catalogue import GRAPH, Content, FoundFile
from subcompress.serving.engines import FIXED, Engine
from subcompress.serving.networks import Networks, Packed
from subcompress.serving.refusals import RefusedError, shown
from subcompress.serving.trial import DIED, Trials, open_graph_file, try_once
from subcompress.support.threads import thread_count

RECENT = 256
"""Latencies of a model that its median and its 99th percentile are taken of."""

TRIM = 1 << 24
"""Bytes of weights given up after which freed memory is returned to the system."""

Say = Callable[[str], None]


class Model:
    """A name that is served. state: one of idle, loading, expanded, unavailable, unloaded."""

    def __init__(self, content: Content, pool: Executor, most: int, ran: Callable[[int], None]) -> None:
        self.content = content
        self.batches = Batches(pool, most, self._told)
        self.engine: Engine | None = None
        self.memory = 0  # bytes of the engine
        self.users = 0  # requests that need it now
        self.loading = False
        self.unloaded = False
        self.wrong = ""  # with the file, though an earlier one may be served
        self.trouble = ""  # of the last attempt to rebuild it
        self.proof: str | None = None  # empty once it has run, why it has not, None before it is tried
        self.requests = self.failed = self.runs = self.examples = 0
        self.seconds = 0.0  # of runs
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.last: float | None = None
        self._ran = ran

    def _told(self, examples: int, seconds: float) -> None:
        self.runs += 1
        self.examples += examples
        self.seconds += seconds
        self._ran(examples)

    @property
    def name(self) -> str:
        """What it is asked for by."""
        return self.content.found.name

    @property
    def reason(self) -> str:
        """Why it is not served, or not as its file is."""
        return self.wrong or self.trouble or self.proof or ""

    @property
    def is_graph(self) -> bool:
        """Whether it is an .onnx file."""
        path = self.content.found.path
        return path is not None and path.suffix == GRAPH

    @property
    def readable(self) -> bool:
        """Whether something can be served: the file as it is, or as it was."""
        graph = self.is_graph and not self.content.found.wrong
        return self.content.packed is not None or (graph and self.content.nbytes > 0)

    @property
    def ready(self) -> bool:
        """Whether requests are answered: it has run."""
        return self.readable and not self.unloaded and self.proof == ""

    @property
    def untried(self) -> bool:
        """Whether it is still to be found out if it runs."""
        return self.readable and not self.unloaded and self.proof is None

    @property
    def state(self) -> str:
        """As the page and the index say it."""
        if self.unloaded:
            return "unloaded"
        if not self.readable or self.proof:
            return "unavailable"
        return "loading" if self.loading else "idle" if self.engine is None else "expanded"


class Models:
    """All models. memory: bytes that those that are rebuilt take together at most.

    Its methods run on one loop; files are read and weights rebuilt in one thread beside it, one model at a time.
    """

    def __init__(
        self,
        sources: Sequence[str],
        networks: Networks,
        *,
        memory: int,
        most: int,
        say: Say,
        ran: Callable[[int], None] = lambda examples: None,
    ) -> None:
        self.sources, self.networks, self.limit = list(sources), networks, memory
        self.used, self.most = 0, most
        self._say, self._ran = say, ran
        self._by_name: dict[str, Model] = {}
        self._expanded: OrderedDict[str, Model] = OrderedDict()  # the least recently used first
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._pool = ThreadPoolExecutor(thread_count(), thread_name_prefix="run")
        self._trier = ThreadPoolExecutor(1, thread_name_prefix="try")
        self._trials = Trials()
        self._proving: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # of who loads, or looks at files
        self._free = asyncio.Event()
        self._given_up: list[Engine] = []  # the loader's thread lets go of them
        self._given_bytes = 0
        self._looked = self._opened = False
        self._news: list[tuple[str, str]] = []
        self._listed: dict[str, list[FoundFile]] = {}
        self._wrong: list[str] = []  # with sources, as it was said

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    async def _beside(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._loader, work, *args)

    async def warm(self) -> None:
        """Import what the first model would wait for."""
        await self._beside(importlib.import_module, "onnxruntime")

    async def look(self, again: str = "") -> None:
        """Read what is new or has changed, forget what is gone, and trace the networks that are not known. again: the
        name of a model for which that is done also where it was tried before."""
        async with self._turn:
            found, wrong = await self._beside(catalogue.find_models, self.sources, self._listed)
            for reason in wrong:
                if reason not in self._wrong:
                    self._say(reason)
            self._wrong = wrong
            served = len(self._by_name)
            for name in self._by_name.keys() - found.keys():
                self._say(f"{name}: its file is gone, and it is no longer served")
                self._drop(self._by_name.pop(name))
            changed = [f for f in found.values() if f.name == again or self._differs(f)]
            if changed:
                read: list[Content | SubcompressError] = await self._beside(_read_all, changed)
                packed = [c.packed for c in read if isinstance(c, Content) and c.packed is not None]
                untraced = await self._beside(self._prepare, packed, again)
                for f, content in zip(changed, read, strict=True):
                    self._take(f, content, untraced.get(f.name, ""))
                self._tell()
            if changed or len(self._by_name) < served:
                self._drop_outdated()
                await self._beside(self.networks.keep, [p for m in self if (p := m.content.packed) is not None])
            await self._beside(self._let_go)
            self._looked = True

    def _drop_outdated(self) -> None:
        """Give up what holds a base's session that new engines do not share."""
        for model in list(self._expanded.values()):
            file, engine = model.content.packed, model.engine
            if file is not None and engine is not None and self.networks.outdated(file, engine):
                self._drop(model)

    def _prepare(self, files: Sequence[Packed], again: str) -> dict[str, str]:
        wrong = self.networks.prepare([f for f in files if f.name != again])
        return wrong | self.networks.prepare([f for f in files if f.name == again], again=True)

    def _tell(self) -> None:
        """Say what happened to the files: once for all to which the same did."""
        names: dict[str, list[str]] = {}
        for name, what in self._news:
            names.setdefault(what, []).append(name)
        self._news.clear()
        for what, of in names.items():
            more = f" and {len(of) - 2} more" if len(of) > 2 else ""
            self._say(f"{', '.join(of[:2])}{more}: {what}")

    def _new(self, content: Content) -> Model:
        return Model(content, self._pool, self.most, self._ran)

    def _differs(self, found: FoundFile) -> bool:
        model = self._by_name.get(found.name)
        return model is None or model.content.found != found

    def _take(self, found: FoundFile, content: Content | SubcompressError, untraced: str) -> None:
        """Serve what was read. Where it cannot be, what was served before goes on, and the reason is kept.
        untraced: why its network is not known."""
        model = self._by_name.get(found.name)
        reason = str(content) if isinstance(content, SubcompressError) else untraced
        if reason:
            if isinstance(content, SubcompressError) and isinstance(content.__cause__, OSError) and found.path:
                found = replace(found, signature=())  # the next look tries again
            if model is not None and model.readable and not found.wrong:
                reason = f"{reason} (what was read before is still served)"
                model.content.found = found
            else:
                nothing = Content(found, None, 0 if isinstance(content, SubcompressError) else content.nbytes)
                if model is None:
                    model = self._by_name[found.name] = self._new(nothing)
                self._drop(model)
                model.content = nothing
            if model.wrong != reason:
                self._news.append((found.name, reason))
            model.wrong = reason
            return
        assert isinstance(content, Content)
        if model is None:
            self._by_name[found.name] = self._new(content)
            if self._looked:
                self._news.append((found.name, "a new file, and served"))
            return
        before, now_ = model.content.packed, content.packed
        same = before is not None and now_ is not None and before.data == now_.data
        if not (same or (before is now_ is None and model.content.found == found)):
            self._news.append((found.name, "its file has changed, and is served from now on"))
            self._drop(model)
            model.proof = None
        elif model.wrong:
            self._news.append((found.name, "its file is what it was before"))
        model.content, model.wrong, model.trouble = content, "", ""

    def find(self, name: str) -> Model:
        """Raises RefusedError: 404 for a name that is not served, 503 for one that cannot be now."""
        model = self._by_name.get(name)
        if model is None:
            raise RefusedError(404, f"no model is called {shown(name)}: see /v2/repository/index")
        if model.unloaded:
            raise RefusedError(503, f"{name} was unloaded: load it first, POST /v2/repository/models/{name}/load")
        if not model.readable:
            raise RefusedError(503, f"{name} cannot be served: {model.reason}")
        if model.proof == DIED:
            raise RefusedError(503, f"{name} cannot be served: {DIED}")
        return model

    def proving(self) -> asyncio.Task[None]:
        """A task that finds out of every model that was not tried yet whether it runs: the one under way, or another.
        Who waits for it and gives up shields it."""
        if self._proving is None or self._proving.done():
            self._proving = asyncio.create_task(self._prove_all())
        return self._proving

    async def _prove_all(self) -> None:
        graphs = [m for m in self if m.untried and m.is_graph]
        await self._prove_graphs(graphs)
        for model in list(self):
            if model.untried and not model.is_graph:
                await self._prove_packed(model)

    async def prove(self, model: Model) -> None:
        """Find out whether it runs, unless it has. A packed file that did not is tried again: a base, or memory, may be
        there now. Raises RefusedError, 503, where it does not."""
        if model.is_graph and model.proof is None:
            await self._prove_graphs([model])
        elif not model.is_graph and model.proof != "":
            await self._prove_packed(model)
        if model.proof:
            raise RefusedError(503, f"{model.name} is not ready: {model.proof}")

    async def _prove_graphs(self, models: Sequence[Model]) -> None:
        contents = [m.content for m in models]
        paths = [c.found.path for c in contents if c.found.path is not None]
        if not paths:
            return
        try:
            reasons = await asyncio.get_running_loop().run_in_executor(self._trier, self._trials, paths)
        except Exception as e:  # whatever it is, the server goes on
            reasons = [f"it could not be tried ({type(e).__name__}: {one_line(e)})"] * len(paths)
        for model, content, reason in zip(models, contents, reasons, strict=True):
            if model.content is content:
                self._proved(model, reason)

    async def _prove_packed(self, model: Model) -> None:
        """Run it once. It is rebuilt for that, and given up again where no request came for it."""
        content, was = model.content, model.engine is not None
        try:
            async with self.using(model) as engine:
                reason = await asyncio.get_running_loop().run_in_executor(self._pool, try_once, engine)
        except SubcompressError as e:
            reason = model.trouble or str(e)
        except Exception as e:  # one model takes none of the others along
            reason = f"it cannot be run ({type(e).__name__}: {one_line(e)})"
        if self._by_name.get(model.name) is not model or model.content is not content or model.unloaded:
            return
        if model.proof != "" and not (was or model.users):
            self._drop(model)
        self._proved(model, reason)

    def _proved(self, model: Model, reason: str) -> None:
        """Note how a trial ended, unless a request was answered meanwhile."""
        if model.proof == "":
            return
        if reason and reason != model.proof:
            self._say(f"{model.name}: not ready: {reason}")
        model.proof = reason

    @asynccontextmanager
    async def using(self, model: Model) -> AsyncIterator[Engine]:
        """The model's engine, which stays while it is used. Raises RefusedError, 503."""
        engine = model.engine or await self._load(model)
        # Who waits for its turn to load holds nothing yet: it would keep others from making room.
        model.users += 1
        self._expanded.move_to_end(model.name)
        try:
            yield engine
        finally:
            model.users -= 1
            if not model.users:
                self._free.set()

    async def _load(self, model: Model) -> Engine:
        async with self._turn:
            if model.engine is not None:
                return model.engine
            if self.find(model.name) is not model:
                raise RefusedError(503, f"{model.name} has changed meanwhile: ask again")
            content = model.content
            model.loading = True
            try:
                takes = await self._beside(self._takes, content)
                self._drop_outdated()
                await self._make_room(model, takes)
                engine, grown = await self._beside(self._build, content)
                if content.packed is None:  # how much a graph unfolds to is known afterwards only
                    takes = max(takes, grown)
                    await self._make_room(model, takes)
            except SubcompressError as e:
                model.trouble = str(e)
                raise e if isinstance(e, RefusedError) else RefusedError(503, f"{model.name}: {e}") from e
            finally:
                model.loading = False
            if model.unloaded:  # meanwhile
                self._given_up.append(engine)
                self.find(model.name)
            model.engine, model.memory, model.trouble = engine, takes, ""
            self.used += takes
            self._expanded[model.name] = model
            return engine

    def _takes(self, content: Content) -> int:
        """Bytes of memory that its engine will take."""
        if content.packed is None:
            return 2 * content.nbytes + FIXED
        self.networks.prepare([content.packed])
        return self.networks.takes(content.packed)

    def _build(self, content: Content) -> tuple[Engine, int]:
        """The engine, and by how many bytes the process grew."""
        self._let_go()
        path = content.found.path
        try:
            if content.packed is None and not self._opened:  # what the first graph takes once is not its own
                assert path is not None
                open_graph_file(path)
            self._opened = True
            before = resident()
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
        return engine, max(0, resident() - before)

    def _let_go(self) -> None:
        """Free the engines that were given up, and return to the system what the C library would keep of it."""
        if not self._given_up:
            return
        self._given_up.clear()
        if self._given_bytes > TRIM:
            self._given_bytes = 0
            give_back()

    async def _make_room(self, model: Model, takes: int) -> None:
        """Give up what was used least recently, until there is room; what requests need now is waited for."""
        if takes > self.limit:
            raise RefusedError(
                503, f"{model.name} takes {takes} bytes of memory, and --memory is {self.limit}: give the server more"
            )
        while self.used + takes > self.limit:
            idle = next((m for m in self._expanded.values() if not m.users), None)
            if idle is not None:
                self._drop(idle)
            else:
                self._free.clear()
                await self._free.wait()

    def _drop(self, model: Model) -> None:
        """Give up the model's engine, if it has one; whoever runs it still ends."""
        if self._expanded.pop(model.name, None) is None:
            return
        assert model.engine is not None
        self._given_up.append(model.engine)
        self._given_bytes += model.memory
        self.used -= model.memory
        model.engine, model.memory = None, 0

    async def load(self, name: str) -> None:
        """Read the file again, and rebuild its weights now. Raises RefusedError."""
        await self.look(again=name)
        if (model := self._by_name.get(name)) is not None:
            if model.unloaded:
                self._say(f"{name}: loaded again")
            model.unloaded, model.proof = False, None
        async with self.using(model := self.find(name)):
            with suppress(RefusedError):  # the index says why; some inputs cannot be made up
                await self.prove(model)
        if model.wrong:  # what is served is not what lies there
            raise RefusedError(503, f"{name} was not loaded: {model.wrong}")

    def unload(self, name: str) -> None:
        """Give up its weights, and answer no more requests to it. Raises RefusedError."""
        if (model := self._by_name.get(name)) is None:
            self.find(name)
        else:
            self._drop(model)
            if not model.unloaded:
                self._say(f"{name}: unloaded")
            model.unloaded = True
            self._loader.submit(self._let_go)

    def close(self) -> None:
        """End the threads, once what they do is done."""
        if self._proving is not None:
            self._proving.cancel()
        self._trials.close()
        self._trier.shutdown()
        self.networks.close()
        self._loader.shutdown()
        self._pool.shutdown()
        self.networks.bases.close()


def _read_all(found: Sequence[FoundFile]) -> list[Content | SubcompressError]:
    """Contents, or why there is none."""
    contents: list[Content | SubcompressError] = []
    for f in found:
        try:
            contents.append(catalogue.read_content(f))
        except SubcompressError as e:
            contents.append(e)
        except Exception as e:  # one file takes none of the others along, whatever is in it
            wrong = SubcompressError(f"{f.place} cannot be read ({type(e).__name__}: {one_line(e)})")
            wrong.__cause__ = e
            contents.append(wrong)
    return contents


def resident() -> int:
    """Bytes of memory that this process holds, 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def now() -> float:
    """Seconds of a clock that only goes forward."""
    return time.monotonic()
