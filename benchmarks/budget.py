"""The best within N bytes against the d that comes out at that size: `fit(within=N)` beside `fit(d=...)`.

    python benchmarks/budget.py [--cases lenet:digits:250,...] [--data-dir MNIST] [--seeds 3] [--epochs 20] [-o OUT]

A case is NETWORK:DATA:BYTES. Of each, `within` is trained once a seed, and so are some d at which files are about as
long: those whose mean size is within the budget are what it is held against. Validation accuracy, one thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import subcompress
from subcompress_models import MODELS

CASES = "lenet:digits:200,lenet:digits:250,lenet:digits:400"
SHARES = (0.92, 0.96, 1.0, 1.04)
"""Multiples of the d that the budget used, which are trained for comparison."""


def rows(network: str, data_name: str, limit: int, data: subcompress.Data, options: dict[str, Any]) -> Iterator[str]:
    """A row of `within`, then one of each d."""
    seeds, common = options["seeds"], {k: v for k, v in options.items() if k != "seeds"}

    def fits(**given: Any) -> list[subcompress.Fit]:
        found = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                found.append(subcompress.fit(MODELS[network], data, f"{folder}/run", seed=seed, **given, **common))
        return found

    within = fits(within=limit, seeds=1)
    ours = statistics.fmean(f.validation for f in within)
    yield row(f"{network}, {data_name}", f"**--bytes {limit}**", within, "")
    for share in SHARES:
        found = fits(d=round(share * statistics.fmean(f.d for f in within)))
        fitting = statistics.fmean(f.bytes for f in found) <= limit
        gain = 100 * (ours - statistics.fmean(f.validation for f in found))
        noise = f" ± {_error(within, found):.1f}" if seeds > 1 else ""
        yield row("", f"--d {found[0].d}", found, f"{gain:+.1f}{noise}" if fitting else "too long")


def _error(*ways: list[subcompress.Fit]) -> float:
    """Standard error, in points, of the difference of two means."""
    return 100 * math.sqrt(sum(statistics.variance(f.validation for f in way) / len(way) for way in ways))


def row(case: str, way: str, found: list[subcompress.Fit], gain: str) -> str:
    """Mean and deviation over the seeds."""
    values, sizes = [f.validation for f in found], [f.bytes for f in found]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    cut = sum(p.cut for f in found for p in f.probes)
    cells = [case, way, f"{min(f.d for f in found)} to {max(f.d for f in found)}", f"{min(sizes)} to {max(sizes)}"]
    cells += [f"{cut}", f"{statistics.fmean(values):.4f}{spread}", gain]
    cells += [
        f"{statistics.fmean(f.full_fits for f in found):.1f}",
        f"{statistics.fmean(f.seconds for f in found):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    common = {"seeds": options.seeds, "epochs": options.epochs, "batch_size": options.batch_size, "threads": 1}
    lines = [
        f"# Within N bytes: {options.epochs} epochs, {options.seeds} seed(s), {time.strftime('%Y-%m-%d')}\n",
        "`gain`: of the budget's validation accuracy over that of the d, in points, with its standard error.\n",
        "| network | way | d | bytes | bytes cut | validation | gain | trainings | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for case in options.cases.split(","):
        network, data_name, limit = case.split(":")
        data = subcompress.load_data(data_name, options.data_dir if data_name != "digits" else None)
        for line in rows(network, data_name, int(limit), data, common):
            lines.append(line)
            print(line, flush=True)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        names = "-".join(dict.fromkeys("-".join(case.split(":")[:2]) for case in options.cases.split(",")))
        (options.output / f"budget-{names}.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
