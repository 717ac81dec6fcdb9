"""Which levers shorten a file: one table, LeNet and the MLP on MNIST, every row at the same bytes and the same epochs.

    python benchmarks/levers.py --data-dir MNIST [--models lenet,mlp] [--rows base,rate] [--seeds 3] [-o OUT]

Each row trains in as many coordinates as make about 250 coded bytes at its precision, and prints the bytes of those
coordinates and the accuracy on the validation split, mean and standard deviation over the seeds; the test split is not
read. `gain` is the difference to the first row's mean; within the spread of both it says nothing.
About an hour on one core. What won on both networks is an option of `fit` (--optimizer eigen) or its default; the
others live here only, except the price of a bit, which --rate keeps for networks with a coordinate a weight.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from operators import Plain
from operators import Variant as Design
from torch import Tensor, nn
from torch.nn import functional

from subcompress import Data, Split, load_data
from subcompress.data.augment import shift
from subcompress.format import codec
from subcompress.operators import HadamardBlocks
from subcompress.subspace.module import Subspace
from subcompress.subspace.plan import Part, Plan
from subcompress.training.optimizers import OPTIMIZERS
from subcompress.training.tasks import accuracy_of
from subcompress_models import MODELS

BYTES = 250
"""Bytes of coordinates, for which the number of coordinates is chosen."""

ENTROPY = {2: 1.6, 3: 2.7, 4: 3.37, 5: 4.37, 6: 5.25}
"""Bits that a coordinate takes in the file, by its precision."""

LAST = 10
"""Classes, and weights of the last layer's bias."""


@dataclass(frozen=True)
class Lever:
    """One row. d: a factor on the coordinates that the precision allows; after: when rounding begins; dead: coordinates
    that round to zero, in steps; rate: nats of loss a bit; learned: a scale a tensor (its bias included); roles: groups
    of tensors with shares of d; teacher: distillation from the directly trained network; second: Adam in the eigenbasis
    of the gradients' second moment; shift: pixels that images are moved by; calm: a factor on the step once rounding
    has begun; design: another operator."""

    name: str
    bits: int = 4
    d: float = 1.0
    after: float = 0.5
    dead: float = 0.5
    rate: float = 0.0
    learned: bool = False
    roles: str = ""
    share: float = 0.125
    teacher: bool = False
    second: bool = False
    shift: int = 0
    epochs: int = 5
    lr: float = 1.0
    smoothing: float = 0.0
    calm: float = 1.0
    design: Design | None = None


ROWS: dict[str, Lever] = {
    "base": Lever("4 bits, rounded from half-way on"),
    "2 bits": Lever("2 bits", bits=2),
    "3 bits": Lever("3 bits", bits=3),
    "5 bits": Lever("5 bits", bits=5),
    "6 bits": Lever("6 bits", bits=6),
    "dead": Lever("dead zone of 0.65 steps", dead=0.65, d=1.05),
    "late": Lever("rounded for the last 30 %", after=0.7),
    "rate": Lever("rate term of 1e-4 nats a bit", rate=1e-4, d=1.05),
    "rate+": Lever("rate term of 5e-4 nats a bit", rate=5e-4, d=1.3),
    "rate 3": Lever("rate term of 1e-4 nats a bit, 3 bits", bits=3, rate=1e-4, d=1.1),
    "learned": Lever("one learned scale a layer", learned=True),
    "biases": Lever("an eighth of d for the biases", roles="bias"),
    "head": Lever("an eighth of d for the last layer", roles="head"),
    "distil": Lever("distilled from the direct network", teacher=True),
    "second": Lever("Adam in the eigenbasis of the Fisher matrix", second=True),
    "second+": Lever("the same, twice the step", second=True, lr=2.0),
    "lr 2": Lever("twice the step", lr=2.0),
    "lr half": Lever("half the step", lr=0.5),
    "calm": Lever("a third of the step once rounding has begun", calm=1 / 3),
    "calmer": Lever("a tenth of it", calm=0.1),
    "smooth": Lever("labels smoothed by 0.05", smoothing=0.05),
    "shift": Lever("images shifted by up to 2 pixels", shift=2),
    "epochs": Lever("twice the epochs", epochs=10),
    "fan-in": Lever("blocks aligned with the fan-in", design=Design("", align="fan-in")),
    "axes": Lever("blocks aligned in x and y", design=Design("", align="axes")),
    "axes low": Lever(
        "the same, low in x and y, free in the unit", design=Design("", align="axes", columns="low 32", rows=4096)
    ),
}


