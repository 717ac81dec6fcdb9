"""The measurements of Li et al. 2018 (arXiv:1804.08838) again, each beside the paper's value and a reproduction's.

    python benchmarks/dimension.py --data-dir MNIST [--cifar-dir CIFAR10] [--cases fc,lenet,...] [--runs runs/dim]
        [-o benchmarks/results]

Accuracy on the validation split against d, coordinates in float32, one thread; interrupted, it goes on. Cases:
fc, lenet: MNIST. fc-pixels, lenet-pixels: with the pixels of all images shuffled alike. fc-labels: the labels of 5,000
training images shuffled, training accuracy. cifar-lenet: CIFAR-10 at a few points. fc-eigen, lenet-eigen: the other
optimizer.
lenet-10: as many epochs as fc has. lenet-near: only the d's about the crossing of 0.9.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import subcompress
from subcompress.data import Split
from subcompress_cli.progress import listening
from subcompress_models import MODELS


@dataclass(frozen=True)
class Case:
    """known: threshold -> what the paper (and AntoAndGar's reproduction of it) found; take: training examples, 0 for
    all."""

    model: str
    ds: tuple[int, ...]
    known: dict[str, str]
    data: str = "mnist"
    shuffle: str | None = None
    repeats: int = 3
    epochs: int = 10
    take: int = 0
    optimiser: str = "adam"


OWN, ABSOLUTE = "0.9 of the baseline", "0.9 absolute"
CASES = {
    "fc": Case("mlp", (100, 200, 400, 800, 1600), {OWN: "reproduction 525", ABSOLUTE: "paper 750; reproduction 600"}),
    "lenet": Case(
        "lenet",
        (50, 100, 200, 400, 800),
        {OWN: "paper 275; reproduction 160", ABSOLUTE: "paper 290; reproduction 170"},
        epochs=5,
    ),
    "fc-eigen": Case("mlp", (150, 200, 250, 300, 400), {ABSOLUTE: "paper 750; reproduction 600"}, optimiser="eigen"),
    "lenet-eigen": Case(
        "lenet",
        (100, 125, 150, 175),
        {ABSOLUTE: "paper 290; reproduction 170"},
        epochs=5,
        optimiser="eigen",
    ),
    "lenet-near": Case("lenet", (100, 125, 150, 175), {ABSOLUTE: "paper 290; reproduction 170"}, epochs=5),
    "lenet-10": Case("lenet", (100, 125, 150, 175), {ABSOLUTE: "paper 290; reproduction 170"}),
    "fc-pixels": Case("mlp", (200, 400, 800, 1600), {ABSOLUTE: "paper 750"}, shuffle="pixels", repeats=2),
    "lenet-pixels": Case(
        "lenet", (400, 800, 1600, 3200), {ABSOLUTE: "paper 1,400"}, shuffle="pixels", repeats=2, epochs=5
    ),
    "fc-labels": Case(
        "mlp",
        (2000, 4000, 8000, 16000),
        {OWN: "paper 190,000 (FC-5, all 50,000 images)"},
        shuffle="labels",
        repeats=2,
        epochs=40,
        take=5_000,
    ),
    "cifar-lenet": Case(
        "cifar-lenet",
        (400, 800, 1600, 3200),
        {OWN: "paper 2,900; reproduction 1,700"},
        data="cifar10",
        repeats=2,
        epochs=10,
    ),
}


def measure(name: str, folder: Path, data_dir: Path) -> str:
    """The table of a case."""
    case = CASES[name]
    data = subcompress.load_data(case.data, data_dir)
    if case.take:
        train = data.train
        assert isinstance(train, Split)
        data = replace(data, train=Split(train.x[: case.take], train.y[: case.take]))
    with listening(name) as listener:
        found = subcompress.measure_dimension(
            MODELS[case.model],
            data,
            folder,
            ds=case.ds,
            repeats=case.repeats,
            shuffle=case.shuffle,
            epochs=case.epochs,
            optimiser=case.optimiser,
            threads=1,
            names=(case.model, case.data + (f", shuffled {case.shuffle}" if case.shuffle else "")),
            listener=listener,
        )
    return f"## {name}\n\n{found.markdown(case.known)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cifar-dir", type=Path)
    parser.add_argument("--cases", default="fc,lenet,fc-pixels,lenet-pixels,fc-labels")
    parser.add_argument("--runs", type=Path, default=Path("runs/dim"))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    for name in options.cases.split(","):
        where = options.cifar_dir if CASES[name].data == "cifar10" else options.data_dir
        text = measure(name, options.runs / name, where)
        print(text, flush=True)
        if options.output:
            (options.output / f"dimension-{name}.md").write_text(text + "\n")
            plot = options.output / f"dimension-{name}.png"
            plot.write_bytes((options.runs / name / "dim.png").read_bytes())


if __name__ == "__main__":
    main()
