"""Networks ready to run in ONNX Runtime: arrays in, arrays out. Torch is not imported, which would take 190 MB.

An engine has its own session, or shares one with others that differ in a few tensors, which are then inputs of the
graph, so that the base of many files is in memory once.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from subcompress.errors import SubcompressError, one_line
from subcompress.onnx.outside import check_outside
from subcompress.onnx.runtime import How, open_graph, ort_values
from subcompress.serving.refusals import RefusedError
from subcompress.support.threads import thread_count

DATATYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "tensor(float)": ("FP32", np.dtype(np.float32)),
    "tensor(float16)": ("FP16", np.dtype(np.float16)),
    "tensor(double)": ("FP64", np.dtype(np.float64)),
    "tensor(int64)": ("INT64", np.dtype(np.int64)),
    "tensor(int32)": ("INT32", np.dtype(np.int32)),
    "tensor(int16)": ("INT16", np.dtype(np.int16)),
    "tensor(int8)": ("INT8", np.dtype(np.int8)),
    "tensor(uint64)": ("UINT64", np.dtype(np.uint64)),
    "tensor(uint32)": ("UINT32", np.dtype(np.uint32)),
    "tensor(uint16)": ("UINT16", np.dtype(np.uint16)),
    "tensor(uint8)": ("UINT8", np.dtype(np.uint8)),
    "tensor(bool)": ("BOOL", np.dtype(np.bool_)),
    "tensor(bfloat16)": ("BF16", np.dtype(np.uint16)),
    "tensor(string)": ("BYTES", np.dtype(object)),
}
"""ONNX Runtime's name of a type, the protocol's, and NumPy's, which has no BF16: its bits are held instead."""

_device = "cpu"


def use_device(name: str) -> None:
    """Open the sessions of this process on that device from now on: cpu or cuda."""
    global _device
    _device = name


def device() -> str:
    """Return the device on which sessions of this process are opened."""
    return _device


SMALL = 1 << 22
"""The fewest bytes of weights for which a run gets more than one thread."""

FIXED = 300_000
"""Bytes that a session takes in addition to its weights and its graph, as measured (benchmarks/serving.py many)."""


@dataclass(frozen=True)
class Port:
    """An input or an output.

    shape: -1 for sizes that vary; axis: the name of the first axis if it varies; ranked: whether the graph states the
    number of axes; if not, shape is [-1]; is_file: whether its values, of BYTES, are files rather than texts.
    """

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    axis: str = ""
    ranked: bool = True
    is_file: bool = False

    def __str__(self) -> str:
        if not self.ranked:
            return f"{self.name} {self.datatype} of any shape"
        return f"{self.name} {self.datatype} [{', '.join(map(str, self.shape))}]"


