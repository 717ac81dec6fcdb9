"""Tensors of requests and answers, the same for HTTP and gRPC: which ones a model takes, and their values as bytes.

On the wire, numbers are little-endian. A tensor of BYTES is its elements one after another, each behind its length in
four bytes. BF16, which NumPy lacks, is held as uint16.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import sys
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import numpy as np

from subcompress.serving.engines import Port
from subcompress.serving.refusals import RefusedError, shown

MOST_AXES = 32

KINDS: dict[str, set[type]] = {"f": {float, int}, "i": {int}, "u": {int}, "b": {bool}, "O": {str}}
"""The Python types of values in JSON, by NumPy's kind of the datatype."""

assert sys.byteorder == "little", "tensors on the wire are little-endian"


class Signature(Protocol):
    """What a model takes and gives. batched: whether the first axis of every tensor is that of examples."""

    @property
    def inputs(self) -> tuple[Port, ...]: ...

    @property
    def outputs(self) -> tuple[Port, ...]: ...

    @property
    def batched(self) -> bool: ...


@dataclass(frozen=True)
class InferenceRequest:
    """A decoded request: values by input, and the requested outputs, each in binary or not.

    signature: the one of the model's two signatures (tensors, or texts and images) to which the inputs belong; brief:
    whether the answer has only labels and probabilities.
    """

    id: str
    feeds: dict[str, np.ndarray]
    wanted: tuple[tuple[int, bool], ...]
    signature: Signature | None = None
    brief: bool = False

    @property
    def shapes(self) -> tuple[Any, ...]:
        """The shapes that requests must share to share a run."""
        return tuple((n, a.shape[1:]) for n, a in sorted(self.feeds.items()))

    @property
    def rows(self) -> int:
        """The number of examples: the size of the first axis."""
        return next((len(a) for a in self.feeds.values() if a.ndim), 1)


@dataclass(frozen=True)
class Takes:
    """The signatures of a model: its own, and one for texts or images. lacking: why there is no second one."""

    own: Signature
    prepared: Signature | None = None
    lacking: str = ""

    def named(self, names: Collection[Any]) -> Signature:
        """Return the signature that has inputs of these names."""
        if self.prepared is not None and any(p.name in names for p in self.prepared.inputs):
            return self.prepared
        return self.own


@dataclass
class Inputs:
    """The inputs of a request, added one by one. Each input of the signature must come exactly once."""

    signature: Signature
    feeds: dict[str, np.ndarray] = field(default_factory=dict)

    def port(self, name: Any) -> Port:
        """Return the input of that name. Raises RefusedError, 400, if there is none, or if it was added before."""
        for port in self.signature.inputs:
            if port.name == name:
                break
        else:
            raise RefusedError(400, f"inputs must be {expected(self.signature.inputs)}; got {shown(name)}")
        if name in self.feeds:
            raise RefusedError(400, f"the input {name} is given twice")
        return port

    def all(self) -> dict[str, np.ndarray]:
        """Return the values by input. Raises RefusedError, 400, where one is missing or batches differ in size."""
        self.require_complete()
        if self.signature.batched and len(sizes := {len(a) for a in self.feeds.values()}) > 1:
            raise RefusedError(
                400, f"all inputs must have the same batch size; got {', '.join(map(str, sorted(sizes)))}"
            )
        return self.feeds

    def require_complete(self) -> None:
        """Raise RefusedError, 400, where an input is missing."""
        ports = self.signature.inputs
        if missing := [p for p in ports if p.name not in self.feeds]:
            raise RefusedError(400, f"inputs must be {expected(ports)}; {missing[0].name} is missing")


def output_number(ports: Sequence[Port], name: Any, known: Collection[int]) -> int:
    """Return the number of an output. known: those asked for before. Raises RefusedError, 400."""
    found = next((i for i, p in enumerate(ports) if p.name == name), None)
    if found is None:
        raise RefusedError(400, f"outputs must be {expected(ports)}; got {shown(name)}")
    if found in known:
        raise RefusedError(400, f"the output {name} is asked for twice")
    return found


def expected(ports: Sequence[Port]) -> str:
    """Inputs or outputs, for a sentence."""
    return ", ".join(map(str, ports))


def called(port: Port) -> str:
    """Return `input NAME` for a sentence, or NAME alone if it begins with "input"."""
    return port.name if port.name.lower().startswith("input") else f"input {port.name}"


def checked_shape(given: Any, datatype: Any, port: Port) -> tuple[int, ...]:
    """Return the shape that a request declares. Raises RefusedError, 400, for one that the model does not take."""
    sound = isinstance(given, list) and len(given) <= MOST_AXES and all(type(k) is int and k >= 0 for k in given)
    if not (sound and _fits(given, port)) or datatype != port.datatype:
        what = f"[{', '.join(map(str, given))}]" if sound else shown(given)
        takes = f"{list(port.shape)}" if port.ranked else "of any shape"
        raise RefusedError(
            400,
            f"{called(port)} must be {port.datatype} {takes}; got {shown(datatype)} {what[:200]}: "
            f"{_instead(given, sound, port)}",
        )
    if not all(given):
        raise RefusedError(400, f"{called(port)} has no values in shape {given}: send one example or more")
    return tuple(given)


def _instead(given: Any, sound: bool, port: Port) -> str:
    """What to send instead of a shape or a datatype that does not fit."""
    if isinstance(given, list) and any(type(k) is int and k < 0 for k in given):
        return "give a number in place of each -1"
    if sound and len(given) + 1 == len(port.shape) and _fits([1, *given], port):
        return "put a 1 in front, for one example"
    return "send that, with any size in place of -1" if -1 in port.shape and port.ranked else "send that"


