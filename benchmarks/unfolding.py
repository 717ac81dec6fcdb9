"""Self-unfolding ONNX files beside the dense ones of the same networks: bytes, start, speed and memory.

    python benchmarks/unfolding.py [--rounds 7] [-o benchmarks/results]

Networks with random coordinates of four bits; no training. Starts are of processes that have opened another session
before, the two files in turn: medians. Memory is the process's: all of it at its highest while the session starts, and
what the session has added after a hundred runs, once the C library has given back what is free (and before that).
Runs are of one example, in one process, the two in turn.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import subcompress
from subcompress import format
from subcompress.data.mnist import FACTS
from subcompress.format.record import Coded, Group, Record
from subcompress.operators import HadamardBlocks
from subcompress.rebuild.expand import digest_of, expand
from subcompress.tensors.layout import Layout
from subcompress_models import MODELS


def wide() -> nn.Module:
    """A perceptron of 23.7 million weights."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 906),
        nn.ReLU(), nn.Linear(906, 10),
    )  # fmt: skip


CASES = {"lenet": (MODELS["lenet"], 290), "mlp": (MODELS["mlp"], 750), "wide": (wide, 2_000)}

START = """
import ctypes, json, resource, sys, time
import onnxruntime
def kept(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def highest(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
cpu = ["CPUExecutionProvider"]
onnxruntime.set_default_logger_severity(3)
warm = onnxruntime.InferenceSession(sys.argv[1], providers=cpu)
before = kept()
began = time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[2], providers=cpu)
seconds = time.perf_counter() - began
peak = highest()
import numpy
x = numpy.random.default_rng(0).random((1, 1, 28, 28), numpy.float32)
for _ in range(100):
    session.run(None, {"input": x})
resident = kept() - before
ctypes.CDLL("libc.so.6").malloc_trim(0)
print(json.dumps({"seconds": seconds, "peak": peak, "resident": resident, "kept": kept() - before}))
"""

RUN = """
import json, statistics, sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
sessions = [onnxruntime.InferenceSession(f, options, providers=["CPUExecutionProvider"]) for f in sys.argv[1:]]
x = numpy.random.default_rng(0).random((1, 1, 28, 28), numpy.float32)
first = [s.run(None, {"input": x})[0] for s in sessions]
assert first[0].tobytes() == first[1].tobytes()
times = [[], []]
for i in range(int(4000)):
    for k in (0, 1) if i % 2 else (1, 0):
        began = time.perf_counter()
        sessions[k].run(None, {"input": x})
        times[k].append(time.perf_counter() - began)
    if sum(map(sum, times)) > 6:
        break
print(json.dumps({"dense": statistics.median(times[0]), "ratio": statistics.median(b / a for a, b in zip(*times))}))
"""


def write(name: str, folder: Path) -> dict[str, int]:
    """The three files of a network; their bytes."""
    make, d = CASES[name]
    module = make()
    layout = Layout.of(module.state_dict())
    z = np.random.default_rng(0).normal(0, 4, d).round().clip(-8, 7).astype(np.int32)
    D = sum(spec.size for spec in layout)
    record = Record(0, layout, (Group(HadamardBlocks.sized(D, d, 0), 4, z),), tuple(Coded(2.0**-9) for _ in layout))
    record = Record(0, layout, record.groups, record.entries, facts=FACTS, digest=digest_of(record, expand(record)))
    packed = folder / f"{name}.safetensors"
    format.save(record, packed)
    dense = subcompress.unpack(packed, folder / f"{name}.dense.onnx", module)
    unfolding = subcompress.unpack(packed, folder / f"{name}.onnx", module, self_unfolding=True)
    data = unfolding.read_bytes()
    return {
        "weights": D,
        "packed": packed.stat().st_size,
        "coordinates": subcompress.info(packed)["ledger"]["coordinates"],
        "dense": dense.stat().st_size,
        "unfolding": len(data),
        "zipped": len(gzip.compress(data, 9)),
    }


def child(code: str, *files: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(subprocess.check_output([sys.executable, "-c", code, *map(str, files)]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    sizes = [
        "| network | weights | d | dense, B | self-unfolding, B | gzip -9, B | coordinates, B | .safetensors, B |",
        "|---|---|---|---|---|---|---|---|",
    ]
    costs = [
        "| network | start, dense, s | self-unfolding, s | highest memory, dense, MB | self-unfolding, MB | ratio "
        "| held, dense, MB | self-unfolding, MB | run, dense, us | self-unfolding / dense |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        for name, (_, d) in CASES.items():
            s = write(name, folder)
            sizes.append(
                f"| {name} | {s['weights']:,} | {d:,} | {s['dense']:,} | {s['unfolding']:,} | {s['zipped']:,} "
                f"| {s['coordinates']:,} | {s['packed']:,} |"
            )
            warm = folder / "lenet.onnx"
            files = {"dense": folder / f"{name}.dense.onnx", "unfolding": folder / f"{name}.onnx"}
            rounds = [{k: child(START, warm, f) for k, f in files.items()} for _ in range(options.rounds)]
            of = {
                (k, what): statistics.median(r[k][what] for r in rounds)
                for k in files
                for what in ("seconds", "peak", "resident", "kept")
            }
            run = child(RUN, *files.values())
            costs.append(
                f"| {name} | {of['dense', 'seconds']:.3f} | {of['unfolding', 'seconds']:.3f} "
                f"| {of['dense', 'peak'] / 1e6:.0f} | {of['unfolding', 'peak'] / 1e6:.0f} "
                f"| {of['unfolding', 'peak'] / of['dense', 'peak']:.2f} "
                f"| {of['dense', 'kept'] / 1e6:.1f} ({of['dense', 'resident'] / 1e6:.0f}) "
                f"| {of['unfolding', 'kept'] / 1e6:.1f} ({of['unfolding', 'resident'] / 1e6:.0f}) "
                f"| {1e6 * run['dense']:.0f} | {run['ratio']:.3f} |"
            )
            print(f"{sizes[-1]}\n{costs[-1]}", file=sys.stderr)
    print("\n".join([*sizes, "", *costs]))
    if options.output:
        (options.output / "unfolding.md").write_text("\n".join([*sizes, "", *costs, ""]))


if __name__ == "__main__":
    main()
