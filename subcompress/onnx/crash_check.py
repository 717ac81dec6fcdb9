"""Tests whether a graph crashes the process that runs it. Some graphs that torch exports crash ONNX Runtime. A graph
with risky operators is therefore run in a process of its own first.

`python -m subcompress.onnx.crash_check FOLDER` runs the graph in that folder on each file of inputs there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.onnx.runtime import open_graph, ort_values

if TYPE_CHECKING:
    import onnx

PATIENCE = 300
"""The most seconds that all runs of a graph together may take."""

RISKS = ("Loop", "Scan", "If", "Sequence", "SplitToSequence", "ConcatFromSequence", "Optional", "String")
"""Prefixes of the names of rarely used operators on which ONNX Runtime was seen to crash."""


def risky_operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of a graph that may crash ONNX Runtime: control flow, sequences, strings, and non-standard
    ones."""
    own = {function.domain for function in model.functions}
    nodes = [node for part in (model.graph, *model.functions) for node in part.node]  # a branch's are in an If's risk
    odd = (n for n in nodes if n.op_type.startswith(RISKS) or n.domain not in {"", "ai.onnx", *own})
    return sorted({n.op_type for n in odd})


def require_no_crash(model: onnx.ModelProto, feeds: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Raise SubcompressError if a graph with risky operators crashes the process that runs it, or does not end.

    Other errors of the graph are reported where it is used.
    """
    if not (found := risky_operators(model)) or model.ByteSize() >= 1 << 31:
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, GRAPH).write_bytes(model.SerializeToString())
        for i, feed in enumerate(feeds):
            named: dict[str, Any] = {f"{MARK}{name}": x for name, x in feed.items()}
            np.savez(Path(folder, f"{i}.npz"), **named)
        if why := _ended(folder):
            raise SubcompressError(
                f"ONNX Runtime {why} this graph, which uses {', '.join(found[:3])}: unpack to .safetensors instead"
            )


GRAPH = "graph.onnx"

MARK = "input "
"""A prefix for the names of inputs, because numpy.savez has arguments of its own, such as `file`."""

CHILD = (sys.executable, "-P", "-m", "subcompress.onnx.crash_check")
"""With -P, Python does not import modules from the working directory."""


def _ended(folder: str) -> str:
    """Run the graph of a folder in a child process; return how the child crashed, empty if it did not."""
    try:
        nowhere = subprocess.DEVNULL
        code = subprocess.run(
            [*CHILD, folder], stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=PATIENCE
        ).returncode
    except subprocess.TimeoutExpired:
        return f"takes more than {PATIENCE} seconds for"
    return "" if code in (0, 1) else f"dies (exit code {code}) of"


def _inputs(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as held:
            yield {name.removeprefix(MARK): x for name, x in held.items()}


def main() -> None:
    """Run the child, which exits with 1 if ONNX Runtime rejects the graph; that is not a crash."""
    folder = Path(sys.argv[1])
    session = open_graph(folder / GRAPH)
    taken = {i.name for i in session.get_inputs()}
    for feed in _inputs(folder):
        session.run_with_ort_values(None, {name: x for name, x in ort_values(feed).items() if name in taken})


if __name__ == "__main__":
    main()
