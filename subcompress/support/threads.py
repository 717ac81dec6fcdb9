"""Work that releases the interpreter's lock, on as many threads as torch takes where it is there."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
_here = threading.local()


def thread_count() -> int:
    """Threads to take: torch's number, or, while it is not imported, OMP_NUM_THREADS as torch would, or all cores."""
    if (asked := getattr(sys.modules.get("torch"), "get_num_threads", None)) is not None:
        return int(asked())
    return _without_torch()


@functools.cache
def _without_torch() -> int:
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(work: Callable[[T], object], items: Iterable[T]) -> None:
    """work(item) for every item, begun in order, this thread among those that work.

    Within such work it goes on in one thread: the others are taken. The first error ends all and is raised.
    """
    todo = list(items)
    threads = min(len(todo), thread_count())
    if threads <= 1 or getattr(_here, "busy", False):
        for item in todo:
            work(item)
        return
    todo.reverse()

    def run() -> None:
        _here.busy = True
        try:
            while todo:
                try:
                    item = todo.pop()
                except IndexError:  # another thread was faster
                    break
                work(item)
        except BaseException:
            todo.clear()  # the others find nothing more to do
            raise
        finally:
            _here.busy = False

    others: list[Future[None]] = []
    with suppress(RuntimeError):  # the interpreter is ending: this thread goes on alone
        others += [_pool(os.getpid()).submit(run) for _ in range(threads - 1)]
    try:
        run()
    finally:
        # One that has not begun waits behind another caller's work, and would find nothing to do.
        begun = [other for other in others if not other.cancel()]
        failed = [error for other in begun if (error := other.exception()) is not None]
    if failed:
        raise failed[0]


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads for this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="subcompress")
