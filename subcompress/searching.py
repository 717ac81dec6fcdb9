"""The smallest d that meets a target, in few trainings.

The error is near a power of d around the target: log(error) = a + b log(d) + noise. Each training is a sample of it;
the line through them, drawn towards the usual slope while there are few, says where to look next. A d *meets* the
target when the mean over several seeds does, on the validation split. Most of a search's cost is in those repeats, so
the first trainings look from afar with one seed, and trainings whose curve lies too low are stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch

from subcompress.errors import SubcompressError
from subcompress.fitter import DiedTwiceError, Fitter, Probe, copied
from subcompress.preflight import resolution_note
from subcompress.tasks import Task, evaluate

SLOPE, SLOPE_ERROR = -0.6, 0.2
"""What log(error) gains with each unit of log(d), and how sure that is: benchmarks/dimension.py shows -0.4 to -1.1."""

FAR = 0.3
"""Standard error of log(d) at the crossing above which a look from afar is enough: half of the epochs, warm."""

NOISE = 0.10
"""Standard deviation of log(error) between seeds, until more is known: benchmarks/search.py shows 0.03 to 0.11."""

LOOKS = 3
"""Of those at the most."""

FARTHEST = 4.0
"""The factor in d that one sample may be asked to predict over."""

CLOSE = 1.04
"""Neighbouring d's that are not told apart."""


@dataclass(frozen=True)
class Goal:
    """One of d, value (of the metric) and drop (below the baseline) is given."""

    d: int | None = None
    value: float | None = None
    drop: float | None = None
    baseline: float | str | Path | None = None
    seeds: int = 3
    max_fits: float = 8.0

    @classmethod
    def of(
        cls,
        task: Task,
        d: int | None,
        min_accuracy: float | None,
        max_drop: float | None,
        target: float | None,
        baseline: float | str | Path | None,
        seeds: int,
        max_fits: float,
    ) -> Goal:
        """Raises SubcompressError unless the options say one thing."""
        given = {"--d": d, "--min-accuracy": min_accuracy, "--max-drop": max_drop, "--target": target}
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) != 1:
            words = " and ".join(chosen) if chosen else "none of them"
            raise SubcompressError(f"fit takes one of {', '.join(given)}; given {words}")
        accuracy = task.metric_name.endswith("accuracy") and not task.minimise
        if (min_accuracy is not None or max_drop is not None) and task.minimise:
            raise SubcompressError(
                f"{chosen[0]} is for metrics of which more is better; {task.metric_name} is minimised: give --target"
            )
        if min_accuracy is not None and not (accuracy and 0 < min_accuracy <= 1):
            raise SubcompressError(
                f"--min-accuracy is an accuracy above 0 and up to 1; given {min_accuracy} of {task.metric_name}: for "
                "another metric give --target"
            )
        if max_drop is not None and not 0 <= max_drop < math.inf:
            raise SubcompressError(f"--max-drop is at least 0; given {max_drop}")
        if target is not None and not math.isfinite(target):
            raise SubcompressError(f"--target is a finite number; given {target}")
        if baseline is not None and d is not None:
            raise SubcompressError("--baseline is for a search; with --d there is none: leave one out")
        if not 1 <= seeds <= 100:
            raise SubcompressError(f"--seeds is between 1 and 100; given {seeds}")
        if not max_fits >= seeds + 1:
            raise SubcompressError(f"--max-fits is at least --seeds + 1 = {seeds + 1}; given {max_fits:g}")
        value = min_accuracy if min_accuracy is not None else target
        return cls(d, value, max_drop, baseline, seeds, max_fits)

    def command(self) -> dict[str, Any]:
        """What makes two commands the same."""
        named = {"d": self.d, "target": self.value, "max_drop": self.drop}
        if self.d is not None:
            return named
        return named | {"baseline": self.baseline, "seeds": self.seeds, "max_fits": self.max_fits}

    def first_d(self, D: int) -> int:
        """Where a search looks first: near sqrt(D), of the order of what Li et al. 2018 found for small networks."""
        return min(D, max(8, round(math.sqrt(D))))


def search(fitter: Fitter, goal: Goal) -> tuple[Probe, dict[str, Any]]:
    """The training to keep, and the fields of a Fit that tell of the search.

    Raises SubcompressError where the target is not reached, saying how near the search came.
    """
    return _Search(fitter, goal).run()


