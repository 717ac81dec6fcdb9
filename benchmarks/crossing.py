"""One number of bytes, three ways to use it: d below D, d = D with a price on each bit, and the width of the network.

    python benchmarks/crossing.py --data-dir DIR [--data mnist] [--bytes 350,650] [--bits 2,3,4] [--seeds 1] [-o OUT]

For each width of one kind of network (`models/oriented.py` on MNIST, `models/frequencies.py` on CIFAR-10) and each
limit, the file of `fit --bytes N --bits B --d D` is compared with that of fewer coordinates than weights. Validation
accuracy, one thread; the test split is not read. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
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
from subcompress.errors import SubcompressError
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
"""Bytes beside the coordinates of these files, about."""


def fits(
    options: argparse.Namespace, data: subcompress.Data, width: str, limit: int, way: str, bits: int
) -> list[subcompress.Fit] | None:
    """One fit for each seed, or None where `below D` would have as many coordinates as weights."""
    make = WIDTHS[options.data][width]
    D = sum(p.numel() for p in make().parameters())
    d = D if way == "d = D" else int(8 * (limit - BESIDE) / EACH[bits])
    if way != "d = D" and d >= 0.9 * D:
        return None
    found = []
    for seed in range(options.seeds):
        place = options.runs / f"{options.data}-{width}-{limit}-{way}-{bits}-{seed}".replace(", ", "-").replace(" ", "")
        with listening(f"{width}: {limit} bytes, {way}, {bits} bits, seed {seed}") as listener:
            found.append(
                subcompress.fit(
                    make, data, place, d=d, bits=bits, bytes=limit, seeds=1, seed=seed, epochs=options.epochs,
                    threads=1, listener=listener,
                )
            )  # fmt: skip
    return found


def rows(options: argparse.Namespace, data: subcompress.Data) -> Iterator[str]:
    """One row for each limit, width, way and number of bits."""
    for limit in options.bytes:
        for width, make in WIDTHS[options.data].items():
            D = sum(p.numel() for p in make().parameters())
            for way, bits in [*(("below D", bits) for bits in options.bits), ("d = D", 2)]:
                try:
                    found = fits(options, data, width, limit, way, bits)
                except SubcompressError as e:
                    yield f"| {limit} | {width} | {D:,} | {way}, {bits} bits | | | {e} |"
                    continue
                if found is None:
                    continue
                sizes, values = [f.bytes for f in found], [f.validation for f in found]
                spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
                yield (
                    f"| {limit} | {width} | {D:,} | {way}, {bits} bits | {found[0].d:,} | "
                    f"{round(statistics.fmean(sizes)):,} | {100 * statistics.fmean(values):.2f}{spread} % |"
                )


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
