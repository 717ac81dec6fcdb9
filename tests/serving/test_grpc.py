"""The protocol over gRPC: the client that Triton's users have, and messages that it would not send."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from records import lenet_record
from served import LENET, X, expected
from serving import Client, packed, serving

from subcompress import SubcompressError
from subcompress.serving import running
from subcompress.serving.service import Limits

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")

from test_requests import graph  # noqa: E402
from tritonclient.grpc import model_config_pb2, service_pb2  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from subcompress.serving.grpc_messages import CLASSES, DATATYPES, METHODS, SERVICE  # noqa: E402

TOKEN = "secret-of-this-server"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
BEYOND_TRITON = {"ModelMetadataResponse.properties"}
"""Fields that the published protocol has and Triton's copy of it lacks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of LeNet, and graphs of other datatypes."""
    made = tmp_path_factory.mktemp("models")
    for i, name in enumerate(("one", "two")):
        packed(made, name, lenet_record(300, i))
    kinds = {"text": "STRING", "half": "FLOAT16", "bf16": "BFLOAT16", "byte": "INT8", "yes": "BOOL", "big": "UINT64"}
    for name, kind in kinds.items():
        graph(made / f"{name}.onnx", "Identity", ["n", 2], ["n", 2], getattr(TensorProto, kind))
    return made


@pytest.fixture(scope="module")
def client(folder: Path) -> Any:
    """A server of both protocols."""
    limits = Limits(body=1_000_000)
    with serving(folder, trace=LENET, grpc_port=0, token=TOKEN, limits=limits) as found:
        yield found


@pytest.fixture(scope="module")
def real(client: Client) -> Any:
    """The real client."""
    with triton.InferenceServerClient(client.running.grpc) as found:
        yield found


def given(x: np.ndarray, datatype: str = "FP32", name: str = "input") -> Any:
    """An input for the real client."""
    return triton.InferInput(name, x.shape, datatype).set_data_from_numpy(x)


def test_the_messages_are_those_of_the_published_protocol() -> None:
    def parts(field: Any) -> tuple[Any, ...]:
        held = [field.message_type, field.enum_type, field.containing_oneof]
        names = [None if h is None else h.name if h is field.containing_oneof else h.full_name for h in held]
        return field.name, field.number, field.type, field.is_repeated, *names

    pool = service_pb2.DESCRIPTOR.pool
    for name, ours in CLASSES.items():
        theirs = {parts(field) for field in pool.FindMessageTypeByName(f"inference.{name}").fields}
        other = {parts(field) for field in ours.DESCRIPTOR.fields} - theirs
        assert {f"{name}.{field[0]}" for field in other} <= BEYOND_TRITON
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE and set(METHODS) <= set(service.methods_by_name)
    for method in METHODS:
        found = service.methods_by_name[method]
        assert (found.input_type.name, found.output_type.name) == (f"{method}Request", f"{method}Response")
    assert dict(model_config_pb2.DataType.items()) == {f"TYPE_{name}": i for i, name in enumerate(DATATYPES)}


def test_the_real_client_gets_torchs_outputs(real: Any, folder: Path) -> None:
    for name in ("one", "two"):
        wanted = [triton.InferRequestedOutput("output")]
        found = real.infer(name, [given(X)], outputs=wanted, request_id="7", headers=HEADERS)
        assert found.get_response().id == "7"
        np.testing.assert_allclose(found.as_numpy("output"), expected(folder / f"{name}.safetensors", X), atol=1e-4)
    with ThreadPoolExecutor(8) as pool:
        all_found = list(pool.map(lambda i: real.infer("two", [given(X[i % 3 :][:1])], headers=HEADERS), range(24)))
    wanted = expected(folder / "two.safetensors", X)
    for i, found in enumerate(all_found):
        np.testing.assert_allclose(found.as_numpy("output")[0], wanted[i % 3], atol=1e-4)


def test_the_real_client_is_told_what_there_is(client: Client, real: Any) -> None:
    client.wait_until_ready()
    assert real.is_server_live() and real.is_server_ready()
    assert real.is_model_ready("one", "1", headers=HEADERS)
    assert real.get_server_metadata(headers=HEADERS).name == "subcompress"
    metadata = real.get_model_metadata("one", headers=HEADERS)
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("input", "FP32", [-1, 1, 28, 28])]
    config = real.get_model_config("text", headers=HEADERS).config
    assert config.max_batch_size == 64 and config.input[0].data_type == model_config_pb2.TYPE_STRING
    index = real.get_model_repository_index(headers=HEADERS).models
    assert {m.name: m.state for m in index}["one"] == "READY"
    assert real.get_inference_statistics("one", headers=HEADERS).model_stats[0].name == "one"
    assert len(real.get_inference_statistics(headers=HEADERS).model_stats) == len(index)


