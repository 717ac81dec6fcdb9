"""fit: a network and its data to a run folder with seed and coordinates."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from subcompress import run
from subcompress.data import Data
from subcompress.errors import SubcompressError
from subcompress.expand import digest_of, expand
from subcompress.layout import Layout
from subcompress.operators import HadamardBlocks
from subcompress.record import LIMIT, Coded, Group, Record, bfloat16
from subcompress.scales import standard_deviations
from subcompress.subspace import Subspace
from subcompress.training import DeadRunError, Listener, Progress, Recipe, accuracy_of, check_recipe, train

RETRY = 0.4
"""The factor on the step size when a dead run is tried again."""

_SPREAD = {2: 1.2, 3: 0.7, 4: 0.4, 5: 0.22, 6: 0.12, 7: 0.06, 8: 0.03}
"""Rounding step by bits, in standard deviations of the coordinates when rounding begins."""


@dataclass(frozen=True)
class Fit:
    """What a fit reached. Accuracies are those of the rebuilt weights; the test split was read once, for the last."""

    run: Path
    d: int
    D: int
    bits: int
    seed: int
    validation_accuracy: float
    test_accuracy: float
    seconds: float


def fit(
    model: nn.Module,
    data: Data,
    run_folder: str | Path,
    *,
    d: int,
    bits: int = 4,
    epochs: int = 10,
    seed: int = 0,
    lr: float | None = None,
    batch_size: int = 128,
    threads: int | None = None,
    device: str = "cpu",
    listener: Listener | None = None,
) -> Fit:
    """Train `model` in d coordinates of `bits` bits and write the run folder; `model` itself is left as it was.

    lr: Adam's largest step in units of the frozen constant; by default 0.35 / sqrt(min(d, m)), so that the weights
    move alike for every d. The same seed, data, options and machine give the same file (on a CPU; some of CUDA's sums
    have no fixed order). Raises SubcompressError for options that cannot be met, and when a run that died was tried
    again with a smaller step and died again.
    """
    began = time.perf_counter()
    with _machine(device, threads, seed):
        operator = _operator(model, d, bits, seed)
        recipe = Recipe(epochs, default_lr(operator) if lr is None else lr, batch_size, seed)
        check_recipe(recipe, data.train)
        deviations = standard_deviations(model)
        scales = {name: s / math.sqrt(operator.K) for name, s in deviations.items()}
        folder = run.prepare(run_folder)  # only now: what cannot be fitted leaves an earlier run as it was
        model = copy.deepcopy(model).to(device)
        subspace = _train(lambda: Subspace(model, operator, scales), data, recipe, bits, listener)
        record = _record(Layout.of(model.state_dict()), operator, subspace, bits, data)
        rebuilt = copy.deepcopy(model)
        rebuilt.load_state_dict(expand(record))
        validation, test = accuracy_of(rebuilt, data.validation), accuracy_of(rebuilt, data.test)
    record = replace(record, test_accuracy=test, digest=digest_of(record, rebuilt.state_dict()))
    found = Fit(folder, record.d, record.D, bits, seed, validation, test, time.perf_counter() - began)
    run.write(folder, record, recipe, found)
    return found


def default_lr(operator: HadamardBlocks) -> float:
    """One step moves a weight by sqrt(min(d, m)) times this, in root mean square."""
    return 0.35 / math.sqrt(max(1, min(operator.d, operator.m)))


@contextmanager
def _machine(device: str, threads: int | None, seed: int) -> Iterator[None]:
    """The device checked, the threads set and given back, the caller's random state untouched."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise SubcompressError(f"--device is cpu, cuda or cuda:N; given {device}")
    if device != "cpu" and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise SubcompressError(f"--device {device} needs a GPU that torch can use, and none is here: leave it out")
    if threads is not None and not 1 <= threads <= 1024:
        raise SubcompressError(f"--threads is between 1 and 1024; given {threads}")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        # What the caller has switched on or off must not change the file.
        off = torch.autocast(device.partition(":")[0], enabled=False)
        with torch.random.fork_rng(), torch.enable_grad(), off:
            torch.manual_seed(seed & ((1 << 63) - 1))
            yield
    finally:
        torch.set_num_threads(before)


