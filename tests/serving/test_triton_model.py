"""The Python model that `export` writes, with what Triton gives it played here."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from triton_files import NAN, graph, parsed

from subcompress.serving import triton
from subcompress.serving.triton import Source, export

# The Python model, with what Triton gives it played here; tests/serving/test_triton_server.py runs it in the real one.


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert isinstance(array, np.ndarray) and array.flags.c_contiguous
        self.name, self._array = name, array

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError(Exception):
    pass


class Response:
    def __init__(self, outputs: list[Tensor], error: TritonError | None = None) -> None:
        self.outputs, self.error = {t.name: t.as_numpy() for t in outputs}, error


@pytest.fixture
def load(monkeypatch) -> Callable[[Path], Any]:
    """A model's folder -> its model.py as Triton loads it."""
    utils = types.ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Response, TritonError
    utils.TritonModelException = type("TritonModelException", (Exception,), {})
    utils.get_input_tensor_by_name = lambda request, name: next((t for t in request if t.name == name), None)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)

    def loaded(folder: Path) -> Any:
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        batch = parsed((folder / "config.pbtxt").read_text()).max_batch_size
        model = module.TritonPythonModel()
        model.initialize({"model_config": json.dumps({"max_batch_size": batch})})
        return model

    return loaded


def request(**inputs: np.ndarray) -> list[Tensor]:
    return [Tensor(name, x) for name, x in inputs.items()]


def counted(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that it runs, as they come."""
    sizes, run = [], model.run
    monkeypatch.setattr(model, "run", lambda fed: sizes.append(len(next(iter(fed.values())))) or run(fed))
    return sizes


def test_requests_are_joined_and_each_gets_its_own(place, load, monkeypatch):
    export([Source(Path("net.onnx"), "net")], "models", backend="python")
    model = load(Path("models/net"))
    sizes = counted(model, monkeypatch)
    x = np.random.default_rng(0).random((9, 1, 28, 28), np.float32)
    x[8] = NAN
    (expected,) = onnxruntime.InferenceSession("net.onnx").run(None, {"input": x})
    cuts = [(0, 1), (1, 4), (4, 6), (6, 8), (8, 9)]
    found = model.execute([request(input=x[a:b]) for a, b in cuts])
    assert sizes == [9] and all(r.error is None for r in found)
    for (a, b), response in zip(cuts, found, strict=True):
        assert response.outputs["output"].shape == (b - a, 10)
        assert np.allclose(response.outputs["output"], expected[a:b], atol=1e-5, equal_nan=True)


def texts(folder: Path, fixed: bool = False) -> Path:
    """ids and mask, of any length -> the sum over the mask of a table's values: (N,). fixed: of one text."""
    batch = 1 if fixed else "n"
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["values"]),
        helper.make_node("Mul", ["values", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["total"], keepdims=0),
    ]
    inputs = {"ids": (TensorProto.INT64, [batch, "length"]), "mask": (TensorProto.FLOAT, [batch, "length"])}
    model = graph(inputs, {"total": (TensorProto.FLOAT, [batch])}, nodes)
    for name, value in (("table", np.arange(8, dtype=np.float32)), ("axis", np.array([1]))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, folder / "texts.onnx")
    return folder / "texts.onnx"


def test_shapes_apart_run_apart_and_a_bad_request_fails_alone(place, load, monkeypatch):
    export([Source(texts(place), "texts")], "models", backend="python")
    model = load(Path("models/texts"))
    sizes = counted(model, monkeypatch)

    def text(*ids: int, mask: int | None = None) -> list[Tensor]:
        ones = np.ones((1, len(ids) if mask is None else mask), np.float32)
        return request(ids=np.array([ids]), mask=ones)

    asked = [text(1, 2), text(1, 2, 3), text(4, 5), text(1, 99), text(1, 2, 3, mask=2), request(ids=np.array([[1]]))]
    found = model.execute([*asked, text(7, 7)])
    totals = [None if r.error else r.outputs["total"].tolist() for r in found]
    assert totals == [[3.0], [6.0], [9.0], None, None, None, [14.0]]
    assert sizes == [4, 1, 1, 1, 1, 1, 1]  # four alike, each again for the bad one's sake; two of shapes of their own
    reasons = [str(found[i].error) for i in (3, 4, 5)]
    assert all("\n" not in reason and len(reason) < 400 for reason in reasons)
    assert "out of data bounds" in reasons[0] and "ONNX Runtime refuses this input" in reasons[1]
    assert reasons[2] == "takes ids, mask; mask is missing"
    assert [r.outputs["total"].tolist() for r in model.execute([text(1, 1), text(2, 2)])] == [[2.0], [4.0]]


def test_without_a_batch_axis_nothing_is_joined(place, load, monkeypatch):
    export([Source(texts(place, fixed=True), "texts")], "models", backend="python")
    model = load(Path("models/texts"))
    sizes = counted(model, monkeypatch)
    ones = np.ones((1, 2), np.float32)
    found = model.execute([request(ids=np.array([[k, 1]]), mask=ones) for k in range(3)])
    assert [r.outputs["total"].tolist() for r in found] == [[1.0], [2.0], [3.0]] and sizes == [1, 1, 1]


def test_the_model_needs_little_of_tritons_python():
    tree = ast.parse((triton.TEMPLATES / "triton_model.py").read_text(), feature_version=(3, 8))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert {n for n in names if n.partition(".")[0] not in sys.stdlib_module_names} == {
        *("numpy", "onnxruntime", "triton_python_backend_utils"),
    }


def test_a_graph_that_does_not_open_is_said_in_one_line(place, load):
    export([Source(Path("net.onnx"), "net")], "models", backend="python")
    Path("models/net/1/model.onnx").write_bytes(b"cut")
    with pytest.raises(Exception, match=r"^onnxruntime [0-9.]+ cannot open model.onnx: [^\n]+$"):
        load(Path("models/net"))
