"""Work that releases the interpreter's lock, on as many threads as torch takes."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    left = iter(todo)  # next() of a list's holds the interpreter's lock: each item is taken once

    def run(left: Iterator[T] = left) -> None:
        _here.busy = True
        try:
            for item in left:
                work(item)
        except BaseException:
            for _ in left:  # the others find nothing more to do
                pass
            raise
        finally:
            _here.busy = False

    others = [_pool(os.getpid()).submit(run) for _ in range(threads - 1)]
    try:
        run()
    finally:
        failed = [error for other in others if (error := other.exception()) is not None]
    if failed:
        raise failed[0]


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads for this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="subcompress")
