"""Open Inference Protocol v2 over HTTP: decoding requests to arrays and encoding arrays as answers.

JSON, and the binary tensor extension: the JSON comes first, `Inference-Header-Content-Length` bytes of it, and the
values of the tensors after it, in their order, as little-endian bytes.
https://github.com/kserve/open-inference-protocol, and Triton's extension_binary_data.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from subcompress.serving import tensors
from subcompress.serving.documents import has_word, parse_json
from subcompress.serving.engines import Port
from subcompress.serving.refusals import RefusedError, shown
from subcompress.serving.tensors import InferenceRequest, Inputs, Signature, Takes, expected

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
JSON = "application/json"
VERSION = "1"
"""The version of every model: the file that is served has no others."""


IMAGES = (b"\x89PNG", b"\xff\xd8\xff")
"""The first bytes of images, with which no JSON begins."""

BRIEF = ("text", "image")
"""The inputs that a request may give in place of tensors."""


def parse_request(body: bytes, header_length: str | None, takes: Takes) -> InferenceRequest:
    """Decode a request to a model. header_length: the value of that header, None without it.

    The body is tensors, or an image, or an object with `text` or `image`: one text, one image in base64, or a list.
    Raises RefusedError, 400, for an invalid request, saying what is valid.
    """
    if header_length is None and body.startswith(IMAGES):
        return _brief("image", [body], "", takes)
    if header_length == "0":
        return _raw(body, takes.own)
    head, tail = _parts(body, header_length)
    document = parse_json(head)
    if not isinstance(document, dict):
        raise RefusedError(400, f"a request must be a JSON object with inputs; got {kind_of(document)}")
    id_ = "" if document.get("id") is None else document["id"]
    if not isinstance(id_, str):
        raise RefusedError(400, f"id must be text; got {kind_of(id_)}")
    given = document.get("inputs")
    if given is None and (name := next((name for name in BRIEF if name in document), None)) is not None:
        return _brief(name, document[name], id_, takes)
    if not isinstance(given, list) or not all(isinstance(t, dict) for t in given):
        ports = expected(takes.own.inputs)
        raise RefusedError(400, f"inputs must be a list of tensors ({ports}); got {kind_of(given)}")
    signature = takes.named([t.get("name") for t in given])
    # A truth value among numbers is none of them, and to ask each value would cost as much as to read it.
    plain = not (has_word(head, b"true") or has_word(head, b"false"))
    feeds = _feeds(given, tail, signature, plain)
    return InferenceRequest(id_, feeds, _wanted(document, signature.outputs), signature)


def _brief(name: str, given: Any, id_: str, takes: Takes) -> InferenceRequest:
    """Decode one text or image, or a list of them."""
    signature = takes.prepared
    if signature is None or signature.inputs[0].name != name:
        why = takes.lacking or f"it takes {expected(signature.inputs if signature else ())}"
        raise RefusedError(400, f"this model takes no {name}, because {why}: send {expected(takes.own.inputs)}")
    values = given if isinstance(given, list) else [given]
    if not values or not {*map(type, values)} <= {str, bytes}:
        what = "an image in base64" if name == "image" else "a text"
        raise RefusedError(400, f"{name} must be {what}, or a list of some; got {kind_of(given)}")
    port = signature.inputs[0]
    if isinstance(values[0], bytes):
        feeds = tensors.of_elements(values, (len(values),), port)
    else:
        feeds = tensors.from_json(values, (len(values),), port, plain=True)
    return InferenceRequest(id_, {name: feeds}, (), signature, brief=True)


def _raw(body: bytes, signature: Signature) -> InferenceRequest:
    """Decode a raw binary request: the values of the only input (one example if it has a batch axis).

    All outputs are requested in binary. Raises RefusedError, 400, if the size does not determine the shape.
    """
    if len(signature.inputs) != 1:
        its = expected(signature.inputs)
        raise RefusedError(400, f"a raw binary request needs a model with one input; this one has {its}")
    port = signature.inputs[0]
    if port.datatype == "BYTES":
        raise RefusedError(
            400, f"a raw binary request must hold numbers; this model takes {port}: send its shape in JSON"
        )
    shape = [1, *port.shape[1:]] if signature.batched else list(port.shape)
    if not port.ranked or shape.count(-1) > 1:
        raise RefusedError(
            400,
            f"a raw binary request needs an input with at most one size that varies; {port} has more: send its "
            "shape in JSON",
        )
    if -1 in shape:
        each = port.dtype.itemsize * -math.prod(shape)
        shape[shape.index(-1)] = len(body) // each if each else 0
    if not body or len(body) != math.prod(shape) * port.dtype.itemsize:
        one = "one example of " if signature.batched else ""
        raise RefusedError(400, f"a raw binary request must hold {one}{port}; got {len(body)} bytes")
    feeds = {port.name: tensors.from_bytes(memoryview(body), tuple(shape), port)}
    return InferenceRequest("", feeds, tuple((i, True) for i in range(len(signature.outputs))), signature)


def _parts(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """Split a body into the JSON and the bytes after it."""
    view = memoryview(body)
    if header_length is None:
        return body, view[:0]
    if not (header_length.isascii() and header_length.isdigit() and 0 < len(header_length) < 16):
        raise RefusedError(
            400, f"Inference-Header-Content-Length must be a number of bytes; got {shown(header_length)}"
        )
    n = int(header_length)
    if not 0 < n <= len(body):
        raise RefusedError(
            400, f"Inference-Header-Content-Length must be between 1 and the body's {len(body)} bytes; got {n}"
        )
    return body[:n], view[n:]


def _feeds(
    given: Sequence[dict[str, Any]], tail: memoryview, signature: Signature, plain: bool
) -> dict[str, np.ndarray]:
    """Values by input. plain: whether the request's JSON has no truth values."""
    inputs, at = Inputs(signature), 0
    for tensor in given:
        port = inputs.port(tensor.get("name"))
        shape = tensors.checked_shape(tensor.get("shape"), tensor.get("datatype"), port)
        size, data = _binary_size(tensor, port.name), tensor.get("data")
        if size is not None:
            if data is not None:
                raise RefusedError(
                    400, f"the values of {port.name} must be given by data or by binary_data_size; got both"
                )
            inputs.feeds[port.name] = tensors.from_bytes(tail[at : at + size], shape, port, size)
            at += size
        elif isinstance(data, list):
            inputs.feeds[port.name] = tensors.from_json(data, shape, port, plain)
        else:
            raise RefusedError(
                400, f"the values of {port.name} must be a list called data, or follow in binary; got {kind_of(data)}"
            )
    inputs.require_complete()
    if at != len(tail):
        raise RefusedError(400, f"the binary inputs state {at} bytes, but {len(tail)} follow the JSON")
    return inputs.all()


