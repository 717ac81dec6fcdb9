"""Open Inference Protocol v2: decoding requests to arrays and encoding arrays as answers.

JSON, and the binary tensor extension: the JSON comes first, `Inference-Header-Content-Length` bytes of it, and the
values of the tensors after it, in their order, as little-endian bytes.
https://github.com/kserve/open-inference-protocol, and Triton's extension_binary_data.md
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from subcompress.serving.documents import has_word, parse_json
from subcompress.serving.engines import Port
from subcompress.serving.refusals import RefusedError, shown

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
JSON = "application/json"
VERSION = "1"
"""Of every model: what is served is what the file holds."""

MOST_AXES = 32

KINDS: dict[str, set[type]] = {"f": {float, int}, "i": {int}, "u": {int}, "b": {bool}}
"""What values in JSON are of, by NumPy's kind of the datatype."""

assert sys.byteorder == "little", "tensors on the wire are little-endian"


@dataclass(frozen=True)
class InferenceRequest:
    """A decoded request: values by input, and the requested outputs, each in binary or not."""

    id: str
    feeds: dict[str, np.ndarray]
    wanted: tuple[tuple[int, bool], ...]

    @property
    def shapes(self) -> tuple[Any, ...]:
        """The shapes that requests must share to share a run."""
        return tuple((n, a.shape[1:]) for n, a in sorted(self.feeds.items()))

    @property
    def rows(self) -> int:
        """The number of examples: the size of the first axis."""
        return next((len(a) for a in self.feeds.values() if a.ndim), 1)


def parse_request(
    body: bytes, header_length: str | None, inputs: Sequence[Port], outputs: Sequence[Port], batched: bool
) -> InferenceRequest:
    """Decode a request to a model. header_length: the value of that header, None without it.

    Raises RefusedError, 400, for an invalid request, saying what is valid.
    """
    if header_length == "0":
        return _raw(body, inputs, outputs, batched)
    head, tail = _parts(body, header_length)
    document = parse_json(head)
    if not isinstance(document, dict):
        raise RefusedError(400, f"a request must be a JSON object with inputs; got {_kind(document)}")
    id_ = "" if document.get("id") is None else document["id"]
    if not isinstance(id_, str):
        raise RefusedError(400, f"id must be text; got {_kind(id_)}")
    # A truth value among numbers is none of them, and to ask each value would cost as much as to read it.
    plain = not (has_word(head, b"true") or has_word(head, b"false"))
    feeds = _feeds(document.get("inputs"), tail, inputs, plain)
    if batched and len(sizes := {len(a) for a in feeds.values()}) > 1:
        raise RefusedError(400, f"inputs come in batches of one size; got {', '.join(map(str, sorted(sizes)))}")
    return InferenceRequest(id_, feeds, _wanted(document, outputs))


def _raw(body: bytes, inputs: Sequence[Port], outputs: Sequence[Port], batched: bool) -> InferenceRequest:
    """Decode a raw binary request: the values of the only input (one example if it has a batch axis).

    All outputs are requested in binary. Raises RefusedError, 400, if the size does not determine the shape.
    """
    if len(inputs) != 1:
        raise RefusedError(400, f"a raw binary request is for models of one input; this one has {_expected(inputs)}")
    port = inputs[0]
    shape = [1, *port.shape[1:]] if batched else list(port.shape)
    if not port.ranked or shape.count(-1) > 1:
        raise RefusedError(
            400,
            f"a raw binary request is for inputs with one size that varies; {port} has more: send its shape in JSON",
        )
    if -1 in shape:
        each = port.dtype.itemsize * -math.prod(shape)
        shape[shape.index(-1)] = len(body) // each if each else 0
    if not body or len(body) != math.prod(shape) * port.dtype.itemsize:
        one = "one example of " if batched else ""
        raise RefusedError(400, f"a raw binary request holds {one}{port}; got {len(body)} bytes")
    feeds = {port.name: _from_bytes(memoryview(body), len(body), tuple(shape), port)}
    return InferenceRequest("", feeds, tuple((i, True) for i in range(len(outputs))))


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


def _expected(ports: Sequence[Port]) -> str:
    return ", ".join(map(str, ports))


