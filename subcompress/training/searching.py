"""The smallest file that meets a target, in few trainings.

At a given precision the bytes of a file grow with d alone, so the smallest d is searched. `Curve` says where the line
through the trainings so far crosses the target. A d *meets* it when the mean over several seeds does, on the validation
split. Most of a search's cost is in those repeats, so the first trainings look from afar with one seed, and trainings
whose curve lies too low are stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.training.attempts import DiedTwiceError
from subcompress.training.baseline import given_baseline, trained_baseline
from subcompress.training.curve import Curve, frontier
from subcompress.training.fitter import Fitter
from subcompress.training.goal import SearchGoal
from subcompress.training.preflight import resolution_note
from subcompress.training.probe import Probe
from subcompress.training.spending import Spending

FAR = 0.3
"""Standard error of log(d) at the crossing above which a look from afar is enough: half of the epochs, warm."""

LOOKS = 3
"""Of those at the most."""

FARTHEST, JUMP = 4.0, 32.0
"""The factor in d that trainings may be asked to predict over, beyond the largest and the smallest d of them: while the
slope is only guessed, and once it was measured."""

CLOSE = 1.04
"""Neighbouring d's that are not told apart."""


def first_d(D: int) -> int:
    """Where a search looks first: near sqrt(D), of the order of what Li et al. 2018 found for small networks."""
    return min(D, max(8, round(math.sqrt(D))))


def search(fitter: Fitter, goal: SearchGoal) -> tuple[Probe, dict[str, Any]]:
    """The training to keep, and the fields of a Fit that tell of the search.

    Where the target is not reached, the best of those that made a file, and `failure` among the fields. Raises
    SubcompressError where no training did.
    """
    return _Search(fitter, goal).run()


