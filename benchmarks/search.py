"""The smallest file at a target: the paper's two networks on MNIST at 90 %, how precision and the price of a bit change
what the search ends with, and what it costs.

    python benchmarks/search.py --data-dir MNIST [--models mlp,lenet] [--strategy NAME ...] [--epochs 10]
        [--runs runs/search] [-o OUT]
    python benchmarks/search.py --simulate 300 [-o OUT]

Runs `fit(min_accuracy=0.9)` on one thread, once a strategy; interrupted, it goes on. Validation decides, the test split
is read once, at the end. With --simulate, so many searches on known power laws with 1, 2 and 4 workers: misses, what is
found over the smallest d that meets the target, trainings, and time in trainings. The curves are others than those
that the search was tuned on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import subcompress
from subcompress.search.goal import MAX_FITS, SearchGoal
from subcompress.search.simulation import laws, simulate
from subcompress_cli.progress import listening
from subcompress_models import MODELS

STRATEGIES: dict[str, dict[str, Any]] = {
    "4 bits (the default)": {},
    "3 bits": {"bits": 3},
    "5 bits": {"bits": 5},
    "3 bits, 1e-4 nats a bit": {"bits": 3, "rate": 1e-4},
    "4 bits, eigen": {"optimiser": "eigen"},
}


EPOCHS = 10
"""Of each training, unless told otherwise; the name of another table says how many."""

HELD_OUT = 3
"""The seed of the simulated curves: the search was tuned on those of others."""


def row(model: str, strategy: str, found: subcompress.Fit, size: int) -> str:
    """What one search found and what it spent."""
    edge = ", ".join(f"{p.bytes}: {p.value:.3f}" for p in found.frontier)
    near = [p.value for p in found.probes if p.at(found.d)]
    mean, spread = found.validation_mean or statistics.mean(near), found.validation_spread or 0
    cells = [model, strategy, f"**{size}**", f"{found.d}", f"{mean:.4f} ± {spread:.4f}", f"{found.test:.4f}"]
    return "| " + " | ".join([*cells, f"{found.full_fits:.1f}", f"{found.seconds:.0f}", edge]) + " |"


def simulated(n: int) -> list[str]:
    """Markdown: a row for each number of workers."""
    lines = [
        f"# Searches on {n} power laws, {time.strftime('%Y-%m-%d')}\n",
        "| workers | misses | d over the smallest, 10 % | median | 90 % | full trainings, mean | time, in trainings |",
        "|---|---|---|---|---|---|---|",
    ]
    for workers in (1, 2, 4):
        ratios, fits, rounds = [], [], []
        for law in laws(n, seed=HELD_OUT):
            goal = SearchGoal(value=law.target, max_fits=MAX_FITS + workers - 1)
            end = simulate(law, goal, workers)
            ratios.append(end.chosen.d / law.d_true if end.found.get("reached", True) else np.nan)
            fits.append(end.found["full_fits"])
            rounds.append(end.rounds)
        cells = [
            f"{workers}",
            f"{100 * np.isnan(ratios).mean():.1f} %",
            f"{np.nanquantile(ratios, 0.1):.2f}",
            f"{np.nanmedian(ratios):.2f}",
            f"{np.nanquantile(ratios, 0.9):.2f}",
            f"{np.mean(fits):.1f}",
            f"{np.mean(rounds):.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--simulate", type=int, metavar="N")
    parser.add_argument("--models", default="mlp,lenet")
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="repeat for several; default: all")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    if options.simulate:
        lines = simulated(options.simulate)
        print("\n".join(lines))
        if options.output:
            (options.output / "search-simulated.md").write_text("\n".join([*lines, ""]))
        return
    if options.data_dir is None:
        parser.error("--data-dir or --simulate is needed")
    data = subcompress.load_data("mnist", options.data_dir)
    lines = [
        f"# The smallest file at {options.target:g} on MNIST validation, {options.epochs} epochs, "
        f"{time.strftime('%Y-%m-%d')}\n",
        "| network | strategy | bytes | d | validation, mean near d | test, of the file | full trainings | seconds "
        "| frontier, bytes: validation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for model in options.models.split(","):
        for strategy in options.strategy or STRATEGIES:
            folder = options.runs / f"{model}-{options.epochs}-{strategy.replace(' ', '')}"
            settings = {"min_accuracy": options.target, "epochs": options.epochs, "threads": 1, **STRATEGIES[strategy]}
            with listening(f"{model}, {strategy}") as listener:
                try:
                    found = subcompress.fit(MODELS[model], data, folder, listener=listener, **settings)
                    lines.append(row(model, strategy, found, subcompress.pack(folder, folder / "net.safetensors")))
                except subcompress.SubcompressError as e:
                    lines.append(f"| {model} | {strategy} | | | {e} | | | | |")
            print(lines[-1], flush=True)
    if options.output:
        name = f"search-{options.models.replace(',', '-')}" + ("" if options.epochs == EPOCHS else f"-{options.epochs}")
        (options.output / f"{name}.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
