"""The server without its protocols: it admits requests, runs and counts them, and describes its models.

HTTP (`app`) and gRPC (`grpc_server`) decode a request, call `Service`, and encode its answer. `failure_of` turns an
exception into the status and the line of a refusal.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from subcompress import __version__
from subcompress.errors import SubcompressError, memory_ran_out
from subcompress.serving.catalog import Content
from subcompress.serving.engines import Engine, Port, ports
from subcompress.serving.figures import Figures, ModelFigures, figures_of, of_model
from subcompress.serving.metrics import Metrics
from subcompress.serving.models import Model, Models
from subcompress.serving.prepared import Prepared, prepared
from subcompress.serving.protocol import VERSION
from subcompress.serving.refusals import RefusedError, shown
from subcompress.serving.tensors import InferenceRequest, Takes
from subcompress.serving.workers import LOAD_PATIENCE, Fleet

EXTENSIONS = [
    "model_repository",
    "model_repository(unload_dependents)",
    "binary_tensor_data",
    "statistics",
    "model_configuration",
]

ABOUT = {"name": "subcompress", "version": __version__, "extensions": EXTENSIONS}
"""The metadata of the server."""

LOOK = 1.0
"""Seconds that the index waits until the files are read again. It takes long while a network is traced."""

IDLE = 30
"""Seconds that a request's body may pause, or be late by PACE, before it is refused. Over HTTP only."""

PACE = 4096
"""The slowest body that is accepted, in bytes per second: it holds a place in the queue while it arrives."""

HELD = 4
"""All bodies in memory take at most this many times the size of the largest body."""

TOKEN_WANTED = "this server requires its token: send the header Authorization: Bearer TOKEN"

Decode = Callable[[Takes], InferenceRequest]
"""Decodes a request, given what the model takes. Raises RefusedError."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server. waiting: the most requests at once; body: the most bytes of a request's body."""

    waiting: int = 1024
    body: int = 64 << 20


@dataclass(frozen=True)
class Answered:
    """The answer to an inference request: the request, and the outputs that its model has, in order."""

    asked: InferenceRequest
    outputs: tuple[Port, ...]
    values: Sequence[np.ndarray]


