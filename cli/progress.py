"""Live progress on stderr: a bar in a terminal, plain lines without one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
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
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, TextColumn("{task.fields[state]}"), console=console) as bar:
        task = bar.add_task(title, total=epochs, state="")
        yield lambda p: bar.update(
            task, completed=p.epoch, state=f"loss {p.loss:.3f}  validation {p.validation_accuracy:.4f} {p.note}"
        )


def _line(p: Progress) -> str:
    left = p.seconds / p.epoch * (p.epochs - p.epoch)
    clock = f"{p.seconds:.0f} s, {left:.0f} s left"
    line = f"epoch {p.epoch}/{p.epochs}  loss {p.loss:.3f}  validation {p.validation_accuracy:.4f}  {clock}"
    return f"{line}  ({p.note})" if p.note else line
