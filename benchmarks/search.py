"""The smallest file at a target: the paper's two networks on MNIST at 90 %, how precision and the price of a bit change
what the search ends with, and what it costs.

    python benchmarks/search.py --data-dir MNIST [--models mlp,lenet] [--strategies 4] [--epochs 10]
        [--runs runs/search] [-o OUT]

Runs `fit(min_accuracy=0.9)` on one thread, once a strategy; interrupted, it goes on. Validation decides, the test split
is read once, at the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import subcompress
from subcompress_cli.progress import listening
from subcompress_models import MODELS

STRATEGIES: dict[str, dict[str, Any]] = {
    "4 bits (the default)": {},
    "3 bits": {"bits": 3},
    "5 bits": {"bits": 5},
    "3 bits, 1e-4 nats a bit": {"bits": 3, "rate": 1e-4},
    "4 bits, eigen": {"optimiser": "eigen"},
}


def row(model: str, strategy: str, found: subcompress.Fit, size: int) -> str:
    """What one search found and what it spent."""
    values = [p.value for p in found.probes if p.at(found.d)]
    edge = ", ".join(f"{p.bytes}: {p.value:.3f}" for p in found.frontier)
    mean, spread = statistics.mean(values), found.validation_spread or 0
    cells = [model, strategy, f"**{size}**", f"{found.d}", f"{mean:.4f} ± {spread:.4f}", f"{found.test:.4f}"]
    return "| " + " | ".join([*cells, f"{found.full_fits:.1f}", f"{found.seconds:.0f}", edge]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models", default="mlp,lenet")
    parser.add_argument("--strategies", type=int, default=len(STRATEGIES), help="so many of them, from the first on")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    data = subcompress.load_data("mnist", options.data_dir)
    lines = [
        f"# The smallest file at {options.target:g} on MNIST validation, {options.epochs} epochs, "
        f"{time.strftime('%Y-%m-%d')}\n",
        "| network | strategy | bytes | d | validation, mean of 3 seeds | test, of the file | full trainings | seconds "
        "| frontier, bytes: validation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for model in options.models.split(","):
        for strategy, chosen in list(STRATEGIES.items())[: options.strategies]:
            folder = options.runs / f"{model}-{strategy.replace(' ', '')}"
            settings = {"min_accuracy": options.target, "epochs": options.epochs, "threads": 1, **chosen}
            with listening(f"{model}, {strategy}") as listener:
                try:
                    found = subcompress.fit(MODELS[model], data, folder, listener=listener, **settings)
                    lines.append(row(model, strategy, found, subcompress.pack(folder, folder / "net.safetensors")))
                except subcompress.SubcompressError as e:
                    lines.append(f"| {model} | {strategy} | | | {e} | | | | |")
            print(lines[-1], flush=True)
    if options.output:
        (options.output / f"search-{options.models.replace(',', '-')}.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
