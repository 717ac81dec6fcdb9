"""One training step in z against the plain network's, in turn: what training in a subspace costs.

    python benchmarks/step.py [--threads 1 2] [--steps 200] [--largest 1e8] [--device cpu] [--vectors KIND] [-o FOLDER]

Batch 128, Adam, cross-entropy, 4 bits, random inputs: no data. Medians, and the median ratio of each step to the plain
step beside it, with torch's default Adam; ours and the peers have its fused one, which d numbers cost nothing with, and
the plain step is shown with that as well. Peers are the projections that others train in, on the same network and d.
Then what a step adds, the weights from z and the gradient in z, against D and d, with the slope of the line through
their logarithms, beside what it replaces: fused Adam's update of D weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from subcompress.native import compiled
from subcompress.operators import HadamardBlocks, kernels
from subcompress.operators.kernels import Segment
from subcompress.subspace.module import Subspace
from subcompress_models import MODELS

CASES = [("lenet", 600), ("lenet", 2_000), ("mlp", 750), ("mlp", 2_000), ("lenet5", 2_000)]
PEERS = {"Fastfood": "fastfood", "one index a weight": "onehot"}
PLAIN = "plain"


def stepper(module: nn.Module, fused: bool, device: str) -> Callable[[], float]:
    """A function that takes one step and returns its milliseconds. fused: as each side runs in practice."""
    x, y = torch.randn(128, 1, 28, 28, device=device), torch.randint(0, 10, (128,), device=device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=fused)

    def step() -> float:
        began = time.perf_counter()
        loss = cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began)

    return step


def subspace(model: str, d: int, device: str, operator: str = "hadamard") -> Subspace:
    """The network in d coordinates, as in the second half of a fit, where they are rounded."""
    space = Subspace.of(MODELS[model]().to(device), d, operator=operator)
    space.bits, space.steps = 4, [1 / 8] * len(space.steps)
    return space


def without_kernel(step: Callable[[], float]) -> Callable[[], float]:
    """The step where nothing is compiled: torch's own operators."""

    def run() -> float:
        with (
            mock.patch.object(kernels, "kernel", lambda *_: None),
            mock.patch("subcompress.operators.hadamard.kernel", lambda *_: None),
        ):
            return step()

    return run


def compare(model: str, d: int, steps: int, device: str) -> dict[str, tuple[float, float]]:
    """Milliseconds and ratio to the plain step of each variant."""
    ours = stepper(subspace(model, d, device), True, device)
    variants = {
        PLAIN: stepper(MODELS[model]().to(device), False, device),
        "plain, fused Adam": stepper(MODELS[model]().to(device), True, device),
        "**ours**": ours,
        "ours, no kernel": without_kernel(stepper(subspace(model, d, device), True, device)),
    }
    for name, operator in PEERS.items():
        variants[name] = stepper(subspace(model, d, device, operator), True, device)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(steps + 10):
        for name, run in variants.items():
            times[name].append(run())
    plain = times[PLAIN][10:]
    return {
        name: (statistics.median(t[10:]), statistics.median(a / b for a, b in zip(t[10:], plain, strict=True)))
        for name, t in times.items()
    }


def products(D: int, d: int, device: str) -> dict[str, float]:
    """Milliseconds of a step's own parts: medians of at least 5, in turn."""
    operator = HadamardBlocks.sized(D, d, 7)
    z, out, weights = torch.randn(d, device=device), torch.empty(D, device=device), torch.zeros(D, device=device)
    weights.grad = torch.randn(D, device=device)
    adam = torch.optim.Adam([weights.requires_grad_()], fused=True)
    g = weights.grad
    parts: dict[str, Callable[[], object]] = {
        "weights from z": lambda: operator.write(z, [Segment(0, out, 0.5)]),
        "gradient in z": lambda: operator.adjoint([(0, g, 0.5)]),
        "fused Adam on D weights": adam.step,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(max(6, min(100, 10**7 // D))):
        for name, run in parts.items():
            began = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(t[1:]) for name, t in times.items()}


def scaling(largest: int, device: str) -> Iterator[tuple[str, list[tuple[int, dict[str, float]]], dict[str, float]]]:
    """What varies, each part's time at each size, and the slopes."""
    sizes = [n for n in (10**5, 10**6, 10**7, 10**8) if n <= largest]
    for letter, points in (
        ("D, at d = 4,000", [(n, products(n, 4_000, device)) for n in sizes]),
        ("d, at D = 10,000,000", [(n, products(10**7, n, device)) for n in (100, 1_000, 10_000, 100_000, 1_000_000)]),
    ):
        logs = [math.log(n) for n, _ in points]
        slopes = {name: float(np.polyfit(logs, [math.log(t[name]) for _, t in points], 1)[0]) for name in points[0][1]}
        yield letter, points, slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--largest", type=float, default=1e8, help="the largest D")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vectors", choices=compiled.KINDS[:-1], help="what the CPU's kernel computes with")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    os.environ[compiled.VECTORS] = options.vectors or os.environ.get(compiled.VECTORS, "")
    lines: list[str] = []
    found: dict[str, object] = {}

    def say(line: str) -> None:
        lines.append(line)
        if not options.json:
            print(line, flush=True)

    for threads in options.threads:
        torch.set_num_threads(threads)
        cpu = f"threads: {threads}, vectors: {compiled.cpu_engine()}"
        where = torch.cuda.get_device_name() if options.device == "cuda" else cpu
        say(f"{where}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}: ms a step, and times the plain step\n")
        for i, (model, d) in enumerate(CASES):
            cells = compare(model, d, options.steps, options.device)
            found[f"{model}, d = {d}, {where}"] = {k: {"ms": ms, "ratio": r} for k, (ms, r) in cells.items()}
            if i == 0:
                say("| network, d | " + " | ".join(cells) + " |\n" + "|---" * (len(cells) + 1) + "|")
            shown = [f"{ms:.2f}" if name == PLAIN else f"{ms:.2f}; {r:.2f}" for name, (ms, r) in cells.items()]
            say(f"| {model}, {d} | " + " | ".join(shown) + " |")
        say("")
    for what, points, slopes in scaling(int(options.largest), options.device):
        found[what] = {"points": points, "slopes": slopes}
        say(f"ms by {what}\n\n| | " + " | ".join(slopes) + " |\n" + "|---" * (len(slopes) + 1) + "|")
        for n, times in points:
            say(f"| {n:,} | " + " | ".join(f"{ms:.3g}" for ms in times.values()) + " |")
        say("| log-log slope | " + " | ".join(f"{slope:.2f}" for slope in slopes.values()) + " |\n")
    if options.json:
        print(json.dumps(found))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / ("step-cuda.md" if options.device == "cuda" else "step.md")).write_text("\n".join(lines))


if __name__ == "__main__":
    main()
