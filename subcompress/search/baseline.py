"""The baseline of --max-drop: the network trained directly, that is, in all of its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from subcompress.base.names import WRAPPERS
from subcompress.errors import SubcompressError
from subcompress.search.goal import SearchGoal
from subcompress.search.prediction import short_ones_are_worth
from subcompress.search.spending import Spending
from subcompress.search.trials import Trial
from subcompress.subspace.copying import copied
from subcompress.training.fitter import Fitter
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import evaluate


def given_baseline(fitter: Fitter, given: float | str | Path) -> float:
    """Return a given baseline: a number, or the metric of a dense safetensors file on the validation split.

    Raises SubcompressError if it is neither a number nor such a file.
    """
    try:
        number = float(str(given))
    except ValueError:
        pass
    else:
        if not math.isfinite(number):
            raise SubcompressError(f"--baseline must be a finite number or a file of weights; got {given}")
        return number
    module = copied(fitter.model, "cpu")
    try:
        module.load_state_dict(_plain(safetensors.torch.load_file(str(given)), module))
    except (OSError, RuntimeError, safetensors.SafetensorError) as e:
        raise SubcompressError(
            f"--baseline must be a number or a safetensors file of the network's weights; got {given}: "
            f"{' '.join(str(e).split())[:200]}"
        ) from e
    return evaluate(module.to(fitter.settings.device), fitter.data.validation, fitter.task)


def _plain(given: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The weights by their names in the module, to which wrappers of torch may have added a prefix."""
    plain = {".".join(part for part in name.split(".") if part not in WRAPPERS): t for name, t in given.items()}
    return plain if plain.keys() == module.state_dict().keys() else given


class DirectTrainings:
    """The direct training that gives the baseline, with the given learning rate or the best of a few.

    If short trainings are worth their time, one with each learning rate is run, and the best one is trained in full. If
    they are not, or none of them has learned anything, full trainings decide: at least one, and only as many as leave
    the search its own trainings."""

    def __init__(self, fitter: Fitter, goal: SearchGoal, spending: Spending) -> None:
        self.fitter, self.goal, self.spending = fitter, goal, spending
        self.usual, *others = fitter.baseline_rates
        self.rates = (self.usual, *others) if goal.baseline_lr is None else (goal.baseline_lr,)
        self.chooses_by_short = goal.baseline_lr is None and short_ones_are_worth(fitter)
        self.ended: dict[Trial, Probe] = {}

    def _trial(self, rate: float, short: bool = False) -> Trial:
        return Trial(0, self.fitter.settings.seed, short, None if rate == self.usual else rate)

    def ask(self, running: Sequence[Trial]) -> Trial | None:
        """The next training to run beside those that are running, or None if enough were tried."""
        if self.chooses_by_short:
            waiting = [] if self.found() else self._waiting(running, short=True)
            if waiting or any(trial.short for trial in running):
                return waiting[0] if waiting else None
            if ranked := self._ranked():  # one whole training; another where it died
                left = [trial for trial in ranked if trial not in self.ended]
                return left[0] if left and not self.found() and not running else None
        waiting = self._waiting(running)
        enough = (self.found() or running) and self.spending.room(len(running)) < self.goal.seeds + 2
        return waiting[0] if waiting and not enough else None

    def _waiting(self, running: Sequence[Trial], short: bool = False) -> list[Trial]:
        """The trainings that have not begun."""
        trials = [self._trial(rate, short) for rate in self.rates]
        return [trial for trial in trials if trial not in self.ended and trial not in running]

    def _ranked(self) -> list[Trial]:
        """The full trainings, ordered by their short ones, best first. Empty if no short one has learned anything."""
        sign = 1 if self.fitter.task.minimise else -1
        short = sorted(self.found(short=True), key=lambda probe: sign * probe.value)
        if not short or self.fitter.nothing_learned(short[0].value) is not None:
            return []
        return [self._trial(probe.lr) for probe in short if probe.lr is not None]

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take the result of a training."""
        self.ended[trial] = probe
        if probe.note == DIED:
            self.fitter.listener.note(f"lr {trial.lr or self.usual:g}: {probe.warnings[0]}")

    def found(self, short: bool = False) -> list[Probe]:
        """The full or the short trainings that did not die, each with its learning rate."""
        pairs = [(self.ended.get(self._trial(rate, short)), rate) for rate in self.rates]
        return [replace(probe, lr=rate) for probe, rate in pairs if probe is not None and probe.note != DIED]

    def best(self) -> Probe:
        """The best full training. Raises SubcompressError if all died."""
        found = self.found()
        if not found:
            raise SubcompressError([*self.ended.values()][-1].warnings[0])
        best = (min if self.fitter.task.minimise else max)(found, key=lambda p: p.value)
        self.fitter.listener.note(self._words(found, best))
        return best

    def _words(self, found: Sequence[Probe], best: Probe) -> str:
        """A line about the learning rates that were tried and the one that was chosen."""
        name = self.fitter.task.metric_name
        short = self.found(short=True)
        after = f" (short trainings: {_listed(short)})" if short else ""
        only_one = len(found) == 1 and not short and self.goal.baseline_lr is None
        more = "; --max-fits leaves no room for other learning rates" if only_one else ""
        return f"trained directly: {name} {_listed(found)}{after}; taken: lr {best.lr:g}{more}"


def _listed(probes: Sequence[Probe]) -> str:
    return ", ".join(f"{p.value:.4f} with lr {p.lr:g}" for p in probes)


__all__ = ["DirectTrainings", "given_baseline"]
