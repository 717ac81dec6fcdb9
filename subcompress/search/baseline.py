"""The network trained directly, in all of its weights: what --max-drop counts from."""

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
from subcompress.search.spending import Spending
from subcompress.search.trials import Trial
from subcompress.subspace.copying import copied
from subcompress.training.fitter import Fitter
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import evaluate


def given_baseline(fitter: Fitter, given: float | str | Path) -> float:
    """A number, or a dense safetensors file of the network's weights, measured on the validation split.

    Raises SubcompressError for what is neither.
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
            f"--baseline is a number or a safetensors file of the network's weights; {given} is neither: "
            f"{' '.join(str(e).split())[:200]}"
        ) from e
    return evaluate(module.to(fitter.settings.device), fitter.data.validation, fitter.task)


def _plain(given: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The weights by the names that they have in the module, where wrappers of torch have added to them."""
    plain = {".".join(part for part in name.split(".") if part not in WRAPPERS): t for name, t in given.items()}
    return plain if plain.keys() == module.state_dict().keys() else given


class DirectTrainings:
    """The best direct training, by validation, among a few of Adam's steps, or with the step that was given. As many
    are tried as leave the search its trainings, one at least."""

    def __init__(self, fitter: Fitter, goal: SearchGoal, spending: Spending) -> None:
        self.fitter, self.goal, self.spending = fitter, goal, spending
        usual, *others = fitter.baseline_rates
        self.rates = (usual, *others) if goal.baseline_lr is None else (goal.baseline_lr,)
        self.trials = [self._trial(rate, usual) for rate in self.rates]
        self.ended: dict[Trial, Probe] = {}

    def _trial(self, rate: float, usual: float) -> Trial:
        return Trial(0, self.fitter.settings.seed, lr=None if rate == usual else rate)

    def ask(self, running: Sequence[Trial]) -> Trial | None:
        """The next one beside those that are running, None where enough were tried."""
        for trial in self.trials:
            if trial in self.ended or trial in running:
                continue
            others = self.found() or running
            if others and self.spending.room(len(running)) < self.goal.seeds + 2:
                return None
            return trial
        return None

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take the result of one of them."""
        self.ended[trial] = probe
        if probe.note == DIED:
            self.fitter.listener.note(f"lr {self.rates[self.trials.index(trial)]:g}: {probe.warnings[0]}")

    def found(self) -> list[Probe]:
        """Those that did not die, each with its step."""
        pairs = zip(self.trials, self.rates, strict=True)
        ended = [(self.ended[t], rate) for t, rate in pairs if t in self.ended]
        return [replace(probe, lr=rate) for probe, rate in ended if probe.note != DIED]

    def best(self) -> Probe:
        """The best of them. Raises SubcompressError where every one died."""
        found = self.found()
        if not found:
            raise SubcompressError([*self.ended.values()][-1].warnings[0])
        best = (min if self.fitter.task.minimise else max)(found, key=lambda p: p.value)
        told = ", ".join(f"{p.value:.4f} with lr {p.lr:g}" for p in found if p.lr is not None)
        more = (
            "" if len(found) > 1 or self.goal.baseline_lr is not None else "; --max-fits leaves no room for other steps"
        )
        self.fitter.listener.note(
            f"trained directly: {self.fitter.task.metric_name} {told}; taken: lr {best.lr:g}{more}"
        )
        return best


__all__ = ["DirectTrainings", "given_baseline"]
