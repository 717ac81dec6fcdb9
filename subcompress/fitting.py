"""fit: a network and its data to a run folder with seed and coordinates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn

from subcompress import run
from subcompress.data import Data
from subcompress.fitter import Fit, Fitter, Probe, Settings, machine
from subcompress.preflight import naming_memory
from subcompress.searching import Goal, search
from subcompress.tasks import Loss, Metric, Task
from subcompress.training import Listener


def fit(
    model: nn.Module,
    data: Data,
    run_folder: str | Path,
    *,
    d: int | None = None,
    min_accuracy: float | None = None,
    max_drop: float | None = None,
    target: float | None = None,
    baseline: float | str | Path | None = None,
    loss: str | Loss = "cross-entropy",
    metric: str | Metric | None = None,
    minimise: bool = False,
    operator: str = "hadamard",
    structured: str = "store",
    bits: int | None = None,
    epochs: int = 10,
    seed: int = 0,
    seeds: int = 3,
    max_fits: float = 8.0,
    lr: float | None = None,
    batch_size: int = 128,
    threads: int | None = None,
    device: str = "cpu",
    restart: bool = False,
    listener: Listener | None = None,
) -> Fit:
    """Train `model` in d coordinates of `bits` bits and write the run folder; `model` itself is left as it was.

    Give one of d; min_accuracy (absolute); max_drop (below the same network trained directly, on the spot or given as
    `baseline`, a number or a safetensors file of its weights); target (of any metric). Without d, the smallest d is
    searched whose mean over `seeds` seeds meets the target on the validation split, in at most `max_fits` trainings.

    bits: 4 where d is given; 5 in a search, which counts coordinates: coarser rounding asks for more of them.
    lr: Adam's largest step in units of the frozen constant; by default 0.35 / (rms row length of P), so that weights
    move alike for every d. The same seed, data, options and machine give the same file (on a CPU; some of CUDA's sums
    have no fixed order), also where the run was interrupted and the same call went on. Raises SubcompressError for
    options that cannot be met, a target that is not reached, and a run that died, was tried again with a smaller step
    and died again.
    """
    began, listener = time.perf_counter(), listener or Listener()
    task = Task.of(loss, metric, minimise)
    goal = Goal.of(task, d, min_accuracy, max_drop, target, baseline, seeds, max_fits)
    settings = Settings(
        bits if bits is not None else 4 if d is not None else 5,
        epochs,
        seed,
        lr,
        batch_size,
        device,
        operator,
        structured,
    )
    with machine(device, threads, seed), naming_memory(batch_size):
        fitter = Fitter(model, data, task, settings, listener)
        fitter.check(goal.first_d(fitter.D) if d is None else d)
        command = fitter.command() | goal.command()
        with run.holding(run_folder, command) as folder:
            if (held := folder.finished) is not None and not restart:
                listener.note(f"{folder.path} holds this run already, finished; --restart trains it again")
                return _finished(held["fit"])
            fitter.begin(folder, restart)
            if d is not None:
                fitter.say_cost(d, 1)
                chosen = fitter.probe(d, seed)
                found: dict[str, Any] = {}
            else:
                chosen, found = search(fitter, goal)
            return fitter.finish(chosen, time.perf_counter() - began, found)


def _finished(held: dict[str, Any]) -> Fit:
    fields = {k: v for k, v in held.items() if k in Fit.__dataclass_fields__}
    probes = tuple(Probe(**{**p, "curve": tuple(p["curve"])}) for p in held.get("trainings", ()))
    fields.pop("probes", None)
    return Fit(**{**fields, "run": Path(fields["run"]), "probes": probes})


__all__ = ["Fit", "fit"]