def _fits(given: Sequence[int], port: Port) -> bool:
    if not port.ranked:
        return True
    return len(given) == len(port.shape) and all(want in (-1, k) for want, k in zip(port.shape, given, strict=True))


def from_bytes(
    held: memoryview, shape: tuple[int, ...], port: Port, said: int | None = None, key: str = "binary_data_size"
) -> np.ndarray:
    """Return values that came as bytes. said: how many bytes the request says there are, under that key.

    Raises RefusedError, 400, if they are not as many as the shape takes.
    """
    if port.datatype == "BYTES":
        return _elements(held, shape, port)
    wants = math.prod(shape) * port.dtype.itemsize
    size = len(held) if said is None else said
    if size != wants or len(held) != size:
        raise RefusedError(
            400,
            f"{called(port)} of shape {list(shape)} takes {wants} bytes, but {key} is {size}, and {len(held)} "
            "bytes are there",
        )
    if port.datatype == "BOOL" and max(held, default=0) > 1:
        raise RefusedError(400, f"the values of {port.name} must be 0 or 1, a byte each")
    return np.frombuffer(held, port.dtype).reshape(shape)


def _elements(held: memoryview, shape: tuple[int, ...], port: Port) -> np.ndarray:
    """The elements of a tensor of BYTES, each behind its length."""
    wanted, at = math.prod(shape), 0
    found: list[bytes] = []
    while at + 4 <= len(held) and len(found) < wanted:
        (size,) = struct.unpack_from("<I", held, at)
        if size > len(held) - at - 4:
            break
        found.append(bytes(held[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != len(held) or len(found) != wanted:
        raise RefusedError(
            400,
            f"{called(port)} of shape {list(shape)} must have {wanted} elements, each after its length in four "
            f"bytes; its {len(held)} bytes are not",
        )
    return of_elements(found, shape, port)


def of_elements(found: Sequence[bytes], shape: tuple[int, ...], port: Port) -> np.ndarray:
    """Return elements of BYTES as the model takes them: text, unless it takes files. Raises RefusedError, 400."""
    if len(found) != math.prod(shape):
        raise RefusedError(400, _counted(port, shape, len(found)))
    values = np.empty(len(found), object)
    try:
        values[:] = list(found) if port.is_file else [element.decode() for element in found]
    except UnicodeDecodeError as e:
        raise RefusedError(400, f"the values of {port.name} must be text in UTF-8; one is not") from e
    return values.reshape(shape)


def _counted(port: Port, shape: tuple[int, ...], given: int) -> str:
    return f"{called(port)} of shape {list(shape)} must have {math.prod(shape)} values; got {given}"


def from_json(data: Any, shape: tuple[int, ...], port: Port, plain: bool) -> np.ndarray:
    """Return values that came as a list. plain: whether none is true or false. Raises RefusedError, 400."""
    values = _flat(data, port)
    if len(values) != math.prod(shape):
        raise RefusedError(400, _counted(port, shape, len(values)))
    kind = "f" if port.datatype == "BF16" else port.dtype.kind
    # NumPy looks last: where one value is text it would make text of all, each as long as the longest.
    quick = kind == "f" and plain
    if not (type(values[0]) in KINDS[kind] and (quick or {*map(type, values)} <= KINDS[kind])):
        raise _of_another_kind(port)
    if kind == "O":
        return of_elements([_file_of(v, port) if port.is_file else v.encode() for v in values], shape, port)
    try:
        if kind != "f":
            return np.array(values, port.dtype).reshape(shape)
        with np.errstate(over="raise"):
            found = np.frombuffer(array("d", values)).reshape(shape)
            return to_bfloat16(found) if port.datatype == "BF16" else found.astype(port.dtype)
    except TypeError as e:
        raise _of_another_kind(port) from e
    except FloatingPointError as e:
        raise RefusedError(400, f"the values of {port.name} must be finite in {port.datatype}; some are not") from e
    except OverflowError as e:
        limits = np.iinfo(port.dtype)
        raise RefusedError(
            400, f"the values of {port.name} must be between {limits.min} and {limits.max}; some are not"
        ) from e


def _file_of(text: str, port: Port) -> bytes:
    """A file that came as base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise RefusedError(400, f"the values of {port.name} must be files in base64; one is not ({e})") from e


def _of_another_kind(port: Port) -> RefusedError:
    return RefusedError(400, f"data of {port.name} must be values of {port.datatype}; got others, or null")


def _flat(values: list[Any], port: Port) -> list[Any]:
    """The values in a row, of lists in lists that are all as long as each other."""
    for _ in range(MOST_AXES):
        if not values or not isinstance(values[0], list):
            break
        if {*map(type, values)} != {list} or len({*map(len, values)}) != 1:
            raise RefusedError(400, f"data of {port.name} must be a flat list, or one nested like its shape")
        values = list(chain.from_iterable(values))
    return values


def to_bytes(values: np.ndarray, port: Port) -> bytes:
    """Return the values of an output as bytes."""
    if port.datatype != "BYTES":
        return values.tobytes()
    elements = [v if isinstance(v, bytes) else str(v).encode() for v in values.reshape(-1)]
    return b"".join(chain.from_iterable((struct.pack("<I", len(e)), e) for e in elements))


def to_list(values: np.ndarray, port: Port) -> Any:
    """Return the values of an output as orjson writes them."""
    flat = values.reshape(-1)
    if port.datatype == "BYTES":
        return [str(v) for v in flat]
    return from_bfloat16(flat) if port.datatype == "BF16" else flat


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round to BF16, ties to even, as uint16. Raises FloatingPointError for numbers beyond its range."""
    with np.errstate(over="raise"):
        bits = values.astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise FloatingPointError("overflow")
    return rounded


def from_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return numbers in BF16, held as uint16, as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)
