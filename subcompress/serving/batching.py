"""Greedy micro-batching: what waits when a run ends shares the next one; what comes while nothing runs never waits."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.serving.engines import Engine
from subcompress.serving.protocol import Asked
from subcompress.serving.refusals import RefusedError

BRIEF = 0.0005
"""Seconds of a run up to which the loop does it itself: handing it to a thread and back takes a fifth of that."""

Outputs = list[np.ndarray]
_Waiting = tuple[Engine, Asked, "asyncio.Future[Outputs]"]


class Batches:
    """The requests of one model: at most one run at a time, of at most `most` examples.

    pool: where runs go that take their time. ran: told the examples and the seconds of a run.
    """

    def __init__(self, pool: Executor, most: int, ran: Callable[[int, float], None]) -> None:
        self._pool, self._most, self._ran = pool, most, ran
        self._waiting: deque[_Waiting] = deque()
        self._busy = False
        self._usual: float | None = None  # seconds of a run lately, None before the first

    async def run(self, engine: Engine, asked: Asked) -> Outputs:
        """The outputs. Raises RefusedError."""
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
        elif self._usual is not None and self._usual < BRIEF:
            self._done(loop, jobs, *_timed(jobs, self._most))
        else:
            work = loop.run_in_executor(self._pool, _timed, jobs, self._most)
            work.add_done_callback(lambda done: self._done(loop, jobs, *done.result()))

    def _done(
        self, loop: asyncio.AbstractEventLoop, jobs: Sequence[_Waiting], found: list[Outputs | Exception], took: float
    ) -> None:
        self._usual = took if self._usual is None else 0.8 * self._usual + 0.2 * took
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
        """The first that waits, and those after it that can share its run."""
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


def _timed(jobs: Sequence[_Waiting], most: int) -> tuple[list[Outputs | Exception], float]:
    began = time.perf_counter()
    engine = jobs[0][0]
    found = _together(engine, [asked for _, asked, _ in jobs], most)
    return found, time.perf_counter() - began


def _together(engine: Engine, asked: Sequence[Asked], most: int) -> list[Outputs | Exception]:
    """The outputs of each request, or why there are none: one that cannot be answered does not spoil the others'."""
    if len(asked) == 1:
        return [_alone(engine, asked[0], most)]
    sizes = [a.rows for a in asked]
    joined = {name: np.concatenate([a.feeds[name] for a in asked]) for name in asked[0].feeds}
    try:
        outputs = engine.run(joined)
    except SubcompressError:
        return [_alone(engine, a, most) for a in asked]
    if any(len(o) != sum(sizes) for o in outputs):  # the first axis was not one of examples
        engine.batched = False
        return [_alone(engine, a, most) for a in asked]
    ends = np.cumsum(sizes)[:-1]
    parts = [np.split(o, ends) for o in outputs]
    return [[p[i] for p in parts] for i in range(len(asked))]


def _alone(engine: Engine, asked: Asked, most: int) -> Outputs | Exception:
    """In pieces where there are many examples, so that what a run takes of memory is bounded."""
    try:
        if not engine.batched or asked.rows <= most:
            return engine.run(asked.feeds)
        found: list[Outputs] = []
        for lo in range(0, asked.rows, most):
            found.append(engine.run({n: a[lo : lo + most] for n, a in asked.feeds.items()}))
        return [np.concatenate(pieces) for pieces in zip(*found, strict=True)]
    except RefusedError as e:
        return e
    except Exception as e:  # a bug here must not take the others along
        return RefusedError(500, f"this run failed ({type(e).__name__}): report it")
