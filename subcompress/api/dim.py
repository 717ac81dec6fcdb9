"""dim: the measurement of Li et al. 2018, "Measuring the Intrinsic Dimension of Objective Landscapes"
(arXiv:1804.08838): a metric against d, and the d at which it crosses a threshold."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from subcompress.data import Data, shuffle_labels, shuffle_pixels
from subcompress.data.splits import size
from subcompress.errors import SubcompressError
from subcompress.subspace.observing import built
from subcompress.support.devices import AUTO as AUTO_DEVICE
from subcompress.support.devices import choose_device
from subcompress.support.files import write_bytes
from subcompress.support.listener import Listener
from subcompress.support.names import AUTO
from subcompress.support.suggestions import suggestion
from subcompress.training import run
from subcompress.training.dimension import Dimension, Point, Threshold, absolute, estimate, of_baseline
from subcompress.training.fitter import DiedTwiceError, Fitter, Settings
from subcompress.training.loop import epochs_of
from subcompress.training.machine import machine
from subcompress.training.preflight import naming_memory
from subcompress.training.probe import Probe
from subcompress.training.tasks import Loss, Metric, Task

MARKDOWN, JSON, PLOT = "dim.md", "dim.json", "dim.png"
SHUFFLES = {"pixels": shuffle_pixels, "labels": shuffle_labels}


def measure_dimension(
    model: nn.Module | Callable[[], nn.Module],
    data: Data,
    folder: str | Path,
    *,
    ds: Sequence[int],
    repeats: int = 3,
    thresholds: Sequence[float] = (),
    shuffle: str | None = None,
    loss: str | Loss = "cross-entropy",
    metric: str | Metric | None = None,
    minimise: bool | None = None,
    operator: str = AUTO,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    lr: float | None = None,
    optimiser: str = "adam",
    batch_size: int = 128,
    precision: str = "fp32",
    threads: int | None = None,
    device: str = AUTO_DEVICE,
    workers: int | None = None,
    names: tuple[str, str] = ("", ""),
    restart: bool = False,
    listener: Listener | None = None,
) -> Dimension:
    """Measure the intrinsic dimension of a network on its data (Li et al. 2018).

    The network is trained at each d with `repeats` seeds, and directly as often. Coordinates stay float32, as in the
    paper. The thresholds are 0.9 of the baseline, 0.9 absolute if the metric is an accuracy, and those that are given.
    If the call is interrupted, the same call continues.

    Args:
        model: The network, or a function without arguments that builds it.
        data: The data.
        folder: Where dim.md, dim.json and dim.png are written.
        ds: The dimensions to train in.
        repeats: Trainings in each dimension.
        thresholds: More values of the metric whose dimension is estimated.
        shuffle: pixels or labels, the control experiments of the paper. With labels, the metric is that of the training
            split, since nothing else can be learned; else that of the validation split.
        loss: As for `fit`.
        metric: As for `fit`.
        minimise: As for `fit`.
        operator: As for `fit`.
        epochs: As for `fit`.
        steps: As for `fit`.
        seed: As for `fit`.
        lr: As for `fit`.
        optimiser: As for `fit`.
        batch_size: As for `fit`.
        precision: As for `fit`.
        threads: As for `fit`.
        device: As for `fit`.
        workers: As for `fit`.
        names: Names of network and data in table and plot.
        restart: Discard what the folder holds.
        listener: Hears of progress; see `Listener`.

    Returns:
        The accuracies at each d, and the estimates with their intervals.

    Raises:
        SubcompressError: Options or data that cannot be trained with.
    """
    listener = listener or Listener()
    for line in data.notes:
        listener.note(line)
    model, build = built(model, seed, listener.note)
    ds = sorted(set(ds))
    if not ds or ds[0] < 1:
        raise SubcompressError(f"--d is a list of dimensions of at least 1, such as 100,200,400; given {list(ds)}")
    if not 1 <= repeats <= 100:
        raise SubcompressError(f"--repeats is between 1 and 100; given {repeats}")
    if shuffle is not None:
        if shuffle not in SHUFFLES:
            raise SubcompressError(
                f"--shuffle is {' or '.join(SHUFFLES)}; given {shuffle}{suggestion(shuffle, SHUFFLES)}"
            )
        data = SHUFFLES[shuffle](data, seed)
    on = "validation"
    if shuffle == "labels":
        data, on = replace(data, validation=data.train), "training"
    task = Task.of(loss, metric, minimise)
    data = task.prepare_labels(data if workers is None else replace(data, workers=workers))
    epochs = epochs_of(epochs, steps, size(data.train), batch_size)
    place = choose_device(device)
    settings = Settings(
        8,
        epochs,
        seed,
        lr,
        batch_size,
        place.name,
        operator,
        rounded=False,
        optimiser=optimiser,
        precision=precision,
        steps=steps,
    )
    with machine(place.name, threads, seed), naming_memory(batch_size):
        fitter = Fitter(model, data, task, settings, listener, None, build)
        for d in ds:
            fitter.check(d)
        command = fitter.command() | {"goal": {"ds": list(ds), "thresholds": list(thresholds)}}
        command |= {"limits": {"repeats": repeats}}
        with run.holding(folder, command) as held:
            fitter.begin(held, restart or held.finished is not None)
            listener.note(place.line)
            fitter.measure()
            fitter.say_cost(max(ds), len(ds) * repeats)
            found = _measure(fitter, list(ds), repeats)
            result = _result(fitter, found, thresholds, names, epochs, on, shuffle)
            _write(held.path, result)
            held.finish(None, {"dim": result.to_json()})
            return result


def _measure(fitter: Fitter, ds: list[int], repeats: int) -> tuple[tuple[float, ...], list[Point], tuple[Probe, ...]]:
    """The metrics of the network trained directly, and of each d, and each training."""
    seeds = [(fitter.settings.seed + i) % (1 << 64) for i in range(repeats)]
    baseline = tuple(fitter.baseline(s).value for s in seeds)
    points: list[Point] = []
    probes: list[Probe] = []
    for d in ds:
        began = time.perf_counter()
        values = []
        for s in seeds:
            try:
                probe = fitter.probe(d, s)
            except DiedTwiceError as e:
                raise SubcompressError(f"at d = {d}, seed {s}, {e}") from e
            probes.append(probe)
            fitter.listener.probes(tuple(probes))
            values.append(probe)
        seconds = max(sum(p.seconds for p in values), time.perf_counter() - began)
        points.append(Point(d, tuple(p.value for p in values), seconds))
    return baseline, points, tuple(probes)


def _result(
    fitter: Fitter,
    found: tuple[tuple[float, ...], list[Point], tuple[Probe, ...]],
    thresholds: Sequence[float],
    names: tuple[str, str],
    epochs: int,
    on: str,
    shuffle: str | None,
) -> Dimension:
    baseline, points, probes = found
    task = fitter.task
    wanted = [of_baseline(baseline, minimise=task.minimise)] if sum(baseline) > 0 else []
    if task.has_accuracy_range:
        wanted.append(absolute(0.9))
    wanted += [Threshold(f"given, {t:g}", t) for t in thresholds]
    s = fitter.settings
    notes = [f"{task.metric_name} on the {on} split; coordinates in float32; operator {fitter.operator}, {s.optimiser}"]
    if not sum(baseline) > 0:
        notes.append("no share of the baseline: it is not positive")
    if shuffle is not None:
        notes.append(f"with shuffled {shuffle}")
    return Dimension(
        names[0] or type(fitter.model).__name__,
        names[1],
        fitter.D,
        task.metric_name,
        task.minimise,
        baseline,
        tuple(points),
        tuple(estimate(points, t, task.minimise) for t in wanted),
        epochs,
        "",
        tuple(notes),
        _warnings(fitter, probes),
    )


def _warnings(fitter: Fitter, probes: Sequence[Probe]) -> tuple[str, ...]:
    """Those about the network, then those about each training, which are named."""
    told = [f"d = {p.d}, seed {p.seed}: {w}" for p in probes for w in p.warnings]
    return tuple(dict.fromkeys((*fitter.warnings, *told)))


def _write(folder: Path, result: Dimension) -> None:
    write_bytes(folder / MARKDOWN, result.markdown().encode())
    write_bytes(folder / JSON, (json.dumps(result.to_json(), indent=2) + "\n").encode())
    result.plot(folder / PLOT)


__all__ = ["Dimension", "measure_dimension"]
