"""The server: the protocol with the real client, models that come and go, memory, and whatever requests get wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networks
import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from records import lenet_record, record_of, with_digest
from safetensors.torch import save_file
from serving import Client, asking, packed, serving, traced_here

import subcompress
from subcompress import SubcompressError
from subcompress.base import Base, BaseReference, OnBase
from subcompress.data.splits import batches
from subcompress.format.facts import Facts
from subcompress.format.record import Coded, Group, Kept, Record
from subcompress.operators import HadamardBlocks
from subcompress.serving import app, catalogue, connections, protocol, running
from subcompress.serving import networks as serving_networks
from subcompress.serving.app import Limits
from subcompress.serving.batching import Batches
from subcompress.serving.engines import DATATYPES, Port
from subcompress.serving.models import Models
from subcompress.serving.networks import Job, Traced
from subcompress.serving.refusals import RefusedError
from subcompress.serving.running import serve
from subcompress_cli import finding, tracing
from subcompress_models import MODELS

LENET = traced_here(MODELS["lenet"]())
SHAPE = Facts(input_shape=(1, 12, 12))
X = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of LeNet."""
    made = tmp_path_factory.mktemp("models")
    for i, name in enumerate(("one", "two")):
        packed(made, name, lenet_record(300, i))
    return made


@pytest.fixture(scope="module")
def client(folder: Path) -> Any:
    """A server of both."""
    with serving(folder, trace=LENET) as found:
        yield found


def expected(path: Path, x: np.ndarray) -> np.ndarray:
    """What torch gives."""
    with torch.no_grad():
        return subcompress.load(path, MODELS["lenet"]())(torch.from_numpy(x)).numpy()


@pytest.fixture(scope="module")
def real(client: Client) -> Any:
    """The client that Triton's users have."""
    with triton.InferenceServerClient(f"{client.host}:{client.port}", concurrency=4) as found:
        yield found


@pytest.mark.parametrize("ask", [True, False])
@pytest.mark.parametrize("send", [True, False])
def test_the_real_client_gets_torchs_outputs(real: Any, folder: Path, send: bool, ask: bool) -> None:
    given = triton.InferInput("input", X.shape, "FP32").set_data_from_numpy(X, binary_data=send)
    wanted = triton.InferRequestedOutput("output", binary_data=ask)
    for name in ("one", "two"):
        found = real.infer(name, [given], outputs=[wanted], request_id="7")
        assert found.get_response()["id"] == "7"
        np.testing.assert_allclose(found.as_numpy("output"), expected(folder / f"{name}.safetensors", X), atol=1e-4)
    assert real.infer("one", [given]).as_numpy("output").shape == (3, 10)


