"""What the atlas holds of a task, and its row of the table."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from subcompress.support.files import write_bytes
from subcompress.training.dimension_chart import number

HEADER = (
    "task",
    "D",
    "metric",
    "direct",
    "d_int90 (5 to 95 %)",
    "absolute threshold",
    "d_int there (5 to 95 %)",
    "file at 95 %, bytes",
    "d; bits a coordinate",
    "value at that d",
    "bound on the error",
    "ONNX",
    "core seconds",
)


@dataclass
class Crossing:
    """The dimension at a threshold, as `Dimension` gives it for a reader; d: the number, None for a bound alone."""

    threshold: float
    d: float | None
    text: str
    interval: str


@dataclass
class Row:
    """One task. direct: each seed's; own, absolute: at 0.9 of their mean and at the task's threshold; bytes, d, bits:
    of the smallest file at 95 %, or of the best one where reached is false; values: of the trainings in exactly that d;
    bound: that on the error for new examples, with the error of the file on the training split; None if it is no
    error."""

    name: str
    title: str
    literature: str
    metric: str
    minimize: bool
    D: int
    direct: list[float]
    own: Crossing
    absolute: Crossing
    bytes: int
    d: int
    bits: float
    values: list[float]
    reached: bool
    examples: int
    gap: float
    training_error: float | None
    onnx: str
    remark: str = ""
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def bound(self) -> str:
        """The bound, and the numbers that it is computed from."""
        if self.training_error is None:
            return f"gap {self.gap:.2f}" + (" (vacuous)" if self.gap >= 1 else "")
        most = self.training_error + self.gap
        return f"{most:.2f} (gap {self.gap:.2f})" if most < 1 else f"vacuous (gap {self.gap:.2f})"

    def markdown(self) -> str:
        """A row of the table."""
        file = f"{self.bytes:,}" + ("" if self.reached else ", **95 % not reached**")
        cells = (
            self.name,
            f"{self.D:,}",
            self.metric + (", less is better" if self.minimize else ""),
            spread(self.direct),
            _crossing(self.own),
            f"{'≤' if self.minimize else '≥'} {number(self.absolute.threshold)}",
            _crossing(self.absolute),
            file if self.bytes else "",
            f"{self.d:,}; {self.bits:.2f}" if self.d else "",
            spread(self.values),
            self.bound(),
            self.onnx,
            f"{self.seconds:,.0f}",
        )
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    @classmethod
    def read(cls, path: Path) -> Row:
        """What `write` wrote."""
        held: dict[str, Any] = json.loads(path.read_text())
        return cls(**held | {name: Crossing(**held[name]) for name in ("own", "absolute")})

    def write(self, path: Path) -> None:
        """All of it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, (json.dumps(asdict(self), indent=1) + "\n").encode())


def spread(values: list[float]) -> str:
    """The mean of the seeds and their standard deviation."""
    if not values:
        return ""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return number(mean)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{number(mean)} ± {number(deviation, 1)}"


def _crossing(found: Crossing) -> str:
    inside = found.interval not in ("", found.text)
    return found.text + (f" ({found.interval})" if inside else "")
