"""Five tasks in one network and one file of less than 5 kB, learned one after another in blocks of coordinates.

    python examples/continual.py --data-dir MNIST [-o benchmarks/results]

Task k of split MNIST (Zenke et al. 2017, arXiv:1703.04200) is to tell the digit 2k from 2k + 1. The caller says which
task it is, and two of the ten outputs are compared. While a task is learned, only its own block of the coordinates of
one seed moves: columns of P are orthogonal, so no two tasks move the weights in one direction. That alone keeps nothing
that a network says. So what it said of the new images before, in the outputs of former tasks, is a second loss
("Learning without forgetting", Li, Hoiem 2016, arXiv:1606.09282). Images of former tasks are not seen again.

The table compares, for each task, a separate network of as many coordinates as a block; the one network for all tasks;
the same without the second loss; and the file with only the blocks up to the task's own, which no later task changes.
Settings were chosen on the validation split; the test split is read once, of the files. 6 minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import subcompress
from subcompress_models import MODELS

D, TASKS, STEPS, BATCH, BITS = 1_000, 5, 900, 64, 6
"""Coordinates of a block; tasks; steps and examples a step of each; bits of a coordinate."""
SOFT, WEIGHT = 2.0, 0.4
"""What outputs are divided by before they are compared with former ones, and the weight of that loss, of each task."""

Pair = tuple[Tensor, Tensor]


def task_of(split: Any, task: int) -> Pair:
    """Images of the two digits of a task, and 0 or 1 for each."""
    x, y = split[torch.arange(len(split))]
    return x[y // 2 == task], y[y // 2 == task] - 2 * task


def outputs(net: nn.Module, x: Tensor) -> Tensor:
    """The outputs of each task, (N, tasks, 2)."""
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(1_000)]).view(-1, TASKS, 2)


def learn(sub: subcompress.Subspace, task: int, pair: Pair, block: slice, former: int) -> None:
    """Train a block of the coordinates on a task, and keep what is said for the first `former` tasks."""
    x, y = pair
    with sub.eval().materialized() as net:
        said = outputs(net, x)[:, :former].div(SOFT).softmax(-1)
    rate = sub.plan.lr * (len(sub.z) / D) ** 0.5  # steps move weights as far as with a block's coordinates alone
    optimizer = torch.optim.Adam(sub.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS)
    draws = torch.Generator().manual_seed(task)
    still = torch.ones_like(sub.z, dtype=torch.bool)
    still[block] = False
    for _ in range(STEPS):
        rows = torch.randint(len(y), (BATCH,), generator=draws)
        out = sub.train()(x[rows]).view(-1, TASKS, 2)
        loss = cross_entropy(out[:, task], y[rows])
        if former:
            now = log_softmax(out[:, :former] / SOFT, -1)
            loss = loss + WEIGHT * SOFT**2 * kl_div(now, said[rows], reduction="none").sum() / BATCH
        optimizer.zero_grad()
        loss.backward()
        sub.z.grad[still] = 0
        optimizer.step()
        schedule.step()


def fitted(tasks: list[int], pairs: list[Pair], keep: bool, path: Path) -> None:
    """Learn tasks one after another, and write the file. keep: with the second loss."""
    sub = subcompress.Subspace.of(MODELS["lenet"], D * len(tasks), bits=BITS)
    for number, task in enumerate(tasks):
        learn(sub, task, pairs[task], slice(D * number, D * (number + 1)), number if keep else 0)
    sub.round(bits=BITS)
    subcompress.pack(sub, path)


def table(data: subcompress.Data, folder: Path) -> list[str]:
    """Learn, and what the files say of the test split, as lines of Markdown."""
    pairs, every = [task_of(data.train, task) for task in range(TASKS)], list(range(TASKS))
    for task in every:
        fitted([task], pairs, False, folder / f"separate-{task}.safetensors")
    fitted(every, pairs, True, one := folder / "tasks.safetensors")
    fitted(every, pairs, False, careless := folder / "careless.safetensors")
    lines, sizes = [], sum(file.stat().st_size for file in folder.glob("separate-*"))
    for task in every:
        x, y = task_of(data.test, task)
        files = folder / f"separate-{task}.safetensors", one, careless
        nets = [subcompress.load(file, MODELS["lenet"]()) for file in files]
        nets.append(subcompress.load(one, MODELS["lenet"](), coordinates=slice(D * (task + 1))))
        right = [float((outputs(net, x)[:, task].argmax(1) == y).float().mean()) for net in nets]
        shown = " | ".join(f"{share:.4f}" for share in right)
        lines.append(f"| {2 * task} or {2 * task + 1} | {shown} | {100 * (right[1] - right[0]):+.2f} |")
    return [
        "| task | separate networks | **one network** | without the second loss | blocks up to the task's own "
        "| one network against separate ones, points |\n|---|---|---|---|---|---|",
        *lines,
        f"| bytes | {sizes:,} | {one.stat().st_size:,} | {careless.stat().st_size:,} | {one.stat().st_size:,} | |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, help="a folder for the table, continual.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = "\n".join(table(subcompress.load_data("mnist", given.data_dir), Path("runs/continual")))
    print(lines)
    if given.output:
        (given.output / "continual.md").write_text(lines + "\n")


if __name__ == "__main__":
    main()
