"""fit: a network and its data to a run folder with seed and coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from subcompress.base import open_base, stand_on
from subcompress.data import Data
from subcompress.data.splits import size
from subcompress.errors import SubcompressError
from subcompress.subspace.copying import copied
from subcompress.subspace.observing import built
from subcompress.support.devices import AUTO as AUTO_DEVICE
from subcompress.support.devices import chosen
from subcompress.support.listening import Listener
from subcompress.support.names import AUTO
from subcompress.support.names import DEFAULT_ROLES as DEFAULT
from subcompress.training import run, schemas
from subcompress.training.baseline import given_baseline
from subcompress.training.budget import best_within, check_budget
from subcompress.training.curve import frontier
from subcompress.training.fitter import Fitter, Settings
from subcompress.training.goal import Goal
from subcompress.training.likeness import same_network
from subcompress.training.loop import epochs_of
from subcompress.training.machine import machine
from subcompress.training.preflight import naming_memory
from subcompress.training.probe import Fit, TargetMissedError
from subcompress.training.searching import first_d, search
from subcompress.training.tasks import Loss, Metric, Task


def fit(
    model: nn.Module | Callable[[], nn.Module],
    data: Data | Sequence[Dataset[Any]],
    run_folder: str | Path,
    *,
    d: int | None = None,
    min_accuracy: float | None = None,
    max_drop: float | None = None,
    target: float | None = None,
    within: int | None = None,
    baseline: float | str | Path | None = None,
    loss: str | Loss = "cross-entropy",
    metric: str | Metric | None = None,
    minimise: bool | None = None,
    operator: str = AUTO,
    structured: str = "random",
    drop: Sequence[str] = (),
    base: Any = None,
    base_name: str | None = None,
    act_on: str | None = None,
    new: Sequence[str] = (),
    bits: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    seeds: int = 3,
    max_fits: float | None = None,
    max_minutes: float | None = None,
    baseline_lr: float | None = None,
    lr: float | None = None,
    rate: float = 0.0,
    optimiser: str = "adam",
    batch_size: int = 128,
    precision: str = "fp32",
    threads: int | None = None,
    device: str = AUTO_DEVICE,
    workers: int | None = None,
    restart: bool = False,
    origin: dict[str, Any] | None = None,
    listener: Listener | None = None,
) -> Fit:
    """Train `model` in d coordinates of `bits` bits and write the run folder; `model` itself is left as it was.

    model: an `nn.Module`, or a factory of one without arguments: built several times, it tells chosen starts from
    random ones. data: a `Data`, or its three data sets or loaders, (train, validation, test).

    Give one of d; min_accuracy (absolute); max_drop (below the same network trained directly, on the spot or given as
    `baseline`, a number or a safetensors file of its weights); target (of any metric); within (bytes of the whole
    file). With a target, the smallest file is searched whose mean over `seeds` seeds meets it on the validation split;
    with `within`, the best one of at most so many bytes. Either in at most `max_fits` trainings (by default 8, and 2
    more where the step of a baseline is searched), none of which, from the second one on, begins where it would end
    after `max_minutes`. The baseline is the best, by validation, of direct trainings with a few of Adam's steps, or
    that with `baseline_lr`.

    base: the weights that training starts from, theta = base + scale * integer: a safetensors file, a torch state dict,
    a folder with either, `hub:ORG/NAME[@REV]`, a module or tensors by name. The file names it and does not hold it.
    base_name: the name that the file gives it, where others have it under another, `hub:ORG/NAME[@COMMIT]`. act_on: the
    tensors of the base that move, roles (all, norms, biases, heads, embeddings, matrices) or patterns of names, with
    commas between. new: patterns of tensors that start from the seed although they are not the network's last.

    epochs: passes over the training split, 10 by default; steps: so many steps of a batch each instead, the last pass
    cut short.
    bits: of a coordinate, 4 by default, and 8 where d is at most 64, which costs little. 3 to 6 are within each other's
    noise at equal bytes (benchmarks/levers.py), so that they are not searched.
    rate: what a bit of the coordinates costs once they are rounded, in units of the loss: more makes smaller files;
    what shortens a file with d = D, where every weight has a coordinate of its own.
    optimiser: `eigen` needs fewer coordinates where they are few (subcompress.training.optimizers).
    precision: bf16 trains with products in bfloat16, faster where the processor has them; weights stay exact.
    device: auto, cpu, cuda or cuda:N; auto is CUDA where a kernel runs on it, else the CPU, and a note says which.
    workers: processes that read examples ahead, where data sets are not in memory; the file does not depend on it.
    metric: a name, also of torchmetrics (`torchmetrics:AUROC,task=binary`), f(outputs, y) of a whole split, or an
    object with update(outputs, y), compute() and reset(). minimise: less is better; by default what the metric says of
    itself, as those of torchmetrics do.
    origin: what `report` shows of where the run came from, and `compare` takes names from.
    lr: Adam's largest step of a coordinate; by default 0.35 / (rms row length of P), which moves a weight by at most
    0.35 of its scale. structured: what becomes of orthogonal and sparse random starts: `random`, they start anew from
    the seed; `store`, their values are kept in the file; `guess`, every start is judged by its values alone. drop:
    patterns of buffers and frozen tensors that the file holds as zeros.

    Before the first training, how far each tensor moves is measured by at most about 100 steps of direct training
    (`subcompress.subspace.moves`). The same seed, data, options and machine give the same file (on a CPU; some of
    CUDA's sums have no fixed order), also where the run was interrupted and the same call went on. Raises
    SubcompressError for options that cannot be met, and a run that died, was tried again with a smaller step
    and died again. Raises TargetMissedError where the target is not reached: the run folder holds the best file all the
    same, and the error its Fit.
    """
    listener = listener or Listener()
    data = _brought(data, workers)
    model, build = built(model, seed)
    for line in data.notes:
        listener.note(line)
    task = Task.of(loss, metric, minimise)
    data = task.prepare_labels(data)
    goal = Goal.of(
        task,
        d=d,
        min_accuracy=min_accuracy,
        max_drop=max_drop,
        target=target,
        within=within,
        baseline=baseline,
        seeds=seeds,
        max_fits=max_fits,
        max_minutes=max_minutes,
        baseline_lr=baseline_lr,
    )
    if base is None and (act_on is not None or base_name is not None or new):
        raise SubcompressError("--act-on, --base-name and --new are of fits on a base: give --base, or leave them out")
    epochs = epochs_of(epochs, steps, size(data.train), batch_size)
    place = chosen(device)
    settings = Settings(
        bits_of(d) if bits is None else bits,
        epochs,
        seed,
        lr,
        batch_size,
        place.name,
        operator,
        structured,
        rate=rate,
        optimiser=optimiser,
        act_on=act_on or DEFAULT,
        precision=precision,
        drop=tuple(drop),
        steps=steps,
    )
    standing = None
    if base is not None:
        standing = stand_on(open_base(base, base_name), model, tuple(new))
        model = standing.loaded(copied(model, "cpu"))
    with machine(place.name, threads, seed), naming_memory(batch_size):
        fitter = Fitter(model, data, task, settings, listener, standing, build)
        fitter.check(first_d(fitter.D) if d is None else d)
        if within is not None and not fitter.exact:
            raise SubcompressError(f"--bytes is of a file, and {operator} is a reference that makes none: give --d")
        check_budget(fitter, goal)
        command = fitter.command() | goal.command()
        schemas.check_origin(origin or {})
        if goal.baseline is not None:
            goal = replace(goal, baseline=given_baseline(fitter, goal.baseline))
        with run.holding(run_folder, command) as folder:
            held = None if restart else folder.finished
            if held is not None and not same_network(folder.path, fitter.outputs):
                listener.note(f"{folder.path} holds a finished run of another network, whose code or data were others")
            elif held is not None:
                listener.note(f"{folder.path} holds this run already, finished; --restart trains it again")
                return _reached(Fit.from_json(held["fit"]))
            fitter.begin(folder, restart)
            listener.note(place.line)
            goal = goal.after(folder.earlier)
            fitter.measure()
            if d is not None and d > fitter.D:
                fitter.warn(f"--d {d} is more than the D = {fitter.D} weights that can be trained: it is lowered to D")
                d = fitter.D
            if d is not None:
                fitter.say_cost(d, 1)
                kept = fitter.probe(d, seed)
                found: dict[str, Any] = {"probes": (kept,), "frontier": frontier([kept], task.minimise)}
            elif within is not None:
                kept, found = best_within(fitter, goal)
            else:
                kept, found = search(fitter, goal)
                if not found.get("reached", True):
                    fitter.warn(found["failure"])
            return _reached(fitter.finish(kept, found, origin or {}))


__all__ = ["Fit", "fit"]


FEW = 64
"""Coordinates up to which more bits cost less than what coarse rounding loses."""


def bits_of(d: int | None) -> int:
    """Bits of a coordinate by default."""
    return 8 if d is not None and d <= FEW else 4


def _reached(found: Fit) -> Fit:
    """The fit. Raises TargetMissedError where its target is missed."""
    if not found.reached:
        raise TargetMissedError(found)
    return found


def _brought(data: Any, workers: int | None) -> Data:
    """The data, where they are what `fit` takes."""
    if isinstance(data, (tuple, list)) and len(data) == 3:
        data = Data(*data)
    if not isinstance(data, Data):
        raise SubcompressError(
            f"fit takes a Data or (train, validation, test); given {type(data).__name__}: call it, if it is a factory"
        )
    return data if workers is None else replace(data, workers=workers)
