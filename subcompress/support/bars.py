"""Progress bars for calls from Python: in a terminal and in a notebook, unless the caller listens."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from subcompress.support.listener import Listener, Progress, StepProgress

P = ParamSpec("P")
R = TypeVar("R")

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} epochs, {elapsed}, {remaining} left{postfix}"


def with_bars(f: Callable[P, R]) -> Callable[P, R]:
    """f, which shows its progress where it is called without a listener and somebody watches."""

    @functools.wraps(f)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs.get("listener") is not None or not is_watched():
            return f(*args, **kwargs)
        bars = Bars()
        kwargs["listener"] = bars
        try:
            return f(*args, **kwargs)
        finally:
            bars.close()

    return called


def is_watched() -> bool:
    """Whether a person sees what is printed: at a terminal, or in a notebook."""
    return is_notebook() or bool(getattr(sys.stderr, "isatty", lambda: False)())


def is_notebook() -> bool:
    """Whether this process runs the cells of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class Bars(Listener):
    """A bar of tqdm for each training, and the lines a person should read above it."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets, a bar of letters does as well
            from tqdm.auto import tqdm
        self.make: Any = tqdm
        self.bar: Any = None

    def note(self, text: str) -> None:
        """Print a line; how tensors start is left out."""
        if not text.startswith("start: "):
            self.make.write(text, file=sys.stdout if is_notebook() else sys.stderr)

    def run(self, title: str, epochs: int) -> None:
        """Begin a bar."""
        self.close()
        self.bar = self.make(total=epochs, desc=title, bar_format=FORMAT, dynamic_ncols=True)

    def step(self, progress: StepProgress) -> None:
        """Move the bar within an epoch."""
        self._move(progress.step / progress.steps * progress.epochs, f"loss {progress.loss:.3f}")

    def epoch(self, progress: Progress) -> None:
        """Move the bar to the end of an epoch, and end it with the last one."""
        note = f" ({progress.note})" if progress.note else ""
        state = f"loss {progress.loss:.3f}, validation {progress.metric} {progress.value:.4f}{note}"
        self._move(progress.epoch, state)
        if progress.epoch == progress.epochs:
            self.close()

    def probes(self, probes: Sequence[Any]) -> None:
        """End the bar of a training that was stopped."""
        self.close()

    def close(self) -> None:
        """End the bar that is there."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _move(self, epochs: float, state: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(state, refresh=False)
            self.bar.n = epochs
            self.bar.refresh()


__all__ = ["Bars", "is_notebook", "is_watched", "with_bars"]
