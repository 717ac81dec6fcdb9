"""fit: a network and its data to a run folder with seed and coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from subcompress.base import attach_base, open_base
from subcompress.data import Data
from subcompress.data.splits import size
from subcompress.errors import SubcompressError
from subcompress.subspace.copying import copied
from subcompress.subspace.observing import built
from subcompress.support.devices import AUTO as AUTO_DEVICE
from subcompress.support.devices import choose_device
from subcompress.support.listener import Listener
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
    """Train a network in d coordinates and write a run folder.

    Give one goal: `d`, or a target (`min_accuracy`, `max_drop` or `target`), for which the smallest file is searched,
    or `within`, for which the best file of at most so many bytes is searched. The network that is given stays as it
    was. Before the first training, at most about 100 steps of direct training measure how far each tensor moves. The
    same seed, data, options and machine give the same file on a CPU, also if the call was interrupted and made again.
    On CUDA, some sums have no fixed order.

    Args:
        model: The network, or a function without arguments that builds it. A function is better: it is called under
            several seeds, which tells values that were chosen from values that were drawn.
        data: A `Data`, or its three data sets or loaders (train, validation, test).
        run_folder: Where to write the run. If it holds an interrupted run of the same call, that run continues.
        d: Number of coordinates.
        min_accuracy: Find the smallest file with at least this validation accuracy, between 0 and 1.
        max_drop: Find the smallest file with an accuracy at most this far below that of direct training.
        target: Find the smallest file whose metric is at least this value (at most, if smaller is better).
        within: Find the best file of at most so many bytes, the whole file counted.
        baseline: The result of direct training, for `max_drop`: a number, or a safetensors file of its weights. By
            default the network is trained directly.
        baseline_lr: The step of that direct training. By default the best of a few on the validation split.
        loss: A name (cross-entropy, mse, l1, bce) or f(module, batch) -> scalar tensor.
        metric: A name, `torchmetrics:NAME,option=value`, f(outputs, y) -> float over a whole split, or an object with
            `update(outputs, y)`, `compute()` and `reset()`. By default the one that belongs to the loss.
        minimise: Whether a smaller metric is better. By default what the metric says of itself, else larger is better.
        operator: The projection from coordinates to weights. `auto` takes hadamard for images and scattered for others.
        structured: What becomes of orthogonal and sparse random starts: `random` starts them anew from the seed,
            `store` keeps their values in the file, `guess` judges every start by its values alone.
        drop: Patterns of buffers and frozen tensors to leave out of the file. They are rebuilt as zeros.
        base: Weights to fine-tune: a safetensors file, a torch state dict, a folder with either, `hub:ORG/NAME[@REV]`,
            a module, or tensors by name. The file names the base and does not hold it.
        base_name: The base's name in the file, `hub:ORG/NAME[@COMMIT]`, for people who have it under another name.
        act_on: Tensors of the base to train: roles (all, norms, biases, heads, embeddings, matrices) or patterns of
            names, separated by commas. By default norms, biases and heads.
        new: Patterns of tensors that start from the seed, in addition to a new head.
        bits: Bits of a coordinate, 2 to 8. By default 4, or 8 if d is at most 64.
        epochs: Passes over the training split. By default 10.
        steps: Steps of one batch each, in place of `epochs`; the last pass is cut short.
        seed: Seed of the subspace and of the training.
        seeds: Trainings at each d of a search; their mean must meet the target.
        max_fits: Most trainings that a search may take. By default 8, and 2 more if `max_drop` has to find the step of
            the direct training.
        max_minutes: No training starts that would end later than this.
        lr: Largest step of a coordinate. By default 0.35 / (root mean square of the row lengths of P).
        rate: Price of a bit, in units of the loss; a higher price gives a smaller file.
        optimiser: adam or eigen; eigen needs fewer coordinates where there are few.
        batch_size: Examples in a training step.
        precision: fp32 or bf16, for matrix products in training. Measurements and weights stay float32.
        threads: CPU threads that torch uses.
        device: auto, cpu, cuda or cuda:N. auto takes CUDA if a kernel runs on it, else the CPU, and a note says which.
        workers: Processes that read examples ahead, for data that are not in memory. They do not change the file.
        restart: Discard what the folder holds.
        origin: Where the run came from, for `report` and `compare`.
        listener: Hears of progress; see `Listener`.

    Returns:
        What was reached: the metric on validation and test split, bytes, all trainings, and the frontier of a search.

    Raises:
        SubcompressError: Options that cannot be met, or a training that died twice.
        TargetMissedError: The target is not reached. The run folder holds the best file all the same.
    """
    listener = listener or Listener()
    data = _brought(data, workers)
    model, build = built(model, seed, listener.note)
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
    place = choose_device(device)
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
        standing = attach_base(open_base(base, base_name), model, tuple(new))
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
            changed = held is not None and not same_network(folder.path, fitter.outputs)
            if changed:
                listener.note(f"{folder.path} holds a finished run of another network, whose code or data were others")
            elif held is not None:
                listener.note(f"{folder.path} holds this run already, finished; --restart trains it again")
                return _reached(Fit.from_json(held["fit"]))
            fitter.begin(folder, restart or changed)
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
