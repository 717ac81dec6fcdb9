"""The figures of a server that the page, the statistics and Prometheus show, added up over its workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from subcompress.serving.models import Model, Models, resident_bytes

if TYPE_CHECKING:
    from subcompress.serving.metrics import Metrics

FEW = 32
"""How many latencies of a model a worker sends to another."""

STATES = ("loaded", "loading", "idle", "unavailable", "unloaded")
"""The states of a model. If workers differ, the one that comes first here is shown."""

Figures = dict[str, Any]
"""The figures of a worker: numbers, `recent` latencies, and under `models` by name the fields of `ModelFigures`."""


@dataclass
class ModelFigures:
    """The figures of a model. last: when its last request ended, by the clock of `now`, which all processes share."""

    state: str = "idle"
    requests: int = 0
    failed: int = 0
    runs: int = 0
    examples: int = 0
    seconds: float = 0.0
    memory: int = 0
    last: float | None = None
    recent: list[float] = field(default_factory=list)

    def add(self, other: ModelFigures) -> None:
        """Add what another worker counted."""
        self.state = min(self.state, other.state, key=STATES.index)
        for name in ("requests", "failed", "runs", "examples", "seconds", "memory"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last = max((t for t in (self.last, other.last) if t is not None), default=None)
        self.recent = [*self.recent, *other.recent]


def _own(model: Model, most: int | None = None) -> list[Any]:
    """The fields of ModelFigures, in order."""
    recent = list(model.recent)[-most:] if most else list(model.recent)
    counted = model.requests, model.failed, model.runs, model.examples, model.seconds, model.memory, model.last
    return [model.state, *counted, recent]


def of_model(model: Model, others: Sequence[Figures] = ()) -> ModelFigures:
    """Return the figures of a model, in all workers."""
    found = ModelFigures(*_own(model))
    for other in others:
        if (told := other["models"].get(model.name)) is not None:
            found.add(ModelFigures(*told))
    return found


def figures_of(models: Models, metrics: Metrics, waiting: int, with_models: bool = True) -> Figures:
    """Return what this process has counted."""
    return {
        "limit": models.limit,
        "used": models.used,
        "bases": models.networks.bases.nbytes,
        "process": resident_bytes(),
        "waiting": waiting,
        "total": metrics.total,
        "failed": metrics.failed,
        "refused": metrics.refused,
        "per_s": metrics.per_second(),
        "recent": list(metrics.recent),
        "models": {m.name: _own(m, FEW) for m in models} if with_models else {},
    }


def added(own: Figures, others: Sequence[Figures]) -> Figures:
    """Return the figures of the server, without those of its models."""
    found = {k: sum((o[k] for o in others), own[k]) for k in own if k not in ("models", "recent")}
    return found | {"recent": [t for figures in (own, *others) for t in figures["recent"]]}
