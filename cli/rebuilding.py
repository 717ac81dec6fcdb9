"""A progress bar on stderr while the weights of a large file are rebuilt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import subcompress
from subcompress.errors import printable

LONG = 1 << 28
"""Bytes of weights that take long enough to be watched."""


@contextmanager
def rebuilding(file: Path, times: int = 1) -> Iterator[Callable[[int], None] | None]:
    """Yield a function that takes the numbers of rebuilt bytes, while the weights of a file are rebuilt `times` times.

    If the bytes are many, stderr shows a bar, or one line if it is not a terminal. If they are few, None is yielded."""
    total = times * subcompress.info(file)["dense_bytes"]
    if total < LONG:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = BarColumn(32), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    turn = threading.Lock()

    def done(n: int) -> None:
        with turn:
            if not bar.task_ids:
                text = f"{file}: {total} bytes of weights to rebuild"
                console.print(printable(text), highlight=False, soft_wrap=True, markup=False)
                bar.add_task("", total=total)
                bar.start()
        bar.advance(bar.task_ids[0], n)

    try:
        yield done
    finally:
        bar.stop()
