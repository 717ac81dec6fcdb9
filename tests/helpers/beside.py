"""A small network, a fine-tune of it on a base in a file, and its graph beside that file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from on_transformers import record_on, saved
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

from subcompress import format
from subcompress.api.formats import Wanted
from subcompress.api.formats.unfolding_graph import placed
from subcompress.api.unpack import place_of, unpacked
from subcompress.format.facts import Facts
from subcompress.onnx import exporting
from subcompress.rebuild.expand import expand
from subcompress.tensors.layout import raw_bytes

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL")
FACTS = Facts(input_shape=(5,), input_dtype="I64")
MOVED = ("norm.*", "*.bias", "head.*")


class Net(nn.Module):
    """Sequences of five words: a table, three layers whose products have a batch and a length, a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, 16)
        self.first, self.norm, self.last = nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 16, bias=False)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.norm(torch.relu(self.first(self.table(x)))))).mean(1)


@cache
def network() -> Net:
    """One for all: a graph is traced once for a network, and takes a second."""
    return Net().eval()


def based_file(net: nn.Module, base: Path, path: Path) -> Path:
    """A fine-tune in which what MOVED names moves."""
    return saved(record_on(net, base, MOVED, FACTS, "base"), path)


def beside(folder: Path, base: Path | None = None) -> dict[str, Any]:
    """The graph of a fine-tune, and what it was made of. names: each weight's name in the graph."""
    net, start = network(), Net().state_dict()
    folder.mkdir(exist_ok=True)
    if base is None:
        base = folder / "base" / "model.safetensors"
        base.parent.mkdir()
        save_file(start, base)
    file = based_file(net, base, folder / "tune.safetensors")
    names: dict[str, str] = {}

    def noted(*given: Any) -> Any:
        result = unfolding(*given)
        names.update({origin.name: name for origin, name in result.made.items()})
        return result

    graph = place_of(file, folder / "graphs", self_unfolding=True)
    with pytest.MonkeyPatch.context() as patch:
        unfolding = exporting._unfolding
        patch.setattr(exporting, "_unfolding", noted)
        told = unpacked(file, graph, Wanted(net, base=base), None, True)
    record = format.read(file, base)[0]
    return {
        "graph": graph, "record": record, "module": net, "base": base, "file": file, "names": names, "start": start,
        "told": told, "placing": placed,
    }  # fmt: skip


def giving_weights(found: dict[str, Any], path: Path) -> Path:
    """The part of the graph that gives every weight, under its own name in the order of the file."""
    model = onnx.load(found["graph"], load_external_data=False)
    graph = model.graph
    del graph.input[:], graph.output[:]
    for i, spec in enumerate(found["record"].layout):
        graph.node.append(helper.make_node("Identity", [found["names"][spec.name]], [f"weight {i}"]))
        graph.output.append(helper.make_tensor_value_info(f"weight {i}", TensorProto.FLOAT, None))
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    left = [t for t in graph.initializer if t.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(left)
    path.write_bytes(model.SerializeToString())
    return path


def weights_of(found: dict[str, Any], folder: Path, level: str) -> dict[str, np.ndarray]:
    """Every weight, as ONNX Runtime computes it at that level of optimization."""
    path = giving_weights(found, found["graph"].parent / "weights.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    try:
        values = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {})
    finally:
        path.unlink()
    return dict(zip((spec.name for spec in found["record"].layout), values, strict=True))


def every_weight(found: dict[str, Any], folder: Path, level: str) -> bool:
    """Whether they are the file's, bit for bit."""
    state = expand(found["record"])
    values = weights_of(found, folder, level)
    return values.keys() == state.keys() and all(v.tobytes() == raw_bytes(state[n]) for n, v in values.items())
