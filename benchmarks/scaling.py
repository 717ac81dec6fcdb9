"""One training over 1, 2 and 4 workers, and over workers of which one was killed: the same file, and what a step costs.

    python benchmarks/scaling.py [--epochs 8] [--runs runs/scaling] [-o benchmarks/results]

Workers are processes that torchrun starts on this machine, with one thread each. A step is timed over the whole
training, its evaluations included; where there are more workers than processors, they wait for one another.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

import subcompress
from subcompress.data.splits import size
from subcompress.training import run

SHARDS, WORKERS, BATCH, D = 4, (1, 2, 4), 64, 200


def batch_norm_dropout() -> nn.Module:
    """Running statistics, a count of batches, and dropout: for images (1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.1),
        nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(400, 10),
    )  # fmt: skip


NETWORKS = {"LeNet": "lenet", "BatchNorm and dropout": f"{__file__}:batch_norm_dropout"}


@dataclass(frozen=True)
class Row:
    """What one command gave. said: of what a step exchanges, as the log has it."""

    digest: str
    said: str
    milliseconds: float


def command(model: str, folder: Path, workers: int, epochs: int) -> list[str]:
    """The command line; of one worker without torchrun."""
    options = f"fit --model {model} --data digits --d {D} --epochs {epochs} --batch-size {BATCH} --shards {SHARDS}"
    words = ["subcompress", *options.split(), "--device", "cpu", "--seed", "0", "-o", str(folder)]
    if workers == 1:
        return [sys.executable, "-m", *words]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    return [*torchrun, "-m", "--", *words]


def trained(model: str, folder: Path, workers: int, epochs: int) -> Row:
    """Run the command to its end."""
    done = subprocess.run(command(model, folder, workers, epochs), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    said = re.search(r"a step exchanges (\d+) bytes and a header of (\d+)", done.stderr)
    probe = json.loads((folder / run.SUMMARY).read_text())["fit"]["trainings"][0]
    steps = len(probe["curve"]) * (size(subcompress.load_data("digits").train) // BATCH)
    digest = hashlib.sha256((folder / run.RECORD).read_bytes()).hexdigest()
    return Row(digest[:16], f"{said[1]} + {said[2]}" if said else "", 1e3 * probe["seconds"] / steps)


def killed(model: str, folder: Path, epochs: int) -> float:
    """Begin with two workers and kill the second behind the first checkpoint; seconds until the other has ended."""
    words = command(model, folder, 2, epochs)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any((folder / run.CHECKPOINTS).glob("*.safetensors")):
        if process.poll() is not None:
            raise SystemExit("the training ended before its first checkpoint: give more --epochs")
        time.sleep(0.05)
    workers = [c for c in psutil.Process(process.pid).children() if c.environ().get("RANK") == "1"]
    workers[0].kill()
    began = time.perf_counter()
    if process.wait() != 1:
        raise SystemExit(f"the other worker ended with {process.returncode}, not 1")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--runs", type=Path, default=Path("runs/scaling"))
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    shutil.rmtree(options.runs, ignore_errors=True)
    lines = [
        f"{os.cpu_count()} processors, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}: digits, d = {D}, "
        f"batches of {BATCH} in {SHARDS} shards\n",
        "| network | workers | sha256 of the file | bytes a step + header | ms a step |",
        "|---|---|---|---|---|",
    ]
    for title, model in NETWORKS.items():
        rows = {str(n): trained(model, options.runs / f"{title}-{n}", n, options.epochs) for n in WORKERS}
        folder = options.runs / f"{title}-killed"
        seconds = killed(model, folder, options.epochs)
        rows[f"2, one killed (the other ended in {seconds:.1f} s), then 4"] = trained(model, folder, 4, options.epochs)
        for workers, row in rows.items():
            lines.append(f"| {title} | {workers} | {row.digest} | {row.said} | {row.milliseconds:.1f} |")
            print(lines[-1], flush=True)
        if len({row.digest for row in rows.values()}) > 1:
            raise SystemExit("the files differ")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "scaling.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
