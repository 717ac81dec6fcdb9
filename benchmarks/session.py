"""Sessions on a CUDA device: weights rebuilt there against weights read from a dense file, and graphs that unfold.

    python benchmarks/session.py [--rounds 7] [--device cuda] [-o benchmarks/results]

A perceptron of 23.7 million weights from 2,000 random coordinates. Starts: a process that has opened another session on
the device opens each of the three, in turn; the file is in the page cache. Runs: batches of random images that lie on
the device already, the three in turn. Medians of `rounds` starts and of 200 runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from unfolding import wide, write

import subcompress
from subcompress import format
from subcompress.onnx.checking import weights_only
from subcompress.onnx.session import Session
from subcompress.rebuild.expand import expand
from subcompress.tensors.layout import raw_bytes


def synchronized(device: str) -> float:
    """The time, once the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(device: str, action: Callable[[], Any]) -> tuple[float, Any]:
    began = synchronized(device)
    result = action()
    return synchronized(device) - began, result


def bits(graph: Path, packed: Path, device: str) -> list[str]:
    """Whether the weights that a graph computes are the file's, with graph optimization off and on, TF32 on and off."""
    state = expand(format.read(packed)[0])
    named = {str(i): tensor for i, tensor in state.items()}
    model = weights_only(graph.read_bytes(), {name: tensor.dtype for name, tensor in named.items()})
    lines = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        for tf32 in (0, 1):
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            cuda = ("CUDAExecutionProvider", {"use_tf32": tf32})
            provider = cuda if device == "cuda" else "CPUExecutionProvider"
            options.log_severity_level = 3
            found = onnxruntime.InferenceSession(model, options, providers=[provider]).run(None, {})
            equal = all(v.tobytes() == raw_bytes(t) for v, t in zip(found, named.values(), strict=True))
            lines.append(f"| {level} | {'on' if tf32 else 'off'} | {'the same bits' if equal else 'OTHER BITS'} |")
    return lines


def starts(folder: Path, device: str, rounds: int) -> tuple[list[str], dict[str, Session]]:
    """A table of how long each way to a session takes, and the sessions."""
    packed, dense, graph = (folder / f"wide{end}" for end in (".safetensors", ".dense.onnx", ".onnx"))
    module, record = wide(), format.read(packed)[0]
    Session(graph, device=device)
    makers: dict[str, Callable[[], Any]] = {
        "dense .onnx": lambda: Session(dense, device=device),
        "self-unfolding .onnx": lambda: Session(graph, device=device),
        "packed, Session(...)": lambda: Session(packed, module, device=device),
        "of which: weights on the device": lambda: expand(record, "torch-cuda" if device == "cuda" else "torch"),
    }
    taken: dict[str, list[float]] = {k: [] for k in makers}
    made: dict[str, Any] = {}
    for _ in range(rounds):
        for k, make in makers.items():
            made.pop(k, None)
            s, made[k] = seconds(device, make)
            taken[k].append(s)
    lines = ["| start | seconds |", "|---|---|", *(f"| {k} | {statistics.median(v):.3f} |" for k, v in taken.items())]
    return lines, {k: s for k, s in made.items() if isinstance(s, Session)}


def runs(sessions: dict[str, Session], device: str) -> list[str]:
    """A table of how long each session runs, and how far apart the outputs are."""
    lines = ["| run, batch | " + " | ".join(f"{k}, us" for k in sessions) + " | largest difference |"]
    lines.append("|---" * (len(sessions) + 2) + "|")
    for batch in (1, 256):
        x = torch.rand(batch, 1, 28, 28, device=device)
        outputs = [s(x) for s in sessions.values()]
        apart = max(float((o - outputs[0]).abs().max() / outputs[0].abs().max()) for o in outputs)
        times: dict[str, list[float]] = {k: [] for k in sessions}
        for _ in range(200):
            for k, s in sessions.items():
                times[k].append(seconds(device, lambda s=s, x=x: s(x))[0])
        cells = " | ".join(f"{1e6 * statistics.median(v):.0f}" for v in times.values())
        lines.append(f"| {batch} | {cells} | {apart:.1e} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    device = options.device
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}"
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        write("wide", folder)
        same = subcompress.verify(folder / "wide.safetensors").backends
        started, sessions = starts(folder, device, options.rounds)
        text = [
            f"{time.strftime('%Y-%m-%d')}, {name}, {versions}.",
            "",
            f"Weights rebuilt: {', '.join(f'{k} {same[k]}' for k in same)} (True: the file's digest).",
            "",
            *started,
            "",
            *runs(sessions, device),
            "",
            "| graph optimization | TF32 | weights that the graph computes |",
            "|---|---|---|",
            *bits(folder / "wide.onnx", folder / "wide.safetensors", device),
        ]
    print("\n".join(text))
    if options.output:
        (options.output / f"session-{device}.md").write_text("\n".join([*text, ""]))


if __name__ == "__main__":
    main()