class Service:
    """The requests of all protocols to `models`. token: required of requests, None for none; raw_inputs: whether texts
    and images are not prepared; fleet: the other workers, None for one process."""

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        limits: Limits | None = None,
        token: str | None = None,
        raw_inputs: bool = False,
        fleet: Fleet | None = None,
    ) -> None:
        self.models, self.metrics, self.limits = models, metrics, limits or Limits()
        self.ending = asyncio.Event()  # set when nothing new is taken
        self.is_forced = False  # whether what was taken is given up as well
        self.waiting = self.held = 0
        self.cut = 0  # requests that were given up at the end
        self._raw_inputs, self._fleet = raw_inputs, fleet
        self._prepared: WeakKeyDictionary[Content, Prepared | str] = WeakKeyDictionary()
        self._token = None if token is None else token.encode()

    @property
    def draining(self) -> bool:
        """Whether the server finishes the requests that it has accepted and accepts no new ones."""
        return self.ending.is_set()

    @property
    def has_token(self) -> bool:
        """Whether requests need one."""
        return self._token is not None

    def check_token(self, authorization: bytes) -> None:
        """Raise RefusedError, 401, unless this is what a request's header must say."""
        if self._token is None:
            return
        kind, _, given = authorization.partition(b" ")
        if not (kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)):
            raise RefusedError(401, TOKEN_WANTED)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as admitted within the block. Raises RefusedError, 503, if there are too many."""
        if self.waiting >= self.limits.waiting:
            raise RefusedError(503, f"the queue is full ({self.limits.waiting} requests): ask again in a moment")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def hold(self, size: int, more: int) -> None:
        """Count more bytes of a request that has `size` by now; `held` falls when it is answered.

        Raises RefusedError: 413 if it is too large, 503 if others take the memory.
        """
        self.held += more
        self.check_size(size)
        if self.held > HELD * self.limits.body:
            raise RefusedError(503, "the memory for request bodies is full: ask again in a moment")

    def check_size(self, size: int) -> None:
        """Raise RefusedError, 413, for more bytes than a request may have."""
        if size > self.limits.body:
            raise RefusedError(413, f"a request may have at most {self.limits.body} bytes; this one has {size} or more")

    def find(self, name: str, version: str = VERSION) -> Model:
        """Return a model. Raises RefusedError: 404 for an unknown one, 503 for one that cannot be served now."""
        if version not in (VERSION, ""):
            raise RefusedError(404, f"{shown(name)} only has version {VERSION}; got {shown(version)}")
        return self.models.find(name)

    async def infer(self, model: Model, decode: Decode) -> Answered:
        """Run a request. Raises RefusedError."""
        async with self.models.engine_of(model) as engine:
            takes = await self._takes(model, engine)
            asked = decode(takes)
            if isinstance(takes.prepared, Prepared) and asked.signature is takes.prepared:
                values = await self._run_prepared(model, engine, asked, takes.prepared)
                outputs = takes.prepared.outputs
            else:
                values, outputs = await model.batches.run(engine, asked), engine.outputs
            if model.engine is engine:
                model.trial_error = ""  # it has run
            return Answered(asked, outputs, values)

    async def _takes(self, model: Model, engine: Engine) -> Takes:
        """Return what the model takes. How texts and images are prepared for it is found out once for each file."""
        if self._raw_inputs:
            return Takes(engine, lacking="--raw-inputs was given")
        found = self._prepared.get(model.content)
        if found is None:
            arguments = model.content.packed, engine, self.models.networks
            found = self._prepared[model.content] = await self.models.in_loader(prepared, *arguments)
        return Takes(engine, lacking=found) if isinstance(found, str) else Takes(engine, found)

    async def _run_prepared(
        self, model: Model, engine: Engine, asked: InferenceRequest, how: Prepared
    ) -> Sequence[np.ndarray]:
        """Prepare texts or images in another thread, and run them."""
        (given,) = asked.feeds.values()
        feeds, known = await self.models.in_pool(how.feeds, given)
        return how.answers(known, await model.batches.run(engine, InferenceRequest(asked.id, feeds, ())))

    async def is_ready(self) -> bool:
        """Return whether all workers answer requests and have tried the models that they found at the start.

        Models that come or change later do not count, so that one file does not take the server out of use.
        """
        return self._is_ready and all(await self._ask(do="ready"))

    @property
    def _is_ready(self) -> bool:
        """The same of this process alone."""
        return self.models.has_tried_all and not self.draining

    async def metadata(self, name: str, version: str = VERSION) -> dict[str, Any]:
        """Describe a model's inputs and outputs, and under `parameters` the facts of its file."""
        model = self.find(name, version)
        async with self.models.engine_of(model) as engine:
            told = {"inputs": ports(engine.inputs), "outputs": ports(engine.outputs)}
            how = (await self._takes(model, engine)).prepared
        packed = model.content.packed
        facts = {} if packed is None else packed.facts.to_json()
        if how is not None:
            facts["prepared"] = {"inputs": ports(how.inputs), "outputs": ports(how.outputs)}
        platform = "subcompress" if packed is not None else "onnxruntime_onnx"
        said: dict[str, Any] = {"name": model.name, "versions": [VERSION], "platform": platform, **told}
        return said | {"parameters": facts} if facts else said

    async def config(self, name: str, version: str = VERSION) -> dict[str, Any]:
        """Describe a model in the form of Triton's configuration."""
        model = self.find(name, version)
        async with self.models.engine_of(model) as engine:
            first = 1 if engine.batched else 0
            sides = [
                [{"name": p.name, "data_type": config_type(p), "dims": list(p.shape[first:])} for p in side]
                for side in (engine.inputs, engine.outputs)
            ]
        said = {"name": model.name, "backend": "subcompress", "max_batch_size": self.models.most if first else 0}
        return {**said, "input": sides[0], "output": sides[1]}

    async def statistics(self, name: str = "", version: str = VERSION) -> list[dict[str, Any]]:
        """Return the statistics of a model, or of all, in the form of Triton's extension, as far as they are known."""
        others = await self.figures_of_others()
        chosen = [self.find(name, version)] if name else list(self.models)
        return [_statistics(m.name, of_model(m, others)) for m in chosen]

    async def figures_of_others(self) -> list[Figures]:
        """Return the figures of the other workers, except those that do not answer."""
        return [found for found in await self._ask(do="figures") if found]

    async def _ask(self, patience: float | None = None, **asked: Any) -> list[Any]:
        """Return what the other workers answer. Empty in a single process."""
        if self._fleet is None:
            return []
        return await (self._fleet.ask(**asked) if patience is None else self._fleet.ask(patience, **asked))

    async def answer(self, asked: dict[str, Any]) -> Any:
        """Answer another worker. asked: what to `do` ("figures", "ready", "load" or "unload") and a model's `name`."""
        if asked["do"] == "figures":
            return figures_of(self.models, self.metrics, self.waiting)
        if asked["do"] == "ready":
            return self._is_ready
        try:
            if asked["do"] == "load":
                await self.models.load(asked["name"])
            else:
                self.models.unload(asked["name"])
        except SubcompressError as e:
            return failure_of(e)
        return None

    async def index(self, only_ready: bool = False) -> list[dict[str, str]]:
        """Describe the state of all models, after a look at the files."""
        with suppress(TimeoutError):  # then the states as they are known
            async with asyncio.timeout(LOOK):
                await self.models.refresh()
                await asyncio.shield(self.models.start_trials())
        return [_entry(m) for m in self.models if m.ready or not only_ready]

    async def load(self, name: str, parameters: Any = None) -> None:
        """Read a model's file again and rebuild it now. Raises RefusedError."""
        if parameters:
            raise RefusedError(400, "a model is loaded from its file and takes no parameters: leave them out")
        await self.models.load(name)
        _raise_first(await self._ask(LOAD_PATIENCE, do="load", name=name))

    async def unload(self, name: str) -> None:
        """Drop a model's weights and refuse requests to it, in all workers. Raises RefusedError."""
        self.models.unload(name)
        _raise_first(await self._ask(do="unload", name=name))


