"""Live progress on stderr: a bar in a terminal, plain lines without one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from subcompress.training import Progress


@contextmanager
def listening(title: str, epochs: int) -> Iterator[Callable[[Progress], None]]:
    """A listener for a run of so many epochs, with `title` in front of its lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda p: console.print(f"{title}: {_line(p)}", highlight=False, soft_wrap=True)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(title, total=epochs, state="")
        yield lambda p: bar.update(task, completed=p.epoch, state=_state(p))


def _state(p: Progress) -> str:
    left = p.seconds / p.epoch * (p.epochs - p.epoch)
    state = f"loss {p.loss:.3f}  validation {p.validation_accuracy:.4f}  {p.seconds:.0f} s, {left:.0f} s left"
    return f"{state}  ({p.note})" if p.note else state


def _line(p: Progress) -> str:
    return f"epoch {p.epoch}/{p.epochs}  {_state(p)}"
