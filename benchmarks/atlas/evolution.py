"""What is measured of a task that evolution solves: no gradient goes through its episodes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from families.direct import made

import subcompress
from atlas.exporting import exported
from atlas.measure import FILE, SHARE
from atlas.row import Crossing, Row
from atlas.task import Task
from subcompress.api.bound import bound_of
from subcompress.search.crossing import ladder, next_rung
from subcompress.training.dimension import Dimension, Point, Threshold, estimate, of_baseline


class Trials:
    """The trainings of a task, kept in a file of the folder; d = 0 is direct."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder, self.path = task, folder, folder / "trials.json"
        self.held: dict[str, float] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def value(self, d: int, seed: int) -> float:
        """The reward of the policy that evolution finds in d coordinates, which a file of the folder holds."""
        key = f"d{d}-s{seed}"
        if key not in self.held:
            assert self.task.evolve is not None
            self.held[key] = float(self.task.evolve(d, seed, self.file(d, seed) if d else None))
            self.path.write_text(json.dumps(self.held, indent=1))
        return self.held[key]

    def file(self, d: int, seed: int) -> Path:
        """Where the policy is."""
        return self.folder / f"d{d}-s{seed}.safetensors"

    def points(self) -> list[Point]:
        """What was trained in coordinates."""
        found: dict[int, list[float]] = {}
        for key, value in self.held.items():
            d = int(key[1:].partition("-")[0])
            found.setdefault(d, []).append(value)
        return [Point(d, tuple(values), 0.0) for d, values in sorted(found.items()) if d]


def climb(trials: Trials, met: Callable[[float], bool], D: int, seeds: int) -> None:
    """Train what `next_rung` asks for."""
    ds = ladder(D // 2)
    begin = ds.index(4)
    while True:
        held = {p.d: p.values for p in trials.points()}
        values = {i: held[d] for i, d in enumerate(ds) if d in held}
        if (rung := next_rung(values, met, begin, len(ds) - 1, seeds)) is None:
            return
        trials.value(ds[rung], len(values.get(rung, ())))


def row_of(task: Task, folder: Path, seeds: int) -> Row:
    """The row of the task; a file is the policy of the smallest d measured whose mean over the seeds keeps SHARE of
    direct evolution."""
    trials = Trials(task, folder)
    direct = [trials.value(0, seed) for seed in range(seeds)]
    mean = math.fsum(direct) / len(direct)
    D = sum(p.numel() for p in made(task.family, 0).parameters())
    wanted = [of_baseline(direct), Threshold("given", task.threshold), Threshold("file", SHARE * mean)]
    for threshold in wanted:
        climb(trials, lambda value, least=threshold.value: value >= least, D, seeds)
    points = tuple(trials.points())
    dimension = Dimension(task.name, "", D, "reward", False, tuple(direct), points, ())
    found = [estimate(points, threshold) for threshold in wanted]
    own, absolute, _ = (
        Crossing(e.threshold.value, e.d, dimension.d_text(e), dimension.interval_text(e)) for e in found
    )
    d = found[2].d_grid or points[-1].d
    values = [trials.value(d, seed) for seed in range(seeds)]
    packed = trials.file(d, values.index(max(values)))
    size = packed.stat().st_size
    bound = bound_of(size, EPISODES)
    return Row(
        task.name,
        task.title,
        task.literature,
        "reward",
        False,
        D,
        direct,
        own,
        absolute,
        size,
        d,
        subcompress.info(packed)["bits_per_coordinate"],
        values,
        found[2].d_grid is not None,
        bound.examples,
        bound.gap,
        None,
        exported(packed, made(task.family, 0), folder),
    )


EPISODES = 1_000
"""The number of examples for a bound: about the episodes in which evolution tries the variants of a policy."""

__all__ = ["FILE", "row_of"]