def _called(port: Port) -> str:
    """An input in a sentence: what is called input is not called so twice."""
    return port.name if port.name.lower().startswith("input") else f"input {port.name}"


def _feeds(given: Any, tail: memoryview, ports: Sequence[Port], plain: bool) -> dict[str, np.ndarray]:
    """Values by input. plain: whether the request's JSON has no truth values."""
    expected = _expected(ports)
    if not isinstance(given, list) or not all(isinstance(t, dict) for t in given):
        raise RefusedError(400, f"inputs must be a list of tensors ({expected}); got {_kind(given)}")
    known = {p.name: p for p in ports}
    feeds: dict[str, np.ndarray] = {}
    at = 0
    for tensor in given:
        name = tensor.get("name")
        port = known.get(name) if isinstance(name, str) else None
        if port is None:
            raise RefusedError(400, f"inputs must be {expected}; got {shown(name)}")
        if name in feeds:
            raise RefusedError(400, f"each input is given once; {name} came twice")
        shape = _shape(tensor.get("shape"), tensor.get("datatype"), port)
        size = _binary_size(tensor, name)
        if size is None:
            feeds[name] = _from_json(tensor.get("data"), shape, port, plain)
        else:
            if tensor.get("data") is not None:
                raise RefusedError(400, f"values of {name} come as data or as binary_data_size; got both")
            feeds[name] = _from_bytes(tail[at : at + size], size, shape, port)
            at += size
    if missing := [p for p in ports if p.name not in feeds]:
        raise RefusedError(400, f"inputs are {expected}; {missing[0].name} is missing")
    if at != len(tail):
        raise RefusedError(400, f"binary inputs say that they take {at} bytes; {len(tail)} follow the JSON")
    return feeds


def _shape(given: Any, datatype: Any, port: Port) -> tuple[int, ...]:
    """The shape that the request declares, one that the model takes."""
    sound = isinstance(given, list) and len(given) <= MOST_AXES and all(type(k) is int and k >= 0 for k in given)
    if not (sound and _fits(given, port)) or datatype != port.datatype:
        what = f"[{', '.join(map(str, given))}]" if sound else shown(given)
        takes = f"{list(port.shape)}" if port.ranked else "of any shape"
        raise RefusedError(
            400,
            f"{_called(port)} must be {port.datatype} {takes}; got {shown(datatype)} {what[:200]}: "
            f"{_instead(given, sound, port)}",
        )
    if not all(given):
        raise RefusedError(400, f"{_called(port)} has no values in shape {given}: send one example or more")
    return tuple(given)


def _instead(given: Any, sound: bool, port: Port) -> str:
    """What to send instead of a shape or a datatype that does not fit."""
    if isinstance(given, list) and any(type(k) is int and k < 0 for k in given):
        return "a request says how many there are in place of each -1"
    if sound and len(given) + 1 == len(port.shape) and _fits([1, *given], port):
        return "put a 1 in front, for one example"
    return "send that, -1 being any size" if -1 in port.shape and port.ranked else "send that"


def _fits(given: Sequence[int], port: Port) -> bool:
    if not port.ranked:
        return True
    return len(given) == len(port.shape) and all(want in (-1, k) for want, k in zip(port.shape, given, strict=True))


def _parameters(container: dict[str, Any], what: str) -> dict[str, Any]:
    """What stands under `parameters`, nothing where that is null. what: how a refusal calls them."""
    parameters = container.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RefusedError(400, f"{what} must be a JSON object; got {_kind(parameters)}")
    return parameters


def _binary_size(tensor: dict[str, Any], name: str) -> int | None:
    parameters = _parameters(tensor, f"parameters of {name}")
    for key in parameters:
        if key.startswith("shared_memory"):
            raise RefusedError(400, "tensors come in the request; shared memory is not offered")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise RefusedError(400, f"binary_data_size of {name} must be a number of bytes; got {shown(size)}")
    return size


def _from_bytes(held: memoryview, size: int, shape: tuple[int, ...], port: Port) -> np.ndarray:
    wants = math.prod(shape) * port.dtype.itemsize
    if size != wants or len(held) != size:
        raise RefusedError(
            400,
            f"{_called(port)} of shape {list(shape)} takes {wants} bytes; binary_data_size says {size}, and "
            f"{len(held)} are there",
        )
    if port.datatype == "BOOL" and max(held, default=0) > 1:
        raise RefusedError(400, f"values of {port.name} are 0 or 1, a byte each")
    return np.frombuffer(held, port.dtype).reshape(shape)


