"""How long a server takes until it answers requests: first without kept graphs, then with those that it traced before.

    python benchmarks/restart.py [--models 1000] [--repeats 3] [-o benchmarks/results]

The models are LeNets with random coordinates, each a file of its own. A start is timed from the command to the line
with the server's address; then one request is answered by the last model. The table says whether a process that traces
was started, and the resident memory of the server and its processes at that line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from servers import memory

from subcompress import Facts, Subspace, pack
from subcompress_models import LeNet

HEADER = """\
| start | models | seconds until it answers, median (all) | process that traces | memory then |
|---|---|---|---|---|"""


@dataclass(frozen=True)
class Start:
    """One start. seconds: until it answers; mebibytes: resident, of all processes; traces: whether one traced."""

    seconds: float
    mebibytes: float
    traces: bool


def make(folder: Path, count: int) -> None:
    """Write packed LeNets with other coordinates each."""
    torch.manual_seed(0)
    subspace = Subspace.of(LeNet(), 200)
    for i in range(count):
        with torch.no_grad():
            subspace.z.normal_()
        subspace.round()
        pack(subspace, folder / f"model-{i:05}.safetensors", Facts(input_shape=(1, 28, 28)))


def started(folder: Path, cache: Path) -> Start:
    """Start the server, ask its last model once, and end it."""
    command = [sys.executable, "-m", "subcompress_cli", "serve", str(folder), "--port", "0"]
    environment = {**os.environ, "SUBCOMPRESS_CACHE": str(cache)}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as server:
            assert server.stdout is not None
            line = server.stdout.readline()
            seconds = time.perf_counter() - began
            mebibytes = memory(server.pid) / (1 << 20)
            ask(line.split(": ")[0], sorted(folder.iterdir())[-1].stem)
            server.terminate()
        log.seek(0)
        return Start(seconds, mebibytes, "tracing" in log.read())


def ask(address: str, model: str) -> None:
    """Raises an exception unless the model answers."""
    body = {"inputs": [{"name": "input", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}]}
    request = urllib.request.Request(f"{address}/v2/models/{model}/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert len(json.load(answer)["outputs"][0]["data"]) == 10


def row(name: str, models: int, starts: list[Start]) -> str:
    """A row of the table."""
    seconds = [start.seconds for start in starts]
    each = ", ".join(f"{s:.1f}" for s in seconds)
    traces = "yes" if any(start.traces for start in starts) else "no"
    memory = statistics.median(start.mebibytes for start in starts)
    return f"| {name} | {models:,} | {statistics.median(seconds):.1f} ({each}) | {traces} | {memory:.0f} MiB |"


def main() -> None:
    """Measure, print the table, and write it where -o says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, cache = Path(place) / "models", Path(place) / "cache"
        folder.mkdir()
        make(folder, options.models)
        cold = [started(folder, cache)]
        warm = [started(folder, cache) for _ in range(options.repeats)]
    lines = [
        f"{date.today()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "",
        HEADER,
        row("the first: graphs are traced", options.models, cold),
        row("the next: graphs are kept", options.models, warm),
    ]
    print("\n".join(lines))
    if options.output is not None:
        (options.output / "restart.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
