"""Before hours are spent: does one batch go through, what will the whole cost, can the validation split tell."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from subcompress.data import Data
from subcompress.data.in_memory import IGNORED, InMemory, Tree
from subcompress.data.ragged import IDS, Ragged
from subcompress.data.splits import DataError, batches, call, size
from subcompress.data.targets import check_between, check_one_hot, counts, main_tensor
from subcompress.errors import SubcompressError, explaining, memory_ran_out, one_line
from subcompress.subspace.leaves import changed, check_constraints, check_leaves, plain_leaves
from subcompress.subspace.module import Subspace
from subcompress.support.stepping import Adam
from subcompress.training.loop import TrainOptions
from subcompress.training.metrics import NotOneNumberError
from subcompress.training.tasks import EXAMPLES, Task, evaluate

WARM_UP, TIMED, ENOUGH = 2, 9, 3.0
"""Steps of an estimate that are not counted, those that are timed, and the seconds after which three of them do."""


def check_first_batch(module: nn.Module, data: Data, task: Task, batch_size: int, device: str) -> None:
    """Raise SubcompressError where a batch of each split, as large as later ones, does not go through the model and the
    loss or the metric. A metric that one batch is too little for is tried on the whole split."""
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        check_first_of(module, name, split, task, batch_size if name == "train" else None, device)


def check_first_of(
    module: nn.Module, name: str, split: Dataset[Any], task: Task, batch_size: int | None = None, device: str = "cpu"
) -> None:
    """`check_first_batch` for the split of that name. batch_size: of its training; None for the metric."""
    module.eval()
    _check_ids(module, name, split)
    order, n = split.swept(EXAMPLES) if isinstance(split, InMemory) else (torch.arange(size(split)), EXAMPLES)
    first = order[: batch_size or n]
    try:
        batch = next(batches(split, len(first), device, first, seed=0))
    except DataError as e:
        raise SubcompressError(f"the {name} split cannot be read: {e}") from e
    with _going_through(name, "the model or the metric" if batch_size is None else "the model or the loss"):
        seen = None if task.metric is None else task.outputs_for_metric(module, batch)
        if task.loss_name in ("cross-entropy", "bce"):
            with torch.no_grad():
                outputs = call(module, batch[0]) if seen is None else seen
            _check_labels(name, split, batch[1], outputs, task.loss_name)
        seen = task.outputs_for_metric(module, batch) if seen is None else seen
        if batch_size is None:
            _check_metric(module, split, (seen, batch[1]), task, name)


def _check_ids(module: nn.Module, name: str, split: Dataset[Any]) -> None:
    """Raise SubcompressError where a text has a token that the embedding of the network has no row for."""
    table = getattr(module, "get_input_embeddings", None)
    try:
        weight = getattr(table() if callable(table) else None, "weight", None)
    except (AttributeError, NotImplementedError):  # transformers has networks without one
        return
    if not isinstance(split, Ragged) or not isinstance(weight, Tensor) or IDS not in split.values:
        return
    low, high = split.values[IDS].aminmax()
    if int(low) < 0 or int(high) >= len(weight):
        odd = int(low) if int(low) < 0 else int(high)
        raise SubcompressError(
            f"tokens are rows of the network's embedding, 0 to {len(weight) - 1}; the {name} split has {odd}: give the "
            "tokenizer of this network"
        )


def _check_metric(module: nn.Module, split: Dataset[Any], seen: tuple[Any, Tree], task: Task, name: str) -> None:
    """Raise SubcompressError where the metric is no number, of a batch or else of the split. seen: what the metric sees
    of the batch, and y."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of one class only
            if not math.isnan(task.measure(*seen)) or task.metric is None:
                return
    except NotOneNumberError:
        raise
    except SubcompressError:
        if task.metric is None:
            raise
    if math.isnan(evaluate(module, split, task)):
        raise SubcompressError(
            f"a metric is a number; {task.metric_name} gives nan on the {name} split before anything is "
            "trained: look at it, or at the model"
        )


def _going_through(name: str, what: str) -> AbstractContextManager[None]:
    return explaining(
        lambda e: f"a batch of the {name} split does not go through {what}: {type(e).__name__}: {one_line(e)}"
    )


def check_trains(subspace: Subspace, model: nn.Module, data: Data, task: Task, recipe: TrainOptions) -> str | None:
    """Raise SubcompressError where the network reads weights that training does not reach, or changes them itself in
    training alone; returns a warning where the loss has parameters of its own.

    One batch; the subspace is not to be trained afterwards. model: what it was made from.
    """
    device, warning = subspace.z.device, None
    batch = next(batches(data.train, min(recipe.batch_size, size(data.train)), device))
    former = [*subspace.former.items(), *model.named_parameters()]
    with torch.random.fork_rng():
        subspace.train()
        plain = plain_leaves(subspace.module)
        weights = subspace.weights()
        before = {name: w.detach().clone() for name, w in weights.items()}
        with subspace.holding(weights) as module, recipe.autocast(device):
            loss = task.loss_of(module, batch)
        if loss.requires_grad:
            warning = check_leaves(loss, former, plain, subspace.z)
        if in_training := changed(before, weights):
            subspace.eval()
            weights = subspace.weights()
            with subspace.holding(weights) as module:
                task.outputs_for_metric(module, batch)
            check_constraints(in_training, changed(before, weights))
    return warning