def planned(row: Lever, model: str, d: int, seed: int) -> tuple[nn.Module, Plan]:
    """The network and what is trained of it."""
    torch.manual_seed(seed)
    module = MODELS[model]()
    plan = Subspace.of(MODELS[model], d, bits=row.bits, seed=seed).plan
    (part,) = plan.parts
    # These operators bring the random start in frozen slots: one scale is that of the start and of the moves.
    usual = HadamardBlocks.sized(part.operator.D, d, seed)
    scales = tuple(plan.starts[spec.name].pieces[0].reach / math.sqrt(usual.K or 16) for spec in part.specs)
    part = replace(part, operator=usual, scales=scales, starts=(0.0,) * len(scales), forms=(0.0,) * len(scales))
    plan = replace(plan, parts=(part,))
    if row.design is not None:
        operator = Plain(row.design, [tuple(p.shape) for p in module.parameters()], d, seed)
        scales = tuple(4 * s / math.sqrt(row.design.K) for s in part.scales)
        return module, replace(plan, parts=(replace(part, operator=operator, scales=scales),))
    if row.roles:
        last = {spec.name for spec in part.specs[-2:]}
        chosen = [s.name.endswith("bias") if row.roles == "bias" else s.name in last for s in part.specs]
        mine = round(row.share * d)
        parts = []
        for group, (want, share) in enumerate(((False, d - mine), (True, mine))):
            specs = tuple(s for s, c in zip(part.specs, chosen, strict=True) if c == want)
            scales = tuple(s for s, c in zip(part.scales, chosen, strict=True) if c == want)
            D = sum(s.reals for s in specs)
            operator = HadamardBlocks.sized(D, min(share, D), seed, group=group)
            ratio = part.operator.row_norm / operator.row_norm
            zeros = (0.0,) * len(specs)
            parts.append(Part(operator, specs, tuple(s * ratio for s in scales) if group else scales, zeros, zeros))
        return module, replace(plan, parts=tuple(parts))
    return module, plan


class Levered(Subspace):
    """A Subspace with the levers that training has a hand in."""

    def __init__(self, module: nn.Module, plan: Plan, row: Lever) -> None:
        super().__init__(module, plan)
        self.row = row
        layers = list(dict.fromkeys(s.name.rpartition(".")[0] for p in plan.parts for s in p.specs))
        self.place = {s.name: layers.index(s.name.rpartition(".")[0]) for p in plan.parts for s in p.specs}
        self.log_scale = nn.Parameter(torch.zeros(len(layers)), requires_grad=row.learned)
        self.lengths: list[Tensor] = []

    def integers(self) -> list[Tensor]:
        """What would be coded now, each part's (d_i,)."""
        found = []
        for z, step in zip(self.z.detach().split(self.splits), self.steps, strict=True):
            q = z / step
            found.append(torch.where(q.abs() < self.row.dead, 0.0, q.round()).clamp(-self.top, self.top))
        return found

    def weights(self) -> dict[str, Tensor]:
        before, bits = self.z.data, self.bits
        if bits:  # straight through: gradients at the rounded place
            self.z.data = torch.cat([q * s for q, s in zip(self.integers(), self.steps, strict=True)])
        self.bits = 0
        try:
            found = super().weights()
        finally:
            self.z.data, self.bits = before, bits
        if self.row.learned:
            found = {n: w * self.log_scale[self.place[n]].exp() for n, w in found.items()}
        return found

    def rate(self, fresh: bool) -> Tensor:
        """Bits of all coordinates under their own frequencies, read off between the integers, differentiable in z."""
        top, total = self.top, self.z.new_zeros(())
        if fresh or not self.lengths:
            counts = [torch.bincount((q + top).long(), minlength=2 * top + 1).float() for q in self.integers()]
            self.lengths = [-torch.log2((c + 0.5) / (c + 0.5).sum()) for c in counts]
        for z, step, length in zip(self.z.split(self.splits), self.steps, self.lengths, strict=True):
            at = (z / step).clamp(-top, top) + top
            low = at.detach().floor().clamp(max=2 * top - 1).long()
            total = total + (length[low] + (at - low) * (length[low + 1] - length[low])).sum()
        return total

    def coded_bytes(self) -> int:
        """Bytes of the coordinates in a file."""
        return len(codec.encode((q.numpy().astype(np.int32), self.bits) for q in self.integers()))


