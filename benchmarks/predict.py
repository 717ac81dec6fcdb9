"""The d that `dim --predict` guesses from short trainings, against the measured one and against sqrt(D).

    python benchmarks/predict.py [NAME...] [--data-dir MNIST] [-o benchmarks/results]

A row a task: families of benchmarks/families/, and with --data-dir the paper's two networks on MNIST. The threshold is
0.9 of direct training (1 / 0.9 for an error). Measured: the crossing of the means of two seeds over a ladder of d
around sqrt(D). Errors are log2 of a guess over the measured d; the last line has the medians of their sizes. One
thread; about 15 minutes without MNIST.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, Family

import subcompress
from subcompress_models import MODELS

NAMES = ("lenet", "recurrent", "s4d", "weight_norm", "experts", "masked_lm", "checkpointed", "layer_scale")
LADDER = (0.25, 0.5, 1, 2, 4, 8, 16)
HEADER = "| task | D | measured d | predicted d | its error, log2 | sqrt(D) | its error, log2 | cost, trainings |\n"


@dataclass(frozen=True)
class Task:
    """A network, its data, and how it is trained."""

    name: str
    build: Any
    data: Any
    options: dict[str, Any]


def of_family(family: Family) -> Task:
    """The task of a family of benchmarks/families/."""
    options = {k: v for k, v in family.options.items() if k not in ("act_on", "bits", "structured", "operator", "drop")}
    options |= {"epochs": family.epochs, "batch_size": family.batch_size, "loss": family.loss, "threads": 1}
    metric = getattr(family.metric, "__name__", None)
    options |= {"metric": metric if metric in ("accuracy", "mse") else family.metric, "minimize": family.minimize}
    return Task(family.name, family.make_net, family.load(), options)


def of_mnist(model: str, folder: Path) -> Task:
    """One of the paper's networks on MNIST."""
    return Task(
        f"{model} on mnist", MODELS[model], subcompress.load_data("mnist", folder), {"epochs": 10, "threads": 1}
    )


def row(task: Task, folder: Path) -> tuple[str, float, float] | None:
    """The row, and the two errors; None if the ladder does not reach the threshold."""
    guess = subcompress.predict_dimension(task.build, task.data, folder / "guess", **task.options)
    near = math.sqrt(guess.D)
    ladder = sorted({min(guess.D, max(2, round(near * k))) for k in LADDER})
    found = subcompress.measure_dimension(
        task.build, task.data, folder / "dim", ds=ladder, repeats=2, thresholds=[guess.threshold], **task.options
    )
    measured = next(e.d for e in found.estimates if e.threshold.name.startswith("given"))
    if measured is None:
        return None
    errors = math.log2(guess.d / measured), math.log2(near / measured)
    cells = [task.name, f"{guess.D:,}", f"{measured:,.0f}", f"{guess.d:,}", f"{errors[0]:+.2f}"]
    cells += [f"{near:,.0f}", f"{errors[1]:+.2f}", f"{guess.full_fits:.1f}"]
    return "| " + " | ".join(cells) + " |", *errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [of_family(FAMILIES[name]) for name in options.names]
    if options.data_dir:
        tasks += [of_mnist(model, options.data_dir) for model in ("mlp", "lenet")]
    lines, errors = [HEADER + "|" + "---|" * 8], []
    print(lines[0], flush=True)
    for task in tasks:
        with tempfile.TemporaryDirectory() as folder:
            if (found := row(task, Path(folder))) is None:
                continue
        lines.append(found[0])
        errors.append((abs(found[1]), abs(found[2])))
        print(found[0], flush=True)
    medians = [statistics.median(column) for column in zip(*errors, strict=True)]
    lines.append(
        f"\nMedian size of the error over {len(errors)} tasks: {medians[0]:.2f}; of sqrt(D): {medians[1]:.2f}."
    )
    print(lines[-1])
    if options.output:
        text = "\n".join([f"# Predicted dimensions, {time.strftime('%Y-%m-%d')}\n", *lines])
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "predict.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
