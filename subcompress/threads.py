"""Work that releases the interpreter's lock, on as many threads as torch takes."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import torch

T = TypeVar("T")
_here = threading.local()


def each(work: Callable[[T], object], items: Iterable[T]) -> None:
    """work(item) for every item, begun in order, this thread among those that work.

    Within such work it goes on in one thread: the others are taken. The first error ends all and is raised.
    """
    todo = list(items)
    threads = min(len(todo), torch.get_num_threads())
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