class Engine:
    """A session with the values of those inputs that are weights. path: the session's .onnx file, if it has one.

    Raises SubcompressError for inputs and outputs whose types the protocol lacks.
    """

    def __init__(self, session: Any, weights: Mapping[str, np.ndarray] | None = None, path: Path | None = None) -> None:
        self._session, self._weights = session, ort_values(weights or {})
        inputs, outputs = session.get_inputs(), session.get_outputs()
        unranked = _unranked(path) if path is not None and any(not v.shape for v in (*inputs, *outputs)) else set()
        self.inputs = tuple(_port(i, unranked) for i in inputs if i.name not in self._weights)
        self.outputs = tuple(_port(o, unranked) for o in outputs)
        self._names = [o.name for o in self.outputs]
        ports = (*self.inputs, *self.outputs)
        self._bfloat16 = {p.name for p in ports if p.datatype == "BF16"}
        # Examples can share a run where the first axis is theirs everywhere.
        self.batched = bool(self.inputs) and all(p.ranked and p.shape and p.shape[0] == -1 for p in ports)
        self.batched = self.batched and len({p.axis for p in ports}) == 1
        self.separate = False  # whether it was seen that they do not change each other's outputs, see `batching`

    def shares(self, session: Any) -> bool:
        """Return whether the engine uses that session."""
        return session is self._session

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs in order. Raises RefusedError: 503 if memory is short, 400 for other errors of ONNX
        Runtime."""
        try:
            found = self._run(feeds)
        except Exception as e:  # its exceptions have no common base of their own
            text = one_line(e)
            if isinstance(e, MemoryError) or re.search(r"bad_alloc|allocate memory|out of memory", text, re.I):
                raise RefusedError(503, "there is not enough memory for this request now: send less at once") from e
            raise RefusedError(400, f"ONNX Runtime refuses these inputs ({text})") from e
        return [np.asarray(x) for x in found]

    def _run(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        if not self._bfloat16:
            return list(self._session.run(self._names, {**self._weights, **feeds}))
        values = ort_values({n: np.ascontiguousarray(a) for n, a in feeds.items()}, self._bfloat16)
        return [_held(x) for x in self._session.run_with_ort_values(self._names, {**self._weights, **values})]


def _held(value: Any) -> np.ndarray:
    """The values of an output, BF16 as uint16, for which ONNX Runtime has no way to NumPy."""
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    shape = tuple(value.shape())
    size = 2 * math.prod(shape)
    return np.frombuffer(ctypes.string_at(value.data_ptr(), size), np.uint16).reshape(shape)


def open_session(
    graph: bytes | Path, weights: Mapping[str, np.ndarray] | None = None, folder: Path | None = None
) -> Any:
    """Open a session on the process's device. weights: values of external initializers; folder: of files that hold
    initializers.

    Raises SubcompressError if ONNX Runtime does not open the graph.
    """
    size = len(graph) if isinstance(graph, bytes) else graph.stat().st_size
    small = folder is None and size + sum(a.nbytes for a in (weights or {}).values()) < SMALL
    # An arena would keep what the largest batch took.
    how = How(threads=1 if small else thread_count(), spin=False, arena=False, folder=folder)
    return open_graph(graph, _device, weights, how)


def external_values(path: Path) -> dict[str, np.ndarray]:
    """Load initializers that are in other files than the graph, BF16 as uint16, for `open_session`.

    ONNX Runtime would map those files, and truncating a mapped file would end this process. Raises SubcompressError if
    one cannot be read, lies outside the graph's folder or is not the one that the graph was made beside.
    """
    check_outside(path)
    if not _holds(path, b"\n\x08location"):  # a key of external_data, as protobuf writes it
        return {}
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

    weights = {}
    try:
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if uses_external_data(tensor) and tensor.data_type != onnx.TensorProto.UINT16:
                load_external_data_for_tensor(tensor, str(path.parent))
                if tensor.data_type == onnx.TensorProto.BFLOAT16:
                    weights[tensor.name] = np.frombuffer(tensor.raw_data, np.uint16).reshape(tuple(tensor.dims))
                else:
                    weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
    except MemoryError:
        raise
    except Exception as e:  # of protobuf, of onnx, of files
        raise SubcompressError(f"{path} needs weights in other files, which cannot be read: {one_line(e, 160)}") from e
    return weights


def _holds(path: Path, part: bytes) -> bool:
    """Return whether a file contains these bytes."""
    with path.open("rb") as f:
        end = b""
        while piece := f.read(1 << 20):
            if part in end + piece:
                return True
            end = piece[1 - len(part) :]
    return False


def place_initializers(graph: bytes, places: Mapping[str, tuple[Path, int]]) -> bytes:
    """Return the graph with initializers that refer to files, so that ONNX Runtime can map them.

    places: file and offset by name.
    """
    import onnx

    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.name in places:
            path, begin = places[tensor.name]
            size = math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            del tensor.external_data[:]
            for key, value in (("location", path.name), ("offset", begin), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
    return bytes(model.SerializeToString())


def session_bytes(weights: int, graph: int) -> int:
    """Estimate the memory of a session: weights, graph, and half the weights again for repacked copies."""
    return weights + weights // 2 + 10 * graph + FIXED


def _unranked(path: Path) -> set[str]:
    """Return the inputs and outputs for which an .onnx file states no number of axes, which ONNX Runtime reports as
    scalars. Raises SubcompressError."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as e:  # of protobuf, of onnx, of files
        raise SubcompressError(f"{path} cannot be read: {one_line(e, 160)}") from e
    return {v.name for v in (*graph.input, *graph.output) if not v.type.tensor_type.HasField("shape")}


def _port(value: Any, unranked: Collection[str] = ()) -> Port:
    if value.type not in DATATYPES:
        raise SubcompressError(
            f"inputs and outputs must be tensors of {', '.join(d for d, _ in DATATYPES.values())}; "
            f"{value.name} is {value.type}: serve a graph without it"
        )
    datatype, dtype = DATATYPES[value.type]
    if value.name in unranked:
        return Port(value.name, datatype, dtype, (-1,), ranked=False)
    shape = tuple(k if isinstance(k, int) else -1 for k in value.shape)
    axis = value.shape[0] if value.shape and isinstance(value.shape[0], str) else ""
    return Port(value.name, datatype, dtype, shape, axis)


def ports(values: Sequence[Port]) -> list[dict[str, Any]]:
    """Describe inputs or outputs as the protocol does."""
    descriptions: list[dict[str, Any]] = [
        {"name": p.name, "datatype": p.datatype, "shape": list(p.shape)} for p in values
    ]
    for port, description in zip(values, descriptions, strict=True):
        if not port.ranked:
            description["parameters"] = {"any_rank": True}
    return descriptions
