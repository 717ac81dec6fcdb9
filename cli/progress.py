"""Training progress on stderr: a bar and a table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table

from subcompress.errors import printable
from subcompress.support.listener import Listener, Progress, StepProgress
from subcompress.support.world import rank
from subcompress.training.probe import Probe

EVERY = 30.0
"""Seconds after which a log without a terminal has one more line, within an epoch."""


class Lines(Listener):
    """A listener that prints plain lines, for logs and pipes."""

    def __init__(self, console: Console, title: str, verbose: bool) -> None:
        self.console, self.title, self.verbose = console, title, verbose
        self.name, self.last = "", time.monotonic()

    def note(self, text: str) -> None:
        if self.verbose or not text.startswith("start: "):
            self.print(text.removeprefix("start: "))

    def run(self, title: str, epochs: int) -> None:
        self.name = title

    def step(self, progress: StepProgress) -> None:
        if time.monotonic() - self.last >= EVERY:
            self.print(f"{self.title}, {self.name}: {_step(progress)}")

    def epoch(self, progress: Progress) -> None:
        self.print(f"{self.title}, {self.name}: epoch {progress.epoch}/{progress.epochs}  {_state(progress)}")

    def probes(self, probes: Sequence[Probe]) -> None:
        p = probes[-1]
        size = f" in {p.bytes} bytes" if p.bytes else ""
        self.print(
            f"training {len(probes)}: d = {p.d}, seed {p.seed}: {p.value:.4f}{size}{_remark(p)}, {p.seconds:.0f} s"
        )

    def print(self, text: str) -> None:
        self.last = time.monotonic()
        self.console.print(printable(text), highlight=False, soft_wrap=True, markup=False)


class Screen(Lines):
    """A listener that shows a progress bar, with a table of the trainings below it."""

    def __init__(self, console: Console, title: str, verbose: bool, live: Live) -> None:
        super().__init__(console, title, verbose)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
        )
        self.bar = Bar(*columns, console=console)
        self.task = self.bar.add_task("", total=1, state="")
        self.print(title)
        self.live, self.table = live, None
        live.update(self.bar)

    def run(self, title: str, epochs: int) -> None:
        super().run(title, epochs)
        self.bar.reset(self.task, total=epochs, description=title, state="")

    def step(self, progress: StepProgress) -> None:
        self.bar.update(self.task, completed=progress.step / progress.steps * progress.epochs, state=_step(progress))

    def epoch(self, progress: Progress) -> None:
        self.bar.update(self.task, completed=progress.epoch, state=_state(progress))

    def probes(self, probes: Sequence[Probe]) -> None:
        self.live.update(Group(self.bar, probe_table(probes)))


@contextmanager
def listening(title: str, verbose: bool = False) -> Iterator[Listener]:
    """Return a listener that prints to stderr, with `title` in front of its lines; a silent one in any worker but the
    first."""
    if rank():
        yield Listener()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(console, title, verbose)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield Screen(console, title, verbose, live)


def probe_table(probes: Sequence[Probe]) -> Table:
    """d by seed, in order of d: the value of each training, the mean, and the bytes of the largest."""
    seeds = sorted({p.seed for p in probes})
    table = Table("d", *[f"seed {s}" for s in seeds], "mean", "bytes", "s")
    for d, whole in sorted({(p.d, p.whole) for p in probes}):
        row = {p.seed: p for p in probes if (p.d, p.whole) == (d, whole)}
        cells = [f"{row[s].value:.4f}{_remark(row[s])}" if s in row else "" for s in seeds]
        mean, size = sum(p.value for p in row.values()) / len(row), max(p.bytes for p in row.values())
        seconds = sum(p.seconds for p in row.values())
        table.add_row(f"{d}", *cells, f"{mean:.4f}", f"{size or ''}", f"{seconds:.0f}")
    return table


def _remark(p: Probe) -> str:
    note = "stopped" if p.stopped and not p.note else "short" if p.short else f"from {p.warm}" if p.warm else p.note
    return f" ({note})" if note else ""


def _step(p: StepProgress) -> str:
    left = p.seconds / p.step * (p.steps - p.step)
    at = f"step {p.step}/{p.steps}, epoch {p.epoch}/{p.epochs}"
    return f"{at}  loss {p.loss:.3f}  {p.seconds:.0f} s, {left:.0f} s left"


def _state(p: Progress) -> str:
    left = p.seconds / p.epoch * (p.epochs - p.epoch)
    state = f"loss {p.loss:.3f}  validation {p.metric} {p.value:.4f}  {p.seconds:.0f} s, {left:.0f} s left"
    return f"{state}  ({p.note})" if p.note else state