def _from_json(data: Any, shape: tuple[int, ...], port: Port, plain: bool) -> np.ndarray:
    """The values in `data`. plain: whether none is true or false."""
    if not isinstance(data, list):
        raise RefusedError(
            400, f"values of {port.name} must be a list called data, or follow in binary; got {_kind(data)}"
        )
    values = _flat(data, port)
    if len(values) != math.prod(shape):
        raise RefusedError(
            400, f"{_called(port)} of shape {list(shape)} must have {math.prod(shape)} values; got {len(values)}"
        )
    kind = port.dtype.kind
    # NumPy looks last: where one value is text it would make text of all, each as long as the longest.
    quick = kind == "f" and plain
    if not (type(values[0]) in KINDS[kind] and (quick or {*map(type, values)} <= KINDS[kind])):
        raise _of_another_kind(port)
    try:
        if kind != "f":
            return np.array(values, port.dtype).reshape(shape)
        with np.errstate(over="raise"):
            return np.frombuffer(array("d", values)).reshape(shape).astype(port.dtype)
    except TypeError as e:
        raise _of_another_kind(port) from e
    except FloatingPointError as e:
        raise RefusedError(400, f"values of {port.name} are finite in {port.datatype}; some are not") from e
    except OverflowError as e:
        limits = np.iinfo(port.dtype)
        raise RefusedError(400, f"values of {port.name} are between {limits.min} and {limits.max}; some are not") from e


def _of_another_kind(port: Port) -> RefusedError:
    return RefusedError(400, f"data of {port.name} must be values of {port.datatype}; got others, or null")


def _flat(values: list[Any], port: Port) -> list[Any]:
    """The values in a row, of lists in lists that are all as long as each other."""
    for _ in range(MOST_AXES):
        if not values or not isinstance(values[0], list):
            break
        if {*map(type, values)} != {list} or len({*map(len, values)}) != 1:
            raise RefusedError(400, f"data of {port.name} is a flat list, or one nested as its shape is")
        values = list(chain.from_iterable(values))
    return values


def _wanted(document: dict[str, Any], ports: Sequence[Port]) -> tuple[tuple[int, bool], ...]:
    """Outputs by number, and whether each comes in binary; all in order where none is named."""
    parameters = _parameters(document, "parameters")
    if any(key.startswith("sequence_") for key in parameters):
        raise RefusedError(400, "every request stands by itself; sequences are not offered")
    binary = parameters.get("binary_data_output", False)
    given = document.get("outputs")
    if not given:
        return tuple((i, binary is True) for i in range(len(ports)))
    numbers = {p.name: i for i, p in enumerate(ports)}
    found: list[tuple[int, bool]] = []
    for output in given if isinstance(given, list) else [given]:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in numbers:
            raise RefusedError(400, f"outputs must be {_expected(ports)}; got {shown(name)}")
        own = _parameters(output, f"parameters of {name}")
        if own.get("classification"):
            raise RefusedError(400, f"outputs come as they are; classification of {name} is not offered")
        if numbers[name] in [i for i, _ in found]:
            raise RefusedError(400, f"each output is asked for once; {name} came twice")
        found.append((numbers[name], own.get("binary_data", binary) is True))
    return tuple(found)


def encode_answer(
    name: str, asked: InferenceRequest, ports: Sequence[Port], values: Sequence[np.ndarray]
) -> tuple[bytes, str, int]:
    """Encode an answer; return the body, its content type, and the length of its JSON if binary values follow, else 0.

    In JSON, values that are not finite are null.
    """
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for i, binary in asked.wanted:
        value = np.asarray(values[i], order="C")
        told: dict[str, Any] = {"name": ports[i].name, "datatype": ports[i].datatype, "shape": list(value.shape)}
        if binary:
            tail.append(value.tobytes())
            told["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            told["data"] = value.reshape(-1)
        outputs.append(told)
    said = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    if asked.id:
        said["id"] = asked.id
    head = orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return head, JSON, 0
    return b"".join([head, *tail]), BINARY, len(head)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")
