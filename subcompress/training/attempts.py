"""A training that dies is tried once more, with a smaller step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from subcompress.errors import SubcompressError
from subcompress.training.loop import DeadRunError, TrainOptions
from subcompress.training.run import Run

RETRY = 0.4
"""The factor on the step size of the second try."""


class DiedTwiceError(SubcompressError):
    """A run died, and its second try too; `epochs` and `seconds` were spent."""

    def __init__(self, text: str, epochs: int, seconds: float = 0.0) -> None:
        super().__init__(text)
        self.epochs, self.seconds = epochs, seconds


@dataclass(frozen=True)
class Attempt:
    """One try. key: the name of its checkpoint; note: its name for people; remark: empty for the first."""

    options: TrainOptions
    key: str
    note: str
    remark: str = ""


class Attempts:
    """The tries of a training. A first one that died before an interruption is not made again.

    key: the name of the training in the run folder; note: its name for people; epochs and seconds: what the tries that
    died have taken.
    """

    def __init__(self, run: Run, key: str, note: str, options: TrainOptions) -> None:
        self.run, self.key, self.options = run, key, options
        again = replace(options, lr=options.lr * RETRY)
        self.first = Attempt(options, key, note)
        self.second = Attempt(again, f"{key}-again", f"{note}, second try, lr {again.lr:.2g}", "second try")
        self.epochs, self.seconds, self.reason = 0, 0.0, ""

    def __iter__(self) -> Iterator[Attempt]:
        """The remaining tries. Raises DiedTwiceError after the second one."""
        if (died := self.run.journal.get(f"{self.key}-died")) is None:
            yield self.first
        else:
            self.epochs, self.seconds, self.reason = int(died["epochs"]), float(died["seconds"]), str(died["note"])
        yield self.second
        raise DiedTwiceError(self.text, self.epochs, self.seconds)

    @property
    def text(self) -> str:
        """What is said of a training that died twice."""
        return (
            f"the training failed twice, at lr {self.first.options.lr:.2g} and {self.second.options.lr:.2g} "
            f"({self.reason}): raise --d or --bits, or give a smaller --lr or another --seed"
        )

    def died(self, attempt: Attempt, error: DeadRunError) -> None:
        """Count a try that died, and note it in the run folder."""
        trained = min(self.options.epochs, 1 + int(self.options.epochs * error.share))
        self.epochs, self.seconds, self.reason = self.epochs + trained, self.seconds + error.seconds, str(error)
        first = attempt is self.first
        entry = {"epochs": trained, "seconds": error.seconds, "note": self.reason if first else self.text}
        self.run.note(f"{attempt.key}-died", entry)


__all__ = ["Attempt", "Attempts", "DiedTwiceError"]