def teacher_of(model: str, data: Data) -> nn.Module:
    """The network trained in all of its weights for five epochs."""
    torch.manual_seed(0)
    net = MODELS[model]()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    steps = 5 * (len(data.train) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        i = torch.randint(len(data.train), (128,))
        loss = functional.cross_entropy(net(data.train.x[i]), data.train.y[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def train(
    row: Lever, model: str, data: Data, seed: int, teacher: Callable[[], nn.Module]
) -> tuple[int, tuple[float, float]]:
    """Coded bytes of one run and its accuracy on the two halves of the validation split: the loop of
    `subcompress.training.loop`, with the levers in it."""
    d = round(8 * BYTES / ENTROPY[row.bits] * row.d)
    module, plan = planned(row, model, d, seed)
    space, g = Levered(module, plan, row), torch.Generator().manual_seed(seed)
    steps = len(data.train) // 128
    total, lr = steps * row.epochs, plan.lr * row.lr
    groups = [{"params": [space.z]}] + ([{"params": [space.log_scale], "lr": 0.01}] if row.learned else [])
    optimizer = OPTIMIZERS["eigen"]([space.z], lr) if row.second else torch.optim.Adam(groups, lr=lr, fused=True)
    peaks = [lr, 0.01][: len(groups)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=total)
    for step in range(total):
        if step % steps == 0:
            order = torch.randperm(len(data.train), generator=g)
        if step == int(row.after * total):
            space.round(row.bits)
        i = order[step % steps * 128 :][:128]
        x, y = data.train.x[i], data.train.y[i]
        if row.shift:
            x = shift(x, g, row.shift)
        out = space(x)
        loss = functional.cross_entropy(out, y, label_smoothing=row.smoothing)
        if row.teacher:
            net = teacher()
            with torch.no_grad():
                known = torch.log_softmax(net(x) / 2, 1)
            soft = functional.kl_div(torch.log_softmax(out / 2, 1), known, log_target=True, reduction="batchmean")
            loss = 0.5 * loss + 0.5 * 4 * soft
        if row.rate and space.bits:
            loss = loss + row.rate * space.rate(step % 20 == 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if space.bits:
            optimizer.param_groups[0]["lr"] *= row.calm
    space.eval()
    half = len(data.validation) // 2
    with torch.no_grad(), space.materialized() as net:
        a, b = (accuracy_of(net, Split(*data.validation[part])) for part in (slice(half), slice(half, None)))
        return space.coded_bytes(), (a, b)


def table(rows: list[str], model: str, data: Data, seeds: int) -> Iterator[str]:
    """Markdown lines, each as soon as it is known."""
    held: list[nn.Module] = []

    def teacher() -> nn.Module:
        if not held:
            held.append(teacher_of(model, data))
        return held[0]

    yield "| lever | d | bytes of coordinates | validation | gain, points | seconds a run |"
    yield "|---|---|---|---|---|---|"
    first: float | None = None
    for name in rows:
        row, began = ROWS[name], time.perf_counter()
        runs = [train(row, model, data, seed, teacher) for seed in range(seeds)]
        seconds = (time.perf_counter() - began) / seeds
        d, size = round(8 * BYTES / ENTROPY[row.bits] * row.d), statistics.mean(b for b, _ in runs)
        found = [statistics.mean(halves) for _, halves in runs]
        base = statistics.mean(found) if first is None else first
        yield _line(row.name, d, size, found, base, seconds)
        if first is None and seeds > 1:
            # Chosen on one half, measured on the other, both ways.
            chosen = [max((h[i], h[1 - i]) for _, h in runs)[1] for i in (0, 1)]
            yield _line(f"the best of {seeds} seeds, chosen on the other half", d, size, chosen, base, seeds * seconds)
        first = base


def _line(name: str, d: int, size: float, found: list[float], base: float, seconds: float) -> str:
    mean, spread = statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0
    return f"| {name} | {d} | {size:.0f} | {mean:.4f} ± {spread:.4f} | {100 * (mean - base):+.2f} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models", default="lenet,mlp")
    parser.add_argument("--rows", default=",".join(ROWS), help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data = load_data("mnist", options.data_dir)
    for model in options.models.split(","):
        lines = [f"# Levers: {model} on MNIST, {options.seeds} seeds, one thread, {time.strftime('%Y-%m-%d')}\n"]
        print(lines[0])
        for line in table(options.rows.split(","), model, data, options.seeds):
            print(line, flush=True)
            lines.append(line)
        if options.output:
            (options.output / f"levers-{model}.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
