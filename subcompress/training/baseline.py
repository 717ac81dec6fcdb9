"""The network trained directly, in all of its weights: what --max-drop counts from."""

from __future__ import annotations

import math
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from subcompress.base.names import WRAPPERS
from subcompress.errors import SubcompressError
from subcompress.subspace.copying import copied
from subcompress.training.fitter import Fitter
from subcompress.training.goal import SearchGoal
from subcompress.training.probe import Probe
from subcompress.training.spending import Spending
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
            raise SubcompressError(f"--baseline is a finite number or a file of weights; given {given}")
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


def trained_baseline(fitter: Fitter, goal: SearchGoal, spending: Spending) -> Probe:
    """The best direct training, by validation, among a few of Adam's steps, or with the step that was given. So many
    are tried as leave the search its trainings, one at least.

    Raises SubcompressError where every one of them died.
    """
    rates = fitter.baseline_rates if goal.baseline_lr is None else (goal.baseline_lr,)
    found: list[Probe] = []
    for rate in rates:
        if found and spending.room() < goal.seeds + 2:
            break
        try:
            found.append(fitter.baseline(lr=rate))
        except SubcompressError as e:
            if rate == rates[-1] and not found:
                raise
            fitter.listener.note(f"trained directly with lr {rate:g}: {e}")
            continue
        spending.pay(found[-1])
    best = (min if fitter.task.minimise else max)(found, key=lambda p: p.value)
    told = ", ".join(f"{p.value:.4f} with lr {p.lr:g}" for p in found if p.lr is not None)
    more = "" if len(found) > 1 or goal.baseline_lr is not None else "; --max-fits leaves no room for other steps"
    fitter.listener.note(f"trained directly: {fitter.task.metric_name} {told}; taken: lr {best.lr:g}{more}")
    return best


__all__ = ["given_baseline", "trained_baseline"]
