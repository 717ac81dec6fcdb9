"""Texts and short floats in requests, in JSON and in binary."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from onnx import TensorProto
from served import LENET
from serving import Client, serving
from test_requests import X, graph


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of graphs of these types."""
    made = tmp_path_factory.mktemp("models")
    graph(made / "bf16.onnx", "Identity", ["n", 2], ["n", 2], TensorProto.BFLOAT16)
    graph(made / "text.onnx", "Identity", ["n", 2], ["n", 2], TensorProto.STRING)
    graph(made / "half.onnx", "Neg", ["n", 2], ["n", 2], TensorProto.FLOAT16)
    with serving(made, trace=LENET) as found:
        yield found


KINDS = [("bf16", "BF16", 1.0), ("half", "FP16", -1.0), ("text", "BYTES", 1.0)]


@pytest.mark.parametrize(("name", "datatype", "sign"), KINDS)
@pytest.mark.parametrize("binary", [True, False])
def test_short_floats_and_texts_with_the_real_client(
    client: Client, name: str, datatype: str, sign: float, binary: bool
) -> None:
    x = np.array([["größe", ""], ["b", "x" * 300]], object) if datatype == "BYTES" else np.array([[1, -2.5], [0, 3]])
    if datatype == "BYTES":
        given, wanted = x, [[value.encode() for value in row] for row in x]
    else:
        given = x.astype(np.float16 if datatype == "FP16" else np.float32)
        wanted = (sign * x).tolist()
    if datatype == "BF16" and not binary:  # the client has no JSON for it
        found = client.infer("bf16", x, datatype="BF16", name="x").said["outputs"][0]
        assert (found["datatype"], found["data"]) == ("BF16", x.ravel().tolist())
        return
    with triton.InferenceServerClient(f"{client.host}:{client.port}") as real:
        tensor = triton.InferInput("x", x.shape, datatype)
        tensor.set_data_from_numpy(given, binary_data=binary)
        outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
        found = real.infer(name, [tensor], outputs=outputs).as_numpy("y")
    found = found.tolist()
    assert [[v.encode() if isinstance(v, str) else v for v in row] for row in found] == wanted


OFF = {
    "no UTF-8": (b"\x01\0\0\0\xff" * 2, "text in UTF-8; one is not"),
    "cut short": (b"\x01\0\0\0a\x02\0\0\0b", "2 elements, each after its length in four bytes; its 10 bytes"),
    "a huge length": (b"\xff\xff\xff\xffa\0\0\0", "2 elements"),
    "too many": (b"\0\0\0\0" * 3, "2 elements"),
}


@pytest.mark.parametrize("what", OFF)
def test_elements_that_are_none(client: Client, what: str) -> None:
    data, text = OFF[what]
    size = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "parameters": size}]}).encode()
    path = "/v2/models/text/infer"
    found = client("POST", path, head + data, inference_header_content_length=str(len(head)))
    assert found.status == 400 and text in found.error
    assert "must hold numbers" in client("POST", path, data, inference_header_content_length="0").error
    assert "values of BYTES; got others" in client.infer("text", np.ones((1, 2)), datatype="BYTES", name="x").error
    for datatype in ("FP32", "BF16"):  # a model takes its own datatype only
        found = client.infer("half", X[0, 0, :1, :2], datatype=datatype, name="x")
        assert f"must be FP16 [-1, 2]; got '{datatype}'" in found.error
    assert "finite in BF16" in client.infer("bf16", np.full((1, 2), 3.4e38), datatype="BF16", name="x").error