def _check_labels(name: str, split: object, y: Tensor, outputs: object, loss: str) -> None:
    """Classes are numbered from 0 to below the outputs' second axis (-100 is left out by the loss); those of bce are
    between 0 and 1."""
    outputs = main_tensor(outputs)
    if outputs is None or not isinstance(y, Tensor) or y.is_complex():
        return
    y = split.y if isinstance(split, InMemory) and isinstance(split.y, Tensor) else y
    if loss == "bce":
        return check_between(y, name)
    if outputs.ndim < 2 or not counts(y):
        return
    classes = outputs.shape[1]
    if y.shape[1:] == outputs.shape[1:] and y.ndim > 1 and classes > 1:
        return check_one_hot(y, name)
    y = y.long()
    wrong = ((y < 0) & (y != IGNORED)) | (y >= classes)
    if bool(wrong.any()):
        value = int(y[wrong].reshape(-1)[0])
        raise SubcompressError(
            f"labels are between 0 and {classes - 1}, the model has {classes} outputs; the {name} split has {value}: "
            "number the classes from 0, or widen the model"
        )


def estimate_cost(
    subspace: Subspace, data: Data, task: Task, recipe: TrainOptions, fits: float, minutes: float = math.inf
) -> str:
    """A line with the time and memory of a fit, and of as many as there may be, from a few timed steps. The subspace is
    not to be trained afterwards: a copy of it would take as much memory again."""
    step = _seconds_a_step(subspace, data, task, recipe)
    steps = size(data.train) // recipe.batch_size
    one = step * recipe.total(size(data.train))
    plan = subspace.plan
    line = f"D = {plan.D:,} weights, d = {plan.d:,}; a step {1000 * step:.1f} ms, {steps} an epoch"
    line += f", {recipe.steps} a fit" if recipe.steps is not None else ""
    line += f": about {_time(one)} a fit"
    if fits > 1:
        line += f", about {_time(min(one * fits, 60 * minutes))} for {fits:g}"
    return f"{line}; memory {_peak() / 2**30:.1f} GiB"


def _seconds_a_step(trial: Subspace, data: Data, task: Task, recipe: TrainOptions) -> float:
    """The median of some steps: the first ones, and single ones that another process held up, say little. The subspace
    is trained by next to nothing."""
    device, seconds, began = trial.z.device, list[float](), time.perf_counter()
    optimizer = Adam(trial.parameters(), lr=1e-12)
    trial.train()
    n, most = min(recipe.batch_size, size(data.train)), WARM_UP + TIMED
    order = torch.arange(size(data.train)).repeat(-(-most * n // size(data.train)))[: most * n]
    for batch in batches(data.train, n, device, order):
        start = time.perf_counter()
        with trial.materialized() as module:
            with recipe.autocast(device):
                loss = task.loss_of(module, batch)
            if not loss.requires_grad:
                break  # training says what is wrong with it
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= WARM_UP + 3 and time.perf_counter() - began > ENOUGH:
            break
    return statistics.median(seconds[WARM_UP:] or seconds or [0.0])


def resolution_note(task: Task, data: Data, target: float, drop: float | None = None) -> str | None:
    """A warning where the validation split is too small to tell whether an accuracy target is met."""
    if not task.metric_name.endswith("accuracy") or not 0 < target < 1:
        return None
    n = size(data.validation)
    error = math.sqrt(target * (1 - target) / n)
    if error <= (0.005 if drop is None else max(drop, 1e-9) / 2):
        return None
    return (
        f"warning: with {n} validation examples, an accuracy of {target:.4g} has a standard error of {error:.3f}, so "
        "the d that is found is uncertain too: give more validation examples"
    )


@contextmanager
def naming_memory(batch_size: int) -> Iterator[None]:
    """Turn an allocator's failure into one line that says what would fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not memory_ran_out(e):
            raise
        half = max(1, batch_size // 2)
        raise SubcompressError(
            f"memory ran out with --batch-size {batch_size} (this machine has {memory() / 2**30:.1f} GiB): "
            + (f"--batch-size {half} takes about half" if batch_size > 1 else "the network needs a larger machine")
        ) from e


def memory() -> float:
    """Bytes of physical memory, infinite where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _peak() -> float:
    """Bytes that this process has held at most."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