class _Search:
    def __init__(self, fitter: Fitter, goal: Goal) -> None:
        self.fitter, self.goal, self.task, self.D = fitter, goal, fitter.task, fitter.D
        self.seeds = [(fitter.settings.seed + i) % (1 << 64) for i in range(goal.seeds)]
        self.probes: list[Probe] = []
        self.baseline: float | None = None
        self.slope = SLOPE
        self.failed = 0
        """The largest d that was found not to meet the target."""
        self.met = 0
        """The smallest d that was found to meet it."""

    def run(self) -> tuple[Probe, dict[str, Any]]:
        d: int | None = self.goal.first_d(self.D)
        self.fitter.say_cost(self.goal.first_d(self.D), self.goal.max_fits)
        self.target = self._target()
        if (warning := resolution_note(self.task, self.fitter.data, self.target, self.goal.drop)) is not None:
            self.fitter.listener.note(warning)
        while d is not None:
            before = len(self.probes)
            self._look(d)
            d = self._next() if len(self.probes) > before else None
        return self._result()

    def _target(self) -> float:
        given = self.goal.baseline
        if given is not None:
            self.baseline = self._given_baseline(given)
        elif self.goal.drop is not None:
            self.baseline = self.fitter.baseline().value
        if self.goal.value is not None:
            self._refuse_above_baseline(self.goal.value)
            return self.goal.value
        assert self.baseline is not None
        assert self.goal.drop is not None
        self.fitter.listener.note(
            f"trained directly: {self.task.metric_name} {self.baseline:.4f}; the target is "
            f"{self.baseline - self.goal.drop:.4f}"
        )
        return self.baseline - self.goal.drop

    def _given_baseline(self, given: float | str | Path) -> float:
        """A number, or a dense safetensors file of the network's weights, measured on the validation split."""
        try:
            number = float(str(given))
        except ValueError:
            pass
        else:
            if not math.isfinite(number):
                raise SubcompressError(f"--baseline is a finite number or a file of weights; given {given}")
            return number
        module = copied(self.fitter.model, "cpu")
        try:
            module.load_state_dict(safetensors.torch.load_file(str(given)))
        except (OSError, RuntimeError, safetensors.SafetensorError) as e:
            raise SubcompressError(
                f"--baseline is a number or a safetensors file of the network's weights; {given} is neither: "
                f"{' '.join(str(e).split())[:200]}"
            ) from e
        return evaluate(module.to(self.fitter.settings.device), self.fitter.data.validation, self.task)

    def _refuse_above_baseline(self, target: float) -> None:
        if self.baseline is not None and self.task.better(target, self.baseline):
            raise SubcompressError(
                f"a target is at most what the network reaches when all of its weights are trained; given "
                f"{target:g}, that "
                f"reaches {self.baseline:.4f} on the validation split: lower the target, or train with more --epochs"
            )

    # --- one d ---

    def _look(self, d: int) -> None:
        """Train at d: with one seed while the target is far, with all of them near it, as long as it may be met."""
        new = all(p.d != d for p in self.probes)
        few = sum(p.warm > 0 for p in self.probes) < LOOKS
        if new and few and self.probes and self._crossing()[1] > FAR and (warm := self._warm(d)) is not None:
            self._probe(d, self.seeds[0], warm)
            return
        for n, seed in enumerate(self.seeds, 1):
            if self._of(d, seed) is None:
                safe = self._safe()
                kept = 0 if safe is None or safe == d else self._missing(safe)
                if self._room() < 1 + kept:
                    return
                self._probe(d, seed)
            if n == len(self.seeds):
                break
            gap = self._log_error(self._mean(d)) - self._log_error(self.target)
            if gap > self._noise() * math.sqrt(1 / n + 1 / len(self.seeds)):
                break  # too poor
            # Far above it: one seed says enough, while there is room to look lower down.
            lower = self._room() >= len(self.seeds) + 1
            if new and n == 1 and gap < -2 * self._noise() and lower and not self.met:
                return
        mean = self._mean(d)
        ended = all((p := self._of(d, s)) is not None and not p.stopped for s in self.seeds)
        if not self.task.meets(mean, self.target):
            self.failed = max(d, self.failed)
        elif ended:
            self.met = min(d, self.met or d)

    def _warm(self, d: int) -> Probe | None:
        """The nearest training that one at d may begin with."""
        found = [p for p in self.probes if p.seed == self.seeds[0] and not p.stopped and not p.warm]
        found = [p for p in found if self.fitter.nests(p.d, d)]
        return min(found, key=lambda p: abs(math.log(p.d / d)), default=None)

    def _probe(self, d: int, seed: int, warm: Probe | None = None) -> None:
        try:
            probe = self.fitter.probe(d, seed, warm=warm, hopeless=None if warm else self._hopeless())
        except DiedTwiceError as e:
            worst = max if self.task.minimise else min
            values = [p.value for p in self.probes] or [0.0 if not self.task.minimise else math.inf]
            probe = Probe(d, seed, worst(values), (), e.epochs, 0.0, True, "died twice")
        self.probes.append(probe)
        self.fitter.listener.probes(tuple(self.probes))

    def _hopeless(self) -> Callable[[tuple[float, ...]], bool] | None:
        """Whether a curve lies so low that, gaining as much as the best of the ended ones did, it would stay below."""
        ended = [p.curve for p in self.probes if not p.stopped and len(p.curve) == self.fitter.settings.epochs]
        if not ended:
            return None

        def stop(curve: tuple[float, ...]) -> bool:
            n, epochs = len(curve), self.fitter.settings.epochs
            if n < max(2, epochs // 2):
                return False
            gains = [self._log_error(c[-1]) - self._log_error(c[n - 1]) for c in ended]
            hoped = self._log_error(curve[-1]) + min(0.0, *gains) - 2 * self._noise()
            return hoped > self._log_error(self.target) + self._noise()

        return stop

    def _of(self, d: int, seed: int) -> Probe | None:
        return next((p for p in self.probes if p.d == d and p.seed == seed and not p.warm), None)

    def _mean(self, d: int) -> float:
        return statistics.fmean(p.value for p in self.probes if p.d == d and not p.warm)

    # --- where next ---

    def _room(self) -> float:
        return self.goal.max_fits - self._spent()

    def _spent(self) -> float:
        epochs = sum(p.epochs for p in self.probes) / self.fitter.settings.epochs
        return epochs + (1.0 if self.goal.drop is not None and self.goal.baseline is None else 0.0)

    def _next(self) -> int | None:
        """The next d to train at, None where the search has ended."""
        seeds, room = len(self.seeds), self._room()
        if self.failed >= self.D or room < 1:
            return None
        crossing, error = self._crossing()
        if self.met:
            # Lower down, where it is as likely as not that the target is met; not for a step that noise hides.
            near = min(crossing, self.met / CLOSE**2)
            near = max(near, self.failed * CLOSE) if self.failed else near
            if room < seeds or near > self.met / CLOSE:
                return None
        elif (safe := self._safe()) is not None and room < self._missing(safe) + 2:
            return safe
        else:
            # The last trainings that are left go where the target is met almost surely.
            doubt = 0.4 if room >= 2 * seeds else 0.9 if room >= seeds + 1 else 1.6
            near = crossing * math.exp(doubt * error)
            near = max(near, self.failed * CLOSE) if self.failed else near
        known = sorted({p.d for p in self.probes})
        near = min(max(near, known[0] / FARTHEST), known[-1] * FARTHEST, float(self.D))
        d = max(2, round(near))
        d = min(max(d, self.failed + 1), self.D) if not self.met else d
        for k in known:  # a d that has a training already saves one
            if d / CLOSE <= k <= d * CLOSE and k > self.failed and k != self.met and not self._complete(k):
                return k
        return None if self._complete(d) else d

    def _noise(self) -> float:
        """Standard deviation of log(error) between seeds: as seen at d's with several, and the usual one where few
        are."""
        squares, n = 3 * NOISE**2, 3
        for d in {p.d for p in self.probes}:
            y = [self._log_error(p.value) for p in self.probes if p.d == d and not p.stopped and not p.warm]
            if len(y) > 1:
                squares, n = squares + statistics.variance(y) * (len(y) - 1), n + len(y) - 1
        return math.sqrt(squares / n)

    def _complete(self, d: int) -> bool:
        return self._missing(d) == 0

    def _missing(self, d: int) -> int:
        return sum(self._of(d, s) is None for s in self.seeds)

    def _safe(self) -> int | None:
        """The smallest d where the trainings so far say that the target will be met, while none is known that does."""
        target = self._log_error(self.target)
        found = {p.d for p in self.probes if p.d > self.failed and not p.warm and not self._complete(p.d)}
        found = {d for d in found if self._log_error(self._mean(d)) < target - 1.5 * self._noise()}
        return min(found, default=None) if not self.met else None

    def _crossing(self) -> tuple[float, float]:
        """The d at which the line meets the target, and the standard error of its logarithm, with that of the mean over
        the seeds. The line is log(error) = a + b log(d): least squares, the slope drawn towards the usual one."""
        x = np.log([p.d for p in self.probes])
        y = np.array([self._log_error(p.value) for p in self.probes])
        far = (y - self._log_error(self.target)) / 0.7  # near the target the power law holds best
        noise = (
            self._noise()
            * np.array([2.0 if p.stopped or p.warm else 1.0 for p in self.probes])
            * np.exp(0.25 * far**2).clip(1, 30)
        )
        centre = float(np.average(x, weights=1 / noise**2))
        A = np.stack([1 / noise, (x - centre) / noise], 1)
        A = np.concatenate([A, [[0.0, 1 / SLOPE_ERROR]]])
        rest = np.concatenate([y / noise, [SLOPE / SLOPE_ERROR]])
        (a, b), *_ = np.linalg.lstsq(A, rest, rcond=None)
        b = min(b, -0.15)
        at = (self._log_error(self.target) - a) / b
        covariance = np.linalg.inv(A.T @ A)
        row = np.array([1.0, at])
        error = math.sqrt(float(row @ covariance @ row) + self._noise() ** 2 / len(self.seeds)) / -b
        self.slope = float(b)
        return math.exp(min(max(at + centre, 0.0), math.log(self.D))), error

    def _log_error(self, value: float) -> float:
        """Of a metric that grows towards one: how far it is from there; of an error: itself; in logarithms."""
        if not math.isfinite(value):
            return 10.0
        if self.task.minimise:
            # An error that may be negative (a log likelihood) is taken as it is, in units of the first.
            values = [abs(p.value) for p in self.probes if p.value != 0] or [1.0]
            positive = value > 0 and self.target > 0
            return math.log(max(value, 1e-12)) if positive else value / values[0]
        if self.task.metric_name.endswith("accuracy") or (value <= 1 and self.target <= 1):
            return math.log(max(1 - value, 1e-6))
        return -value / max(abs(self.target), 1e-12)

    # --- the end ---

    def _result(self) -> tuple[Probe, dict[str, Any]]:
        name = self.task.metric_name
        if not self.met:
            looked = [p for p in self.probes if not p.warm]
            best = (min if self.task.minimise else max)(looked, key=lambda p: p.value)
            d, n = best.d, sum(p.d == best.d for p in looked)
            why = f"in {self._spent():.1f} trainings" if self.failed < self.D else "even in all of them"
            raise SubcompressError(
                f"the target is not reached: no d was found {why} at which the mean of {name} over {len(self.seeds)} "
                f"seeds "
                f"meets {self.target:.4g}; the best was {self._mean(d):.4f} at d = {d} ({n} seeds): lower the "
                f"target, or "
                "raise --max-fits, --epochs or --bits"
            )
        final = [p for s in self.seeds if (p := self._of(self.met, s)) is not None]
        chosen = (min if self.task.minimise else max)(final, key=lambda p: p.value)
        self._crossing()
        slope = self.slope
        own = [self.met * math.exp((self._log_error(self.target) - self._log_error(p.value)) / slope) for p in final]
        return chosen, {
            "target": self.target,
            "probes": tuple(self.probes),
            "d_spread": {"low": round(min(own), 1), "high": round(max(own), 1), "missed": float(self.failed)},
            "validation_spread": statistics.stdev(p.value for p in final) if len(final) > 1 else None,
            "baseline": self.baseline,
            "full_fits": round(self._spent(), 3),
        }
