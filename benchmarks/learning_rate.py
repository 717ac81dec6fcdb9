"""Which learning rate suits a training, by its length: the default of `fit` and shares of it, on MNIST.

    python benchmarks/learning_rate.py --data-dir MNIST [--epochs 10,30] [--seeds 1] [--runs DIR] [-o OUT]

Validation accuracy, one thread; the test split is not read. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import subcompress
from subcompress.data.splits import size
from subcompress.subspace.plan import Plan, make_plan
from subcompress.training.settings import usual_lr
from subcompress_cli.progress import listening
from subcompress_models import MODELS

Case = tuple[str, int, int]

CASES: tuple[Case, ...] = (("mlp", 750, 4), ("lenet", 290, 4), ("lenet", 1780, 3))
"""Network, d, bits."""

FACTORS = (1.0, 0.6, 0.4)
"""Learning rates, as multiples of `Plan.lr`."""

BATCH = 128


def rows(options: argparse.Namespace, data: subcompress.Data) -> Iterator[str]:
    """One row for each case and length."""
    for (model, d, bits), epochs in itertools.product(CASES, options.epochs):
        plan = plan_of(model, d, bits)
        cells = []
        for factor in FACTORS:
            found = [value(options, data, (model, d, bits), epochs, factor * plan.lr, s) for s in range(options.seeds)]
            spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
            cells.append(f"{statistics.fmean(found):.2f}{spread}")
        steps = epochs * (size(data.train) // BATCH)
        taken = usual_lr(plan, steps) / plan.lr
        yield f"| {model} | {d:,} | {bits} | {epochs} | {steps:,} | {plan.lr:.4f} | {taken:.2f} | {' | '.join(cells)} |"


def plan_of(model: str, d: int, bits: int) -> Plan:
    """How coordinates act on that network."""
    torch.manual_seed(0)
    return make_plan(MODELS[model](), d, bits=bits)


def value(options: argparse.Namespace, data: subcompress.Data, case: Case, epochs: int, lr: float, seed: int) -> float:
    """Train, or take what is in the run folder: the validation accuracy in percent."""
    model, d, bits = case
    place = options.runs / f"{model}-{d}-{bits}-{epochs}-{lr:.4g}-{seed}"
    settings = {"d": d, "bits": bits, "lr": lr, "seed": seed, "epochs": epochs, "batch_size": BATCH, "threads": 1}
    with listening(f"{model}, d = {d}, {epochs} epochs, lr {lr:.4g}, seed {seed}") as listener:
        return 100 * subcompress.fit(MODELS[model], data, place, listener=listener, **settings).validation


def main() -> None:
    """Train what is missing, print the table, and write it where -o says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=lambda text: [int(n) for n in text.split(",")], default=[10, 30])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/learning-rate"))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = subcompress.load_data("mnist", options.data_dir)
    data = replace(data, test=data.validation)  # the test split is not read
    lines = [
        f"MNIST, {options.seeds} seed{'s' if options.seeds > 1 else ''}, validation split, "
        f"{time.strftime('%Y-%m-%d')}, one thread, torch {torch.__version__}. Columns: validation accuracy in percent, "
        "by learning rate as a multiple of 0.35 / (RMS length of the rows of P)",
        "",
        "| network | d | bits | epochs | steps | that rate | default, multiple of it | "
        + " | ".join(f"{f:g}" for f in FACTORS)
        + " |",
        "|---" * (7 + len(FACTORS)) + "|",
    ]
    for line in rows(options, data):
        lines.append(line)
        print(line, flush=True)
    if options.output:
        (options.output / "learning-rate.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
