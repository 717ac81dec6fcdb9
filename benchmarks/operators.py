"""What the default operator was settled on: columns, rows a block, second sign, frozen slots, alignment.

    python benchmarks/operators.py --data-dir MNIST [--models lenet,mlp] [--seeds 3] [-o benchmarks/results]
    python benchmarks/operators.py --data-dir MNIST --newer --epochs 1 [--models lenet,mlp] [-o benchmarks/results]

Trains z in float32 for three epochs, or --epochs (the recipe of `fit` without rounding), and prints the validation
accuracy, mean and standard deviation over the seeds. About 35 minutes on one core. Variants are products with the
chosen columns of H_m, written plainly: none of this is what `subcompress` runs.

With --newer, operators of the registry that came later, beside the default: P alone differs, starts and scales are
those of a `Subspace`. About 5 minutes on one core for an epoch.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subcompress import Data, load_data
from subcompress.operators import HadamardBlocks, Operator, walsh
from subcompress.operators.haar import HaarWavelets
from subcompress.operators.householder import HouseholderProduct
from subcompress.operators.tucker import TuckerCore
from subcompress.subspace.module import Subspace
from subcompress.training.loop import DeadRunError, TrainOptions, train
from subcompress.training.tasks import Task
from subcompress_models import MODELS

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """One design. rows: m; align: where weights lie in the blocks; start: `frozen` slots or torch's own."""

    name: str
    rows: int = 1024
    columns: str = "low"
    K: int = 16
    second_sign: bool = False
    align: str = "flat"
    start: str = "frozen"


VARIANTS = [
    Variant("**low-sequency columns, m = 1,024, K = 16, flat** (the default)"),
    Variant("affine columns", columns="affine"),
    Variant("affine columns, m = 4,096", columns="affine", rows=4096),
    Variant("leading columns", columns="leading"),
    Variant("one permutation", columns="permutation"),
    Variant("m = 512", rows=512),
    Variant("m = 2,048", rows=2048),
    Variant("m = 4,096", rows=4096),
    Variant("a second random sign per row", second_sign=True),
    Variant("K = 1", K=1),
    Variant("K = 64", K=64),
    Variant("torch's own start, nothing frozen", start="torch"),
    Variant("fan-in aligned", align="fan-in"),
    Variant("aligned in every axis (28 x 28 inputs as such)", align="axes"),
    Variant("the same, m = 4,096, low in x and y, free in the unit", align="axes", columns="low 32", rows=4096),
]
SETTINGS = {"lenet": 290, "mlp": 450}

Maker = Callable[[Shapes, int, int], Operator]


def one_block(shapes: Shapes, d: int, seed: int) -> Operator:
    """Random Haar atoms of all weights as one line."""
    D = sum(map(math.prod, shapes))
    return HaarWavelets(D, d, seed, (D - 1).bit_length())


NEWER: dict[str, Maker] = {
    "**`hadamard`** (the default)": HadamardBlocks.shaped,
    "`haar`, in blocks": HaarWavelets.shaped,
    "`haar`, one block": one_block,
    "`tucker`": TuckerCore.shaped,
    "`householder`": HouseholderProduct.shaped,
}
"""Operators of the registry, by the name of their row."""


def hadamard(m: int) -> Tensor:
    """H_m, Sylvester's."""
    h = torch.ones(1, 1)
    while len(h) < m:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


