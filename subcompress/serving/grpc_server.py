"""The Open Inference Protocol v2 over gRPC: the same service as over HTTP, in the messages of `grpc_messages`.

Outputs come in raw_output_contents, whichever way the inputs came.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from subcompress.serving import grpc_transport, tensors
from subcompress.serving.engines import Port
from subcompress.serving.grpc_messages import CLASSES, METHODS, SERVICE
from subcompress.serving.models import now
from subcompress.serving.protocol import VERSION, refuse_classification, refuse_sequences, refuse_shared_memory
from subcompress.serving.refusals import RefusedError, shown
from subcompress.serving.service import ABOUT, Answered, Decode, Service, failure_of
from subcompress.serving.tensors import InferenceRequest, Inputs, Takes

OPEN = ("ServerLive", "ServerReady")
"""The methods that need no token."""

_ACCESS = logging.getLogger("uvicorn.access")

CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""The field of InferTensorContents for each datatype that has one."""


class Calls:
    """The methods of the protocol; see `grpc_transport.Answering`. Each takes a message and returns one."""

    methods = tuple(METHODS)

    def __init__(self, service: Service) -> None:
        self.service = service
        self._methods = {
            f"/{SERVICE}/{name}": (getattr(self, f"_{name}"), CLASSES[f"{name}Request"], name in OPEN)
            for name in METHODS
        }

    async def answer(self, path: str, headers: dict[bytes, bytes], data: bytes, peer: str) -> bytes:
        """Return the serialized answer to a serialized message. It may raise anything; see `failed`."""
        if (found := self._methods.get(path)) is None:
            raise RefusedError(501, f"there is no method {shown(path)}")
        method, request, is_open = found
        if not is_open:
            self.service.check_token(headers.get(b"authorization", b""))
        answered: bytes = (await method(_parsed(request, data))).SerializeToString()
        _log(peer, path, 200)
        return answered

    def failed(self, path: str, e: Exception, peer: str) -> tuple[int, str]:
        """Return the status of HTTP and the line for a call that raised this."""
        code, text = failure_of(e)
        if code == 500:
            logging.getLogger("uvicorn.error").error("A request failed", exc_info=e)
        _log(peer, path, code)
        return code, text

    async def _ServerLive(self, request: Any) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    async def _ServerReady(self, request: Any) -> Any:
        return CLASSES["ServerReadyResponse"](ready=await self.service.is_ready())

    async def _ModelReady(self, request: Any) -> Any:
        try:
            await self.service.models.require_running(self.service.find(request.name, request.version))
        except RefusedError as e:
            if e.status == 404:
                raise
            return CLASSES["ModelReadyResponse"](ready=False)
        return CLASSES["ModelReadyResponse"](ready=True)

    async def _ServerMetadata(self, request: Any) -> Any:
        return CLASSES["ServerMetadataResponse"](**ABOUT)

    async def _ModelMetadata(self, request: Any) -> Any:
        told = await self.service.metadata(request.name, request.version or VERSION)
        facts = {key: orjson.dumps(value).decode() for key, value in told.pop("parameters", {}).items()}
        return ParseDict(told, CLASSES["ModelMetadataResponse"](properties=facts), ignore_unknown_fields=True)

    async def _ModelConfig(self, request: Any) -> Any:
        told = await self.service.config(request.name, request.version or VERSION)
        return ParseDict({"config": told}, CLASSES["ModelConfigResponse"]())

    async def _ModelStatistics(self, request: Any) -> Any:
        told = await self.service.statistics(request.name, request.version or VERSION)
        return ParseDict({"model_stats": told}, CLASSES["ModelStatisticsResponse"]())

    async def _RepositoryIndex(self, request: Any) -> Any:
        told = await self.service.index(request.ready)
        return ParseDict({"models": told}, CLASSES["RepositoryIndexResponse"]())

    async def _RepositoryModelLoad(self, request: Any) -> Any:
        await self.service.load(request.model_name, request.parameters)
        return CLASSES["RepositoryModelLoadResponse"]()

    async def _RepositoryModelUnload(self, request: Any) -> Any:
        await self.service.unload(request.model_name)
        return CLASSES["RepositoryModelUnloadResponse"]()

    async def _ModelInfer(self, request: Any) -> Any:
        service, model, began = self.service, None, now()
        try:
            model = service.find(request.model_name, request.model_version)
            with service.admitted():
                response = encode_answer(model.name, await service.infer(model, _decoder(request)))
        except Exception as e:
            service.metrics.ended(model, failure_of(e)[0], now() - began)
            raise
        service.metrics.ended(model, 200, now() - began)
        return response