def test_the_real_client_loads_and_unloads(real: Any, client: Client) -> None:
    real.unload_model("two", headers=HEADERS)
    assert not real.is_model_ready("two", headers=HEADERS)
    with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*load it first"):
        real.infer("two", [given(X)], headers=HEADERS)
    real.load_model("two", headers=HEADERS)
    assert real.infer("two", [given(X)], headers=HEADERS).as_numpy("output").shape == (3, 10)
    with pytest.raises(InferenceServerException, match="leave them out"):
        real.load_model("two", config="{}", headers=HEADERS)
    with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*there is no model 'three'"):
        real.load_model("three", headers=HEADERS)


VALUES: list[tuple[str, str, Any]] = [
    ("text", "BYTES", np.array([[b"a", "größe".encode()]], object)),
    ("half", "FP16", np.array([[1.5, -2]], np.float16)),
    ("bf16", "BF16", np.array([[1.5, -2]], np.float32)),
    ("byte", "INT8", np.array([[1, -2]], np.int8)),
    ("yes", "BOOL", np.array([[True, False]])),
    ("big", "UINT64", np.array([[1, 1 << 63]], np.uint64)),
]


@pytest.mark.parametrize(("name", "datatype", "x"), VALUES)
def test_every_kind_of_value(real: Any, client: Client, name: str, datatype: str, x: np.ndarray) -> None:
    assert real.infer(name, [given(x, datatype, "x")], headers=HEADERS).as_numpy("y").tolist() == x.tolist()
    fields = {"BYTES": "bytes", "INT8": "int", "BOOL": "bool", "UINT64": "uint64"}
    contents = {f"{fields.get(datatype, 'fp32')}_contents": x.ravel().tolist()}
    request = asking(name, tensor([1, 2], datatype, "x", contents=contents))
    if datatype not in fields:
        return refused(
            client, request, "INVALID_ARGUMENT", f"must be in raw_input_contents, because they are {datatype}"
        )
    assert call(client, "ModelInfer", request).raw_output_contents == [request_bytes(x, datatype)]
    return None


def request_bytes(x: np.ndarray, datatype: str) -> bytes:
    """What the real client sends."""
    return bytes(given(x, datatype, "x")._get_content())


def tensor(shape: Any = (1, 1, 28, 28), datatype: str = "FP32", name: str = "input", **more: Any) -> dict[str, Any]:
    """A tensor of a request."""
    return {"name": name, "shape": shape, "datatype": datatype, **more}


def asking(model: str = "one", *inputs: dict[str, Any], raw: Any = (), **more: Any) -> Any:
    """A request, valid or not."""
    return CLASSES["ModelInferRequest"](model_name=model, inputs=inputs, raw_input_contents=raw, **more)


def call(client: Client, method: str, request: Any, **options: Any) -> Any:
    """What a method answers to a message, or to bytes."""
    with grpc.insecure_channel(client.running.grpc) as channel:
        answer = channel.unary_unary(f"/{SERVICE}/{method}")
        data = request if isinstance(request, bytes) else request.SerializeToString()
        metadata = [("authorization", f"Bearer {TOKEN}")]
        data = answer(data, timeout=30, metadata=metadata, **options)
    return CLASSES[f"{method}Response"].FromString(data)


def refused(client: Client, request: Any, status: str, text: str, method: str = "ModelInfer", **options: Any) -> None:
    """It is refused so, in one line."""
    with pytest.raises(grpc.RpcError) as e:
        call(client, method, request, **options)
    assert e.value.code().name == status and text in e.value.details() and "\n" not in e.value.details()


