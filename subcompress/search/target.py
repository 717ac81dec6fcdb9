"""The smallest file that meets a target, in few trainings.

At a given precision the bytes of a file grow with how far its knob is turned (with d, say; see `Knob`), so the smallest
turn is searched. `Curve` says where the line through the trainings so far crosses the target. The first trainings are
short: one seed and a tenth of the epochs. Whole ones follow where the line crosses, one at a time, each with the
next seed: neighbors count together, carried to one another along the line, so that no training is spent on repeating
what another one nearly told. A turn *meets* the target when at least as many neighbors as seeds have ended, their mean
on the validation split does, and a training of that turn itself does. Trainings whose curve lies too low are stopped;
they count in the mean with the metric that they would have ended with.
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
from subcompress.search.engine import Search, seeds_from
from subcompress.search.goal import SearchGoal
from subcompress.search.knobs import Coordinates, Knob, Made
from subcompress.search.noise import NEARBY, USUAL, Belief
from subcompress.search.prediction import next_short_trial, short_ones_are_worth
from subcompress.search.spending import Spending
from subcompress.search.trials import Hopeless, Trial
from subcompress.training.fitter import Fitter
from subcompress.training.preflight import resolution_note
from subcompress.training.probe import DIED, Probe

FARTHEST, JUMP = 4.0, 32.0
"""The factor in the turn that trainings may be asked to predict over, beyond the farthest and the nearest of them:
while the slope is only guessed, and once it was measured."""

BLIND = 1.6
"""The factor in the turn between the first trials, where several workers begin at once."""

CLOSE = 1.04
"""Neighboring turns that are not told apart."""

WORTH = 1.15
"""The factor in the turn that a training must be expected to save, once a turn is known to meet the target."""

DOUBTS, LAST = (0.0, 0.0, 0.3, 0.7), (3.0, 1.3)
"""How far above the predicted crossing each whole training is turned, in standard errors of the logarithm. The first
ones show where the crossing is, the next ones are to meet the target. While none does, the last one that there is room
for is turned by LAST[0], to meet it almost surely, and the one before by at least LAST[1]."""

FAR = 3.0
"""The factor in the turn within which trainings count together once too few are left to have enough nearer ones. The
line carries them farther then, with a larger error, but a search on a flat curve ends with a file."""

SPARE = 1
"""How many trainings beyond those that a mean needs several workers may begin before the others have ended."""

FEWER = 2.0
"""How many times further than an ended training another may be turned to be compared with it: in far fewer coordinates,
a network stops learning sooner."""

STRAY = 0.15
"""How far log(error) half-way strays between trainings, beyond the noise at their ends: rounding begins there."""


class TargetSearch(Search):
    """Finds the smallest file whose mean over several seeds meets a target; see the module. An `Engine`."""

    def __init__(self, fitter: Fitter, goal: SearchGoal, knob: Knob | None = None, belief: Belief = USUAL) -> None:
        knob = knob or Coordinates(fitter.D)
        seeds = seeds_from(fitter.settings.seed, goal.seeds)
        super().__init__(fitter.task, fitter.listener, knob, Spending(fitter.settings.epochs, goal), seeds)
        self.fitter, self.goal, self.belief = fitter, goal, belief
        self.direct = DirectTrainings(fitter, goal, self.spending) if _needs_direct(goal) else None
        self.curve: Curve | None = None
        """The curve of the trainings; None until the target is known."""
        self.baseline: float | None = None
        self.baseline_lr: float | None = None
        self.said_short_ones_mislead = False
        self.reach = NEARBY
        """The factor in the turn within which trainings count together."""
        fitter.say_cost(knob.trial(knob.first, self.seeds[0]).d, goal.max_fits, goal.max_minutes)

    # --- the engine ---

    def tell_direct(self, trial: Trial, probe: Probe) -> None:
        if self.direct is not None:
            self.direct.tell(trial, probe)

    def next(self) -> Trial | None:
        """The next trial. Those that are running count as what the line through the others expects of them."""
        if self.curve is None:
            direct = [trial for trial in self.running if trial.d == 0]
            if self.direct is not None and (trial := self.direct.ask(direct)) is not None:
                return trial
            if direct:
                return None
            self._begin()
        self.running = [trial for trial in self.running if trial.d]
        if not self.told:
            return self._blind()
        self._expect()
        if (short := self._short_trial()) is not None:
            return short
        if any(trial.short for trial in self.running):
            return None  # it ends soon, and says where a whole one is worth its time
        if self.running and self._may_be_enough():
            return None
        return self._next()

    def hopeless(self, trial: Trial) -> Hopeless | None:
        """Whether a curve lies so low that, gaining as much as the best comparable one did, it would stay below."""
        if trial.d == 0 or trial.short or not (others := self._comparable(trial)):
            return None
        curve = self._drawn(self.told)
        sure = 2 * math.hypot(curve.noise(), STRAY) + curve.noise()

        def stop(values: tuple[float, ...]) -> bool:
            n, epochs = len(values), self.fitter.settings.epochs
            if n < max(2, epochs // 2):
                return False
            return curve.gap(values[-1]) + min(0.0, *_gains(curve, others, n)) > sure

        return stop

    def _comparable(self, made: Made) -> list[tuple[float, ...]]:
        """The curves of ended trainings that tell how much another still gains: those that are turned far enough."""
        epochs, least = self.fitter.settings.epochs, self.knob.turn(made) / FEWER
        ended = [p for p in self.told if p.whole and not p.stopped and len(p.curve) == epochs]
        return [p.curve for p in ended if self.knob.turn(p) >= least]

    # --- the target ---

    def _begin(self) -> None:
        """Settle the target, once the baseline is known."""
        target = self._target()
        lag = expected_lag(*self.fitter.short_steps)
        self.curve = Curve(
            self.task,
            target,
            len(self.seeds),
            self.fitter.D,
            self.baseline,
            lag,
            knob=self.knob,
            belief=self.belief,
        )
        note = resolution_note(self.task, self.fitter.data, target, self.goal.drop)
        if note is not None:
            self.listener.note(note)

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
        self.listener.note(
            f"trained directly: {self.task.metric_name} {self.baseline:.4f}; the target is "
            f"{self.baseline - self.goal.drop:.4f}"
        )
        return self.baseline - self.goal.drop

    def _refuse_above_baseline(self, target: float) -> None:
        if self.baseline is not None and self.task.better(target, self.baseline):
            raise SubcompressError(
                f"the target {target:g} is better than the {self.baseline:.4f} that direct training of all "
                "weights reaches on the validation split: lower the target, or train with more --epochs"
            )

    # --- what the trainings say so far ---

    def _drawn(self, probes: Sequence[Probe]) -> Curve:
        """A curve of its own through these trainings."""
        assert self.curve is not None
        return self.curve.through(probes)

    def _expect(self) -> None:
        """Draw the line, with trials that are running at what it expects of them."""
        self.ends = self._carried_to_their_ends()
        self.curve = self._drawn(self.ends)
        expected = [
            replace(
                Probe(trial.d, trial.seed, 0.0, (), 0, 0.0, short=trial.short, rate=trial.rate),
                value=self.curve.expected(self.knob.turn(trial), trial.short),
            )
            for trial in self.running
        ]
        self.probes = [*self.ends, *expected]
        self.curve = self._drawn(self.probes)
        self.failed, self.met = self._judge()
        if not self.said_short_ones_mislead and self.curve.short_ones_mislead():
            self.said_short_ones_mislead = True
            self.listener.note("short trainings say little about this network: from here on, only whole ones are used")

    def _carried_to_their_ends(self) -> list[Probe]:
        """The trainings that have ended; one that was stopped with the metric that it would have had, gaining as much
        from there on as comparable ones did."""
        if not any(p.stopped and p.curve for p in self.told):
            return self.told
        curve = self._drawn(self.told)
        found: list[Probe] = []
        for p in self.told:
            if p.stopped and p.curve and (others := self._comparable(p)):
                gained = min(0.0, statistics.fmean(_gains(curve, others, len(p.curve))))
                p = replace(p, value=curve.metric(curve.log_error(p.value) + gained))
            found.append(p)
        return found

    def _judge(self) -> tuple[float, float]:
        """The largest turn that is found not to meet the target, and the smallest that meets it; 0 for none.

        Trainings farther off count only if no turn meets it by those near it.
        """
        self.reach = NEARBY
        failed, met = self._judge_within_reach()
        if not met:
            self.reach = FAR
            failed, met = self._judge_within_reach()
        return failed, met

    def _judge_within_reach(self) -> tuple[float, float]:
        assert self.curve is not None
        failed = met = 0.0
        noise, seeds = self.curve.noise(), len(self.seeds)
        for turn in {self.knob.turn(p) for p in self.ends if p.whole and p.note != DIED}:
            values = self._carried(turn)
            mean = statistics.fmean(values.values())
            enough = sum(not p.stopped for p in values) >= seeds
            if enough and self.task.meets(mean, self.curve.target):
                met = min(turn, met or turn) if self._of_its_own(turn) else met
            elif enough or self.curve.gap(mean) > noise * math.sqrt(1 / len(values) + 1 / seeds):
                failed = max(turn, failed)
        return failed, met

    def _carried(self, turn: float) -> dict[Probe, float]:
        """The whole trainings near a turn that did not die, each with its metric carried to the turn along the line."""
        whole = [p for p in self.ends if p.whole and p.note != DIED]
        whole.sort(key=lambda p: (abs(math.log(self.knob.turn(p) / turn)), p.seed))
        near = [p for p in whole if turn / NEARBY <= self.knob.turn(p) <= turn * NEARBY]
        missing = len(self.seeds) - len(near)
        if missing > self.room():  # no more trainings can be made near it
            reach = self.reach
            near += [p for p in whole if turn / reach <= self.knob.turn(p) <= turn * reach and p not in near][:missing]
        return {p: self._value(p, turn) for p in sorted(near, key=lambda p: (self.knob.turn(p), p.seed))}

    def _value(self, probe: Probe, turn: float) -> float:
        """The metric that a training would have at another turn."""
        assert self.curve is not None
        curve, at = self.curve, self.knob.turn(probe)
        if at == turn:
            return probe.value
        return curve.metric(curve.log_error(probe.value) + curve.slope * math.log(turn / at))

    def _of_its_own(self, turn: float) -> list[Probe]:
        """Trainings of that turn that meet the target themselves."""
        assert self.curve is not None
        target = self.curve.target
        ended = [p for p in self.told if p.whole and not p.stopped and self.knob.turn(p) == turn]
        return [p for p in ended if self.task.meets(p.value, target)]

    def _seeds_at(self, turn: float) -> list[int]:
        """The seeds that have no training of that turn, the next in the round first."""
        assert self.curve is not None
        n = sum(p.whole for p in self.probes)
        used = {p.seed for p in self.curve.at(turn)}
        order = [self.seeds[(n + i) % len(self.seeds)] for i in range(len(self.seeds))]
        return [seed for seed in order if seed not in used]

    # --- where next ---

    def _blind(self) -> Trial | None:
        """The first trials, of which nothing is known yet: those beside the first look a good deal lower or higher."""
        n = len(self.running)
        if self.room() < 1:
            return None
        turn = self.knob.first * BLIND ** ((n + 1) // 2 * (1 if n % 2 else -1))
        trial = self.knob.trial(self.knob.nearest(turn), self.seeds[0], short=self._may_train_short())
        return None if trial in self.running else trial

    def _may_train_short(self) -> bool:
        """Whether short trainings are worth their time."""
        return short_ones_are_worth(self.fitter) and self.room() >= len(self.seeds) + 1

    def _short_trial(self) -> Trial | None:
        """A short training near the crossing, until some lie around it; None once whole ones have begun."""
        assert self.curve is not None
        if not self._may_train_short() or any(p.whole for p in self.probes):
            return None
        return next_short_trial(self.curve, self.seeds)

    def _may_be_enough(self) -> bool:
        """Whether the trainings that are running may be the last ones."""
        assert self.curve is not None
        if self.met:
            return True
        crossing, _ = self.curve.crossing()
        near = [p for p in self.probes if p.whole and crossing / NEARBY <= self.knob.turn(p) <= crossing * NEARBY]
        return len(near) >= len(self.seeds) + SPARE

    def _next(self) -> Trial | None:
        """A whole trial at the next turn, None if the search has ended."""
        assert self.curve is not None
        room = self.room()
        if self.failed >= self.knob.range[1] or room < 1:
            return None
        crossing, error = self.curve.crossing()
        if self.met:
            # Lower down, where it is as likely as not that the target is met; not for a step that noise hides.
            wanted = max(min(crossing, self.met / CLOSE), self.failed * CLOSE)
            if wanted > self.met / WORTH:
                return None
        else:
            wanted = max(crossing * math.exp(self._doubt() * error), self.failed * CLOSE)
            wanted = self._beside_others(wanted)
        turn = self._near(wanted)
        seeds = self._seeds_at(turn)
        return self.knob.trial(turn, seeds[0]) if seeds else None

    def _doubt(self) -> float:
        """How far above the crossing to train next, in standard errors."""
        left = int(self.room())
        if left < 2:
            return LAST[0]
        most = len(DOUBTS) - 1
        usual = DOUBTS[min(max(most - len(self.seeds) + sum(p.whole for p in self.probes), 0), most)]
        return max(usual, LAST[1]) if left < 3 else usual

    def _beside_others(self, wanted: float) -> float:
        """The turn that is wanted, or a smaller one where so few trainings are left that a mean needs those before."""
        needed = len(self.seeds) - int(self.room())
        turns = sorted((self.knob.turn(p) for p in self.probes if p.whole and not p.stopped), reverse=True)
        return min(wanted, turns[needed - 1] * FAR / CLOSE) if 0 < needed <= len(turns) else wanted

    def _near(self, wanted: float) -> float:
        """The turn to train at for one that is wanted: that of a training which is close and may still do, if any."""
        assert self.curve is not None
        known = sorted({self.knob.turn(p) for p in self.probes})
        reach = JUMP if self.curve.slope_is_measured() else FARTHEST
        wanted = min(max(wanted, known[0] / reach), known[-1] * reach)
        for k in known:
            close = wanted / CLOSE <= k <= wanted * CLOSE
            if close and k > self.failed and k != self.met and self._seeds_at(k):
                return k
        turn = self.knob.nearest(max(wanted, self.knob.range[0]))
        while turn < self.knob.range[1] and (turn == self.failed or not self._seeds_at(turn)):
            turn = self.knob.nearest(max(turn * CLOSE, turn + 1))
        return turn

    # --- the end ---

    def result(self) -> tuple[Probe, dict[str, Any]]:
        """The training to keep, and the fields of a Fit that tell of the search. Where the target is not reached, the
        best of those that made a file, and `failure` among the fields. Raises SubcompressError if none did."""
        if self.curve is None:
            self._begin()
        self.running = []
        if not self.told:
            raise SubcompressError(
                "the direct training for --max-drop used up all of --max-fits or --max-minutes: raise them, or "
                "give --baseline"
            )
        self._expect()
        assert self.curve is not None
        told = {
            "target": self.curve.target,
            "probes": tuple(self.told),
            "frontier": frontier(self.told, self.task.minimise),
            "baseline": self.baseline,
            "baseline_lr": self.baseline_lr,
            "full_fits": round(self.spending.spent_fits, 3),
        }
        if not self.met:
            why = self._not_reached()
            made = [p for p in self.told if p.whole and not p.stopped]
            if not made:
                raise SubcompressError(why)
            return self._best(made), told | {"reached": False, "failure": why}
        return self._best(self._of_its_own(self.met)), told | self._spreads()

    def _spreads(self) -> dict[str, Any]:
        """The mean that decided, and how much the trainings in it differ, each carried to the turn that was found."""
        assert self.curve is not None
        curve, near = self.curve, self._carried(self.met)
        values, turns = [*near.values()], [self.knob.turn(p) for p in near]
        if not self.met / NEARBY <= min(turns) <= max(turns) <= self.met * NEARBY:
            first, *_, last = near
            self.listener.note(
                f"the mean counts trainings from {self.knob.words(first)} to {self.knob.words(last)}, since none were "
                "left for nearer ones: raise --max-fits or --max-minutes"
            )
        told: dict[str, Any] = {
            "validation_mean": statistics.fmean(values),
            "validation_spread": statistics.stdev(values) if len(values) > 1 else None,
            "validation_trainings": len(values),
        }
        if self.knob.spread is not None:
            own = [self.knob.turn(p) * math.exp(-curve.gap(p.value) / curve.slope) for p in near]
            told[self.knob.spread] = {"low": round(min(own), 1), "high": round(max(own), 1), "missed": self.failed}
        return told

    def _not_reached(self) -> str:
        """Why there is no file that meets the target, and what to change."""
        assert self.curve is not None
        looked = [p for p in self.told if p.note != DIED]
        if not looked:
            return f"the target is not reached: every training failed; the last one: {self.told[-1].warnings[0]}"
        best, target = self._best([p for p in looked if p.whole] or looked), f"{self.curve.target:.4g}"
        advice = "lower the target, or raise --max-fits, --max-minutes, --epochs or --bits"
        if self.task.meets(best.value, self.curve.target):
            why = (
                f"but there is no {self.knob.name} at or near which the mean of {len(self.seeds)} trainings meets "
                f"{target}"
            )
            advice = "raise --max-fits or --max-minutes"
        elif self.failed >= self.knob.range[1]:
            most = self.knob.words(self.knob.trial(self.knob.range[1], self.seeds[0]))
            why, advice = (
                f"and even the largest value, {most}, misses it",
                "lower the target, or raise --epochs or --bits",
            )
        else:
            why = f"after {self.spending.spent_fits:.1f} trainings"
        return (
            f"the target is not reached: {self.task.metric_name} {target} was asked for, and the best training had "
            f"{best.value:.4f} with {self.knob.words(best)}, {why}: {advice}"
        )

    def _best(self, probes: Sequence[Probe]) -> Probe:
        return (min if self.task.minimise else max)(probes, key=lambda p: p.value)


def _gains(curve: Curve, ended: Sequence[tuple[float, ...]], n: int) -> list[float]:
    """What log(error) of these trainings changed by after n epochs: negative where they got better."""
    return [curve.log_error(values[-1]) - curve.log_error(values[n - 1]) for values in ended]


def _needs_direct(goal: SearchGoal) -> bool:
    return goal.drop is not None and goal.baseline is None


__all__ = ["TargetSearch"]