def _raise_first(found: Sequence[Any]) -> None:
    """Raise the first refusal of another worker. None, of one that is starting, is no refusal: it reads the files."""
    for status, text in filter(None, found):
        raise RefusedError(status, text)


def config_type(port: Port) -> str:
    """The name of a datatype in Triton's configuration."""
    return "TYPE_STRING" if port.datatype == "BYTES" else f"TYPE_{port.datatype}"


def _entry(model: Model) -> dict[str, str]:
    """A model in the index."""
    state = "READY" if model.ready else "LOADING" if model.loading or model.is_untried else "UNAVAILABLE"
    reason = "unloaded" if model.unloaded else model.reason
    return {"name": model.name, "version": VERSION, "state": state, "reason": reason}


def _statistics(name: str, figures: ModelFigures) -> dict[str, Any]:
    good = figures.requests - figures.failed
    return {
        "name": name,
        "version": VERSION,
        "inference_count": figures.examples,
        "execution_count": figures.runs,
        "inference_stats": {
            "success": {"count": good, "ns": int(1e9 * figures.seconds)},
            "fail": {"count": figures.failed, "ns": 0},
        },
    }


def failure_of(e: Exception) -> tuple[int, str]:
    """Return the status of HTTP and the line for a request that failed: 503 if a retry may help, 500 for a bug."""
    if isinstance(e, RefusedError):
        return e.status, str(e)
    if isinstance(e, SubcompressError):  # files that went away
        return 503, str(e)
    if memory_ran_out(e):
        return 503, "there is not enough memory for this request now: send less at once"
    return 500, f"this request failed ({type(e).__name__}): report it"