ZEROS = bytes(4 * 784)
PIXELS = {"fp32_contents": [0.0] * 784}
OPTION = {"parameters": {"classification": {"int64_param": 2}}}
WRONG: dict[str, tuple[Any, str]] = {
    "no message": (b"\xff\xff\xff", "the request is not a message inference.ModelInferRequest"),
    "no input": (asking(), "inputs must be input FP32 [-1, 1, 28, 28]; input is missing"),
    "another name": (asking("one", tensor(name="x"), raw=[ZEROS]), "inputs must be input"),
    "twice": (asking("one", tensor(), tensor(), raw=[ZEROS] * 2), "is given twice"),
    "another datatype": (asking("one", tensor(datatype="FP64"), raw=[ZEROS]), "got 'FP64'"),
    "another shape": (asking("one", tensor([1, 784]), raw=[ZEROS]), "got 'FP32' [1, 784]"),
    "a negative shape": (asking("one", tensor([-1, 1, 28, 28]), raw=[ZEROS]), "in place of each -1"),
    "no example": (asking("one", tensor([0, 1, 28, 28]), raw=[b""]), "send one example or more"),
    "a huge shape": (asking("one", tensor([1 << 62, 1, 28, 28]), raw=[ZEROS]), "3136 bytes are there"),
    "a huge shape in numbers": (asking("one", tensor([1 << 62, 1, 28, 28], contents=PIXELS)), "got 784 in"),
    "too short": (asking("one", tensor(), raw=[ZEROS[:-1]]), "takes 3136 bytes, but raw_input_contents is 3135"),
    "too many": (asking("one", tensor(), raw=[ZEROS] * 2), "the values of each input; got 2 for 1"),
    "both": (asking("one", tensor(contents=PIXELS), raw=[ZEROS]), "got both"),
    "no values": (asking("one", tensor()), "must have 784 values; got 0 in fp32_contents"),
    "values of another kind": (asking("one", tensor(contents={"int_contents": [0] * 784})), "must be in fp32_contents"),
    "beyond the datatype": (
        asking("byte", tensor([1, 2], "INT8", "x", contents={"int_contents": [1, 300]})), "between -128 and 127"
    ),
    "another output": (asking("one", tensor(), raw=[ZEROS], outputs=[{"name": "y"}]), "outputs must be output"),
    "classes": (asking("one", tensor(), raw=[ZEROS], outputs=[{"name": "output", **OPTION}]), "is not supported"),
    "a sequence": (
        asking("one", tensor(), raw=[ZEROS], parameters={"sequence_id": {"int64_param": 1}}), "sequences are not"
    ),
    "shared memory": (
        asking("one", tensor(parameters={"shared_memory_region": {"string_param": "x"}}), raw=[ZEROS]), "not supported"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_told_what_would_be_right(client: Client, what: str) -> None:
    refused(client, WRONG[what][0], "INVALID_ARGUMENT", WRONG[what][1])


def test_other_refusals(client: Client, real: Any) -> None:
    refused(client, asking("nobody"), "NOT_FOUND", "there is no model 'nobody'")
    refused(client, asking("one", model_version="7"), "NOT_FOUND", "only has version 1; got '7'")
    for pressed in (grpc.Compression.NoCompression, grpc.Compression.Gzip):  # a bomb is measured as it unfolds
        big = asking("one", tensor(), raw=[bytes(4_000_000)])
        refused(client, big, "RESOURCE_EXHAUSTED", "larger than max", compression=pressed)
    with pytest.raises(grpc.RpcError) as e:
        call(client, "ModelInferX", b"")
    assert e.value.code().name == "UNIMPLEMENTED"
    with pytest.raises(InferenceServerException, match=r"UNAUTHENTICATED.*requires its token"):
        real.infer("one", [given(X)])
    assert client.running.service.held == client.running.service.waiting == 0


def test_both_protocols_are_counted_together(client: Client, real: Any) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    before = client("GET", "/status?search=one", **bearer).said["models"][0]["requests"]
    real.infer("one", [given(X)], headers=HEADERS)
    assert client.infer("one", X).status == 401
    assert client("GET", "/status?search=one", **bearer).said["models"][0]["requests"] == before + 1


def test_a_full_queue_and_a_taken_port(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.running.service, "waiting", client.running.service.limits.waiting)
    refused(client, asking("one", tensor(), raw=[ZEROS]), "UNAVAILABLE", "the queue is full")
    port = int(client.running.grpc.rpartition(":")[2])
    with (
        pytest.raises(SubcompressError, match="give another --grpc-port"),
        serving("x=" + str(client.running.models.sources[0] + "/half.onnx"), trace=LENET, grpc_port=port),
    ):
        pass


def test_grpc_is_an_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SubcompressError, match="gRPC needs grpcio"), serving(folder, trace=LENET, grpc_port=0):
        pass
