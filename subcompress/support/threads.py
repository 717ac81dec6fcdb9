"""A thread pool for work that releases the GIL, with as many threads as torch uses."""

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
_local = threading.local()


def thread_count() -> int:
    """Return torch's thread count, or, before torch is imported, OMP_NUM_THREADS or the number of cores."""
    if (torch_threads := getattr(sys.modules.get("torch"), "get_num_threads", None)) is not None:
        return int(torch_threads())
    return _default_thread_count()


@functools.cache
def _default_thread_count() -> int:
    configured = os.environ.get("OMP_NUM_THREADS", "")
    if configured.isdecimal() and int(configured):
        return int(configured)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(work: Callable[[T], object], items: Iterable[T]) -> None:
    """Call work(item) for every item, started in order, on the pool and on the calling thread.

    Calls from within `work` run on one thread, because the others are busy. The first error stops all work and is
    raised.
    """
    todo = list(items)
    threads = min(len(todo), thread_count())
    if threads <= 1 or getattr(_local, "busy", False):
        for item in todo:
            work(item)
        return
    todo.reverse()

    def run() -> None:
        _local.busy = True
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
            _local.busy = False

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
    """Return the thread pool of this process; a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="subcompress")