def _parameters(container: dict[str, Any], what: str) -> dict[str, Any]:
    """What stands under `parameters`, nothing where that is null. what: how a refusal calls them."""
    parameters = container.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RefusedError(400, f"{what} must be a JSON object; got {kind_of(parameters)}")
    return parameters


def _binary_size(tensor: dict[str, Any], name: str) -> int | None:
    parameters = _parameters(tensor, f"parameters of {name}")
    refuse_shared_memory(parameters)
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise RefusedError(400, f"binary_data_size of {name} must be a number of bytes; got {shown(size)}")
    return size


def refuse_shared_memory(parameters: Any) -> None:
    """Raise RefusedError, 400, where an input's parameters say that its values are not in the request."""
    if any(key.startswith("shared_memory") for key in parameters):
        raise RefusedError(400, "shared memory is not supported: send the tensors in the request")


def refuse_sequences(parameters: Any) -> None:
    """Raise RefusedError, 400, where a request's parameters say that it is one of a sequence."""
    if any(key.startswith("sequence_") for key in parameters):
        raise RefusedError(400, "sequences are not supported: every request is independent")


def refuse_classification(parameters: Any, name: str) -> None:
    """Raise RefusedError, 400, where an output's parameters ask for the classes in place of its values."""
    if parameters.get("classification"):
        raise RefusedError(400, f"classification of {name} is not supported: outputs are returned as they are")


def _wanted(document: dict[str, Any], ports: Sequence[Port]) -> tuple[tuple[int, bool], ...]:
    """Outputs by number, and whether each comes in binary; all in order where none is named."""
    parameters = _parameters(document, "parameters")
    refuse_sequences(parameters)
    binary = parameters.get("binary_data_output", False)
    given = document.get("outputs")
    if not given:
        return tuple((i, binary is True) for i in range(len(ports)))
    found: dict[int, bool] = {}
    for output in given if isinstance(given, list) else [given]:
        number = tensors.output_number(ports, output.get("name") if isinstance(output, dict) else None, found)
        own = _parameters(output, f"parameters of {ports[number].name}")
        refuse_classification(own, ports[number].name)
        found[number] = own.get("binary_data", binary) is True
    return tuple(found.items())


def encode_answer(
    name: str, asked: InferenceRequest, ports: Sequence[Port], values: Sequence[np.ndarray]
) -> tuple[bytes, str, int]:
    """Encode an answer; return the body, its content type, and the length of its JSON if binary values follow, else 0.

    In JSON, values that are not finite are null.
    """
    if asked.brief:
        said = {"model_name": name, "model_version": VERSION, "predictions": _predictions(ports, values)}
        return orjson.dumps(said | ({"id": asked.id} if asked.id else {})), JSON, 0
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for i, binary in asked.wanted:
        port, value = ports[i], np.asarray(values[i], order="C")
        told: dict[str, Any] = {"name": port.name, "datatype": port.datatype, "shape": list(value.shape)}
        if binary:
            tail.append(tensors.to_bytes(value, port))
            told["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            told["data"] = tensors.to_list(value, port)
        outputs.append(told)
    said = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    if asked.id:
        said["id"] = asked.id
    head = orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return head, JSON, 0
    return b"".join([head, *tail]), BINARY, len(head)


def _predictions(ports: Sequence[Port], values: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """A label and its probability for each text or image, or the values of the first output that is neither."""
    found = {port.name: value for port, value in zip(ports, values, strict=True)}
    if "label" in found:
        rows = [
            {"label": label, "probability": round(float(p), 6)}
            for label, p in zip(found["label"], found["probability"], strict=True)
        ]
    else:
        own = next(value for port, value in zip(ports, values, strict=True) if port.name != "truncated")
        rows = [{"values": row.astype(float).tolist()} for row in own]
    for row, was_cut in zip(rows, found.get("truncated", np.zeros(len(rows), bool)), strict=True):
        if was_cut:
            row["truncated"] = True
    return rows


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")
