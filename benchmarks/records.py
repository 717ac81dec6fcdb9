"""The smallest files at an accuracy: how each row of models/packed/ was made, and whether it is still what it says.

    python benchmarks/records.py make ROW --data-dir DIR [--seeds 3] [--runs runs/records]
    python benchmarks/records.py check [--mnist DIR] [--cifar10 DIR]
    python benchmarks/records.py table

`make` trains the row under each seed; validation chooses the file that is kept, with a card beside it, and the test
split is read once a seed, at the end. `check` rebuilds every kept file and, where the data are at hand, measures it
again, one image at a time, in ONNX Runtime. `table` prints the cards. Interrupted, `make` goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import subcompress
from subcompress import format
from subcompress.data import augment_of
from subcompress.training import run
from subcompress_cli.progress import listening
from subcompress_models import MODELS

PACKED = Path(__file__).parents[1] / "models" / "packed"


@dataclass(frozen=True)
class Record:
    """One row: options of `subcompress fit`; d = 0 stands for every weight."""

    model: str
    data: str
    epochs: int
    d: int = 0
    bits: int = 3
    rate: float = 0.0
    lr: float | None = None
    batch_size: int = 128
    bytes: int | None = None
    optimizer: str = "adam"
    augment: str | None = None

    def options(self) -> dict[str, Any]:
        """For `fit`."""
        found = {k: v for k, v in asdict(self).items() if k not in ("model", "data", "augment")}
        found |= {} if self.bytes is None else {"seeds": 1}
        return found | {"d": self.d or sum(p.numel() for p in MODELS[self.model]().parameters())}

    def command(self, seed: int) -> str:
        """The same as a command line."""
        options = {k: v for k, v in self.options().items() if v is not None}
        words = " ".join(f"--{k.replace('_', '-')} {v if isinstance(v, str) else f'{v:g}'}" for k, v in options.items())
        words += f" --augment {self.augment}" if self.augment else ""
        return (
            f"subcompress fit --model {self.model} --data {self.data} --data-dir DIR {words} "
            f"--seed {seed} --threads 1 -o RUN"
        )


RECORDS = {
    "lenet-700": Record("lenet", "mnist", 45, d=1780, bits=3, lr=0.0033, bytes=700),
    "mnist-98": Record("conv3-4-6-8", "mnist", 40, rate=6e-5, lr=0.35),
    "cifar10-1k": Record("frequencies-32-48-64", "cifar10", 70, d=2150, bits=4, augment="flip", bytes=1033),
    "mnist-99": Record("conv3-8-12-16", "mnist", 50, rate=1e-5, lr=0.35, augment="shift"),
    "oriented-99": Record("oriented-10-16", "mnist", 36, bits=2, rate=5e-5, lr=0.08),
    "oriented-98": Record("oriented-6-8", "mnist", 24, bits=2, rate=1.1e-4, lr=0.105, bytes=350),
}


def make(name: str, folder: Path, seeds: int, runs: Path) -> dict[str, Any]:
    """Train a row, keep the file that validation chose, and write its card."""
    row = RECORDS[name]
    data = replace(subcompress.load_data(row.data, folder), augment=augment_of(row.augment))
    fits: list[tuple[subcompress.Fit, int, float]] = []
    for seed in range(seeds):
        place, make_net = runs / f"{name}-{seed}", MODELS[row.model]
        with listening(f"{name}, seed {seed}") as listener:
            fit = subcompress.fit(make_net, data, place, seed=seed, threads=1, listener=listener, **row.options())
        size = subcompress.pack(place, place / "net.safetensors")
        verified = subcompress.verify(place / "net.safetensors", data, make_net())
        assert verified.ok, verified
        assert verified.test_accuracy is not None
        fits.append((fit, size, verified.test_accuracy))
        print(f"{name}, seed {seed}: {size} bytes, validation {fit.validation:.4f}, test {fits[-1][2]:.4f}", flush=True)
    chosen = max(range(seeds), key=lambda seed: fits[seed][0].validation)
    fit, size, test = fits[chosen]
    PACKED.mkdir(exist_ok=True)
    shutil.copy(runs / f"{name}-{chosen}" / "net.safetensors", PACKED / f"{name}.safetensors")
    summary = run.summary(runs / f"{name}-{chosen}")
    card = {
        "file": f"{name}.safetensors",
        "bytes": size,
        "sha256": hashlib.sha256((PACKED / f"{name}.safetensors").read_bytes()).hexdigest(),
        "digest": run.load(runs / f"{name}-{chosen}").digest.hex(),
        "model": row.model,
        "D": fit.D,
        "d": fit.d,
        "bits": fit.bits,
        "data": row.data,
        "validation": fit.validation,
        "test": test,
        "seeds": [
            {"seed": seed, "bytes": size, "validation": fit.validation, "test": test, "seconds": round(fit.seconds)}
            for seed, (fit, size, test) in enumerate(fits)
        ],
        "outputs": outputs(PACKED / f"{name}.safetensors", MODELS[row.model]()),
        "command": row.command(chosen),
        "date": summary["date"],
        "versions": summary["versions"],
    }
    (PACKED / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def outputs(path: Path, module: nn.Module) -> list[float]:
    """What the network answers to a ramp from -1 to 2, so that a change of its code is seen."""
    shape = format.read(path)[0].facts.input_shape
    with torch.no_grad():
        found = subcompress.load(path, module)(torch.linspace(-1, 2, math.prod(shape)).reshape(1, *shape))[0]
    return [round(v, 5) for v in found.tolist()]


def cards() -> list[dict[str, Any]]:
    """Those that are kept, by name."""
    return [json.loads(path.read_text()) for path in sorted(PACKED.glob("*.json"))]


def table() -> str:
    """Markdown: a row a card."""
    lines = [
        "| file | bytes | test accuracy of it | mean of the seeds (their bytes) | network, weights | d, bits |",
        "|---|---|---|---|---|---|",
    ]
    for card in cards():
        tests, sizes = [s["test"] for s in card["seeds"]], [s["bytes"] for s in card["seeds"]]
        spread = f" ± {100 * statistics.stdev(tests):.2f} %" if len(tests) > 1 else " % (one seed)"
        lines.append(
            f"| {card['file']} | {card['bytes']:,} | {100 * card['test']:.2f} % | {100 * statistics.mean(tests):.2f}"
            f"{spread} ({min(sizes):,} to {max(sizes):,}) | {card['model']}, {card['D']:,} | {card['d']:,}, "
            f"{card['bits']} |"
        )
    return "\n".join(lines)


def check(folders: dict[str, Path | None]) -> None:
    """Rebuild every file, and measure those whose data are at hand."""
    for card in cards():
        path, folder = PACKED / card["file"], folders.get(card["data"])
        data = None if folder is None else subcompress.load_data(card["data"], folder)
        began = time.perf_counter()
        found = subcompress.verify(path, data, MODELS[card["model"]]())
        held = found.ok and found.digest == card["digest"] and path.stat().st_size == card["bytes"]
        said = "" if found.test_accuracy is None else f", test {found.test_accuracy:.4f} (card: {card['test']:.4f})"
        print(f"{card['file']}: {'as its card says' if held else 'NOT WHAT ITS CARD SAYS'}{said}, "
              f"{time.perf_counter() - began:.1f} s")  # fmt: skip
        if not held or found.test_accuracy not in (None, card["test"]):
            raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("row", choices=RECORDS)
    making.add_argument("--data-dir", type=Path, required=True)
    making.add_argument("--seeds", type=int, default=3)
    making.add_argument("--runs", type=Path, default=Path("runs/records"))
    checking = commands.add_parser("check")
    checking.add_argument("--mnist", type=Path)
    checking.add_argument("--cifar10", type=Path)
    commands.add_parser("table")
    options = parser.parse_args()
    if options.command == "make":
        make(options.row, options.data_dir, options.seeds, options.runs)
    elif options.command == "check":
        check({"mnist": options.mnist, "cifar10": options.cifar10})
    else:
        print(table())


if __name__ == "__main__":
    main()
