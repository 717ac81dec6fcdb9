"""What a fit is asked for: d coordinates, the fewest bytes that meet a target, or the best within a number of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.training.tasks import Task

MAX_FITS, TRIED = 8.0, 2.0
"""Trainings of a search at most, by default; and so many more where the step of the direct training is searched."""


@dataclass(frozen=True)
class Limits:
    """What a search may spend: seeds at a d, trainings, minutes."""

    seeds: int
    max_fits: float
    max_minutes: float


@dataclass(frozen=True)
class Goal:
    """One of d, value (of the metric), drop (below the baseline) and bytes (of the whole file) is given. earlier: the
    limits that a run went on from, each with the number of trainings until which it held."""

    d: int | None = None
    value: float | None = None
    drop: float | None = None
    bytes: int | None = None
    baseline: float | str | Path | None = None
    seeds: int = 3
    max_fits: float = MAX_FITS
    max_minutes: float = math.inf
    baseline_lr: float | None = None
    earlier: tuple[tuple[int, Limits], ...] = ()

    def limits(self, trainings: int) -> Limits:
        """Those in force when so many trainings have ended: a run that went on under others takes the same way again
        up to there."""
        now = Limits(self.seeds, self.max_fits, self.max_minutes)
        return next((limits for until, limits in self.earlier if trainings < until), now)

    def after(self, earlier: Sequence[Mapping[str, Any]]) -> Goal:
        """This goal, in a run folder that began with other limits, as it keeps them."""
        names = ("seeds", "max_fits", "max_minutes")
        now = asdict(self.limits(0))
        held = []
        for each in earlier:
            known = {name: each[name] for name in names if each.get(name) is not None}
            held.append((each["trainings"], Limits(**{**now, **known})))
        return replace(self, earlier=tuple(held))

    @classmethod
    def of(
        cls,
        task: Task,
        *,
        d: int | None = None,
        min_accuracy: float | None = None,
        max_drop: float | None = None,
        target: float | None = None,
        within: int | None = None,
        baseline: float | str | Path | None = None,
        seeds: int = 3,
        max_fits: float | None = None,
        max_minutes: float | None = None,
        baseline_lr: float | None = None,
    ) -> Goal:
        """Raises SubcompressError unless the options say one thing."""
        given = {
            "--d": d,
            "--min-accuracy": min_accuracy,
            "--max-drop": max_drop,
            "--target": target,
            "--bytes": within,
        }
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) != 1:
            words = " and ".join(chosen) if chosen else "none of them"
            raise SubcompressError(f"fit takes one of {', '.join(given)}; given {words}")
        if (min_accuracy is not None or max_drop is not None) and task.minimise:
            raise SubcompressError(
                f"{chosen[0]} is for metrics of which more is better; {task.metric_name} is minimized: give --target"
            )
        if min_accuracy is not None and not (task.has_accuracy_range and 0 < min_accuracy <= 1):
            raise SubcompressError(
                f"--min-accuracy is an accuracy above 0 and up to 1; given {min_accuracy} of {task.metric_name}: for "
                "another metric give --target"
            )
        if max_drop is not None and not 0 <= max_drop < math.inf:
            raise SubcompressError(f"--max-drop is at least 0; given {max_drop}")
        if target is not None and not math.isfinite(target):
            raise SubcompressError(f"--target is a finite number; given {target}")
        if baseline is not None and (d is not None or within is not None):
            raise SubcompressError(f"--baseline is what a target is held against; {chosen[0]} has none: leave one out")
        if baseline_lr is not None and (max_drop is None or baseline is not None):
            raise SubcompressError(
                "--baseline-lr is the step of the direct training that --max-drop counts from: give it with "
                "--max-drop, and without --baseline"
            )
        if baseline_lr is not None and not 0 < baseline_lr < math.inf:
            raise SubcompressError(f"--baseline-lr is positive; given {baseline_lr:g}")
        searched = max_drop is not None and baseline is None and baseline_lr is None
        max_fits = max_fits if max_fits is not None else MAX_FITS + (TRIED if searched else 0)
        if max_minutes is not None and d is not None:
            raise SubcompressError("--max-minutes is for a search; with --d there is one training: leave one out")
        if max_minutes is not None and not max_minutes > 0:
            raise SubcompressError(f"--max-minutes is positive; given {max_minutes:g}")
        if not 1 <= seeds <= 100:
            raise SubcompressError(f"--seeds is between 1 and 100; given {seeds}")
        least = seeds if within is not None else seeds + 1
        if d is None and not max_fits >= least:
            words = "--seeds" if within is not None else "--seeds + 1"
            raise SubcompressError(f"--max-fits is at least {words} = {least}; given {max_fits:g}")
        value = min_accuracy if min_accuracy is not None else target
        return cls(d, value, max_drop, within, baseline, seeds, max_fits, max_minutes or math.inf, baseline_lr)

    def command(self) -> dict[str, Any]:
        """What makes two commands the same, and the limits, which may differ; see `subcompress.training.schemas`."""
        named: dict[str, Any] = {"d": self.d, "target": self.value, "max_drop": self.drop, "bytes": self.bytes}
        if self.d is not None:
            return {"goal": named}
        step = {} if self.baseline_lr is None else {"baseline_lr": self.baseline_lr}
        return {"goal": named | {"baseline": self.baseline} | step, "limits": asdict(self.limits(0))}
