"""What the bytes of a file say of data that nobody has seen: a short description cannot have memorized much."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.training.options import check_number

DELTA = 0.05
"""The probability that the bound does not hold, over the draw of the training examples."""


@dataclass(frozen=True)
class Bound:
    """An Occam bound: with probability 1 - delta over the draw of the training examples, the error on new ones is at
    most the error on these plus `gap`. The error of an example lies between 0 and 1, such as of a label, wrong or not.

    examples: their number in the training split; bytes: the size of the whole file.
    """

    examples: int
    bytes: int
    delta: float

    @property
    def gap(self) -> float:
        """sqrt((8 n ln 2 + ln(n (n + 1) / delta)) / (2 N)) for n bytes and N examples: Hoeffding's inequality for
        all files at once. A file of n bytes gets the share 2^(-8 n) / (n (n + 1)) of delta; all shares add up to 1."""
        n = self.bytes
        nats = 8 * n * math.log(2) + math.log(n * (n + 1) / self.delta)
        return math.sqrt(nats / (2 * self.examples))

    @property
    def vacuous(self) -> bool:
        """Whether the gap alone is 1 or more, so that nothing is said."""
        return self.gap >= 1

    def error(self, training_error: float) -> float:
        """The largest error on new examples that the bound allows, at most 1."""
        return min(1.0, training_error + self.gap)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"gap": self.gap, "vacuous": self.vacuous}

    def __str__(self) -> str:
        start = f"bound for {self.bytes} bytes learned from {self.examples:,} examples: "
        if self.vacuous:
            return start + f"nothing is known: the gap, {self.gap:.2f}, is 1 or more (vacuous)"
        return start + (
            f"the error on new examples is at most the error on these plus {self.gap:.4f}, with probability "
            f"{1 - self.delta:g}"
        )


def bound_of(size: int, examples: int, delta: float = DELTA) -> Bound:
    """The bound for a file of `size` bytes. Raises SubcompressError for an invalid number of examples or delta."""
    check_number("bound", examples, "int")
    check_number("delta", delta, "float")
    if examples < 1:
        raise SubcompressError(f"a bound needs at least 1 training example; got {examples}: give their number")
    if not 0 < delta < 1:
        raise SubcompressError(f"delta must be a probability between 0 and 1; got {delta:g}: give one such as {DELTA}")
    return Bound(examples, size, delta)


__all__ = ["DELTA", "Bound", "bound_of"]