def _operator(model: nn.Module, d: int, bits: int, seed: int) -> HadamardBlocks:
    """The subspace of the model's weights, in units of the frozen constant (A = 1)."""
    if bits not in _SPREAD:
        raise SubcompressError(f"--bits is one of {', '.join(map(str, _SPREAD))}; given {bits}")
    if not 0 <= seed < 1 << 64:
        raise SubcompressError(f"--seed is between 0 and 2^64 - 1; given {seed}")
    if buffers := [name for name, _ in model.named_buffers()]:
        raise SubcompressError(f"fit takes models without buffers as yet; this one has {buffers[0]}: leave it out")
    D = sum(p.numel() for p in model.parameters())
    if D == 0:
        raise SubcompressError("fit trains a model's weights; this one has no weights: give another")
    if not 1 <= d <= D:
        raise SubcompressError(f"--d is between 1 and the model's D = {D} weights; given {d}")
    if list(model.state_dict()) != [name for name, _ in model.named_parameters()]:
        raise SubcompressError("fit takes models whose weights are all their own as yet; this one shares some")
    if other := [name for name, p in model.named_parameters() if p.dtype != torch.float32]:
        raise SubcompressError(f"fit trains float32 weights; {other[0]} is not: call .float() first")
    operator = HadamardBlocks.sized(D, d, seed)
    # The sum of a block's integers is bounded: with many bits blocks must hold fewer coordinates.
    most = LIMIT / 2 / (0.8 / _SPREAD[bits])
    while min(d, operator.free) > most and -(-D // (operator.m // 2)) * (operator.m // 2 - operator.K) >= d:
        operator = replace(operator, log2_m=operator.log2_m - 1)
    return operator


def _train(begin: Callable[[], Subspace], data: Data, recipe: Recipe, bits: int, listener: Listener | None) -> Subspace:
    """Train z from the beginning; a dead run is tried once more with a smaller step."""
    for attempt in (recipe, replace(recipe, lr=recipe.lr * RETRY)):
        subspace = begin()
        try:
            train(
                subspace,
                data.train,
                data.validation,
                attempt,
                quantise=lambda s=subspace: _quantise(s, bits),  # type: ignore[misc]
                listener=listener,
                note="" if attempt is recipe else f"second try, lr {attempt.lr:.2g}",
            )
            return subspace
        except DeadRunError as e:
            died = e
    raise SubcompressError(
        f"the run died twice, at lr {recipe.lr:.2g} and {recipe.lr * RETRY:.2g} ({died}): raise --d or --bits, "
        "or give a smaller --lr or another --seed"
    )


def _quantise(subspace: Subspace, bits: int) -> None:
    """Round from here on: the step is the frozen constant over an integer A, near a share of the spread of z."""
    spread = float(subspace.z.detach().square().mean().sqrt())
    A = min(max(1, round(1 / (_SPREAD[bits] * spread))), 1 << 10) if spread > 0 else 1
    top = (1 << (bits - 1)) - 1
    subspace.quantise(1 / A, -top, top)


def _record(layout: Layout, operator: HadamardBlocks, subspace: Subspace, bits: int, data: Data) -> Record:
    """What was trained, exactly: the scales rounded to bfloat16, the frozen constant an integer."""
    coordinates = subspace.coordinates().cpu().numpy().astype("int32")
    A = round(1 / subspace.step)
    entries = tuple(Coded(bfloat16(scale / A)) for scale in subspace.scales)
    group = Group(replace(operator, A=A), bits, coordinates)
    record = Record(operator.seed, layout, (group,), entries, facts=data.facts)
    record.check()
    return record


__all__ = ["Fit", "Progress", "default_lr", "fit"]
