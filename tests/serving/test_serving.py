"""The server: the protocol with the real client, whatever requests get wrong, and the command."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from commands import cli
from served import LENET, X, binary, expected
from serving import Client, asking, serving

from subcompress.onnx.graph_cache import GraphCache
from subcompress.serving.networks import Job
from subcompress_cli import tracing


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


def test_the_real_client_is_told_what_there_is(client: Client, real: Any) -> None:
    client.wait_until_ready()
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
    with pytest.raises(triton.InferenceServerException, match="there is no model 'three'"):
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
    "not JSON": (b"{", "the request is not valid JSON"),
    "nothing": (b"", "the request is not valid JSON"),
    "not text": (b"\xff\xfe{}", "the request is not valid JSON"),
    "NaN in JSON": (
        json.dumps(asking(np.full((1, 1, 28, 28), np.nan, np.float32))).encode(),
        "the request is not valid JSON",
    ),
    "a list": ([], "a JSON object with inputs; got a list"),
    "no inputs": ({}, "inputs must be a list of tensors (input FP32 [-1, 1, 28, 28]); got nothing"),
    "empty inputs": ({"inputs": []}, "input is missing"),
    "another name": (asking(X, name="x"), "inputs must be input FP32 [-1, 1, 28, 28]; got 'x'"),
    "twice": ({"inputs": asking(X)["inputs"] * 2}, "is given twice"),
    "another datatype": (asking(X, "FP64"), "got 'FP64' [3, 1, 28, 28]"),
    "another shape": (asking(X.reshape(3, 784)), "got 'FP32' [3, 784]"),
    "no example": (asking(X[:0]), "send one example or more"),
    "too few values": (
        {"inputs": [asking(X)["inputs"][0] | {"shape": [4, 1, 28, 28]}]},
        "must have 3136 values; got 2352",
    ),
    "a huge shape": (
        {"inputs": [asking(X)["inputs"][0] | {"shape": [1 << 60, 1, 28, 28]}]},
        f"must have {784 << 60} values; got 2352",
    ),
    "a negative shape": (
        {"inputs": [asking(X)["inputs"][0] | {"shape": [-1, 1, 28, 28]}]},
        "give a number in place of each -1",
    ),
    "no batch": (asking(X[0]), "input must be FP32 [-1, 1, 28, 28]; got 'FP32' [1, 28, 28]: put a 1 in front"),
    "a shape of text": ({"inputs": [asking(X)["inputs"][0] | {"shape": "all"}]}, "got 'FP32' 'all'"),
    "values of text": ({"inputs": [asking(X)["inputs"][0] | {"data": ["1"] * 2352}]}, "got others, or null"),
    "null among them": ({"inputs": [asking(X)["inputs"][0] | {"data": [None] * 2352}]}, "got others, or null"),
    "long text among them": (
        {"inputs": [asking(X)["inputs"][0] | {"data": [1.0, "x" * 400_000] + [1.0] * 200_000}]},
        "must have 2352 values; got 200002",
    ),
    "text among them": (
        {"inputs": [asking(X)["inputs"][0] | {"data": [1.0, "x" * 4_000_000] + [1.0] * 2350}]},
        "got others, or null",
    ),
    "lists that end apart": (
        {"inputs": [asking(X)["inputs"][0] | {"data": [[1.0] * 2351, [1.0]]}]},
        "flat list, or one nested",
    ),
    "ragged": ({"inputs": [asking(X)["inputs"][0] | {"data": [[1.0], [1.0, 2.0]]}]}, "flat list, or one nested"),
    "beyond the datatype": ({"inputs": [asking(X)["inputs"][0] | {"data": [1e39] * 2352}]}, "finite in FP32"),
    "another output": (asking(X, outputs=[{"name": "y"}]), "outputs must be output FP32 [-1, 10]; got 'y'"),
    "classes": (asking(X, outputs=[{"name": "output", "parameters": {"classification": 2}}]), "is not supported"),
    "an id of numbers": (asking(X, id=7), "id must be text"),
    "a sequence": (asking(X, parameters={"sequence_id": 1}), "sequences are not supported"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_told_what_would_be_right(client: Client, what: str) -> None:
    body, text = WRONG[what]
    found = client("POST", "/v2/models/one/infer", body if isinstance(body, bytes) else json.dumps(body).encode())
    assert found.status == 400 and text in found.error
    assert client.infer("one", X).status == 200


BINARY: dict[str, tuple[tuple[bytes, Any], str]] = {
    "too short": (
        binary(X, tail=X.tobytes()[:-1]),
        "takes 9408 bytes, but binary_data_size is 9408, and 9407 bytes are there",
    ),
    "too long": (binary(X, tail=X.tobytes() + b"\0"), "state 9408 bytes, but 9409 follow"),
    "another size": (binary(X, size=4), "takes 9408 bytes, but binary_data_size is 4"),
    "a huge size": (binary(X, size=1 << 62), f"binary_data_size is {1 << 62}"),
    "a negative size": (binary(X, size=-1), "must be a number of bytes; got -1"),
    "a header beyond the body": (binary(X, header="999999"), "between 1 and the body's"),
    "raw, with JSON": (binary(X, header="0"), "must hold one example of input FP32 [-1, 1, 28, 28]; got"),
    "raw, two examples": ((X[:2].tobytes(), {"inference_header_content_length": "0"}), "one example"),
    "raw, of nothing": ((b"", {"inference_header_content_length": "0"}), "got 0 bytes"),
    "a header of text": (binary(X, header="x"), "must be a number of bytes; got 'x'"),
    "a negative header": (binary(X, header="-4"), "must be a number of bytes; got '-4'"),
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
    assert row["state"] == "loaded" and row["memory"] <= after["memory"]["models"] <= after["memory"]["limit"]
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


def test_a_token_is_asked_for(folder: Path) -> None:
    with serving(folder, trace=LENET, token="secret-of-this-server") as client:
        for path in ("/v2", "/v2/models/one", "/metrics", "/status"):
            assert (found := client("GET", path)).status == 401 and "Bearer" in found.error
            assert client("GET", path, authorization="Bearer secret").status == 401
            assert client("GET", path, authorization="Bearer secret-of-this-server").status == 200
        assert client.infer("one", X).status == 401
        client.wait_until_ready()
        assert client("GET", "/v2/health/live").status == client("GET", "/").status == 200
        assert "secret" not in client("GET", "/").body.decode()


@pytest.fixture(scope="module")
def kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs as a server that ran before has kept them: what the process that traces answers, without its start."""
    kept = tmp_path_factory.mktemp("graphs")
    tracer = tracing.subprocess_tracer([], print, GraphCache(kept))
    data = (folder / "one.safetensors").read_bytes()
    asked = {"name": "one", "data": base64.b64encode(data).decode(), "base": None, "inputs": []}
    tracer._decode_answer(Job("one", data), tracing._answer([], asked) | {"reads": [], "seconds": 0.0})
    return kept


@pytest.fixture(scope="module")
def process(folder: Path, kept: Path) -> Any:
    """`subcompress serve` as a process, its address, and what it wrote to stderr."""
    command = [sys.executable, "-m", "subcompress_cli", "serve", str(folder), "--port", "0", "--graphs", str(kept)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as found:
        assert found.stdout is not None
        line = found.stdout.readline()
        yield found, line
        if found.poll() is None:
            found.kill()


def test_the_command_serves_and_drains(process: Any, folder: Path, kept: Path) -> None:
    server, line = process
    mapped = Path(f"/proc/{server.pid}/maps").read_text()
    assert "onnxruntime" in mapped and "libtorch" not in mapped  # which alone would take 190 MB
    address, _, rest = line.partition(": ")
    assert rest.strip() == "2 models"
    host, _, port = address.removeprefix("http://").rpartition(":")
    taken = cli("serve", folder, "--port", port)
    assert taken.exit_code == 1
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
    said = server.stderr.read()
    assert (
        f"1 graph from {kept}" in said
        and "tracing" not in said
        and "stopped after the last request was answered" in said
    )
