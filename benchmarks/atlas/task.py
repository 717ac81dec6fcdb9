"""A task of examples/atlas, as its file describes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from families.examples import FOLDER, example
from families.family import Family, accuracy

USUAL: dict[str, Any] = {"LOSS": "cross-entropy", "METRIC": None, "MINIMIZE": False, "BATCH_SIZE": 32}
"""The values of what a file leaves out."""


@dataclass(frozen=True, eq=False)
class Task:
    """A network, its data and how it is trained directly.

    title: the first line of its file; lr: Adam's largest step of direct training; threshold: of the metric, whatever
    direct training reaches; literature: what others get, and where; family: the same for direct training and values.
    """

    name: str
    title: str
    lr: float
    threshold: float
    literature: str
    metric: Any
    family: Family
    evolve: Callable[..., Any] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `subcompress.fit` and `measure_dimension`."""
        f = self.family
        return {
            "loss": f.loss,
            "metric": self.metric,
            "minimize": f.minimize,
            "epochs": f.epochs,
            "batch_size": f.batch_size,
            "threads": 1,
        }

    @property
    def is_accuracy(self) -> bool:
        """Whether an example is either right or wrong."""
        return self.metric == "accuracy"

    def target(self, direct: float, share: float) -> float:
        """The share of a direct result; if it is minimized, the result divided by the share."""
        return direct / share if self.family.minimize else direct * share


def names() -> list[str]:
    """The options of all tasks."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def task_of(name: str) -> Task:
    """The task of that name. Raises SystemExit if there is none."""
    if name not in names():
        raise SystemExit(f"task must be one of {', '.join(names())}; got {name!r}")
    module = example(name)
    said = {key: getattr(module, key, default) for key, default in USUAL.items()}
    metric = said["METRIC"]
    family = Family(
        name,
        module.make_net,
        getattr(module, "load", tuple),
        None,
        getattr(module, "EPOCHS", 0),
        said["BATCH_SIZE"],
        said["LOSS"],
        accuracy if metric == "accuracy" else metric,
        said["MINIMIZE"],
        steps=(getattr(module, "LR", 0.0),),
    )
    title = (module.__doc__ or "").strip().splitlines()[0]
    lr, evolve = family.steps[0], getattr(module, "evolve", None)
    return Task(name, title, lr, module.THRESHOLD, " ".join(module.LITERATURE.split()), metric, family, evolve)
