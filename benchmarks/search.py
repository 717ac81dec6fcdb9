"""The smallest d at a target: the paper's two networks on MNIST at 90 %, and what the search costs.

    python benchmarks/search.py --data-dir MNIST [--models mlp,lenet] [--runs runs/search] [-o benchmarks/results]

Runs `fit(min_accuracy=0.9)` with its defaults on one thread; interrupted, it goes on. Validation decides, the test
split is read once, at the end. About ten minutes for lenet and three for mlp on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import subcompress
from subcompress_cli.progress import listening
from subcompress_models import MODELS

KNOWN = {"mlp": "paper 750; reproduction 600", "lenet": "paper 290; reproduction 170"}


def rows(model: str, found: subcompress.Fit, size: int) -> list[str]:
    """What was found, and every probe of it."""
    values = [p.value for p in found.probes if p.d == found.d and not p.warm]
    spread = found.d_spread or {}
    lines = [
        f"\n## {model}: d = {found.d} ({KNOWN.get(model, '')})\n",
        f"validation {sum(values) / len(values):.4f} +- {found.validation_spread or 0:.4f} over {len(values)} seeds, "
        f"test {found.test:.4f} (of the file), {size} bytes packed; by the fitted line each seed alone crosses at "
        f"d = {spread.get('low')} to {spread.get('high')}; {found.full_fits:g} full trainings, {found.seconds:.0f} s\n",
        "| d | seed | validation | epochs | seconds | |",
        "|---|---|---|---|---|---|",
    ]
    for p in found.probes:
        remark = "stopped" if p.stopped else f"from {p.warm}" if p.warm else p.note
        lines.append(f"| {p.d} | {p.seed} | {p.value:.4f} | {p.epochs} | {p.seconds:.0f} | {remark} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models", default="mlp,lenet")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    data = subcompress.load_data("mnist", options.data_dir)
    lines = [f"# The smallest d at {options.target:g} on MNIST validation, 10 epochs, {time.strftime('%Y-%m-%d')}"]
    print(lines[0])
    for model in options.models.split(","):
        folder = options.runs / model
        with listening(model) as listener:
            found = subcompress.fit(
                MODELS[model](), data, folder, min_accuracy=options.target, threads=1, listener=listener
            )
        lines += rows(model, found, subcompress.pack(folder, folder / "net.safetensors"))
        print("\n".join(lines[-len(found.probes) - 4 :]), flush=True)
    if options.output:
        (options.output / "search.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