def test_the_real_client_is_told_what_there_is(real: Any) -> None:
    assert real.is_server_live() and real.is_server_ready() and real.is_model_ready("one", "1")
    assert not real.is_model_ready("one", "2") and not real.is_model_ready("three")
    assert real.get_server_metadata()["name"] == "subcompress"
    metadata = real.get_model_metadata("one")
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    assert metadata["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}]
    assert real.get_model_config("one")["max_batch_size"] == 64
    assert {m["name"]: m["state"] for m in real.get_model_repository_index()} == {"one": "READY", "two": "READY"}
    assert real.get_inference_statistics("one")["model_stats"][0]["name"] == "one"


def test_the_real_client_loads_and_unloads(real: Any, client: Client) -> None:
    real.unload_model("two")
    assert not real.is_model_ready("two") and real.is_model_ready("one")
    assert "load it first" in (refused := client.infer("two", X)).error and refused.status == 503
    real.load_model("two")
    assert real.is_model_ready("two")
    assert client.infer("two", X).status == 200
    with pytest.raises(triton.InferenceServerException, match="no model is called 'three'"):
        real.load_model("three")
    with pytest.raises(triton.InferenceServerException, match="leave them out"):
        real.load_model("two", config="{}")


def test_many_at_once_share_runs_and_get_their_own(client: Client, folder: Path) -> None:
    wanted = expected(folder / "one.safetensors", X)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: client.infer("one", X[i % 3 :][:1]).said, range(48)))
    for i, said in enumerate(found):
        np.testing.assert_allclose(said["outputs"][0]["data"], wanted[i % 3], atol=1e-4)


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "a request is JSON"),
    "nothing": (b"", "a request is JSON"),
    "not text": (b"\xff\xfe{}", "a request is JSON"),
    "NaN in JSON": (json.dumps(asking(np.full((1, 1, 28, 28), np.nan, np.float32))).encode(), "a request is JSON"),
    "a list": ([], "a JSON object with inputs; given a list"),
    "no inputs": ({}, "inputs is a list of tensors (input FP32 [-1, 1, 28, 28]); given nothing"),
    "empty inputs": ({"inputs": []}, "input is missing"),
    "another name": (asking(X, name="x"), "inputs are input FP32 [-1, 1, 28, 28]; given 'x'"),
    "twice": ({"inputs": asking(X)["inputs"] * 2}, "each input is given once"),
    "another datatype": (asking(X, "FP64"), "given 'FP64' [3, 1, 28, 28]"),
    "another shape": (asking(X.reshape(3, 784)), "given 'FP32' [3, 784]"),
    "no example": (asking(X[:0]), "send one example or more"),
    "too few values": ({"inputs": [asking(X)["inputs"][0] | {"shape": [4, 1, 28, 28]}]}, "has 3136 values; given 2352"),
    "a huge shape": (
        {"inputs": [asking(X)["inputs"][0] | {"shape": [1 << 60, 1, 28, 28]}]},
        f"has {784 << 60} values; given 2352",
    ),
    "a negative shape": (
        {"inputs": [asking(X)["inputs"][0] | {"shape": [-1, 1, 28, 28]}]},
        "how many there are in place of each -1",
    ),
    "no batch": (asking(X[0]), "input is FP32 [-1, 1, 28, 28]; given 'FP32' [1, 28, 28]: put a 1 in front"),
    "a shape of text": ({"inputs": [asking(X)["inputs"][0] | {"shape": "all"}]}, "given 'FP32' 'all'"),
    "values of text": ({"inputs": [asking(X)["inputs"][0] | {"data": ["1"] * 2352}]}, "given others, or null"),
    "null among them": ({"inputs": [asking(X)["inputs"][0] | {"data": [None] * 2352}]}, "given others, or null"),
    "long text among them": (
        {"inputs": [asking(X)["inputs"][0] | {"data": [1.0, "x" * 400_000] + [1.0] * 200_000}]},
        "has 2352 values; given 200002",
    ),
    "text among them": (
        {"inputs": [asking(X)["inputs"][0] | {"data": [1.0, "x" * 4_000_000] + [1.0] * 2350}]},
        "given others, or null",
    ),
    "lists that end apart": (
        {"inputs": [asking(X)["inputs"][0] | {"data": [[1.0] * 2351, [1.0]]}]},
        "flat list, or one nested",
    ),
    "ragged": ({"inputs": [asking(X)["inputs"][0] | {"data": [[1.0], [1.0, 2.0]]}]}, "flat list, or one nested"),
    "beyond the datatype": ({"inputs": [asking(X)["inputs"][0] | {"data": [1e39] * 2352}]}, "finite in FP32"),
    "another output": (asking(X, outputs=[{"name": "y"}]), "outputs are output FP32 [-1, 10]; given 'y'"),
    "classes": (asking(X, outputs=[{"name": "output", "parameters": {"classification": 2}}]), "is not offered"),
    "an id of numbers": (asking(X, id=7), "id is text"),
    "a sequence": (asking(X, parameters={"sequence_id": 1}), "sequences are not offered"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_told_what_would_be_right(client: Client, what: str) -> None:
    body, text = WRONG[what]
    found = client("POST", "/v2/models/one/infer", body if isinstance(body, bytes) else json.dumps(body).encode())
    assert found.status == 400 and text in found.error
    assert client.infer("one", X).status == 200


def binary(x: np.ndarray, size: int | None = None, tail: bytes | None = None, header: Any = None) -> tuple[bytes, Any]:
    """A body in the binary extension, and its headers."""
    told = {"name": "input", "shape": list(x.shape), "datatype": "FP32"}
    said = {"inputs": [told | {"parameters": {"binary_data_size": x.nbytes if size is None else size}}]}
    head = json.dumps(said).encode()
    length = str(len(head)) if header is None else header
    return head + (x.tobytes() if tail is None else tail), {"inference_header_content_length": length}


BINARY: dict[str, tuple[tuple[bytes, Any], str]] = {
    "too short": (binary(X, tail=X.tobytes()[:-1]), "takes 9408 bytes; binary_data_size says 9408, and 9407 are there"),
    "too long": (binary(X, tail=X.tobytes() + b"\0"), "say that they take 9408 bytes; 9409 follow"),
    "another size": (binary(X, size=4), "takes 9408 bytes; binary_data_size says 4"),
    "a huge size": (binary(X, size=1 << 62), f"binary_data_size says {1 << 62}"),
    "a negative size": (binary(X, size=-1), "is a number of bytes; given -1"),
    "a header beyond the body": (binary(X, header="999999"), "between 1 and the body's"),
    "raw, with JSON": (binary(X, header="0"), "holds one example of input FP32 [-1, 1, 28, 28]; given"),
    "raw, two examples": ((X[:2].tobytes(), {"inference_header_content_length": "0"}), "one example"),
    "raw, of nothing": ((b"", {"inference_header_content_length": "0"}), "given 0 bytes"),
    "a header of text": (binary(X, header="x"), "is a number of bytes; given 'x'"),
    "a header that is negative": (binary(X, header="-4"), "is a number of bytes; given '-4'"),
}


@pytest.mark.parametrize("what", BINARY)
def test_a_wrong_binary_request_is_told_what_would_be_right(client: Client, what: str) -> None:
    (body, headers), text = BINARY[what]
    found = client("POST", "/v2/models/one/infer", body, **headers)
    assert found.status == 400 and text in found.error


@pytest.mark.parametrize(
    "name", ["three", "..", "../one", "%2e%2e%2fone", "one/../one", "/etc/passwd", "one%00", "%ff", "o" * 5000, ""]
)
def test_a_name_is_looked_up_and_nothing_else(client: Client, name: str) -> None:
    found = client("POST", f"/v2/models/{name}/infer", b"{}")
    assert found.status == 404 and len(found.error) < 300
    for tail in ("load", "unload"):
        found = client("POST", f"/v2/repository/models/{name}/{tail}")
        assert found.status in (404, 405)


def test_what_is_not_there_or_not_taken_is_said_in_json(client: Client) -> None:
    assert "/v2/repository/index" in (found := client("GET", "/v3")).error and found.status == 404
    assert (found := client("GET", "/v2/models/one/infer")).status in (404, 405) and found.error
    assert (found := client("DELETE", "/v2/models/one")).status == 405 and found.error
    assert client("GET", "/v2/models/one/versions/2").status == 404
    assert client("POST", "/v2/models/one/versions/2/infer", b"{}").status == 404
    assert client("POST", "/v2/models/one/versions/1/infer", json.dumps(asking(X)).encode()).status == 200
    assert (found := client("GET", "/status?sort=nothing")).status == 400 and "sort" in found.error


def test_pages_of_other_sites_are_not_heard(client: Client) -> None:
    assert client("POST", "/v2/repository/models/one/unload", origin="https://elsewhere.example").status == 403
    assert client("POST", "/v2/repository/index", origin=f"http://{client.host}:{client.port}").status == 200
    lured = {"host": "evil.example", "origin": "http://evil.example"}  # a name that was made to lead here
    head = "".join(f"{k}: {v}\r\n" for k, v in lured.items())
    found = client.raw(f"POST /v2/repository/index HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode())
    assert found.status == 403 and "evil.example" in found.error
    found = client.raw(b"POST /v2/repository/index HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")
    assert found.status == 200  # no page sent it
    policy = client("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


def test_the_figures_add_up(client: Client) -> None:
    before = client("GET", "/status?search=one").said
    good, bad = client.infer("one", X), client.infer("one", X.reshape(3, 784))
    assert (good.status, bad.status) == (200, 400)
    after = client("GET", "/status?search=one").said
    (row,) = after["models"]
    assert after["requests"]["total"] - before["requests"]["total"] == 2
    assert row["failed"] - before["models"][0]["failed"] == 1
    assert row["state"] == "expanded" and row["memory"] <= after["memory"]["models"] <= after["memory"]["limit"]
    assert row["p50_ms"] > 0 and row["file_bytes"] < 400 < row["dense_bytes"] == 177_704
    text = client("GET", "/metrics").body.decode()
    counted = {}
    for line in text.splitlines():
        if line.startswith("subcompress_requests_total{"):
            label, _, value = line.rpartition(" ")
            counted[label] = float(value)
    assert counted['subcompress_requests_total{code="400",model="one"}'] == row["failed"]
    assert sum(v for k, v in counted.items() if 'model="one"' in k) == row["requests"]
    assert 'model="o' + "o" * 20 not in text, "names that requests invent do not become labels"


def test_limits(folder: Path) -> None:
    with serving(folder, trace=LENET, limits=Limits(body=20_000)) as client:
        found = client.infer("one", np.repeat(X, 3, axis=0))
        assert found.status == 413 and "at most 20000 bytes" in found.error
        chunks = b"".join(b"1000\r\n" + b" " * 4096 + b"\r\n" for _ in range(6)) + b"0\r\n\r\n"
        found = client("POST", "/v2/models/one/infer", chunks, transfer_encoding="chunked")
        assert found.status == 413
        found = client("POST", "/v2/models/one/infer", b"x" * 40, content_encoding="br")
        assert found.status == 415 and found.headers["accept-encoding"] == "gzip, deflate"
        bomb = gzip.compress(bytes(1 << 24))
        found = client("POST", "/v2/models/one/infer", bomb, content_encoding="gzip")
        assert len(bomb) < 20_000 and found.status == 413
        found = client("POST", "/v2/models/one/infer", content_length="30000")  # and nothing of it comes
        assert found.status == 413
        body, headers = binary(X)
        assert client("POST", "/v2/models/one/infer", body, **headers).status == 200
        assert client.running.server.held == client.running.server.waiting == 0


def posting(body: bytes, *lines: str, path: str = "/v2/models/one/infer", length: int | None = None) -> bytes:
    """A request as it is sent."""
    head = [f"POST {path} HTTP/1.1", "host: x", *lines, f"content-length: {len(body) if length is None else length}"]
    return "\r\n".join([*head, "", ""]).encode() + body


def test_a_body_that_waits_to_be_asked_for(client: Client) -> None:
    body = json.dumps(asking(X)).encode()
    with socket.create_connection((client.host, client.port), timeout=30) as s:
        s.sendall(posting(b"", "expect: 100-continue", length=len(body)))
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        s.sendall(body)
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 200")
    # Refused before it was sent: what comes next on the connection would be taken for it.
    found = client.raw(posting(b"", "expect: 100-continue", path="/v2/models/three/infer", length=9))
    assert found.status == 404 and found.headers["connection"] == "close"


def test_requests_one_behind_the_other(client: Client) -> None:
    body = json.dumps(asking(X)).encode()
    last = b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection((client.host, client.port), timeout=30) as s:
        s.sendall(posting(body) + posting(b"{", path="/v2/models/three/infer") + posting(body) + last)
        received = b""
        while part := s.recv(1 << 16):
            received += part
    statuses = [received[m.end() :][:3] for m in re.finditer(rb"HTTP/1\.1 ", received)]
    assert statuses == [b"200", b"404", b"200", b"200"]


def test_a_body_is_read_whatever_protocol_is_asked_for_besides(client: Client) -> None:
    body = json.dumps(asking(X)).encode()
    asked = (
        "connection: upgrade, http2-settings",
        "upgrade: h2c",
        "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA",
    )  # Java's
    chunked = posting(b"", *asked, "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
    chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    last = b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade\r\nupgrade: websocket\r\n\r\n"
    with socket.create_connection((client.host, client.port), timeout=30) as s:
        whole = posting(body, *asked) + chunked + posting(body) + last
        for at in range(0, len(whole), 1000):
            s.sendall(whole[at : at + 1000])
        received = b""
        while part := s.recv(1 << 16):
            received += part
    assert received.count(b"HTTP/1.1 200") == 4


@pytest.mark.parametrize("what", ["a header", "headers", "a path", "behind the body"])
def test_headers_without_end(client: Client, what: str) -> None:
    line = b"x: " + b"y" * 1000 + b"\r\n"
    begun = {
        "a header": posting(b"")[:-2] + b"x: ",
        "headers": posting(b"")[:-2],
        "a path": b"GET /",
        "behind the body": posting(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"") + b"0\r\n",
    }[what]
    piece = line if what in ("headers", "behind the body") else b"y" * 1000
    with socket.create_connection((client.host, client.port), timeout=30) as s:
        s.sendall(begun)
        received, sent = b"", 0
        with suppress(ConnectionError):
            for _ in range(4000):
                s.sendall(piece)
                sent += len(piece)
            s.shutdown(socket.SHUT_WR)
            while part := s.recv(1 << 16):
                received += part
    if what != "behind the body":
        assert not received or b"at most 65536 bytes" in received
    assert sent < 4_000_000 or received
    assert client.infer("one", X).status == 200


def test_who_is_slow_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.2)
    monkeypatch.setattr(app, "IDLE", 0.2)
    with serving(folder, trace=LENET) as client:
        begun = [
            "",
            "GET /v2 HT",
            posting(b"x", length=100_000).decode(),
            "GET /v2 HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
        ]
        with ExitStack() as stack:
            slow = [stack.enter_context(socket.create_connection((client.host, client.port), 30)) for _ in begun]
            for s, text in zip(slow, begun, strict=True):
                s.sendall(text.encode())
            found = []
            for s in slow:
                received = b""
                while part := s.recv(1 << 16):
                    received += part
                found.append(received[9:12])
        assert found == [b"", b"", b"408", b"200"]
        assert client.running.server.waiting == client.running.server.held == 0
        assert client.infer("one", X).status == 200


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    clock, left, done = [0.0], [0], []
    transport = SimpleNamespace(
        get_write_buffer_size=lambda: left[0], abort=lambda: done.append("aborted"), close=lambda: done.append("closed")
    )
    loop = SimpleNamespace(time=lambda: clock[0])
    held: Any = SimpleNamespace(transport=transport, loop=loop, cycle=None, _head=False, _since=None, _unread=(0, 0.0))
    for at, size in ((0, 1000), (29, 1000), (31, 900), (60, 900)):  # read slowly, but read
        clock[0], left[0] = at, size
        connections.Connection.check(held)
    assert not done
    clock[0] = 62
    connections.Connection.check(held)
    assert done == ["aborted"]


def test_a_full_queue_says_so_and_recovers(folder: Path) -> None:
    with serving(folder, trace=LENET, limits=Limits(waiting=1)) as client:
        with socket.create_connection((client.host, client.port)) as slow:
            slow.sendall(b"POST /v2/models/one/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
            while not client.running.server.waiting:
                time.sleep(0.001)
            found = client.infer("one", X)
            assert found.status == 503 and "queue is full" in found.error and found.headers["retry-after"] == "1"
        while client.running.server.waiting:  # it was cut off
            time.sleep(0.001)
        assert client.infer("one", X).status == 200


def test_a_token_is_asked_for(folder: Path) -> None:
    with serving(folder, trace=LENET, token="secret-of-this-server") as client:
        for path in ("/v2", "/v2/models/one", "/metrics", "/status"):
            assert (found := client("GET", path)).status == 401 and "Bearer" in found.error
            assert client("GET", path, authorization="Bearer secret").status == 401
            assert client("GET", path, authorization="Bearer secret-of-this-server").status == 200
        assert client.infer("one", X).status == 401
        assert client("GET", "/v2/health/ready").status == client("GET", "/").status == 200
        assert "secret" not in client("GET", "/").body.decode()


def test_the_most_recently_used_stay_within_memory(tmp_path: Path) -> None:
    for i in range(12):
        packed(tmp_path, f"n{i}", lenet_record(300, i))
    with serving(tmp_path, trace=LENET, memory=2_500_000) as client:
        order = [*range(12), 3, 11, 3, 0]
        for i in order:
            found = client.infer(f"n{i}", X[:1])
            assert found.status == 200
            wanted = expected(tmp_path / f"n{i}.safetensors", X[:1])
            np.testing.assert_allclose(found.said["outputs"][0]["data"], wanted[0], atol=1e-4)
            status = client("GET", "/status?limit=100").said
            assert status["memory"]["models"] <= 2_500_000
        kept = {m["name"] for m in status["models"] if m["state"] == "expanded"}
        assert 1 < len(kept) < 12 and {"n0", "n3", "n11"} <= kept
        with ThreadPoolExecutor(12) as pool:  # more at once than fit
            statuses = list(pool.map(lambda i: client.infer(f"n{i % 12}", X[:1]).status, range(60)))
        assert statuses == [200] * 60
    with serving(tmp_path, trace=LENET, memory=100_000) as client:
        found = client.infer("n0", X)
        assert found.status == 503 and "--memory is 100000" in found.error


def test_a_network_is_traced_once(folder: Path) -> None:
    trace = traced_here(MODELS["lenet"]())
    with serving(folder, trace=trace) as client:
        for name in ("one", "two", "one"):
            assert client.infer(name, X).status == 200
    assert len(trace.jobs) == 1  # type: ignore[attr-defined]


def test_files_that_change_while_they_are_served(tmp_path: Path) -> None:
    path = packed(tmp_path, "net", lenet_record(300, 1))
    packed(tmp_path, "other", lenet_record(300, 5))
    with serving(tmp_path, trace=LENET) as client:

        def served() -> Any:
            client("POST", "/v2/repository/index")  # looks at the files
            assert client.infer("other", X).status == 200
            return client.infer("net", X[:1])

        def reason() -> str:
            return next(m["reason"] for m in client("GET", "/v2/repository/index").said if m["name"] == "net")

        first = served().said["outputs"][0]["data"]
        packed(tmp_path, "net", lenet_record(300, 2))  # another in its place
        second = served().said["outputs"][0]["data"]
        assert not np.allclose(first, second)
        np.testing.assert_allclose(second, expected(path, X[:1])[0], atol=1e-4)

        whole = path.read_bytes()
        path.write_bytes(whole[:100])  # cut off
        assert served().said["outputs"][0]["data"] == second
        assert "still served" in reason() and any("still served" in line for line in client.said)
        found = client("POST", "/v2/repository/models/net/load")
        assert found.status == 503 and "was not loaded" in found.error
        packed(tmp_path, "net", record_of(torch.nn.Linear(3, 2), Facts(input_shape=(3,))))  # of a network not known
        assert served().said["outputs"][0]["data"] == second and "needs its network" in reason()
        path.write_bytes(whole)  # whole again
        assert served().said["outputs"][0]["data"] == second and reason() == ""

        path.unlink()
        found = served()
        assert found.status == 404 and "no model is called 'net'" in found.error
        packed(tmp_path, "new", lenet_record(300, 3))  # comes later
        served()
        assert client.infer("new", X).status == 200
        (tmp_path / "bad.safetensors").write_bytes(b"<html>")
        served()
        found = client.infer("bad", X)
        assert found.status == 503 and "cannot be served" in found.error
        states = {m["name"]: m["state"] for m in client("GET", "/v2/repository/index").said}
        assert states == {"bad": "UNAVAILABLE", "new": "READY", "other": "READY"}


def test_what_was_counted_of_a_model_goes_with_it(tmp_path: Path) -> None:
    path = packed(tmp_path, "net", lenet_record())
    with serving(tmp_path, trace=LENET) as client:
        for served in (True, False, True):
            assert (client.infer("net", X).status == 200) == served
            assert (b'model="net"' in client("GET", "/metrics").body) == served
            assert client.infer("none", X).status == 404
            assert b'code="404",model=""' in client("GET", "/metrics").body
            path.unlink() if served else packed(tmp_path, "net", lenet_record())
            client("GET", "/v2/repository/index")


def test_a_folder_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        packed(tmp_path / folder, folder, lenet_record())
    with serving(tmp_path / "a", tmp_path / "b", trace=LENET) as client:
        (tmp_path / "a").rename(tmp_path / "elsewhere")
        packed(tmp_path / "b", "new", lenet_record())
        for _ in range(2):
            assert {m["name"] for m in client("GET", "/v2/repository/index").said} == {"a", "b", "new"}
        assert sum("is not: check the path" in line for line in client.said) == 1
        assert [client.infer(name, X).status for name in ("a", "b", "new")] == [200] * 3
        (tmp_path / "a").mkdir()
        assert {m["name"] for m in client("GET", "/v2/repository/index").said} == {"b", "new"}
        (tmp_path / "a").rmdir()
        (tmp_path / "elsewhere").rename(tmp_path / "a")
        assert {m["name"] for m in client("GET", "/v2/repository/index").said} == {"a", "b", "new"}
        assert client.infer("a", X).status == 200


def test_what_is_no_file_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_FILE_BYTES", 10_000)
    packed(tmp_path, "net", lenet_record())
    os.mkfifo(tmp_path / "pipe.safetensors")
    os.mkfifo(tmp_path / "pipe2.onnx")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "empty.onnx").touch()
    with (tmp_path / "huge.safetensors").open("wb") as f:
        f.truncate(1 << 34)
    (tmp_path / os.fsdecode(b"a\xff.safetensors")).touch()
    (tmp_path / "two\nlines.onnx").touch()
    with serving(tmp_path, trace=LENET) as client:
        reasons = {m["name"]: m["reason"] for m in client("GET", "/v2/repository/index").said}
        assert client.infer("net", X).status == client("GET", "/status").status == 200
        refused = client.infer("empty", X)
    assert refused.status == 503 and "is an empty file" in refused.error
    assert reasons.pop("net") == ""
    wanted = {
        "pipe": "is none: take it away",
        "pipe2": "is none: take it away",
        "folder": "is none: take it away",
        "empty": "is an empty file",
        "huge": "is it the dense model?",
        "a\\udcff": "is named in letters",
        "two lines": "is named in letters",
    }
    assert reasons.keys() == wanted.keys()
    assert all(text in reasons[name] and "\n" not in reasons[name] for name, text in wanted.items())


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path, "net", lenet_record())

    def failing(path: Path, limit: int) -> bytes:
        raise SubcompressError(f"{path} cannot be read: Too many open files") from OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "read_bytes", failing)
        with serving(tmp_path, trace=LENET) as client:
            assert "Too many open files" in client.infer("net", X).error
            client("GET", "/v2/repository/index")
            assert sum("Too many open files" in line for line in client.said) == 1
            patch.undo()
            client("GET", "/v2/repository/index")
            assert client.infer("net", X).status == 200


def test_a_file_at_which_the_reader_fails_takes_no_other_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate(("bad", "good")):
        packed(tmp_path, name, lenet_record(300, i))
    parse = subcompress.format.parse

    def failing(data: bytes) -> Any:
        if data == (tmp_path / "bad.safetensors").read_bytes():
            raise KeyError("bug")
        return parse(data)

    monkeypatch.setattr(subcompress.format, "parse", failing)
    with serving(tmp_path, trace=LENET) as client:
        assert "cannot be read (KeyError: 'bug')" in client.infer("bad", X).error
        assert client.infer("good", X).status == 200


def test_to_load_one_model_leaves_the_others(odd: Client) -> None:
    x = np.ones((1, 2), np.float32)
    assert odd.infer("same", x, name="x").status == 200
    before = odd.running.models.find("same").engine
    assert before is not None
    assert odd("POST", "/v2/repository/models/sum/load").status == 200
    assert odd.running.models.find("same").engine is before


def test_a_model_that_is_unloaded_while_it_loads_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(tmp_path, "net", lenet_record())
    began, go = threading.Event(), threading.Event()
    build = Models._build

    def slow(self: Models, content: Any) -> Any:
        began.set()
        assert go.wait(30)
        return build(self, content)

    monkeypatch.setattr(Models, "_build", slow)
    with serving(tmp_path, trace=LENET) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.infer, "net", X)
        assert began.wait(30)
        assert client("POST", "/v2/repository/models/net/unload").status == 200
        go.set()
        assert (found := asked.result()).status == 503 and "was unloaded" in found.error
        (row,) = (status := client("GET", "/status").said)["models"]
        assert (row["state"], row["memory"], status["memory"]["models"]) == ("unloaded", 0, 0)
        assert client("POST", "/v2/repository/models/net/load").status == 200
        assert client.infer("net", X).status == 200


