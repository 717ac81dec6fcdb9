"""What rounding costs: late and by the curvature of the loss, as `fit` does it; late to the nearest integers; and from
half-way on.

    python benchmarks/rounding.py --data-dir DIR [--data mnist] [--epochs 10] [--seeds 2] [-o OUT]

Validation accuracy in percent after each training, and after the last epoch before rounding; one thread. The test split
is not read.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import subcompress
from subcompress.data import augment_of
from subcompress.data.splits import batches, size
from subcompress.subspace.module import Subspace
from subcompress.training.loop import TrainOptions, train
from subcompress.training.settings import usual_lr
from subcompress.training.tasks import Task
from subcompress_models import MODELS

CASES = {
    "mnist": (("mlp", 750, 4), ("lenet", 290, 4), ("lenet", 1780, 3)),
    "cifar10": (("frequencies-32-48-64", 2150, 4), ("frequencies-32-48-64", 2650, 3)),
}
"""Network, d, bits."""

WAYS = ("late, by curvature", "late, nearest", "from half-way on")

BATCH, MEASURED = 128, 100
"""Examples of a batch, and batches in which it is measured how far tensors move."""


def accuracies(data: subcompress.Data, model: str, d: int, bits: int, epochs: int, seed: int, way: str) -> list[float]:
    """Train, and return the validation accuracy after each epoch in percent."""
    order = torch.randperm(size(data.train), generator=torch.Generator().manual_seed(seed))
    passed = list(islice(batches(data.train, BATCH, order=order), MEASURED))
    moves = subcompress.measure_moves(
        MODELS[model], passed, lambda module, batch: cross_entropy(module(batch[0]), batch[1]), seed=seed
    )
    subspace = Subspace.of(MODELS[model], d, bits=bits, seed=seed, moves=moves)
    steps = epochs * (size(data.train) // BATCH)
    recipe = TrainOptions(epochs, usual_lr(subspace.plan, steps), BATCH, seed)
    recipe = recipe.rounded_early() if way == "from half-way on" else recipe
    curvature = way == "late, by curvature"
    found = train(
        subspace,
        data,
        Task.of(),
        recipe,
        quantize=lambda seen: subspace.round(bits, curvature=seen if curvature else None),
    )
    return [100 * value for value in found.curve]


def rows(options: argparse.Namespace, data: subcompress.Data) -> Iterator[str]:
    """One row for each network, d and bits."""
    for model, d, bits in CASES[options.data]:
        curves = {
            way: [accuracies(data, model, d, bits, options.epochs, seed, way) for seed in range(options.seeds)]
            for way in WAYS
        }
        whole = int(0.9 * options.epochs)
        cells = [statistics.fmean(curve[whole - 1] for curve in curves[WAYS[0]])]
        cells += [statistics.fmean(curve[-1] for curve in curves[way]) for way in WAYS]
        yield f"| {model} | {d:,} | {bits} | " + " | ".join(f"{c:.2f}" for c in cells) + " |"


def main() -> None:
    """Train, print the table, and write it where -o says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--data", choices=CASES, default="mnist")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    augment = augment_of("flip") if options.data == "cifar10" else None
    data = replace(subcompress.load_data(options.data, options.data_dir), augment=augment)
    lines = [
        f"{options.data}, {options.epochs} epochs, mean of {options.seeds} seed{'s' if options.seeds > 1 else ''}, "
        f"validation accuracy in percent, {time.strftime('%Y-%m-%d')}, one thread, torch {torch.__version__}",
        "",
        f"| network | d | bits | before rounding | {' | '.join(WAYS)} |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in rows(options, data):
        lines.append(line)
        print(line, flush=True)
    if options.output:
        (options.output / f"rounding-{options.data}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
