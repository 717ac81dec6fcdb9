"""The smallest file that meets a target, in few trainings.

At a given precision the bytes of a file grow with d alone, so the search looks for the smallest d that meets the
target. `Curve` says where the line through the trainings so far crosses the target. A d *meets* it if the mean over
several seeds does, on the validation split. These repeats are most of the cost of a search. The first trainings
therefore use one seed and a tenth of the epochs, and trainings whose curve lies too low are stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.search.baseline import DirectTrainings, given_baseline
from subcompress.search.curve import Curve, expected_lag, frontier
from subcompress.search.goal import SearchGoal
from subcompress.search.prediction import first_d, next_short_trial, short_ones_are_worth
from subcompress.search.spending import Spending
from subcompress.search.trials import Hopeless, Trial
from subcompress.training.fitter import Fitter
from subcompress.training.preflight import resolution_note
from subcompress.training.probe import DIED, Probe

FARTHEST, JUMP = 4.0, 32.0
"""The search tries no d further than this factor beyond the largest and the smallest d so far: while the slope is only
guessed, and once it was measured."""

BLIND = 1.6
"""The factor in d between the first trials, where several workers begin at once."""

CLOSE = 1.04
"""The search does not distinguish two d that differ by less than this factor."""

WORTH = 1.1
"""The factor in d that more trainings must be expected to save, once a d is known to meet the target."""

DOUBTS = 0.7, 1.2, 2.0
"""How far above the predicted crossing a search trains, in standard errors of log(d): while two more d's can be tried,
while one more can, and at the end, where the target is to be met almost surely."""


class TargetSearch:
    """The smallest d whose mean over several seeds meets a target; see the module. An `Engine`."""

    def __init__(self, fitter: Fitter, goal: SearchGoal) -> None:
        self.fitter, self.goal, self.task, self.D = fitter, goal, fitter.task, fitter.D
        self.spending = Spending(fitter.settings.epochs, goal)
        self.seeds = [(fitter.settings.seed + i) % (1 << 64) for i in range(goal.seeds)]
        self.direct = DirectTrainings(fitter, goal, self.spending) if _needs_direct(goal) else None
        self.told: list[Probe] = []
        """The finished trainings in coordinates."""
        self.curve: Curve | None = None
        """The curve of the trainings; None until the target is known."""
        self.baseline: float | None = None
        self.baseline_lr: float | None = None
        self.running: list[Trial] = []
        self.said_short_ones_mislead = False
        fitter.say_cost(first_d(self.D), goal.max_fits, goal.max_minutes)

    # --- the engine ---

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take the result of a trial."""
        self.spending.pay(probe)
        if trial.d == 0:
            if self.direct is not None:
                self.direct.tell(trial, probe)
            return
        self.told.append(judged(probe, self.told, self.task.minimise))
        self.fitter.listener.probes(tuple(self.told))

    def ask(self, running: Sequence[Trial] = ()) -> Trial | None:
        """The next trial. A running trial counts as the value that the line through the others predicts for it."""
        if self.curve is None:
            direct = [trial for trial in running if trial.d == 0]
            if self.direct is not None and (trial := self.direct.ask(direct)) is not None:
                return trial
            if direct:
                return None
            self._begin()
        self.running = [trial for trial in running if trial.d]
        if not self.told:
            return self._blind()
        self._expect()
        if (short := self._short_trial()) is not None:
            return short
        if any(trial.short for trial in self.running):
            return None  # it ends soon, and says where a whole one is worth its time
        return self._more_at(self.probes[-1].d) or self._next()

    def hopeless(self, trial: Trial) -> Hopeless | None:
        """Whether a curve lies so low that, gaining as much as the best of the ended ones did, it would stay below."""
        ended = [
            p.curve for p in self.told if p.whole and not p.stopped and len(p.curve) == self.fitter.settings.epochs
        ]
        if not ended or trial.d == 0 or trial.short:
            return None
        curve = self._drawn(self.told)

        def stop(values: tuple[float, ...]) -> bool:
            n, epochs = len(values), self.fitter.settings.epochs
            if n < max(2, epochs // 2):
                return False
            gains = [curve.log_error(c[-1]) - curve.log_error(c[n - 1]) for c in ended]
            hoped = curve.gap(values[-1]) + min(0.0, *gains) - 2 * curve.noise()
            return hoped > curve.noise()

        return stop

    # --- the target ---

    def _begin(self) -> None:
        """Settle the target, once the baseline is known."""
        target = self._target()
        self.curve = Curve(
            self.task, target, len(self.seeds), self.D, self.baseline, expected_lag(*self.fitter.short_steps)
        )
        note = resolution_note(self.task, self.fitter.data, target, self.goal.drop)
        if note is not None:
            self.fitter.listener.note(note)

    def _target(self) -> float:
        given = self.goal.baseline
        if given is not None:
            self.baseline = given_baseline(self.fitter, given)
        elif self.direct is not None:
            best = self.direct.best()
            self.baseline, self.baseline_lr = best.value, best.lr
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
                f"a target must be at most what the network reaches when all of its weights are trained; got "
                f"{target:g}, that reaches {self.baseline:.4f} on the validation split: lower the target, or train "
                "with more --epochs"
            )

    # --- what the trainings say so far ---

    def _drawn(self, probes: Sequence[Probe]) -> Curve:
        """A curve of its own through these trainings."""
        assert self.curve is not None
        found = Curve(self.task, self.curve.target, len(self.seeds), self.D, self.baseline, self.curve.lag)
        found.probes = list(probes)
        return found

    def _expect(self) -> None:
        """Draw the line, with trials that are running at what it expects of them."""
        self.curve = self._drawn(self.told)
        expected = [
            Probe(trial.d, trial.seed, self.curve.expected(trial.d, trial.short), (), 0, 0.0, short=trial.short)
            for trial in self.running
        ]
        self.probes = [*self.told, *expected]
        self.curve = self._drawn(self.probes)
        self.failed, self.met = self._judge()
        if not self.said_short_ones_mislead and self.curve.short_ones_mislead():
            self.said_short_ones_mislead = True
            self.fitter.listener.note("short trainings say little of this network: from here on, only whole ones count")

    def _judge(self) -> tuple[int, int]:
        """The largest d that does not meet the target so far, and the smallest that does; 0 if there is none."""
        assert self.curve is not None
        failed = met = 0
        for d in {p.d for p in self.probes if p.whole}:
            if self.task.meets(self.curve.mean(d), self.curve.target):
                ended = all((p := self._of(d, s)) is not None and not p.stopped for s in self.seeds)
                met = min(d, met or d) if ended else met
            elif not self._missing(d) or self._too_poor(d):
                failed = max(d, failed)
        return failed, met

    def _too_poor(self, d: int) -> bool:
        """Whether the mean over all seeds will hardly meet the target."""
        assert self.curve is not None
        n = len(self.seeds) - self._missing(d)
        return self.curve.gap(self.curve.mean(d)) > self.curve.noise() * math.sqrt(1 / n + 1 / len(self.seeds))

    def _of(self, d: int, seed: int) -> Probe | None:
        return next((p for p in self.probes if p.at(d) and p.seed == seed), None)

    def _missing(self, d: int) -> int:
        return sum(self._of(d, s) is None for s in self.seeds)

    def _room(self) -> float:
        return self.spending.room(len(self.running))

    # --- one d ---

    def _blind(self) -> Trial | None:
        """The first trials, before any result. Those beside the first are at a clearly smaller or larger d."""
        first, n = first_d(self.D), len(self.running)
        if self._room() < 1:
            return None
        factor = BLIND ** ((n + 1) // 2 * (1 if n % 2 else -1))
        d = min(self.D, max(2, round(first * factor)))
        trial = Trial(d, self.seeds[0], self._may_train_short())
        return None if trial in self.running else trial

    def _may_train_short(self) -> bool:
        """Whether short trainings are worth their time."""
        return short_ones_are_worth(self.fitter) and self._room() >= len(self.seeds) + 1

    def _short_trial(self) -> Trial | None:
        """A short training near the crossing, until some lie around it; None once whole ones have begun."""
        assert self.curve is not None
        if not self._may_train_short() or any(p.whole for p in self.probes):
            return None
        return next_short_trial(self.curve, self.seeds)

    def _more_at(self, d: int) -> Trial | None:
        """A trial with another seed where training has just begun at d and may meet the target."""
        assert self.curve is not None
        n = sum(self._of(d, s) is not None for s in self.seeds)
        if not self.probes[-1].whole or not 0 < n < len(self.seeds) or self._too_poor(d):
            return None
        # Far above it, one seed is enough, as long as the search can still try a smaller d.
        lower = self._room() >= len(self.seeds) + 1
        gap = self.curve.gap(self.curve.mean(d))
        if n == 1 and gap < -2 * self.curve.noise() and lower and not self.met:
            return None
        # Below it, and only enough trainings are left for one d: a larger d is more likely to meet the target.
        if gap > 0 and not self.met and self._room() - self._missing(d) < len(self.seeds) <= self._room():
            return None
        return self._seed_at(d)

    def _seed_at(self, d: int) -> Trial | None:
        """A trial at d with the next seed, None where trainings must be kept for a d that is surer."""
        safe = self._safe()
        reserved = 0 if safe is None or safe == d else self._missing(safe)
        if self._room() < 1 + reserved:
            return None
        return next((Trial(d, seed) for seed in self.seeds if self._of(d, seed) is None), None)

    # --- where next ---

    def _next(self) -> Trial | None:
        """A trial at the next d, None where the search has ended."""
        assert self.curve is not None
        seeds, room = len(self.seeds), self._room()
        if self.failed >= self.D or room < 1:
            return None
        crossing, error = self.curve.crossing()
        if self.met:
            # Lower down, where it is as likely as not that the target is met; not for a step that noise hides.
            near = min(crossing, self.met / CLOSE**2)
            near = max(near, self.failed * CLOSE) if self.failed else near
            if room < seeds or near > self.met / WORTH:
                return None
        elif (safe := self._safe()) is not None and room < self._missing(safe) + 2:
            return self._seed_at(safe)
        else:
            # The last trainings that are left go where the target is met almost surely.
            doubt = DOUBTS[0 if room >= 2 * seeds else 1 if room >= seeds + 1 else 2]
            near = crossing * math.exp(doubt * error)
            near = max(near, self.failed * CLOSE) if self.failed else near
        return self._seed_at(d) if (d := self._near(near)) else None

    def _near(self, wanted: float) -> int:
        """The d to train at for one that is wanted, 0 for none: one that has a training already saves one."""
        assert self.curve is not None
        known = sorted({p.d for p in self.probes})
        reach = JUMP if self.curve.slope_is_measured() else FARTHEST
        wanted = min(max(wanted, known[0] / reach), known[-1] * reach, float(self.D))
        d = max(2, round(wanted))
        d = min(max(d, self.failed + 1), self.D) if not self.met else d
        for k in known:
            if d / CLOSE <= k <= d * CLOSE and k > self.failed and k != self.met and self._missing(k):
                return k
        return d if self._missing(d) else 0

    def _safe(self) -> int | None:
        """The smallest d where the trainings so far say that the target will be met, while none is known that does."""
        assert self.curve is not None
        if self.met:
            return None
        found = {p.d for p in self.probes if p.d > self.failed and p.whole and self._missing(p.d)}
        sure = -1.5 * self.curve.noise()
        return min((d for d in found if self.curve.gap(self.curve.mean(d)) < sure), default=None)

    # --- the end ---

    def result(self) -> tuple[Probe, dict[str, Any]]:
        """The training to keep, and the fields of a Fit that tell of the search. Where the target is not reached, the
        best of those that made a file, and `failure` among the fields. Raises SubcompressError where none did."""
        if self.curve is None:
            self._begin()
        self.running = []
        if not self.told:
            raise SubcompressError(
                "the direct training that --max-drop counts from took all of --max-fits or --max-minutes: raise them, "
                "or give --baseline"
            )
        self._expect()
        assert self.curve is not None
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
            made = [p for p in self.probes if p.whole and not p.stopped]
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
        assert self.curve is not None
        looked = [p for p in self.probes if p.whole]
        best = (min if self.task.minimise else max)(looked, key=lambda p: p.value)
        n, spent = sum(p.at(best.d) for p in looked), self.spending.spent_fits
        why = f"in {spent:.1f} trainings" if self.failed < self.D else "even in all of them"
        return (
            f"the target is not reached: no d was found {why} at which the mean of {self.task.metric_name} over "
            f"{len(self.seeds)} seeds meets {self.curve.target:.4g}; the best was {self.curve.mean(best.d):.4f} at d = "
            f"{best.d} ({n} seeds): lower the target, or raise --max-fits, --max-minutes, --epochs or --bits"
        )


def _needs_direct(goal: SearchGoal) -> bool:
    return goal.drop is not None and goal.baseline is None


def judged(probe: Probe, others: Sequence[Probe], minimise: bool) -> Probe:
    """The probe, with the worst metric of the others if it died: it has none."""
    if probe.note != DIED:
        return probe
    values = [p.value for p in others]
    worst = max(values, default=math.inf) if minimise else min(values, default=0.0)
    return replace(probe, value=worst)


__all__ = ["TargetSearch", "judged"]
