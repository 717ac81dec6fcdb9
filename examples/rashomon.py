"""Twenty LeNets around one optimum in less than 10 kB, and what networks of about the same accuracy disagree on.

    python examples/rashomon.py --data-dir MNIST [-o benchmarks/results]

All models of about the best accuracy are a Rashomon set (Breiman 2001, "Statistical Modeling: The Two Cultures"). A
LeNet is fitted and packed. Each member is a file of small integers on the base of its weights: the end of a walk of
random steps, of which those count that keep the validation accuracy. Measured is how often members disagree (Marx et
al. 2020, arXiv:1909.06677), how much more each loses where a block of pixels is shuffled among images (Fisher et al.
2019, arXiv:1801.01489), and how much more again for two blocks together than for each alone (Li, Barber 2024,
arXiv:2305.10181). Walks and blocks are of the validation split; the test split is read once. 4 minutes.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import subcompress
from subcompress_models import MODELS

MEMBERS, COORDINATES, STEPS, LOWEST = 20, 400, 16, 0.979  # LOWEST: 97 % and three deviations between two splits
SIDE, GRID, IMAGES = 7, 4, 1_000  # a block's side in pixels, an image's side in blocks; images that are shuffled


def outputs(net: nn.Module, x: Tensor) -> Tensor:  # (N, 10)
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(1_000)])


def accuracy(scores: Tensor, y: Tensor) -> float:
    return float((scores.argmax(-1) == y).float().mean())


@torch.no_grad()
def walk(sub: subcompress.Subspace, x: Tensor, y: Tensor) -> None:
    """Move z from zero to where a walk ends. Weights on the way are already those that a file holds."""
    z = torch.zeros_like(sub.z)
    for _ in range(STEPS):
        sub.z.copy_(candidate := z + 1.5 * sub.plan.lr * torch.randn_like(z))
        with sub.eval().materialized() as net:
            z = candidate if accuracy(outputs(net, x), y) >= LOWEST else z
    sub.z.copy_(z)


def needs(net: nn.Module, x: Tensor, y: Tensor, groups: list[list[int]]) -> Tensor:
    """How much the loss rises where all blocks of a group are shuffled among the images, (groups,)."""
    shuffled, found = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))], []
    for group in [[], *groups]:
        mixed = x.clone()
        for row, column in (divmod(block, GRID) for block in group):
            place = (..., slice(SIDE * row, SIDE * (row + 1)), slice(SIDE * column, SIDE * (column + 1)))
            mixed[place] = shuffled[place]
        found.append(nn.functional.cross_entropy(outputs(net, mixed), y))
    return torch.stack(found[1:]) - found[0]


def make(data: subcompress.Data, folder: Path) -> list[Path]:
    """Fit, walk and pack: the files, that of the optimum first."""
    subcompress.fit(MODELS["lenet"], data, folder / "run", d=1_500, bits=4, epochs=6, threads=1)
    files = [folder / f"{'member' if i else 'optimum'}-{i:02}.safetensors" for i in range(MEMBERS + 1)]
    subcompress.pack(folder / "run", files[0])
    base = subcompress.load(files[0], MODELS["lenet"]()).state_dict()
    sub = subcompress.Subspace.of(MODELS["lenet"](), COORDINATES, bits=3, base=base, base_name="-", act_on="all")
    torch.manual_seed(0)
    nn.init.normal_(sub.z, std=5 * sub.plan.lr)
    sub.round(bits=3)  # the step of all members
    for file in files[1:]:
        walk(sub, *data.validation[torch.arange(len(data.validation))])
        subcompress.pack(sub, file)
    return files


def row(name: str, form: str, values: Tensor) -> str:
    """The metric of the optimum, which comes first, and the mean, lowest and highest metric of the members."""
    rest = values[1:].double()
    return f"| {name} | {values[0]:{form}} | {rest.mean():{form}} | {rest.min():{form}} | {rest.max():{form}} |"


def table(data: subcompress.Data, files: list[Path]) -> list[str]:
    """What the files reach and disagree on, as lines of Markdown."""
    nets = [subcompress.load(files[0], MODELS["lenet"]())]
    nets += [subcompress.load(f, MODELS["lenet"](), base=nets[0].state_dict()) for f in files[1:]]
    x, y = data.validation[torch.arange(min(IMAGES, len(data.validation)))]
    alone = torch.stack([needs(net, x, y, [[block] for block in range(GRID**2)]) for net in nets])
    top = alone[0].argsort(descending=True)[:4].sort().values
    pairs = torch.combinations(top)
    both = torch.stack([needs(net, x, y, pairs.tolist()) for net in nets]) - alone[:, pairs].sum(2)
    names = [f"({b // GRID + 1}, {b % GRID + 1})" for b in range(GRID**2)]
    x, y = data.test[torch.arange(len(data.test))]
    scores = torch.stack([outputs(net, x).softmax(1) for net in nets])
    said, sizes = scores.argmax(2), torch.tensor([f.stat().st_size for f in files])
    first, second = torch.combinations(torch.arange(1, len(nets))).T
    apart = (said[first] != said[second]).double().mean(1)
    return [
        f"{len(files)} files, {int(sizes.sum()):,} bytes in all. Two members disagree on {apart.mean():.2%} of the",
        f"test images ({apart.min():.2%} to {apart.max():.2%}), some two on {(said[1:] != said[1]).any(0).sum()} of",
        f"{len(y):,}. Their mean probabilities have a test accuracy of {accuracy(scores[1:].mean(0), y):.4f}.\n",
        "| | optimum | members, mean | lowest | highest |\n|---|---|---|---|---|",
        row("test accuracy", ".4f", torch.tensor([accuracy(s, y) for s in scores])),
        row("bytes", ".0f", sizes),
        *(row(f"loss, block {names[b]} shuffled", "+.3f", alone[:, b]) for b in top),
        *(row(f"loss, {names[a]} and {names[b]} together", "+.3f", v) for (a, b), v in zip(pairs, both.T, strict=True)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, help="a folder for the table, rashomon.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = "\n".join(table(data := subcompress.load_data("mnist", given.data_dir), make(data, Path("runs/rashomon"))))
    print(lines)
    if given.output:
        (given.output / "rashomon.md").write_text(lines + "\n")


if __name__ == "__main__":
    main()
