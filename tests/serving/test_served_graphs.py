"""Other networks and graphs that others write, served: what may share a run and what may not."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networks
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from records import record_of
from served import LENET, X, expected, graph
from serving import Client, packed, serving, traced_here
from torch import nn

import subcompress
from subcompress import SubcompressError
from subcompress.data.splits import batches
from subcompress.format.facts import Facts
from subcompress.serving import catalog, engines, protocol, tensors
from subcompress.serving.batching import Batches
from subcompress.serving.engines import DATATYPES, Port
from subcompress.serving.refusals import RefusedError
from subcompress.serving.tensors import InferenceRequest, Takes, from_bfloat16
from subcompress_models import MODELS


def test_to_load_one_model_leaves_the_others(odd: Client) -> None:
    x = np.ones((1, 2), np.float32)
    assert odd.infer("same", x, name="x").status == 200
    before = odd.running.models.find("same").engine
    assert before is not None
    assert odd("POST", "/v2/repository/models/sum/load").status == 200
    assert odd.running.models.find("same").engine is before


class Derived(torch.nn.Module):
    """Holds something made of its weights under no name of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3))

    def eval(self) -> Derived:
        """In evaluation, the weight as it is now."""
        self.held = self.weight.detach() * 2
        return super().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x times the weight as it was."""
        return x @ self.held.T


def test_a_graph_that_holds_something_of_the_weights_serves_no_others(tmp_path: Path) -> None:
    module = Derived()
    for i in range(2):
        packed(tmp_path, f"n{i}", record_of(module, Facts(input_shape=(3,)), seed=i))
    trace = traced_here(module)
    x = np.ones((1, 3), np.float32)
    with serving(tmp_path, trace=trace) as client:
        for i in (0, 1, 0):
            loaded = subcompress.load(tmp_path / f"n{i}.safetensors", Derived())  # the server may be tracing `module`
            wanted = loaded.eval()(torch.from_numpy(x)).detach().numpy()
            np.testing.assert_allclose(client.infer(f"n{i}", x).said["outputs"][0]["data"], wanted[0], atol=1e-5)
    assert len(trace.jobs) == 2  # type: ignore[attr-defined]


def test_dense_and_self_unfolding_graphs_are_served(tmp_path: Path, folder: Path) -> None:
    for name, unfolding in (("dense", False), ("unfolding", True)):
        file = folder / "one.safetensors"
        subcompress.unpack(file, tmp_path / f"{name}.onnx", MODELS["lenet"](), self_unfolding=unfolding)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    wanted = expected(folder / "one.safetensors", X)
    with serving(tmp_path, trace=LENET) as client:
        for name in ("dense", "unfolding"):
            said = client.infer(name, X).said
            np.testing.assert_allclose(np.reshape(said["outputs"][0]["data"], (3, 10)), wanted, atol=1e-4)
        found = client.infer("broken", X)
        assert found.status == 503 and "not an ONNX file" in found.error


OTHERS = {
    "tokens": networks.Case(
        lambda: nn.Sequential(nn.Embedding(16, 8), nn.Flatten(), nn.Linear(48, 4)), networks.tokens, {}
    ),
    **{name: networks.CASES[name] for name in ("gru", "transformer")},
}


@pytest.mark.parametrize("kind", ["tokens", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gru", "transformer"))])
def test_other_networks_are_served(tmp_path: Path, kind: str) -> None:
    case = OTHERS[kind]
    module, data = case.make(), case.data()
    x, _ = next(batches(data.test, 4))
    assert isinstance(x, torch.Tensor)
    facts = Facts(input_shape=tuple(x.shape[1:]), input_dtype="I64" if x.dtype == torch.int64 else "")
    packed(tmp_path, "net", record_of(module, facts))
    with torch.no_grad():
        wanted = subcompress.load(tmp_path / "net.safetensors", module)(x).numpy()
    with serving(tmp_path, trace=traced_here(module)) as client:
        found = client.infer("net", x.numpy(), datatype="INT64" if facts.input_dtype else "FP32")
        np.testing.assert_allclose(np.reshape(found.said["outputs"][0]["data"], wanted.shape), wanted, atol=1e-3)
        if facts.input_dtype:  # a token that is not in the vocabulary spoils no other's request
            with ThreadPoolExecutor(8) as pool:
                bad = np.full_like(x.numpy()[:1], 10**6)
                asked = [bad if i % 4 == 0 else x.numpy()[:1] for i in range(32)]
                found_ = list(pool.map(lambda ids: client.infer("net", ids, datatype="INT64"), asked))
            assert [f.status for f in found_] == [400 if i % 4 == 0 else 200 for i in range(32)]
            assert "refuses these inputs" in found_[0].error


@pytest.mark.parametrize("name", ["sum", "centered", "same"])
def test_requests_share_a_run_only_where_it_changes_nothing(odd: Client, name: str) -> None:
    def wanted(x: np.ndarray) -> np.ndarray:
        return {"sum": x.cumsum(0), "centered": x - x.mean(0), "same": x}[name]

    asked = [np.random.default_rng(i).random((1 + i % 3, 2), np.float32) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: odd.infer(name, x, name="x").said["outputs"][0], asked))
    for x, output in zip(asked, found, strict=True):
        assert output["shape"] == list(x.shape)
        np.testing.assert_allclose(np.reshape(output["data"], x.shape), wanted(x), atol=1e-5)
    x = np.random.default_rng(0).random((11, 2), np.float32)  # more than a run has
    output = odd.infer(name, x, name="x").said["outputs"][0]
    np.testing.assert_allclose(np.reshape(output["data"], x.shape), wanted(x), atol=1e-5)


def test_weights_beside_a_graph_may_be_cut_short(tmp_path: Path) -> None:
    large = np.random.default_rng(0).random((64, 4096)).astype(np.float32)  # of many pages
    path = tmp_path / "net.onnx"
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph(path, nodes, {"x": ["n", 64], "y": ["n", 4096]}, {"w": large})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.data")
    x = np.random.default_rng(1).random((1, 64)).astype(np.float32)
    with serving(tmp_path, trace=LENET) as client:
        for _ in range(2):
            (output,) = client.infer("net", x, name="x").said["outputs"]
            np.testing.assert_allclose(output["data"], (x @ large)[0], rtol=1e-4)
            os.truncate(tmp_path / "net.data", 100)
        client("POST", "/v2/repository/models/net/unload")
        found = client("POST", "/v2/repository/models/net/load")
        assert found.status == 503 and "in other files, which cannot be read" in found.error


def test_outputs_and_inputs_of_other_forms(odd: Client) -> None:
    (output,) = odd.infer("scalar", np.ones((2, 2), np.float32), name="x").said["outputs"]
    assert output["shape"] == [] and output["data"] == [4.0]
    (output,) = odd("POST", "/v2/models/none/infer", b'{"inputs": []}').said["outputs"]
    assert output["data"] == [1.0, 1.0]


def engine_of(run: Any) -> Any:
    """An engine of x -> y that is taken to be fit to share runs."""
    port = Port("x", "FP32", np.dtype(np.float32), (-1, 2))
    return SimpleNamespace(run=run, batched=True, separate=True, inputs=(port,), outputs=(port,))


async def asked_of(batches: Batches, engine: Any, *rows: int) -> list[Any]:
    """Outcomes of requests that come at once."""
    asks = [InferenceRequest("", {"x": np.full((n, 2), i, np.float32)}, ()) for i, n in enumerate(rows)]
    return await asyncio.gather(*(batches.run(engine, a) for a in asks), return_exceptions=True)


def test_a_run_that_fails_in_a_way_that_nobody_foresaw_is_told_and_goes_on() -> None:
    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        if broken:
            raise KeyError("bug")
        return [feeds["x"]]

    broken = [1]
    with ThreadPoolExecutor(1) as pool:
        batches = Batches(pool, 8, lambda examples, seconds: None)
        found = asyncio.run(asyncio.wait_for(asked_of(batches, engine_of(run), 1, 2), 10))
        assert [type(e) for e in found] == [KeyError] * 2
        broken.clear()
        found = asyncio.run(asyncio.wait_for(asked_of(batches, engine_of(run), 1, 2), 10))
        assert [len(o[0]) for o in found] == [1, 2]


def test_the_loop_does_no_run_that_is_much_larger_than_those_that_were_brief() -> None:
    threads = []

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        threads.append(threading.current_thread() is threading.main_thread())
        return [feeds["x"]]

    async def ask() -> None:
        for rows in (1, 1, 2, 1000, 2):
            await asked_of(batches, engine_of(run), rows)

    with ThreadPoolExecutor(1) as pool:
        batches = Batches(pool, 1 << 20, lambda examples, seconds: None)
        asyncio.run(ask())
    assert threads == [False, True, True, False, True]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_are_a_request_or_refused(data: st.DataObject) -> None:
    """Never anything but RefusedError, whatever JSON or bytes come."""
    ports = [Port(d, d, t, (-1, 2)) for d, t in (DATATYPES[f"tensor({k})"] for k in ("float", "int8", "bool"))]
    leaf = st.none() | st.booleans() | st.integers(-300, 300) | st.floats(width=32) | st.text(max_size=3)
    tensor = st.fixed_dictionaries(
        {"name": st.sampled_from(["FP32", "INT8", "BOOL", "x"]), "datatype": st.sampled_from(["FP32", "INT8", "BOOL"])},
        optional={
            "shape": st.lists(st.integers(0, 2), min_size=2, max_size=2) | leaf,
            "data": st.lists(leaf, max_size=4) | leaf,
            "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(0, 8)}) | leaf,
        },
    )
    said = data.draw(st.fixed_dictionaries({"inputs": st.lists(tensor, max_size=4) | leaf}) | leaf)
    body = json.dumps(said).encode()
    if data.draw(st.booleans()):
        body, length = body + data.draw(st.binary(max_size=8)), str(len(body))
    else:
        length = None  # type: ignore[assignment]
    try:
        asked = protocol.parse_request(
            body, length, Takes(SimpleNamespace(inputs=ports, outputs=ports[:1], batched=True))
        )
    except RefusedError as e:
        assert e.status == 400 and "\n" not in str(e)
    else:
        assert {n: (a.dtype.kind, a.shape) for n, a in asked.feeds.items()} == {
            "FP32": ("f", (asked.rows, 2)),
            "INT8": ("i", (asked.rows, 2)),
            "BOOL": ("b", (asked.rows, 2)),
        }


def test_every_datatype_goes_there_and_back() -> None:
    rng = np.random.default_rng(0)
    for name, (datatype, dtype) in DATATYPES.items():
        port = Port("x", datatype, dtype, (-1, 5))
        x = rng.integers(0, 2, (3, 5)).astype(dtype)
        if datatype == "BYTES":
            x = np.array([["", "a", "größe", "\0", "x" * 300]] * 3, object)
        elif datatype == "BF16":
            x = (x * 0x3F80).astype(dtype)  # zeros and ones
        for as_binary in (True, False):
            told: dict[str, Any] = {"name": "x", "shape": [3, 5], "datatype": datatype}
            tail = b""
            if as_binary:
                tail = tensors.to_bytes(x, port)
                told["parameters"] = {"binary_data_size": len(tail)}
            else:
                told["data"] = (from_bfloat16(x) if datatype == "BF16" else x).ravel().tolist()
            head = json.dumps({"inputs": [told], "parameters": {"binary_data_output": as_binary}}).encode()
            takes = Takes(SimpleNamespace(inputs=[port], outputs=[port], batched=True))
            asked = protocol.parse_request(head + tail, str(len(head)), takes)
            assert asked.feeds["x"].dtype == dtype and (asked.feeds["x"] == x).all(), name
            body, _, length = protocol.encode_answer("m", asked, [port], [x])
            assert json.loads(body[: length or None])["outputs"][0].get("data", told.get("data")) == told.get("data")
            assert not length or body[length:] == tail, name


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph(tmp_path / "x.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"x": ["n", 2], "y": ["n", 2]})
    asked = []
    monkeypatch.setattr(engines, "open_graph", lambda model, device, *rest: asked.append(device) or engines.Path())
    engines.use_device("cuda")
    try:
        engines.open_session(tmp_path / "x.onnx")
        assert asked == [engines.device()] == ["cuda"]
        monkeypatch.undo()
        with pytest.raises(SubcompressError, match="does not"):
            engines.open_session(tmp_path / "x.onnx")
    finally:
        engines.use_device("cpu")


def test_names() -> None:
    assert all(map(catalog.is_valid_name, ["net", "net-1.2_x", "größe"]))
    assert not any(map(catalog.is_valid_name, ["", ".net", "a/b", "a b", "a\n", "a%", "x" * 201, "\ud800"]))
