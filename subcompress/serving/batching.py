"""Greedy micro-batching: requests that wait while a run is under way share the next one; others start at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.serving.engines import Engine
from subcompress.serving.tensors import InferenceRequest

BRIEF = 0.0005
"""Seconds of a run up to which the event loop executes it itself, because a thread costs a fifth of that."""

Outputs = list[np.ndarray]
_Waiting = tuple[Engine, InferenceRequest, "asyncio.Future[Outputs]"]


class Batches:
    """Runs the requests of one model, one run at a time, each of at most `most` examples.

    pool: executes runs that are not brief; ran: called with the examples and the seconds of a run.
    """

    def __init__(self, pool: Executor, most: int, ran: Callable[[int, float], None]) -> None:
        self._pool, self._most, self._ran = pool, most, ran
        self._waiting: deque[_Waiting] = deque()
        self._busy = False
        self._usual: float | None = None  # seconds of a run lately, None before the first
        self._brief = 0  # bytes of inputs up to which a run is expected to be brief

    async def run(self, engine: Engine, asked: InferenceRequest) -> Outputs:
        """Return the outputs of a request. Raises RefusedError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outputs] = loop.create_future()
        self._waiting.append((engine, asked, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next, loop)  # what this turn of the loop brings comes along
        return await future

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        jobs = self._take()
        if not jobs:
            self._busy = False
            return
        size = sum(a.nbytes for _, asked, _ in jobs for a in asked.feeds.values())
        if self._usual is not None and self._usual < BRIEF and size <= self._brief:
            self._done(loop, jobs, size, *_run_timed(jobs, self._most))
        else:
            work = loop.run_in_executor(self._pool, _run_timed, jobs, self._most)
            work.add_done_callback(lambda done: self._done(loop, jobs, size, *done.result()))

    def _done(
        self,
        loop: asyncio.AbstractEventLoop,
        jobs: Sequence[_Waiting],
        size: int,
        found: list[Outputs | Exception],
        took: float,
        worked: float,
    ) -> None:
        self._usual = worked if self._usual is None else 0.8 * self._usual + 0.2 * worked
        if worked < BRIEF:
            self._brief = max(self._brief, 2 * size)
        self._ran(sum(asked.rows for _, asked, _ in jobs), took)
        for (_, _, future), outcome in zip(jobs, found, strict=True):
            if future.done():  # its request was given up
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if self._waiting:
            loop.call_soon(self._next, loop)
        else:
            self._busy = False

    def _take(self) -> list[_Waiting]:
        """Take the first waiting request, and those after it that can share its run."""
        jobs: list[_Waiting] = []
        rows = 0
        while self._waiting:
            engine, asked, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            if jobs:
                first, its, _ = jobs[0]
                if engine is not first or not engine.batched or asked.shapes != its.shapes:
                    break
                if rows + asked.rows > self._most:
                    break
            rows += asked.rows
            jobs.append(self._waiting.popleft())
        return jobs


def _run_timed(jobs: Sequence[_Waiting], most: int) -> tuple[list[Outputs | Exception], float, float]:
    """Run the requests; return the outputs, the elapsed seconds, and the seconds that this thread computed.

    The rest it waited for the GIL or for a core, which says nothing about the network.
    """
    began, work = time.perf_counter(), time.thread_time()
    engine, asked = jobs[0][0], [asked for _, asked, _ in jobs]
    try:
        found = _run_joined(engine, asked, most)
    except Exception as e:  # all waiting requests must get the error, whatever it is
        found = [e] * len(asked)
    return found, time.perf_counter() - began, time.thread_time() - work


def _run_joined(engine: Engine, asked: Sequence[InferenceRequest], most: int) -> list[Outputs | Exception]:
    """Return the outputs of each request or its error; a request that fails does not affect the others."""
    if len(asked) == 1:
        return [_run_single(engine, asked[0], most)]
    sizes = [a.rows for a in asked]
    joined = {name: np.concatenate([a.feeds[name] for a in asked]) for name in asked[0].feeds}
    if not _are_independent(engine, joined):
        return [_run_single(engine, a, most) for a in asked]
    try:
        outputs = engine.run(joined)
    except SubcompressError:
        return [_run_single(engine, a, most) for a in asked]
    if any(o.shape[:1] != (sum(sizes),) for o in outputs):  # its length depends on the values
        engine.batched = False
        return [_run_single(engine, a, most) for a in asked]
    ends = np.cumsum(sizes)[:-1]
    parts = [np.split(o, ends) for o in outputs]
    return [[p[i] for p in parts] for i in range(len(asked))]


def _run_single(engine: Engine, asked: InferenceRequest, most: int) -> Outputs | Exception:
    """Run one request, in parts if it has many examples, to bound the memory of a run."""
    try:
        if not engine.batched or asked.rows <= most or not _are_independent(engine, asked.feeds):
            return engine.run(asked.feeds)
        found: list[Outputs] = []
        for lo in range(0, asked.rows, most):
            found.append(engine.run({n: a[lo : lo + most] for n, a in asked.feeds.items()}))
        return [np.concatenate(pieces) for pieces in zip(*found, strict=True)]
    except Exception as e:  # told to this one, and not to the others
        return e


CLOSE = 1e-2
"""The tolerated effect of rounding on an example that shares a run, relative to the output's largest value."""


def _are_independent(engine: Engine, feeds: Mapping[str, np.ndarray]) -> bool:
    """Return whether examples are independent, so that they may share a run: tested once, with the network itself.

    A first axis that varies may be time, and a network may normalize over the batch.
    """
    if engine.batched and not engine.separate:
        first = {name: a[:1] for name, a in feeds.items()}
        second = _different_example(first)
        both = {name: np.concatenate([first[name], second[name]]) for name in feeds}
        try:
            wanted = zip(engine.run(first), engine.run(second), strict=True)
            found = zip(engine.run(both), wanted, strict=True)
        except SubcompressError:  # an error of these examples; others will show the effect
            return False
        engine.separate = all(_close(b, x, y) for b, (x, y) in found)
        engine.batched = engine.separate
    return engine.batched


def _different_example(example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a different valid example: the same values in another order, or others if all are equal."""
    rolled = {name: np.roll(a.reshape(-1), 1).reshape(a.shape) for name, a in example.items()}
    if any((rolled[name] != a).any() for name, a in example.items()):
        return rolled
    return {n: _other(a) for n, a in example.items()}


def _other(values: np.ndarray) -> np.ndarray:
    """Other valid values of the same kind."""
    kind = values.dtype.kind
    if kind == "O":
        return np.array([f"{text} x" for text in values.reshape(-1)], object).reshape(values.shape)
    return values + 1 if kind == "f" else (values == 0).astype(values.dtype)


def _close(both: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether an output of two examples equals, up to rounding, those of each alone."""
    if not first.shape[:1] == second.shape[:1] == (1,) or first.shape[1:] != second.shape[1:]:
        return False
    alone = np.concatenate([first, second])
    if both.shape != alone.shape or alone.dtype.kind != "f":
        return np.array_equal(both, alone)
    largest = float(np.abs(alone, where=np.isfinite(alone), out=np.zeros_like(alone)).max(initial=0))
    return np.allclose(both, alone, CLOSE, CLOSE * largest, equal_nan=True)
