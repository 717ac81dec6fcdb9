"""Ctrl-C and SIGTERM that Python loses.

Python raises what a signal handler raises wherever the main thread is. Inside a callback, such as one that runs when a
process is forked or an object is collected, it prints the exception and drops it. A long command would then go on as if
nobody had asked it to stop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(BaseException):
    """SIGTERM was received."""


EXCEPTIONS: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
"""The exception that each signal raises."""

_received: type[BaseException] | None = None


@contextmanager
def interruptions() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C and Terminated for SIGTERM within the block, and remember them for
    `check_interrupted`. Does nothing outside the main thread, which alone receives signals, and leaves a signal ignored
    that the process was started to ignore."""
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received = None
    heard = [number for number in EXCEPTIONS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _receive) for number in heard}
    try:
        yield
    finally:
        _received = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _receive(number: int, frame: Any) -> None:
    global _received
    _received = EXCEPTIONS[number]
    raise _received


def check_interrupted() -> None:
    """Raise the exception of a signal again that was received in the `interruptions` block. Long loops call it once a
    step, in the main thread or another."""
    if _received is not None:
        raise _received