class _Search:
    def __init__(self, fitter: Fitter, goal: SearchGoal) -> None:
        self.fitter, self.goal, self.task, self.D = fitter, goal, fitter.task, fitter.D
        self.spending = Spending(fitter, goal)
        self.seeds = self._seeds()
        self.baseline: float | None = None
        self.baseline_lr: float | None = None
        self.failed = 0
        """The largest d that was found not to meet the target."""
        self.met = 0
        """The smallest d that was found to meet it."""

    def run(self) -> tuple[Probe, dict[str, Any]]:
        d: int | None = first_d(self.D)
        self.fitter.say_cost(first_d(self.D), self.goal.max_fits, self.goal.max_minutes)
        target = self._target()
        self.curve = Curve(self.task, target, len(self.seeds), self.D, self.baseline)
        self.probes = self.curve.probes
        note = resolution_note(self.task, self.fitter.data, self.curve.target, self.goal.drop)
        if note is not None:
            self.fitter.listener.note(note)
        while d is not None:
            before = len(self.probes)
            self._look(d)
            self._take_seeds()
            d = self._next() if len(self.probes) > before else None
        return self._result()

    def _seeds(self) -> list[int]:
        return [(self.fitter.settings.seed + i) % (1 << 64) for i in range(self.spending.limits.seeds)]

    def _take_seeds(self) -> None:
        """Where a run goes on with another number of seeds, judge the trainings so far by these."""
        if (seeds := self._seeds()) == self.seeds:
            return
        self.seeds, self.curve.seeds, self.met, self.failed = seeds, len(seeds), 0, 0
        for d in {p.d for p in self.probes if not p.warm}:
            self._settle(d)

    def _target(self) -> float:
        given = self.goal.baseline
        if given is not None:
            self.baseline = given_baseline(self.fitter, given)
        elif self.goal.drop is not None:
            direct = trained_baseline(self.fitter, self.goal, self.spending)
            self.baseline, self.baseline_lr = direct.value, direct.lr
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
        far = bool(self.probes) and self.curve.crossing()[1] > FAR
        if new and few and far and (warm := self._warm(d)) is not None:
            self._probe(d, self.seeds[0], warm)
            return
        for n, seed in enumerate(self.seeds, 1):
            if self._of(d, seed) is None:
                safe = self._safe()
                kept = 0 if safe is None or safe == d else self._missing(safe)
                if self.spending.room() < 1 + kept:
                    return
                self._probe(d, seed)
            if n == len(self.seeds):
                break
            gap = self.curve.gap(self.curve.mean(d))
            if gap > self.curve.noise() * math.sqrt(1 / n + 1 / len(self.seeds)):
                break  # too poor
            # Far above it: one seed says enough, while there is room to look lower down.
            lower = self.spending.room() >= len(self.seeds) + 1
            if new and n == 1 and gap < -2 * self.curve.noise() and lower and not self.met:
                return
        self._settle(d)

    def _settle(self, d: int) -> None:
        """Note what the trainings at d say of the target."""
        ended = all((p := self._of(d, s)) is not None and not p.stopped for s in self.seeds)
        if not self.task.meets(self.curve.mean(d), self.curve.target):
            self.failed = max(d, self.failed)
        elif ended:
            self.met = min(d, self.met or d)

    def _warm(self, d: int) -> Probe | None:
        """The nearest training that one at d may begin with."""
        found = [p for p in self.probes if p.seed == self.seeds[0] and not p.stopped and not p.warm]
        found = [p for p in found if self.fitter.nests(p.d, d)]
        return min(found, key=lambda p: abs(math.log(p.d / d)), default=None)

    def _probe(self, d: int, seed: int, warm: Probe | None = None) -> None:
        hopeless = None if warm else self._hopeless()
        try:
            probe = self.fitter.probe(d, seed, warm=warm, hopeless=hopeless)
        except DiedTwiceError as e:
            worst = max if self.task.minimise else min
            values = [p.value for p in self.probes] or [0.0 if not self.task.minimise else math.inf]
            probe = Probe(d, seed, worst(values), (), e.epochs, e.seconds, True, "died twice")
        self.spending.pay(probe)
        self.probes.append(probe)
        self.fitter.listener.probes(tuple(self.probes))

    def _hopeless(self) -> Callable[[tuple[float, ...]], bool] | None:
        """Whether a curve lies so low that, gaining as much as the best of the ended ones did, it would stay below."""
        ended = [p.curve for p in self.probes if not p.stopped and len(p.curve) == self.fitter.settings.epochs]
        if not ended:
            return None

        def stop(curve: tuple[float, ...]) -> bool:
            n, epochs, log_error = len(curve), self.fitter.settings.epochs, self.curve.log_error
            if n < max(2, epochs // 2):
                return False
            gains = [log_error(c[-1]) - log_error(c[n - 1]) for c in ended]
            hoped = self.curve.gap(curve[-1]) + min(0.0, *gains) - 2 * self.curve.noise()
            return hoped > self.curve.noise()

        return stop

    def _of(self, d: int, seed: int) -> Probe | None:
        return next((p for p in self.probes if p.at(d) and p.seed == seed), None)

    # --- where next ---

    def _next(self) -> int | None:
        """The next d to train at, None where the search has ended."""
        seeds, room = len(self.seeds), self.spending.room()
        if self.failed >= self.D or room < 1:
            return None
        crossing, error = self.curve.crossing()
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
        reach = JUMP if self.curve.slope_is_measured() else FARTHEST
        near = min(max(near, known[0] / reach), known[-1] * reach, float(self.D))
        d = max(2, round(near))
        d = min(max(d, self.failed + 1), self.D) if not self.met else d
        for k in known:  # a d that has a training already saves one
            if d / CLOSE <= k <= d * CLOSE and k > self.failed and k != self.met and self._missing(k):
                return k
        return d if self._missing(d) else None

    def _missing(self, d: int) -> int:
        return sum(self._of(d, s) is None for s in self.seeds)

    def _safe(self) -> int | None:
        """The smallest d where the trainings so far say that the target will be met, while none is known that does."""
        if self.met:
            return None
        found = {p.d for p in self.probes if p.d > self.failed and not p.warm and self._missing(p.d)}
        sure = -1.5 * self.curve.noise()
        return min((d for d in found if self.curve.gap(self.curve.mean(d)) < sure), default=None)

    # --- the end ---

    def _result(self) -> tuple[Probe, dict[str, Any]]:
        best = min if self.task.minimise else max
        told = {
            "target": self.curve.target,
            "probes": tuple(self.probes),
            "frontier": frontier(self.probes, self.task.minimise),
            "baseline": self.baseline,
            "baseline_lr": self.baseline_lr,
            "full_fits": round(self.spending.spent_fits, 3),
        }
        if not self.met:
            why = self._not_reached()
            made = [p for p in self.probes if not p.warm and not p.stopped]
            if not made:
                raise SubcompressError(why)
            return best(made, key=lambda p: p.value), told | {"reached": False, "failure": why}
        final = [p for s in self.seeds if (p := self._of(self.met, s)) is not None]
        own = [self.met * math.exp(-self.curve.gap(p.value) / self.curve.slope) for p in final]
        return best(final, key=lambda p: p.value), told | {
            "d_spread": {"low": round(min(own), 1), "high": round(max(own), 1), "missed": float(self.failed)},
            "validation_spread": statistics.stdev(p.value for p in final) if len(final) > 1 else None,
        }

    def _not_reached(self) -> str:
        looked = [p for p in self.probes if not p.warm]
        if not looked:
            return (
                "the direct training that --max-drop counts from took all of --max-fits or --max-minutes: raise them, "
                "or give --baseline"
            )
        best = (min if self.task.minimise else max)(looked, key=lambda p: p.value)
        n, spent = sum(p.at(best.d) for p in looked), self.spending.spent_fits
        why = f"in {spent:.1f} trainings" if self.failed < self.D else "even in all of them"
        return (
            f"the target is not reached: no d was found {why} at which the mean of {self.task.metric_name} over "
            f"{len(self.seeds)} seeds meets {self.curve.target:.4g}; the best was {self.curve.mean(best.d):.4f} at d = "
            f"{best.d} ({n} seeds): lower the target, or raise --max-fits, --max-minutes, --epochs or --bits"
        )
