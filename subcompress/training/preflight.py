"""Before hours are spent: does one batch go through, what will the whole cost, can the validation split tell."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from subcompress.data import Data
from subcompress.data.in_memory import IGNORED, InMemory, Tree
from subcompress.data.parts import in_parts
from subcompress.data.ragged import IDS, Ragged
from subcompress.data.splits import DataError, batches, call, size, without_graph
from subcompress.data.targets import check_between, check_one_hot, counts, main_tensor
from subcompress.errors import SubcompressError, explaining, memory_ran_out, one_line
from subcompress.subspace.leaves import changed, check_constraints, check_leaves, plain_leaves
from subcompress.subspace.module import Subspace
from subcompress.support.stepping import Adam
from subcompress.training.loop import TrainOptions
from subcompress.training.metrics import NotOneNumberError
from subcompress.training.tasks import EXAMPLES, NEXT, PER_TOKEN, Task, evaluate

WARM_UP, TIMED, ENOUGH = 2, 9, 3.0
"""Steps of an estimate that are not counted, those that are timed, and the seconds after which one of them does."""

FEW = 8
"""The number of examples of a split that pass through the network before training."""

OF_TOKENS = (NEXT, PER_TOKEN)

LABELED = ("cross-entropy", "bce", *OF_TOKENS)
"""The losses whose labels are checked."""

CLASSES_BELOW = "number the classes from 0, or widen the model"

TOKENS_BELOW = "give the tokenizer of this network, and -100 where nothing is learned"

Batch = tuple[Tree, Tree]

Seen = tuple[Any, Tree]
"""What a metric gets of a batch in addition to y, and y."""


def check_first_batch(module: nn.Module, data: Data, task: Task, batch_size: int, device: str) -> None:
    """Raise SubcompressError if examples of a split do not pass through the model and the loss or the metric, or if the
    labels do not suit its outputs. See `check_first_of`."""
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        check_first_of(module, name, split, task, batch_size if name == "train" else None, device)


def check_first_of(
    module: nn.Module, name: str, split: Dataset[Any], task: Task, batch_size: int | None = None, device: str = "cpu"
) -> None:
    """`check_first_batch` for one split, with its name.

    A batch is read that is as large as later ones; if a split is in memory, the labels of all its examples are checked.
    `FEW` examples of the batch pass through the network. The whole batch does if these fail (some norms need more) or
    if the metric is not a number for them, and the whole split if it is not a number for the batch either. batch_size:
    that of the training; None to check the metric.
    """
    module.eval()
    _check_ids(module, name, split)
    order, n = split.swept(EXAMPLES) if isinstance(split, InMemory) else (torch.arange(size(split)), EXAMPLES)
    first = order[: batch_size or n]
    try:
        parts = [next(batches(split, len(some), device, some, seed=0)) for some in _few_and_all(first)]
    except DataError as e:
        raise SubcompressError(f"the {name} split cannot be read: {e}") from e
    with _going_through(name, "the model or the metric" if batch_size is None else "the model or the loss"):
        seen = _first_seen(module, name, split, task, parts)
        if batch_size is None:
            _check_metric(module, split, chain([seen], _later_seen(module, task, parts, seen)), task, name)


def _first_seen(module: nn.Module, name: str, split: Dataset[Any], task: Task, parts: Sequence[Batch]) -> Seen:
    """What the metric sees of the first part that goes through. The labels are looked at before a loss is."""
    found = None if task.metric is None else _first_through(parts, lambda batch: task.outputs_for_metric(module, batch))
    if task.loss_name in LABELED:
        outputs, _ = found or _first_through(parts, lambda batch: _outputs(module, batch))
        _check_labels(name, split, parts[-1][1], outputs, task.loss_name)
    return found or _first_through(parts, lambda batch: task.outputs_for_metric(module, batch))


def _later_seen(module: nn.Module, task: Task, parts: Sequence[Batch], seen: Seen) -> Iterator[Seen]:
    """What the metric sees of the whole batch, when it is asked for, where it has seen a part of it."""
    if seen[1] is not parts[-1][1]:
        yield task.outputs_for_metric(module, parts[-1]), parts[-1][1]


def _first_through(parts: Sequence[Batch], f: Callable[[Batch], Any]) -> Seen:
    """f of the first part of which it raises nothing, and y. Raises what it raises of the last one."""
    for x, y in parts[:-1]:
        try:
            return f((x, y)), y
        except Exception:  # of too few examples, perhaps: the whole batch tells
            continue
    return f(parts[-1]), parts[-1][1]


def _outputs(module: nn.Module, batch: Batch) -> Any:
    return without_graph(lambda: call(module, batch[0]))


def _few_and_all(order: Tensor) -> list[Tensor]:
    """A few examples of a batch, evenly spaced: those of one class often lie side by side. And all of it, where that is
    more."""
    n = len(order)
    return [order[torch.arange(FEW) * n // FEW], order] if n > FEW else [order]


def _check_ids(module: nn.Module, name: str, split: Dataset[Any]) -> None:
    """Raise SubcompressError if a text has a token that the embedding of the network has no row for."""
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
            f"the {name} split has the token {odd}, but the network's embedding has the rows 0 to "
            f"{len(weight) - 1}: give the tokenizer of this network"
        )


def _check_metric(module: nn.Module, split: Dataset[Any], looks: Iterable[Seen], task: Task, name: str) -> None:
    """Raise SubcompressError if the metric is not a number for any of the looks, nor for the split. looks: what the
    metric gets for some examples, and y; each is made when it is needed."""
    for seen in looks:
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
            f"the metric {task.metric_name} gives nan on the {name} split before training: check the metric and "
            "the model"
        )


def _going_through(name: str, what: str) -> AbstractContextManager[None]:
    return explaining(
        lambda e: f"a batch of the {name} split does not pass through {what}: {type(e).__name__}: {one_line(e)}"
    )


def check_trains(subspace: Subspace, model: nn.Module, data: Data, task: Task, recipe: TrainOptions) -> str | None:
    """Raise SubcompressError if the network reads weights that training does not reach, or changes them itself in
    training alone; returns a warning where the loss has parameters of its own.

    As many examples as pass through it at once; the subspace is not to be trained afterwards. model: what it was made
    from.
    """
    device, warning = subspace.z.device, None
    at_once = recipe.batch_size // (recipe.shards * recipe.accumulate)
    batch = next(batches(data.train, min(max(1, at_once), size(data.train)), device))
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
    """Classes are numbered from 0 to below the outputs' second axis (-100 is left out by the loss), those of tokens to
    below their last one; those of bce are between 0 and 1. y: of a batch, where the split is not in memory."""
    outputs = main_tensor(outputs)
    y = _all_labels(split, y, loss)
    if outputs is None or not isinstance(y, Tensor) or y.is_complex():
        return
    if loss == "bce":
        return check_between(y, name)
    if outputs.ndim < 2 or not counts(y):
        return
    if loss in OF_TOKENS:
        return _check_below(y, outputs.shape[-1], name, TOKENS_BELOW) if outputs.ndim == 3 else None
    classes = outputs.shape[1]
    if y.shape[1:] == outputs.shape[1:] and y.ndim > 1 and classes > 1:
        return check_one_hot(y, name)
    _check_below(y, classes, name, CLASSES_BELOW)


def _all_labels(split: object, y: Any, loss: str) -> Any:
    """The labels of all examples in memory that the loss looks at, else y."""
    if isinstance(split, Ragged) and split.labels is not None:
        asked = torch.ones_like(split.labels, dtype=torch.bool)
        asked[split.starts] = loss != NEXT  # no token comes before the first one
        return split.labels[asked]
    y = split.y if isinstance(split, InMemory) and isinstance(split.y, Tensor) else y
    return y[:, 1:] if loss == NEXT and isinstance(y, Tensor) and y.ndim == 2 else y


def _check_below(y: Tensor, classes: int, name: str, remedy: str) -> None:
    """Raise SubcompressError if y has a label, other than the one that is left out, which is none of the classes."""
    y = y.long()
    wrong = ((y < 0) & (y != IGNORED)) | (y >= classes)
    if bool(wrong.any()):
        value = int(y[wrong].reshape(-1)[0])
        raise SubcompressError(
            f"labels must be between 0 and {classes - 1}, because the model has {classes} outputs; the {name} "
            f"split has {value}: {remedy}"
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
    line = f"D = {plan.D:,} weights, d = {plan.d:,}; a step {1000 * step:.1f} ms, {steps} per epoch"
    line += f", {recipe.steps} per fit" if recipe.steps is not None else ""
    line += f": about {_time(one)} per fit"
    if fits > 1:
        line += f", about {_time(min(one * fits, 60 * minutes))} for {fits:g}"
    return f"{line}; memory {_peak() / 2**30:.1f} GiB"


def _seconds_a_step(trial: Subspace, data: Data, task: Task, recipe: TrainOptions) -> float:
    """The median of some steps: the first ones, and single ones that another process held up, say little. The subspace
    is trained by next to nothing."""
    device, seconds, began = trial.z.device, list[float](), time.perf_counter()
    optimizer = Adam(trial.parameters(), lr=1e-12)
    trial.train()
    n, most, parts = min(recipe.batch_size, size(data.train)), WARM_UP + TIMED, recipe.shards * recipe.accumulate
    order = torch.arange(size(data.train)).repeat(-(-most * n // size(data.train)))[: most * n]
    for whole in in_parts(batches(data.train, max(1, n // parts), device, order), parts, task.weight):
        start = time.perf_counter()
        optimizer.zero_grad()
        if not all(_went_back(trial, task, recipe, *part) for part in whole.each):
            break  # training says what is wrong with it
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if len(seconds) > 1 and time.perf_counter() - began > ENOUGH:
            break
    return statistics.median(seconds[WARM_UP:] or seconds[1:] or seconds or [0.0])


def _went_back(trial: Subspace, task: Task, recipe: TrainOptions, share: float, batch: Batch) -> bool:
    """Add the gradient of a part of a batch; whether it has one."""
    with trial.materialized() as module:
        with recipe.autocast(trial.z.device):
            loss = task.loss_of(module, batch)
        if loss.requires_grad:
            (loss * share).backward()
    return loss.requires_grad


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
        "what the search finds is uncertain too: give more validation examples"
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
