"""One number of bytes, three ways to use it: d below D, d = D with a price on each bit, and the width of the network.

    python benchmarks/crossing.py --data-dir DIR [--data mnist] [--bytes 350,650] [--bits 2,3,4] [--seeds 1] [-o OUT]

One kind of network for each data set (`models/oriented.py`, `models/frequencies.py`), in several widths. Each is
trained within each limit (`fit --bytes N --bits B --d d`), with fewer coordinates than weights and with as many.
Validation accuracy, one thread; the test split is not read. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

import subcompress
from subcompress.data import augment_of
from subcompress_cli.progress import listening
from subcompress_models import Frequencies, Oriented

WIDTHS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "mnist": {f"{a}, {b}": partial(Oriented, (a, b)) for a, b in ((4, 6), (6, 8), (10, 16), (16, 24))},
    "cifar10": {", ".join(map(str, widths)): partial(Frequencies, widths) for widths in ((16, 24, 32), (32, 48, 64))},
}
"""For each data set the channels of its networks, narrow ones first."""

EACH = {2: 1.6, 3: 2.7, 4: 3.7}
"""Bits that a coordinate below D takes, about; the price of the limit does the rest."""

BESIDE = 95
"""Bytes in a file besides its coordinates, about. It is a little low, so that the limit is used up."""


def rows(options: argparse.Namespace, data: subcompress.Data) -> Iterator[str]:
    """One row for each limit, width, way and number of bits. `below D` has none where nearly D coordinates fit."""
    for limit, (width, make) in itertools.product(options.bytes, WIDTHS[options.data].items()):
        D = sum(p.numel() for p in make().parameters())
        below = [(int(8 * (limit - BESIDE) / EACH[bits]), bits, "below D") for bits in options.bits]
        for d, bits, way in [*(case for case in below if case[0] < 0.9 * D), (D, 2, "d = D")]:
            found = [fit_of(options, data, width, limit, d, bits, seed) for seed in range(options.seeds)]
            values = [100 * f.validation for f in found]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            yield (
                f"| {limit} | {width} | {D:,} | {way}, {bits} bits | {d:,} | "
                f"{round(statistics.fmean(f.bytes for f in found)):,} | {statistics.fmean(values):.2f}{spread} % |"
            )


def fit_of(
    options: argparse.Namespace, data: subcompress.Data, width: str, limit: int, d: int, bits: int, seed: int
) -> subcompress.Fit:
    """Train in d coordinates, or return the fit that is in the run folder."""
    make, title = WIDTHS[options.data][width], f"{width}: {limit} bytes, d = {d}, {bits} bits, seed {seed}"
    place = options.runs / f"{options.data}-{width.replace(', ', '-')}-{limit}-{d}-{bits}-{options.epochs}-{seed}"
    settings = {"d": d, "bits": bits, "bytes": limit, "seeds": 1, "seed": seed, "epochs": options.epochs, "threads": 1}
    with listening(title) as listener:
        return subcompress.fit(make, data, place, listener=listener, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--data", choices=WIDTHS, default="mnist")
    parser.add_argument("--bytes", type=lambda text: [int(n) for n in text.split(",")], default=[350, 650])
    parser.add_argument("--bits", type=lambda text: [int(n) for n in text.split(",")], default=[2, 3, 4])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/crossing"))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = subcompress.load_data(options.data, options.data_dir)
    augment = augment_of("flip") if options.data == "cifar10" else None
    data = replace(data, test=data.validation, augment=augment)  # the test split is not read
    began = time.time()
    lines = [
        f"{options.data}, {options.epochs} epochs, {options.seeds} seed{'s' if options.seeds > 1 else ''}, validation "
        f"split, {time.strftime('%Y-%m-%d')}, one thread, torch {torch.__version__}",
        "",
        "| bytes at most | channels | weights D | way | d | bytes | validation accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in rows(options, data):
        lines.append(line)
        print(line, f"{time.time() - began:.0f} s", flush=True)
    if options.output:
        (options.output / f"crossing-{options.data}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