def test_memory_is_let_go_of_without_another_model(client: Client) -> None:
    assert client.infer("two", X).status == 200
    held = weakref.ref(client.running.models.find("two").engine)
    assert client("POST", "/v2/repository/models/two/unload").status == 200
    client("GET", "/v2/repository/index")  # the loader's thread is through with what came before
    assert held() is None
    assert client("POST", "/v2/repository/models/two/load").status == 200


class OnBaseFiles:
    """A base in a file, and files on it."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.file = folder, folder / "base" / "base.safetensors"
        self.module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        state = {n: t.detach().clone() for n, t in self.module.state_dict().items()}
        self.file.parent.mkdir()
        save_file(state, self.file)
        base = Base(state, "base.safetensors")
        self.standing = OnBase(BaseReference(base.name, "", base.digest, len(state)), base)
        (folder / "files").mkdir()

    def add(self, name: str, seed: int, *acting: str) -> None:
        """A file that changes these tensors."""
        layout = self.standing.layout
        entries = tuple(Coded(2.0**-4, based=True) if spec.name in acting else Kept() for spec in layout)
        D = sum(spec.reals for spec in layout if spec.name in acting)
        z = np.random.default_rng(seed).integers(-7, 8, D).astype(np.int32)
        group = Group(HadamardBlocks(D, D, seed, 0, 0, 0), 4, z)
        facts = Facts(input_shape=(6,))
        record = with_digest(Record(seed, layout, (group,), entries, facts=facts, base=self.standing))
        packed(self.folder / "files", name, record)

    def check(self, client: Client, name: str) -> None:
        """That what is served is what torch computes."""
        x = np.random.default_rng(1).random((2, 6), np.float32)
        loaded = subcompress.load(self.folder / "files" / f"{name}.safetensors", self.module, base=self.file)
        (output,) = client.infer(name, x).said["outputs"]
        wanted = loaded(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(np.reshape(output["data"], (2, 2)), wanted, atol=1e-5)

    def sessions(self, client: Client, *names: str) -> int:
        """How many these hold."""
        engines = [client.running.models.find(name).engine for name in names]
        return len({id(e._session) for e in engines if e is not None})


def test_files_on_a_base_share_its_session(tmp_path: Path) -> None:
    files = OnBaseFiles(tmp_path)
    for i in range(4):
        files.add(f"n{i}", i, "2.weight", "2.bias")
    trace = traced_here(files.module)
    with serving(tmp_path / "files", trace=trace, bases=[str(files.file)]) as client:
        for name in ("n0", "n1", "n2", "n3", "n0"):
            files.check(client, name)
        assert len(trace.jobs) == 1 and files.sessions(client, "n0", "n1", "n2", "n3") == 1  # type: ignore[attr-defined]
        assert client("GET", "/status").said["memory"]["bases"] == sum(spec.nbytes for spec in files.standing.layout)
        files.add("wider", 4, "2.weight", "0.bias")  # changes what the others do not
        client("GET", "/v2/repository/index")
        for name in ("n0", "wider", "n1"):
            files.check(client, name)
        assert len(trace.jobs) == 2 and files.sessions(client, "n0", "n1", "n2", "n3", "wider") == 1  # type: ignore[attr-defined]
        files.file.unlink()  # it was copied
        files.add("last", 5, "0.bias")
        client("GET", "/v2/repository/index")
        assert client.infer("last", np.zeros((1, 6), np.float32)).status == 200


def test_a_wider_file_that_cannot_be_traced_leaves_the_others(tmp_path: Path) -> None:
    files = OnBaseFiles(tmp_path)
    for i in range(2):
        files.add(f"n{i}", i, "2.weight")
    works = traced_here(files.module)

    def trace(jobs: Any) -> Any:
        return [f if len(j.inputs) == 1 else "no luck" for j, f in zip(jobs, works(jobs), strict=True)]

    with serving(tmp_path / "files", trace=trace, bases=[str(files.file)]) as client:
        files.check(client, "n0")
        files.add("wider", 4, "2.weight", "0.bias")
        client("GET", "/v2/repository/index")
        for _ in range(2):
            found = client.infer("wider", np.zeros((1, 6), np.float32))
            assert found.status == 503 and "no luck" in found.error
            files.check(client, "n0")
            files.check(client, "n1")
        assert len(works.jobs) == 2  # type: ignore[attr-defined]


def test_a_base_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    files = OnBaseFiles(tmp_path)
    for i in range(3):
        files.add(f"n{i}", i, "2.weight")
    with (
        pytest.raises(SubcompressError, match="nowhere is not there"),
        serving(tmp_path / "files", trace=LENET, bases=[f"{tmp_path}/nowhere"]),
    ):
        pass
    files.file.write_bytes(files.file.read_bytes()[:200])
    with serving(tmp_path / "files", trace=LENET, bases=[str(files.file)]) as client:
        for i in range(3):
            found = client.infer(f"n{i}", np.zeros((1, 6), np.float32))
            assert found.status == 503 and "give that one with --base" in found.error
            assert "a base is a safetensors file" in found.error


def test_what_no_file_needs_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_networks, "UNUSED", 1)
    modules = [torch.nn.Linear(3, n) for n in range(1, 4)]
    trace = traced_here(*modules)
    (tmp_path / "kept.safetensors").touch()
    with serving(tmp_path, trace=trace) as client:
        for module in (*modules, modules[-1]):
            path = packed(tmp_path, "net", record_of(module, Facts(input_shape=(3,))))
            client("GET", "/v2/repository/index")
            assert client.infer("net", np.zeros((1, 3), np.float32)).status == 200
            path.unlink()
            client("GET", "/v2/repository/index")
            assert len(client.running.models.networks._traced) <= 2
    assert len(trace.jobs) == 3  # type: ignore[attr-defined]


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        packed(tmp_path / folder, "net", lenet_record())
    packed(tmp_path / "a", "other", lenet_record())
    with serving(tmp_path / "a", tmp_path / "b", f"mine={tmp_path}/b/net.safetensors", trace=LENET) as client:
        found = client.infer("net", X)
        assert found.status == 503 and "two files are called net" in found.error and "rename one" in found.error
        assert any("two files are called net" in line for line in client.said)
        assert client.infer("other", X).status == client.infer("mine", X).status == 200
        assert client.infer("net", X).status == 503


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("nowhere", "what is served is there"),
        ("x=nowhere.safetensors", "what is served is there"),
        ("net.txt", "what is served is a .safetensors or .onnx file"),
        ("../x=net.txt", "a model is named in letters"),
        ("name=.", "a name is given to one file"),
    ],
)
def test_a_source_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, rule: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.txt").touch()
    with pytest.raises(SubcompressError, match=rule), serving(source, trace=LENET):
        pass


def test_a_network_that_nobody_knows_is_said(tmp_path: Path) -> None:
    packed(tmp_path, "odd", record_of(torch.nn.Linear(3, 2), Facts(input_shape=(3,))))
    packed(tmp_path, "lenet", lenet_record())
    with serving(tmp_path, trace=LENET) as client:
        found = client.infer("odd", X)
        assert found.status == 503 and "needs its network" in found.error
        assert client.infer("lenet", X).status == 200


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
            loaded = subcompress.load(tmp_path / f"n{i}.safetensors", module)
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
        assert found.status == 503 and "no ONNX file" in found.error


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and files on it of which each moves something else."""
    made = tmp_path_factory.mktemp("tuned")
    safetensors.torch.save_file(network(0).state_dict(), made / "base.safetensors")
    (made / "files").mkdir()
    for i, act_on in enumerate(("norms", "heads", "biases,heads")):
        sub = subcompress.Subspace.of(network(i), 20, base=made / "base.safetensors", act_on=act_on, seed=i)
        with torch.no_grad():
            sub.z.normal_(generator=torch.Generator().manual_seed(i))
        sub.round(4)
        subcompress.pack(sub, made / "files" / f"{i}.safetensors", SHAPE)
    return made


