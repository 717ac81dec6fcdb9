"""Calls over gRPC, valid and invalid, for `soak.py`: what each is answered with, and how it is made."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import grpc

from subcompress.serving.grpc_messages import CLASSES, SERVICE

NAME, ZEROS = "lenet-0", bytes(4 * 784)
PATIENCE = 10
"""Seconds after which a call counts as not answered."""

OK, BAD, ABSENT = ("OK",), ("INVALID_ARGUMENT",), ("NOT_FOUND",)
OVERLOAD = "UNAVAILABLE"
VALID, CHANGING = "gRPC, valid", "gRPC, valid, of a model whose file changes"
GIVEN_UP = "gRPC, given up"
ASKED: dict[str, bytes] = {
    "ServerLive": b"",
    "ServerReady": b"",
    "ServerMetadata": b"",
    **{method: CLASSES[f"{method}Request"](name=NAME).SerializeToString() for method in
       ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")},
}  # fmt: skip
"""Calls other than inference, by method."""


def tensor(**changed: Any) -> dict[str, Any]:
    """The description of a valid input, with some of its fields changed."""
    return {"name": "input", "shape": [1, 1, 28, 28], "datatype": "FP32"} | changed


def infer(*inputs: dict[str, Any], raw: Any = (ZEROS,), name: str = NAME, **more: Any) -> bytes:
    """A call of ModelInfer, invalid or not."""
    request = CLASSES["ModelInferRequest"](model_name=name, inputs=inputs, raw_input_contents=raw, **more)
    data: bytes = request.SerializeToString()
    return data


def named(method: str, name: str) -> bytes:
    """A call that names a model of the repository."""
    data: bytes = CLASSES[f"{method}Request"](model_name=name).SerializeToString()
    return data


Kind = tuple[tuple[str, ...], str, Callable[[int], bytes]]
"""The statuses that are right, the method, and what makes the message, given the server's limit on a body."""

FLOATS = {"fp32_contents": [0.0] * 784}
REGION = {"parameters": {"shared_memory_region": {"string_param": "x"}}}
KINDS: dict[str, Kind] = {
    "gRPC, values in contents": (OK, "ModelInfer", lambda _: infer(tensor(contents=FLOATS), raw=())),
    "gRPC, NaN": (OK, "ModelInfer", lambda _: infer(tensor(), raw=[struct.pack("<f", float("nan")) * 784])),
    "gRPC, no message": (BAD, "ModelInfer", lambda _: b"\xff\xff\xff\xff"),
    "gRPC, wrong input name": (BAD, "ModelInfer", lambda _: infer(tensor(name="x"))),
    "gRPC, no input": (BAD, "ModelInfer", lambda _: infer(raw=())),
    "gRPC, the same input twice": (BAD, "ModelInfer", lambda _: infer(tensor(), tensor(), raw=[ZEROS] * 2)),
    "gRPC, unknown output asked for": (BAD, "ModelInfer", lambda _: infer(tensor(), outputs=[{"name": "y"}])),
    "gRPC, wrong rank": (BAD, "ModelInfer", lambda _: infer(tensor(shape=[784]))),
    "gRPC, no batch": (BAD, "ModelInfer", lambda _: infer(tensor(shape=[0, 1, 28, 28]), raw=[b""])),
    "gRPC, negative shape": (BAD, "ModelInfer", lambda _: infer(tensor(shape=[-1, 1, 28, 28]))),
    "gRPC, huge shape": (BAD, "ModelInfer", lambda _: infer(tensor(shape=[1 << 62, 1, 28, 28]))),
    "gRPC, wrong dtype": (BAD, "ModelInfer", lambda _: infer(tensor(datatype="INT64"))),
    "gRPC, unknown dtype": (BAD, "ModelInfer", lambda _: infer(tensor(datatype="FP99"))),
    "gRPC, values too short": (BAD, "ModelInfer", lambda _: infer(tensor(), raw=[ZEROS[:-1]])),
    "gRPC, values of too many inputs": (BAD, "ModelInfer", lambda _: infer(tensor(), raw=[ZEROS] * 2)),
    "gRPC, values of another kind": (
        BAD, "ModelInfer", lambda _: infer(tensor(contents={"int_contents": [0] * 784}), raw=())
    ),
    "gRPC, shared memory": (BAD, "ModelInfer", lambda _: infer(tensor(**REGION))),
    "gRPC, unknown model": (ABSENT, "ModelInfer", lambda _: infer(tensor(), name="nobody")),
    "gRPC, unknown version": (ABSENT, "ModelInfer", lambda _: infer(tensor(), model_version="7")),
    "gRPC, load of a path": (ABSENT, "RepositoryModelLoad", lambda _: named("RepositoryModelLoad", "../../etc/passwd")),
    "gRPC, unload of nothing": (ABSENT, "RepositoryModelUnload", lambda _: named("RepositoryModelUnload", "nobody")),
    "gRPC, unknown method": (("UNIMPLEMENTED",), "Brew", lambda _: b""),
    "gRPC, message over the limit": (("RESOURCE_EXHAUSTED",), "ModelInfer", lambda n: infer(raw=[bytes(n + 1000)])),
    GIVEN_UP: (("CANCELLED", "OK"), "ModelInfer", lambda _: infer(tensor())),
}  # fmt: skip


def kind_of(method: str) -> str:
    """The kind of a valid call of a method in ASKED."""
    return f"{VALID}, {method}"


EXPECTED = {
    VALID: OK,
    CHANGING: (*OK, *ABSENT),
    **{kind_of(method): OK for method in ASKED},
    **{kind: statuses for kind, (statuses, _, _) in KINDS.items()},
}
"""The statuses that are right, by kind of call. OVERLOAD always is."""


class Calls:
    """A connection."""

    def __init__(self, port: int) -> None:
        # A channel of its own for each client: channels to one address otherwise share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)

    def call(self, method: str, data: bytes, give_up: bool = False) -> tuple[str, bytes]:
        """The status, and what was answered: a message, or the line of a refusal."""
        answer = self._channel.unary_unary(f"/{SERVICE}/{method}").future(data, timeout=PATIENCE)
        if give_up:
            answer.cancel()
            return "CANCELLED", b""
        try:
            return "OK", answer.result()
        except grpc.RpcError as e:
            return str(e.code().name), (e.details() or "").encode()


def valid(name: str, image: bytes) -> bytes:
    """A call to a model that is right."""
    return infer(tensor(), raw=[image], name=name)


def outputs(data: bytes) -> list[float]:
    """The values of an answer's only output."""
    (raw,) = CLASSES["ModelInferResponse"].FromString(data).raw_output_contents
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))