def _log(peer: str, path: str, code: int) -> None:
    """Write a line to the access log, if it is on. uvicorn's formatter takes exactly these five arguments."""
    if _ACCESS.isEnabledFor(logging.INFO):
        _ACCESS.info('%s - "%s %s HTTP/%s" %d', peer, "POST", quote(path), "2", code)


def _parsed(request: Any, data: bytes) -> Any:
    try:
        return request.FromString(data)
    except DecodeError as e:
        raise RefusedError(400, f"the request is not a message {request.DESCRIPTOR.full_name}") from e


def _decoder(request: Any) -> Decode:
    return lambda takes: parse_request(request, takes)


def parse_request(request: Any, takes: Takes) -> InferenceRequest:
    """Decode a ModelInferRequest. Raises RefusedError, 400, for an invalid one, saying what is valid."""
    if request.parameters:
        refuse_sequences(request.parameters)
    given, raw = request.inputs, request.raw_input_contents
    if raw and len(raw) != len(given):
        raise RefusedError(
            400, f"raw_input_contents must hold the values of each input; got {len(raw)} for {len(given)} inputs"
        )
    signature = takes.named([tensor.name for tensor in given])
    inputs = Inputs(signature)
    for i, tensor in enumerate(given):
        port = inputs.port(tensor.name)
        shape = tensors.checked_shape(list(tensor.shape), tensor.datatype, port)
        if tensor.parameters:
            refuse_shared_memory(tensor.parameters)
        if not raw:
            inputs.feeds[port.name] = _from_contents(tensor.contents, shape, port)
        elif tensor.HasField("contents"):
            raise RefusedError(400, f"the values of {port.name} must be in contents or in raw_input_contents; got both")
        else:
            inputs.feeds[port.name] = tensors.from_bytes(memoryview(raw[i]), shape, port, key="raw_input_contents")
    return InferenceRequest(request.id, inputs.all(), _wanted(request.outputs, signature.outputs), signature)


def _from_contents(contents: Any, shape: tuple[int, ...], port: Port) -> np.ndarray:
    """Values in the field for their datatype."""
    if (name := CONTENTS.get(port.datatype)) is None:
        raise RefusedError(
            400,
            f"the values of {port.name} must be in raw_input_contents, because they are {port.datatype}; none are "
            "there",
        )
    values = getattr(contents, name)
    if others := [f.name for f, _ in contents.ListFields() if f.name != name]:
        raise RefusedError(
            400, f"the values of {port.name} must be in {name}, because they are {port.datatype}; got {others[0]}"
        )
    if port.datatype == "BYTES":
        return tensors.of_elements(values, shape, port)
    if len(values) != (wanted := int(np.prod(shape, dtype=object))):
        raise RefusedError(
            400, f"{tensors.called(port)} of shape {list(shape)} must have {wanted} values; got {len(values)} in {name}"
        )
    wide = np.array(values)
    found = wide.astype(port.dtype)
    if wide.dtype.kind in "iu" and (found != wide).any():
        limits = np.iinfo(port.dtype)
        raise RefusedError(
            400, f"the values of {port.name} must be between {limits.min} and {limits.max}; some are not"
        )
    return found.reshape(shape)


def _wanted(given: Any, ports: Sequence[Port]) -> tuple[tuple[int, bool], ...]:
    """Outputs by number; all in order where none is named."""
    if not given:
        return tuple((i, True) for i in range(len(ports)))
    found: dict[int, bool] = {}
    for output in given:
        number = tensors.output_number(ports, output.name, found)
        if output.parameters:
            parameters = {key: value.int64_param for key, value in output.parameters.items()}
            refuse_shared_memory(parameters)
            refuse_classification(parameters, output.name)
        found[number] = True
    return tuple(found.items())


def encode_answer(name: str, found: Answered) -> Any:
    """Encode an answer as a ModelInferResponse."""
    response = CLASSES["ModelInferResponse"](model_name=name, model_version=VERSION, id=found.asked.id)
    for i, _ in found.asked.wanted:
        port, value = found.outputs[i], np.asarray(found.values[i], order="C")
        response.outputs.add(name=port.name, datatype=port.datatype, shape=value.shape)
        response.raw_output_contents.append(tensors.to_bytes(value, port))
    return response


def answering(service: Service, host: str, port: int, grace: float, shared: bool) -> AbstractAsyncContextManager[str]:
    """Return a context in which calls are answered. It yields HOST:PORT; see `grpc_transport.listening`."""
    return grpc_transport.listening(Calls(service), SERVICE, host, port, grace, shared)