def network(seed: int) -> torch.nn.Module:
    """With norms."""
    torch.manual_seed(seed)
    return networks.CASES["batch norm"].make()


def on_base(tuned: Path, name: str, x: np.ndarray) -> np.ndarray:
    """What torch gives."""
    loaded = subcompress.load(tuned / "files" / f"{name}.safetensors", network(7), base=tuned / "base.safetensors")
    with torch.no_grad():
        return loaded(torch.from_numpy(x)).numpy()


def test_files_on_a_base_share_one_session(tuned: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes((tuned / "base.safetensors").read_bytes())
    trace = traced_here(network(1))
    x = np.random.default_rng(1).random((2, *SHAPE.input_shape), np.float32)
    with serving(tuned / "files", trace=trace, bases=[str(base)], memory=100_000) as client:
        base.write_bytes(b"")  # cut off while it is in use
        for name in ("0", "1", "2", "0", "2"):
            said = client.infer(name, x).said
            wanted = on_base(tuned, name, x)
            np.testing.assert_allclose(np.reshape(said["outputs"][0]["data"], wanted.shape), wanted, atol=1e-4)
        status = client("GET", "/status").said
        assert status["memory"]["bases"] > 0 and status["memory"]["models"] <= 100_000
        assert len(client.running.models.networks._shared) == 1
    assert len(trace.jobs) == 1  # type: ignore[attr-defined]


def test_a_file_that_moves_more_than_those_before_it(tuned: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).random((2, *SHAPE.input_shape), np.float32)
    first = (tuned / "files" / "0.safetensors").read_bytes()
    (tmp_path / "0.safetensors").write_bytes(first)
    with serving(tmp_path, trace=traced_here(network(1)), bases=[str(tuned / "base.safetensors")]) as client:
        before = client.infer("0", x).said["outputs"][0]["data"]
        (tmp_path / "2.safetensors").write_bytes((tuned / "files" / "2.safetensors").read_bytes())
        client("POST", "/v2/repository/index")
        said = client.infer("2", x).said
        wanted = on_base(tuned, "2", x)
        np.testing.assert_allclose(np.reshape(said["outputs"][0]["data"], wanted.shape), wanted, atol=1e-4)
        np.testing.assert_allclose(client.infer("0", x).said["outputs"][0]["data"], before, atol=1e-5)


def test_another_base_is_refused(tuned: Path, tmp_path: Path, folder: Path) -> None:
    safetensors.torch.save_file(network(5).state_dict(), tmp_path / "other.safetensors")
    bases = [str(tmp_path / "other.safetensors")]
    with serving(tuned / "files", folder, trace=traced_here(network(1), MODELS["lenet"]()), bases=bases) as client:
        found = client.infer("0", X)
        assert found.status == 503 and "give that one with --base" in found.error
        assert [line for line in client.said if "--base" in line and line.startswith("0, 1 and 1 more: ")]
        assert client.infer("one", X).status == 200


@pytest.mark.parametrize("kind", [pytest.param("gru", marks=pytest.mark.slow), "transformer"])
def test_other_networks_are_served(tmp_path: Path, kind: str) -> None:
    case = networks.CASES[kind]
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


def graph(path: Path, nodes: list[Any], shapes: dict[str, Any], constants: dict[str, Any] | None = None) -> None:
    """An .onnx file of x -> y."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]
    held = [numpy_helper.from_array(np.array(v), n) for n, v in (constants or {}).items()]
    given, found = ([v for v in values if v.name == name] for name in "xy")
    made = helper.make_graph(nodes, "g", given, found, held)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of graphs that others write."""
    made = tmp_path_factory.mktemp("odd")
    rows, node = {"x": ["n", 2], "y": ["n", 2]}, helper.make_node
    graph(made / "sum.onnx", [node("CumSum", ["x", "axis"], ["y"])], rows, {"axis": 0})  # the first axis is time
    mean = node("ReduceMean", ["x"], ["m"], axes=[0])
    graph(made / "centred.onnx", [mean, node("Sub", ["x", "m"], ["y"])], rows)
    graph(made / "same.onnx", [node("Identity", ["x"], ["y"])], rows)
    graph(made / "scalar.onnx", [node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": ["n", 2], "y": []})
    graph(made / "none.onnx", [node("Identity", ["c"], ["y"])], {"y": [2]}, {"c": np.ones(2, np.float32)})
    with serving(made, trace=LENET, most=4) as found:
        yield found


@pytest.mark.parametrize("name", ["sum", "centred", "same"])
def test_requests_share_a_run_only_where_it_changes_nothing(odd: Client, name: str) -> None:
    def wanted(x: np.ndarray) -> np.ndarray:
        return {"sum": x.cumsum(0), "centred": x - x.mean(0), "same": x}[name]

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
    asks = [protocol.Asked("", {"x": np.full((n, 2), i, np.float32)}, ()) for i, n in enumerate(rows)]
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
        asked = protocol.read(body, length, ports, ports[:1], True)
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
        for as_binary in (True, False):
            told: dict[str, Any] = {"name": "x", "shape": [3, 5], "datatype": datatype}
            tail = b""
            if as_binary:
                tail, told["parameters"] = x.tobytes(), {"binary_data_size": x.nbytes}
            else:
                told["data"] = x.tolist()
            head = json.dumps({"inputs": [told], "parameters": {"binary_data_output": as_binary}}).encode()
            asked = protocol.read(head + tail, str(len(head)), [port], [port], True)
            assert asked.feeds["x"].dtype == dtype and (asked.feeds["x"] == x).all(), name
            body, _, length = protocol.answer("m", asked, [port], [x])
            said = json.loads(body[: length or None])
            back = np.frombuffer(body[length:], dtype) if as_binary else np.array(said["outputs"][0]["data"], dtype)
            assert (back.reshape(3, 5) == x).all(), name


def test_names() -> None:
    assert all(map(catalogue.sound, ["net", "net-1.2_x", "größe"]))
    assert not any(map(catalogue.sound, ["", ".net", "a/b", "a b", "a\n", "a%", "x" * 201, "\ud800"]))


@pytest.fixture(scope="module")
def process(folder: Path) -> Any:
    """`subcompress serve` as a process, its address, and what it wrote to stderr."""
    command = [sys.executable, "-m", "subcompress_cli", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as found:
        assert found.stdout is not None
        line = found.stdout.readline()
        yield found, line
        if found.poll() is None:
            found.kill()


def test_the_command_serves_and_drains(process: Any, folder: Path) -> None:
    server, line = process
    mapped = Path(f"/proc/{server.pid}/maps").read_text()
    assert "onnxruntime" in mapped and "libtorch" not in mapped  # which alone would take 190 MB
    address, _, rest = line.partition(": ")
    assert rest.strip() == "2 models"
    host, _, port = address.removeprefix("http://").rpartition(":")
    taken = subprocess.run(
        [sys.executable, "-m", "subcompress_cli", "serve", str(folder), "--port", port],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert taken.returncode == 1
    assert taken.stderr == f"error: port {port} of 127.0.0.1 is taken by another program: give another --port\n"
    body = json.dumps(asking(X)).encode()
    head = f"POST /v2/models/one/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=30) as s:
        s.sendall(head + body[:100])  # under way when the signal comes
        with triton.InferenceServerClient(f"{host}:{port}") as real:
            while "subcompress_requests_waiting 1.0" not in real._get("metrics", {}, {}).read().decode():
                pass
        server.send_signal(signal.SIGTERM)
        while True:  # nobody else comes in
            try:
                socket.create_connection((host, int(port)), timeout=30).close()
            except OSError:
                break
        s.sendall(body[100:])
        answer = s.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 200")
    assert server.wait(30) == 0
    assert "ended, after the last request was answered" in server.stderr.read()


STAND_IN = """#!{python} -S
import base64, json, os, sys, time
for job in json.load(sys.stdin)["jobs"]:
    if job["name"] == "dies":
        os._exit(3)
    if job["name"] == "hangs":
        time.sleep(60)
    graph = base64.b64encode(job["name"].encode()).decode()
    print(json.dumps({{"graph": graph, "names": [], "general": True, "network": "net", "seconds": 0}}), flush=True)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Python, which traces."""
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setattr(tracing, "sys", SimpleNamespace(executable=str(path)))


def test_a_trace_that_ends_its_process_or_hangs_leaves_the_others(child: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "PATIENCE", 1)
    said: list[str] = []
    trace = tracing.traced_beside((), said.append)
    found = trace([Job(name, b"") for name in ("a", "dies", "hangs", "b")])
    assert [f.graph if isinstance(f, Traced) else f[:34] for f in found] == [
        b"a",
        "its network could not be traced: t",
        "its network could not be traced: t",
        b"b",
    ]
    assert sum(isinstance(f, str) and "ended, or took longer than 1 seconds" in f for f in found) == 2


def test_a_server_that_ends_does_not_wait_for_a_trace(child: None, tmp_path: Path) -> None:
    packed(tmp_path, "a", lenet_record())
    trace = tracing.traced_beside((), lambda line: None)
    with serving(tmp_path, trace=trace):
        packed(tmp_path, "hangs", record_of(torch.nn.Linear(3, 2), Facts(input_shape=(3,))))
        while trace._child is None or trace._child.poll() is not None:
            time.sleep(0.001)


def test_a_factory_that_raises_leaves_the_networks_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def make():\n    raise ValueError('no luck')\n")
    network, module = next(finding.networks_of(lenet_record().layout, [f"{tmp_path}/own.py:make"], "net"))
    assert network == "lenet" and type(module) is type(MODELS["lenet"]())
    with pytest.raises(SubcompressError, match="no luck"):
        next(finding.networks_of(record_of(torch.nn.Linear(3, 2), Facts()).layout, [f"{tmp_path}/own.py:make"], "net"))


def test_who_is_not_answered_in_time_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(running, "DRAIN", 0.2)
    with serving(folder, trace=LENET) as client, socket.create_connection((client.host, client.port), 30) as s:
        s.sendall(posting(b"{", length=100))
        while not client.running.server.waiting:
            time.sleep(0.001)
        client.running.stop()
        received = s.recv(1 << 16)
        assert received.startswith(b"HTTP/1.1 503") and b"this server is ending" in received
    assert client.running.server.cut == 1 and client.running.server.held == client.running.server.waiting == 0
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".com", "999.1.1.1"])
def test_an_address_that_is_none(folder: Path, host: str) -> None:
    with pytest.raises(SubcompressError, match="an address of this machine"):
        running.listening(host, 0)


@pytest.mark.slow
def test_a_signal_while_it_starts_ends_it(child: None, tmp_path: Path) -> None:
    packed(tmp_path, "hangs", lenet_record())
    trace = tracing.traced_beside((), lambda line: None)

    def signalled() -> None:
        while trace._child is None:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(signalled)
        serve([str(tmp_path)], trace, port=0, say=print, ready=lambda running: pytest.fail("it was ended before"))
        sent.result()
