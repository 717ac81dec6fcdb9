"""One training step in z against the plain network's, the two in turn.

    python benchmarks/step.py [--threads 1] [--steps 200] [--json]

Batch 128, Adam, cross-entropy; medians and the median of the ratios of neighbouring pairs. Random inputs: no data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from subcompress.subspace import Subspace
from subcompress_models import MODELS

CASES = [("lenet", 600), ("lenet", 2_000), ("mlp", 750), ("mlp", 2_000), ("lenet5", 2_000)]


def stepper(module: nn.Module, fused: bool) -> Callable[[], float]:
    """A function that takes one step and returns its milliseconds. fused: as each side runs in practice."""
    x, y = torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-4, fused=fused)

    def step() -> float:
        began = time.perf_counter()
        loss = cross_entropy(module(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return 1e3 * (time.perf_counter() - began)

    return step


def compare(model: str, d: int, steps: int) -> dict[str, float | str | int]:
    """Medians of both and of their ratio, both with torch's fused Adam, and against its default Adam."""
    module = MODELS[model]()
    subspace = Subspace.of(module, d)
    subspace.bits, subspace.steps = 4, [1 / 8]
    runners = [stepper(subspace, True), stepper(MODELS[model](), True), stepper(MODELS[model](), False)]
    times = [[run() for run in runners] for _ in range(steps + 10)][10:]
    ours, fused, default = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "model": model,
        "d": d,
        "ours_ms": round(ours, 2),
        "plain_ms": round(default, 2),
        "plain_fused_ms": round(fused, 2),
        "ratio": round(statistics.median(a / c for a, _, c in times), 2),
        "ratio_fused": round(statistics.median(a / b for a, b, _ in times), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [compare(model, d, options.steps) for model, d in CASES]
    if options.json:
        print(json.dumps({"threads": options.threads, "rows": rows}))
        return
    print(f"threads: {options.threads}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print(
        "| network, d | ours, ms | plain, ms | ratio | plain with fused Adam, ms | ratio |\n|---|---|---|---|---|---|"
    )
    for r in rows:
        cells = [
            f"{r['model']}, {r['d']}",
            r["ours_ms"],
            r["plain_ms"],
            r["ratio"],
            r["plain_fused_ms"],
            r["ratio_fused"],
        ]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
