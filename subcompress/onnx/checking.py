"""Checking graphs in ONNX Runtime: outputs against torch's, weights against the file's, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from subcompress.data.in_memory import InMemory
from subcompress.data.splits import batches, size
from subcompress.data.targets import MAIN
from subcompress.errors import SubcompressError, one_line
from subcompress.format.facts import Facts
from subcompress.onnx.runtime import EXTERNAL_FOLDER, open_graph, ort_values
from subcompress.onnx.slimming import every_name
from subcompress.onnx.tracing import (
    BAKED,
    TRACED,
    arrays,
    example_inputs,
    graphs_within,
    has_varying_axes,
    inputs_by_name,
    lengths_of,
    outputs_of,
    sizes_of,
)
from subcompress.tensors.layout import array_of, raw_bytes

TOLERANCE = 1e-4
"""Outputs may differ by this share of their largest value, since torch and ONNX Runtime sum in different orders."""


_ONNX_DTYPES = {torch.float16: TensorProto.FLOAT16, torch.float64: TensorProto.DOUBLE}


def accuracy_of_graph(data: bytes, split: InMemory, device: str = "cpu") -> float:
    """Return the accuracy of the graph on a split in memory, one example at a time, in ONNX Runtime on the device."""
    session = open_graph(data, device)
    taken = {i.name for i in session.get_inputs()}  # the exporter drops inputs that nothing depends on
    names = [o.name for o in session.get_outputs()]
    main, right = MAIN if MAIN in names else names[0], 0
    for x, y in batches(split, 1):
        given = ort_values(arrays({name: t for name, t in inputs_by_name(x).items() if name in taken}))
        (scores,) = session.run_with_ort_values([main], given)
        right += int(np.argmax(_array(scores))) == int(y)
    return right / size(split)


def compare(
    data: bytes,
    module: nn.Module,
    facts: Facts,
    weights: Mapping[str, Tensor] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise SubcompressError unless ONNX Runtime gives torch's outputs.

    They are compared at two batch sizes, and at two sizes of the axes that vary. weights: values for a graph that gets
    weights from outside, as inputs or as initializers. folder: the folder of files from which the graph reads other
    weights.
    """
    values = ort_values({name: array_of(t.detach()) for name, t in (weights or {}).items()})
    options = _options(folder=folder)
    try:
        taken = {i.name for i in onnx.load_from_string(data).graph.input} if values else set()
        if outside := {name: value for name, value in values.items() if name not in taken}:
            options.add_external_initializers(list(outside), list(outside.values()))
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # its exceptions have no common base of their own
        raise SubcompressError(
            f"ONNX Runtime cannot load this graph ({one_line(e)}): unpack to .safetensors instead"
        ) from e
    for n, length in sizes_of(facts):
        at = f"batch size {n}" + (f" and length {length}" if has_varying_axes(facts) else "")
        if why := _unlike(session, module, facts, values, n, length):
            baked = not _unlike(session, module, facts, values, *TRACED)
            raise SubcompressError(
                f"{why} at {at}, but not at the traced one, {TRACED[0]}, so that it was discarded: {BAKED}"
                if baked
                else (
                    f"{why} at {at}, so that it was discarded: does forward depend on values or on random numbers? "
                    "Unpack to .safetensors instead"
                )
            )


def _unlike(session: Any, module: nn.Module, facts: Facts, values: Mapping[str, Any], n: int, length: int) -> str:
    """Describe how a graph's outputs for n examples differ from torch's; empty if they agree."""
    fed = arrays(example_inputs(facts, n, length, lengths_of(module, facts)))
    taken = {i.name for i in session.get_inputs()}  # the exporter drops inputs that nothing depends on
    given = {name: x for name, x in (ort_values(fed) | dict(values)).items() if name in taken}
    try:
        found = [_array(value) for value in session.run_with_ort_values(None, given)]
    except Exception as e:
        return f"ONNX Runtime fails on this graph ({one_line(e)})"
    for expected, output in zip(outputs_of(module, facts, n, length), found, strict=True):
        worst = _difference(expected.detach(), output)
        if not worst <= _tolerance(expected.dtype):
            return f"the ONNX graph's outputs differ from torch's by {worst:.2g}"
    return ""


def _array(value: Any) -> np.ndarray:
    """An output of ONNX Runtime as an array. bfloat16 becomes float32."""
    if value.data_type() == "tensor(bfloat16)":
        return array_of(torch.utils.dlpack.from_dlpack(value).float())
    return np.asarray(value.numpy())


def check_weights(data: bytes, expected: dict[str, Tensor], folder: Path | None = None) -> None:
    """Raise SubcompressError unless the named values in the graph equal the expected ones bit for bit, with graph
    optimization off and on. folder: the folder of files from which the graph reads weights."""
    if not expected:
        return
    model = weights_only(data, {name: tensor.dtype for name, tensor in expected.items()})
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = _options(level, folder)
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            found = session.run(None, {})
        except Exception as e:
            raise SubcompressError(
                f"ONNX Runtime cannot compute this graph's weights ({one_line(e)}): leave unfolding out"
            ) from e
        for (name, tensor), values in zip(expected.items(), found, strict=True):
            wanted = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            if values.tobytes() != raw_bytes(wanted):
                raise SubcompressError(
                    f"{name} computed in the graph differs from the file's ({level}), so that the graph was "
                    "discarded: leave unfolding out, and report this machine"
                )


def weights_only(data: bytes, dtypes: dict[str, torch.dtype]) -> bytes:
    """Return the part of a graph that computes these values. They become its outputs, with bfloat16 as float32."""
    model = onnx.load_from_string(data)
    graph = model.graph
    needed, outputs = set(dtypes), []
    for name, dtype in dtypes.items():
        kind = _ONNX_DTYPES.get(dtype, TensorProto.FLOAT)
        outputs.append(helper.make_tensor_value_info(name, kind, None))
        if dtype == torch.bfloat16:  # NumPy has none
            outputs[-1].name = f"{name} as float32"
            graph.node.append(helper.make_node("Cast", [name], [outputs[-1].name], to=TensorProto.FLOAT))
            needed.add(outputs[-1].name)
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            for branch in graphs_within(node):
                needed |= every_name(branch)
    kept.reverse()
    part = helper.make_graph(kept, "weights", [], outputs, [i for i in graph.initializer if i.name in needed])
    del graph.node[:], graph.input[:], graph.output[:], graph.initializer[:], graph.value_info[:]
    graph.MergeFrom(part)
    return model.SerializeToString()


def _options(level: str = "ORT_ENABLE_ALL", folder: Path | None = None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    if folder is not None:
        options.add_session_config_entry(EXTERNAL_FOLDER, str(folder))
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4  # what goes wrong is said by who asked
    return options


def _tolerance(dtype: torch.dtype) -> float:
    """Return the tolerance for float32, or a few steps of a type with fewer bits."""
    return max(TOLERANCE, 16 * torch.finfo(dtype).eps) if dtype in (torch.float16, torch.bfloat16) else TOLERANCE


def _difference(expected: Tensor, found: np.ndarray) -> float:
    """Return the largest difference, relative to the largest finite value if that is above one."""
    if expected.is_complex():  # a graph has pairs
        expected = torch.view_as_real(expected)
    if expected.dtype == torch.bfloat16:
        expected = expected.float()
    wanted = expected.numpy()
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    wanted, given = wanted.astype(np.float64), found.astype(np.float64)
    apart = np.where((wanted == given) | (np.isnan(wanted) & np.isnan(given)), 0.0, np.abs(wanted - given))
    finite = wanted[np.isfinite(wanted)]
    reach = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
    return float(apart.max()) / reach
