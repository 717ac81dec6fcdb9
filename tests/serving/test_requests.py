"""Bytes as strangers send them to a server: one server, tables of requests."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http as triton
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from records import lenet_record, record_of
from serving import Client, asking, packed, serving, traced_here, until_closed

from subcompress import SubcompressError
from subcompress.format.facts import Facts
from subcompress.onnx import weightless
from subcompress.serving import documents, trial
from subcompress.serving.addresses import host_of, origin_of, parse_origins
from subcompress.serving.engines import DATATYPES, Engine, Port
from subcompress.serving.refusals import RefusedError
from subcompress_cli import tracing
from subcompress_models import MODELS

X = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
PAGE = "https://app.example"
INFER = "/v2/models/one/infer"
POST = f"POST {INFER} HTTP/1.1"


def graph(path: Path, op: str, x: Any, y: Any, kind: int = TensorProto.FLOAT, opset: int = 17, **of_op: Any) -> None:
    """An .onnx file of x -> y. x, y: shapes, None for an unknown number of axes."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in (("x", x), ("y", y))]
    made = helper.make_graph([helper.make_node(op, ["x"], ["y"], **of_op)], "g", values[:1], values[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A LeNet, and graphs that others write, some of which cannot run; pages of one origin may ask."""
    made = tmp_path_factory.mktemp("models")
    packed(made, "one", lenet_record(300, 1))
    graph(made / "bf16.onnx", "Identity", ["n", 2], ["n", 2], TensorProto.BFLOAT16)
    graph(made / "text.onnx", "Identity", ["n", 2], ["n", 2], TensorProto.STRING)
    graph(made / "half.onnx", "Neg", ["n", 2], ["n", 2], TensorProto.FLOAT16)
    graph(made / "fp8.onnx", "Identity", ["n", 2], ["n", 2], TensorProto.FLOAT8E4M3FN, opset=19)
    graph(made / "new.onnx", "Identity", ["n", 2], ["n", 2], opset=99)
    graph(made / "same.onnx", "Identity", ["n", 2], ["n", 2])
    graph(made / "any.onnx", "Relu", None, None)
    with serving(made, trace=traced_here(MODELS["lenet"]()), origins=[PAGE]) as found:
        yield found


def talk(client: Client, data: bytes, *, half: bool = False) -> list[tuple[int, bytes]]:
    """Bytes as they are, then perhaps no more; the statuses and bodies that come until the server closes."""
    with socket.create_connection((client.host, client.port), timeout=30) as s:
        s.sendall(data)
        if half:
            s.shutdown(socket.SHUT_WR)
        received = until_closed(s)
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append((int(head.split()[1]), rest[:size]))
        received = rest[size:]
    return found


def posted(body: bytes, *lines: str, path: str = INFER, length: int | None = None) -> bytes:
    """A request as it is sent."""
    head = [f"POST {path} HTTP/1.1", "host: x", *lines, f"content-length: {len(body) if length is None else length}"]
    return "\r\n".join([*head, "", ""]).encode() + body


def headed(*lines: str, first: str = "POST /v2/repository/index HTTP/1.1", body: bytes = b"") -> bytes:
    """A request of these headers."""
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1") + body


BODY = json.dumps(asking(X)).encode()
CHUNKS = b"2\r\n{}\r\n0\r\n\r\n"
ABOUT = headed("host: x", first="GET /v2 HTTP/1.1")

HEADS: dict[str, tuple[bytes, int, str]] = {
    "no host": (headed("connection: close"), 400, "one Host header; this one has 0"),
    "two hosts": (headed("host: x", "host: x"), 400, "one Host header; this one has 2"),
    "half an address": (headed("host: [::1", "origin: http://x"), 400, "Host must be a name"),
    "no address": (headed("host: [zz]:1", "sec-fetch-site: none"), 400, "Host must be a name"),
    "a host with a path": (headed("host: x/y"), 400, "Host must be a name"),
    "gzip, chunked": (headed("host: x", "transfer-encoding: gzip, chunked", body=CHUNKS), 501, "'gzip, chunked'"),
    "identity": (headed("host: x", "transfer-encoding: identity", body=CHUNKS), 501, "'identity'"),
    "twice": (headed("host: x", "transfer-encoding: gzip", "transfer-encoding: chunked"), 501, "'gzip, chunked'"),
    "chunked and a tab": (headed("host: x", "transfer-encoding: chunked\t", body=CHUNKS), 501, "chunked"),
    "chunks in 1.0": (headed("transfer-encoding: chunked", first="POST / HTTP/1.0", body=CHUNKS), 501, "in HTTP/1.1"),
    "an upgrade": (
        headed("host: x", "connection: upgrade", "upgrade: h2c", "transfer-encoding: x", body=CHUNKS),
        501,
        "got 'x'",
    ),
    "an upgrade and gzip": (
        headed("host: x", "connection: upgrade", "upgrade: h2c", "transfer-encoding: gzip, chunked", body=CHUNKS),
        501,
        "'gzip, chunked'",
    ),
    "both lengths": (headed("host: x", "content-length: 2", "transfer-encoding: chunked", body=CHUNKS), 400, "HTTP"),
    "no HTTP": (b"\x16\x03\x01\r\n\r\n", 400, "not a request in HTTP/1.1"),
    "a bad chunk": (headed("host: x", "transfer-encoding: chunked", first=POST, body=b"zz\r\n"), 400, "HTTP"),
}  # fmt: skip


@pytest.mark.parametrize("what", HEADS)
def test_a_head_that_is_read_in_two_ways_is_refused(client: Client, what: str, caplog: Any) -> None:
    data, status, text = HEADS[what]
    (found,) = talk(client, data)
    assert found[0] == status and text in json.loads(found[1])["error"]
    # Behind another request its answer is the second.
    first, second = talk(client, ABOUT + data)
    assert first[0] == 200 and second == found
    assert "Traceback" not in caplog.text


def test_hosts_and_origins() -> None:
    hosts = {"X:1": "x", "[::1]:80": "::1", "127.0.0.1": "127.0.0.1", "[0::1]": "::1"}
    assert {text: host_of(text) for text in hosts} == hosts
    assert not any(map(host_of, ["", "[::1", "[zz]", "a b", "x:y", "x/y", "u@x", "x:1:2", "x\n"]))
    origins = {"HTTP://X:80": "http://x", "https://[::1]:444": "https://[::1]:444", "http://x:443": "http://x:443"}
    assert {text: origin_of(text) for text in origins} == origins
    assert not any(map(origin_of, ["null", "x", "http://", "http://x/", "http://[::1", "*", "http://x?"]))
    with pytest.raises(SubcompressError, match="an origin must be SCHEME://HOST"):
        parse_origins(["*"])


@given(st.text(max_size=30) | st.from_regex(r"\[?[0-9a-f:.]*\]?:?\d*", fullmatch=True))
@settings(max_examples=60, deadline=None)
def test_no_text_is_a_host_that_raises(text: str) -> None:
    assert host_of(text) is None or origin_of(f"http://{text}") is not None
    assert origin_of(text) is None or "://" in text


@pytest.mark.parametrize("deep", [60, 990, 1000, 1020, 100_000])
def test_nesting_is_bounded_wherever_json_is_read(client: Client, deep: int) -> None:
    value, told = json.loads(BODY)["inputs"][0], "[" * deep + "]" * deep
    places: list[Any] = [{"inputs": [value | {key: "@"}]} for key in ("name", "shape", "datatype", "data")]
    places += [
        {"inputs": [value | {"parameters": {"binary_data_size": "@"}}]},
        {"id": "@"},
        {"outputs": [{"name": "@"}]},
    ]
    sent = [json.dumps(place).replace('"@"', told).encode() for place in places]
    requests = b"".join(posted(body) for body in sent) + posted(told.encode(), path="/v2/repository/index")
    found = talk(client, requests, half=True)
    assert [status for status, _ in found] == [400] * 8
    assert deep < 100 or all(b"nested deeper than 64 levels" in body for _, body in found)


@given(st.recursive(st.none() | st.text('[{"\\]}', max_size=5), lambda x: st.lists(x, max_size=3), max_leaves=30))
@settings(max_examples=60, deadline=None)
@example(["\\", '"', "[[[", "\\\\", '\\"[', []])
def test_depth(value: Any) -> None:
    def deep(x: Any) -> int:
        return 1 + max(map(deep, x), default=0) if isinstance(x, list) else 0

    assert documents.depth(json.dumps(value).encode()) == deep(value)


def test_many_lists_that_are_not_deep_and_brackets_in_texts() -> None:
    assert documents.parse_json(b"[" + b",".join([b"[1]"] * 200) + b"]") == [[1]] * 200
    assert documents.parse_json(json.dumps({"id": '["' * 200}).encode()) == {"id": '["' * 200}
    assert documents.parse_json(b"[" + b",".join([b"[1.00000000]"] * 500) + b"]") == [[1.0]] * 500
    for text in (b"t" * 200, b"t" * 5000, b"0" * 5000):
        assert documents.has_word(text + b"true", b"true") and not documents.has_word(text + b"tru", b"true")


def test_who_sends_no_more_is_answered(client: Client, caplog: Any) -> None:
    """A half-closed connection: all requests that came whole, and none that was cut off."""
    client.running.models.unload("one")
    assert client("POST", "/v2/repository/models/one/load").status == 200
    assert [s for s, _ in talk(client, posted(BODY), half=True)] == [200]
    assert [s for s, _ in talk(client, posted(BODY) * 3 + ABOUT, half=True)] == [200] * 4
    assert [s for s, _ in talk(client, posted(BODY) * 2 + posted(BODY, length=10**6), half=True)] == [200] * 2
    assert [s for s, _ in talk(client, posted(BODY) + b"GET /v2 HT", half=True)] == [200]
    assert talk(client, b"", half=True) == talk(client, b"GET /v2 HT", half=True) == []
    with socket.create_connection((client.host, client.port)) as s:  # and is gone before the answers
        s.sendall(posted(BODY) * 8)
    while client.running.service.waiting:
        time.sleep(0.001)
    assert client.running.service.held == 0 and "Traceback" not in caplog.text


def one(**changes: Any) -> bytes:
    """A request with one input, changed."""
    return json.dumps({"inputs": [asking(X)["inputs"][0] | changes]}).encode()


VALUES = X.ravel().tolist()
REFUSED = {
    "a late truth value": (one(data=[*VALUES[:-1], True]), "values of FP32; got others"),
    "an early one": (one(data=[False, *VALUES[1:]]), "values of FP32; got others"),
    "minus one": (
        one(shape=[-1, 1, 28, 28]),
        "input must be FP32 [-1, 1, 28, 28]; got 'FP32' [-1, 1, 28, 28]: give a number in place of each -1",
    ),
    "an empty batch": (one(shape=[0, 1, 28, 28], data=[]), "input has no values in shape [0, 1, 28, 28]"),
    "parameters of text": (one(parameters="x"), "parameters of input must be a JSON object"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_values_that_are_refused_by_name(client: Client, what: str) -> None:
    body, text = REFUSED[what]
    found = client("POST", INFER, body)
    assert found.status == 400 and text in found.error and "input input" not in found.error


def test_what_may_be_null(client: Client) -> None:
    (tensor,) = asking(X)["inputs"]
    nulls = {"inputs": [tensor | {"parameters": None}], "id": None, "parameters": None}
    for outputs in (None, [{"name": "output", "parameters": None}]):
        found = client("POST", INFER, json.dumps({**nulls, "outputs": outputs}).encode())
        assert found.status == 200 and "id" not in found.said
    plain = client.infer("one", X, parameters={"binary_data_output": False}).said
    assert plain["outputs"][0]["shape"] == [2, 10]


def test_compressed_bodies(client: Client) -> None:
    wanted = client("POST", INFER, BODY).body
    packings = {"gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY), "identity": BODY}
    packings["x-gzip"] = gzip.compress(BODY[:100]) + gzip.compress(BODY[100:])
    for encoding, body in packings.items():
        assert client("POST", INFER, body, content_encoding=encoding).body == wanted
    whole = packings["gzip"]
    for damaged in (whole[:-9], whole + b"x", b"", BODY, whole[:50] + b"\0" + whole[51:]):
        found = client("POST", INFER, damaged, content_encoding="gzip")
        assert found.status == 400 and "content-encoding gzip cannot be read" in found.error
    given = triton.InferInput("input", X.shape, "FP32").set_data_from_numpy(X)
    with triton.InferenceServerClient(f"{client.host}:{client.port}") as real:
        for form in ("gzip", "deflate"):
            found = real.infer("one", [given], request_compression_algorithm=form)
            assert found.as_numpy("output").shape == (2, 10)
    assert client.running.service.held == 0


def test_raw_binary_requests_and_nan(client: Client) -> None:
    raw = {"inference_header_content_length": "0"}
    found = client("POST", INFER, X[:1].tobytes(), **raw)
    size = int(found.headers["inference-header-content-length"])
    (output,) = json.loads(found.body[:size])["outputs"]
    assert output["shape"] == [1, 10] and output["parameters"] == {"binary_data_size": 40}
    wanted = client.infer("one", X[:1]).said["outputs"][0]["data"]
    np.testing.assert_allclose(np.frombuffer(found.body[size:], np.float32), wanted, rtol=1e-5)
    found = client("POST", INFER, np.full(784, np.nan, np.float32).tobytes(), **raw)
    size = int(found.headers["inference-header-content-length"])
    assert found.status == 200 and np.isnan(np.frombuffer(found.body[size:], np.float32)).all()
    found = client("POST", "/v2/models/any/infer", bytes(8), **raw)
    assert found.status == 400 and "x FP32 of any shape" in found.error


def test_a_model_is_ready_when_it_has_run(client: Client) -> None:
    index = {m["name"]: m for m in client("GET", "/v2/repository/index").said}
    states = {name: m["state"] for name, m in index.items()}
    ready = {"one", "same", "any", "bf16", "half", "text"}
    assert states == dict.fromkeys(ready, "READY") | dict.fromkeys(("fp8", "new"), "UNAVAILABLE")
    words = {"fp8": "tensor(float8e4m3fn)", "new": "cannot open"}
    assert all(text in index[name]["reason"] for name, text in words.items())
    for name, state in states.items():
        for _ in range(2):
            assert client("GET", f"/v2/models/{name}/ready").status == (200 if state == "READY" else 503)
        client.infer(name, np.ones((1, 2), np.float32), name="x")
    assert words["fp8"] in client("GET", "/v2/models/fp8/ready").error
    listed = client("POST", "/v2/repository/index", b'{"ready": true}').said
    assert {m["name"] for m in listed} == ready


def test_an_input_of_unknown_rank_takes_any_shape(client: Client) -> None:
    (told,) = client("GET", "/v2/models/any").said["inputs"]
    assert told == {"name": "x", "datatype": "FP32", "shape": [-1], "parameters": {"any_rank": True}}
    for shape in ([], [3], [2, 1, 2]):
        x = np.ones(shape, np.float32)
        assert client.infer("any", x, name="x").said["outputs"][0]["shape"] == shape
    assert "input x must be FP32 of any shape; got 'FP64'" in client.infer("any", x, name="x", datatype="FP64").error


def test_pages_of_an_origin_that_was_allowed(client: Client) -> None:
    asked = {"origin": PAGE, "access_control_request_method": "POST"}
    found = client("OPTIONS", INFER, **asked)
    assert found.status == 204 and found.headers["access-control-allow-origin"] == PAGE
    assert "content-type" in found.headers["access-control-allow-headers"]
    for status, body in ((200, BODY), (400, b"{")):
        found = client("POST", INFER, body, origin=PAGE)
        assert found.status == status and found.headers["access-control-allow-origin"] == PAGE
    assert client("GET", "/v2", origin=PAGE).headers["vary"] == "origin"
    for other in ("https://app.example.evil", "http://app.example", "null", "https://app.example:444"):
        assert client("POST", INFER, BODY, origin=other).status == 403
        found = client("OPTIONS", INFER, origin=other, access_control_request_method="POST")
        assert found.status != 204 and "access-control-allow-origin" not in found.headers


# What runs a graph once


def test_a_graph_that_ends_its_process_or_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"#!{sys.executable} -S\nimport json, os, sys, time\n"
        "for path in json.load(sys.stdin):\n"
        "    'dies' in path and os.kill(os.getpid(), 11)\n"
        "    'hangs' in path and time.sleep(60)\n"
        "    print(json.dumps(''), flush=True)\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(trial, "sys", SimpleNamespace(executable=str(stand_in)))
    monkeypatch.setattr(trial, "PATIENCE", 0.5)
    found = trial.Trials()([Path(name) for name in ("a", "dies", "hangs", "b")])
    assert found == ["", trial.DIED, "its first run took longer than 0.5 seconds", ""]


@pytest.mark.parametrize(("least", "ran"), [(1, True), (20, True), (500, False)])
def test_inputs_are_made_up_in_several_sizes(least: int, ran: bool) -> None:
    class Picky(Engine):
        def __init__(self) -> None:
            self.inputs = (Port("x", "FP32", DATATYPES["tensor(float)"][1], (-1, -1, 3)),)
            self.batched = True

        def run(self, feeds: Any) -> Any:
            if feeds["x"].shape[1] < least:
                raise RefusedError(400, "too short")
            return []

    assert trial.try_once(Picky()) == ("" if ran else "it has not run yet: too short")


class Halves(torch.nn.Module):
    """Cannot be traced: what it does depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x, changed."""
        return x * self.weight if x.sum().item() > 0 else x


class Doubles(Halves):
    """The same tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice x."""
        return 2 * x * self.weight


def test_all_networks_of_a_layout_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path, "net", record_of(Doubles(), Facts(input_shape=(3,))))
    data = (tmp_path / "net.safetensors").read_bytes()
    job = {"name": "net", "data": base64.b64encode(data).decode(), "base": None, "inputs": []}
    monkeypatch.setattr(
        "subcompress_cli.loading.model_of", lambda name, layout=None: {"h": Halves, "d": Doubles}[name]()
    )

    def lifted(record: Any, module: Any, inputs: Any) -> Any:
        if type(module) is Halves:
            raise SubcompressError("it cannot be traced")
        return SimpleNamespace(data=b"", names=(), general=True)

    monkeypatch.setattr(weightless, "weightless_graph_of", lifted)
    found = tracing._answer(["h", "d"], job)
    assert found["network"] == "d" and "an earlier choice could not be traced: it cannot be traced" in found["note"]
    found = tracing._answer(["d", "h"], job)
    assert found["network"] == "d" and "h has the same tensors" in found["note"]
    with pytest.raises(SubcompressError, match="cannot be traced"):
        tracing._answer(["h"], job)