def choose_columns(v: Variant, d: int, g: torch.Generator) -> Tensor:
    """The column of each slot, frozen ones first, (K + d,)."""
    m, n = v.rows, v.K + d
    if v.columns == "leading":
        return torch.arange(n)
    if v.columns == "permutation":
        return torch.randperm(m, generator=g)[:n]
    if v.columns == "low":
        seed = int(torch.randint(0, 1 << 62, (1,), generator=g))
        return torch.from_numpy(HadamardBlocks(m * n, d, seed, m.bit_length() - 1, v.K).columns)
    if v.columns == "low 32":
        # As above over the five lowest bits and the next five, whatever the bits above; roles change at random.
        index, s = torch.arange(m), torch.from_numpy(walsh.sequency(5))
        order = torch.argsort(s[index % 32] ** 2 + s[index // 32 % 32] ** 2, stable=True)[:n]
        return order[torch.randperm(n, generator=g)]
    factor, offset = (int(torch.randint(0, m, (1,), generator=g)) for _ in range(2))
    return (torch.arange(n) * (factor | 1) + offset) % m


def places(shapes: Shapes, v: Variant) -> tuple[Tensor, int]:
    """The row of each weight and how many rows there are: aligned tensors pad each unit to powers of two."""
    rows, base = [], 0
    for shape in shapes:
        size = math.prod(shape)
        axes = {"flat": [], "fan-in": [size // shape[0]], "axes": list(shape[1:])}[v.align] if len(shape) > 1 else []
        if v.align == "axes" and axes == [784]:
            axes = [28, 28]
        index, stride = torch.zeros(1, dtype=torch.long), 1
        for axis in axes:
            padded = 1 << (axis - 1).bit_length()
            index, stride = (index[:, None] * padded + torch.arange(axis)).flatten(), stride * padded
        if axes:
            base = -(-base // min(stride, v.rows)) * min(stride, v.rows)
        units = shape[0] if axes else size
        rows.append((base + torch.arange(units)[:, None] * stride + index).flatten())
        base += units * stride
    return torch.cat(rows), base


class Plain(Operator):
    """A variant as an operator: products with chosen columns of H_m and random signs."""

    def __init__(self, v: Variant, shapes: Shapes, d: int, seed: int) -> None:
        g = torch.Generator().manual_seed(7919 * seed + 13)
        self.place, total = places(shapes, v)
        self.D, self.d, self.seed, self.K = len(self.place), d, seed, v.K
        self.columns = hadamard(v.rows)[choose_columns(v, d, g)]
        blocks = -(-total // v.rows)
        self.signs = torch.randint(0, 2, (blocks, v.K + d), generator=g).float() * 2 - 1
        second = torch.randint(0, 2, (blocks, v.rows), generator=g).float() * 2 - 1
        self.begin: Tensor | None = None
        self.second = second if v.second_sign else torch.ones_like(second)

    @classmethod
    def sized(cls, D: int, d: int, seed: int) -> Operator:
        return cls(VARIANTS[0], [(D,)], d, seed)

    @property
    def row_norm(self) -> float:
        return math.sqrt(self.d)

    def _rows(self, slots: Tensor) -> Tensor:
        return ((self.signs * slots) @ self.columns * self.second).flatten()[self.place]

    def matvec(self, z: Tensor) -> Tensor:
        return self._rows(torch.cat([z.new_zeros(self.K), z]))

    def rmatvec(self, g: Tensor) -> Tensor:
        rows = torch.zeros_like(self.second).flatten().index_copy(0, self.place, g).view_as(self.second)
        return (((rows * self.second) @ self.columns.T) * self.signs).sum(0)[self.K :]

    def start(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        if self.begin is None:
            self.begin = self._rows(torch.cat([torch.ones(self.K), torch.zeros(self.d)]))
        return self.begin.to(device, dtype)


def accuracy(v: Variant, model: str, d: int, data: Data, seed: int, epochs: int) -> float:
    """Validation accuracy of one run; a dead one scores what its last epoch did not: chance."""
    torch.manual_seed(seed)
    module = MODELS[model]()
    operator = Plain(v, [tuple(p.shape) for p in module.parameters()], d, seed)
    plan = Subspace.of(MODELS[model], d, seed=seed).plan
    (part,) = plan.parts
    # The operator brings the random start: its frozen slots are what a seeded start would be added to.
    deviations = (plan.starts[spec.name].pieces[0].reach for spec in part.specs)
    scales = tuple(deviation / math.sqrt(v.K) for deviation in deviations)
    part = replace(part, operator=operator, scales=scales, starts=(0.0,) * len(scales))
    subspace = Subspace(module, replace(plan, parts=(part,)))
    if v.start == "torch":
        starts = zip(module.parameters(), part.scales, strict=True)
        operator.begin = torch.cat([p.detach().flatten() / scale for p, scale in starts])
    # The same movement of the weights, relative to their start, for every K.
    recipe = TrainOptions(epochs, 0.35 / 4 * math.sqrt(v.K) / math.sqrt(min(d, v.rows)), seed=seed)
    try:
        return train(subspace, data, Task.of(), recipe).value
    except DeadRunError:
        return 0.1


def newer_accuracy(maker: Maker, model: str, d: int, data: Data, seed: int, epochs: int) -> float:
    """As `accuracy`, of an operator of the registry: starts and guessed scales are those of a `Subspace`."""
    plan = Subspace.of(MODELS[model], d, seed=seed).plan
    (part,) = plan.parts
    part = replace(part, operator=maker([spec.shape for spec in part.specs], d, seed))
    try:
        subspace = Subspace(MODELS[model](), replace(plan, parts=(part,)))
        return train(subspace, data, Task.of(), TrainOptions(epochs, plan.lr, seed=seed)).value
    except DeadRunError:
        return 0.1


def table(models: list[str], rows: dict[str, Callable[[str, int], float]], seeds: int) -> Iterator[str]:
    """Markdown lines, each as soon as it is known. rows: by name, the accuracy of a model and a seed."""
    yield "| variant | " + " | ".join(f"{m}, d = {SETTINGS[m]}" for m in models) + " |"
    yield "|---|" + "---|" * len(models)
    for name, accuracy_of in rows.items():
        cells = []
        for model in models:
            found = [accuracy_of(model, seed) for seed in range(seeds)]
            spread = statistics.stdev(found) if seeds > 1 else 0.0
            cells.append(f"{statistics.mean(found):.4f} ± {spread:.4f}")
        yield f"| {name} | " + " | ".join(cells) + " |"


def measured(newer: bool, data: Data, epochs: int) -> dict[str, Callable[[str, int], float]]:
    """The rows of the table."""

    def of(run: Callable[..., float], what: Any) -> Callable[[str, int], float]:
        return lambda model, seed: run(what, model, SETTINGS[model], data, seed, epochs)

    if newer:
        return {name: of(newer_accuracy, maker) for name, maker in NEWER.items()}
    return {v.name: of(accuracy, v) for v in VARIANTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models", default="lenet,mlp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--newer", action="store_true", help="operators of newer work, beside the default")
    parser.add_argument("--row", help="only rows with this in their name")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    assert HadamardBlocks.sized(44_426, 290, 0).m == 1024, "the first row is meant to be the default"
    torch.set_num_threads(1)
    data, lines = load_data("mnist", options.data_dir), []
    rows = measured(options.newer, data, options.epochs)
    rows = {name: row for name, row in rows.items() if options.row is None or options.row in name}
    for line in table(options.models.split(","), rows, options.seeds):
        print(line, flush=True)
        lines.append(line)
    if options.output:
        after = f"{options.epochs} epoch{'s' * (options.epochs > 1)}, {options.seeds} seeds"
        head = f"MNIST validation accuracy after {after}, {time.strftime('%Y-%m-%d')}:\n"
        name = f"operator-{'newer' if options.newer else options.models.replace(',', '-')}.md"
        (options.output / name).write_text("\n".join([head, *lines, ""]))


if __name__ == "__main__":
    main()
