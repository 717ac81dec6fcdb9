"""A gRPC server of grpcio on the event loop that answers HTTP. It passes bytes on; `grpc_server` answers them.

grpcio receives a message whole, however long that takes: unlike over HTTP, one that arrives slowly is not refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import unquote

import grpc

from subcompress.errors import SubcompressError
from subcompress.serving.service import Service
from subcompress.serving.sockets import address_of

SPARE = 64
"""Calls that are accepted beyond a full queue, so that they are refused with a reason, and ServerReady answers."""

UNUSED_MS = 300_000
"""Milliseconds after which a connection without a call is closed."""

PING_MS, PATIENCE_MS = 60_000, 30_000
"""Milliseconds without a message after which a client is pinged, and milliseconds that it has to answer."""

STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""The gRPC status for each HTTP status of a refusal. Others are INTERNAL."""


class Answering(Protocol):
    """Answers calls by their paths. methods: the names of the methods."""

    service: Service
    methods: tuple[str, ...]

    async def answer(self, path: str, headers: dict[bytes, bytes], data: bytes, peer: str) -> bytes:
        """Return the answer to a message. It may raise anything; see `failed`."""

    def failed(self, path: str, e: Exception, peer: str) -> tuple[int, str]:
        """Return the status of HTTP and the line for a call that raised this."""


@asynccontextmanager
async def listening(
    answering: Answering, name: str, host: str, port: int, grace: float, shared: bool
) -> AsyncIterator[str]:
    """Answer calls within the block, until the service is ending. Yields HOST:PORT.

    name: the full name of the gRPC service; grace: the seconds that calls may then take to finish; shared: whether
    other processes listen on the same port. Raises SubcompressError if the port cannot be listened on.
    """
    service = answering.service
    options = [
        ("grpc.max_receive_message_length", service.limits.body),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_connection_idle_ms", UNUSED_MS),
        ("grpc.keepalive_time_ms", PING_MS),
        ("grpc.keepalive_timeout_ms", PATIENCE_MS),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=service.limits.waiting + SPARE)
    handlers = {m: grpc.unary_unary_rpc_method_handler(_handler(answering, f"/{name}/{m}")) for m in answering.methods}
    server.add_registered_method_handlers(name, handlers)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    try:
        bound = server.add_insecure_port(address_of(host, port))
    except RuntimeError as e:
        raise SubcompressError(
            f"gRPC cannot listen on {address_of(host, port)}: another program may have the port: give another "
            "--grpc-port"
        ) from e
    await server.start()
    stopping = asyncio.create_task(_stopped(server, service.ending, grace))
    try:
        yield address_of(host, bound)
    finally:
        if service.ending.is_set() and not service.is_forced:
            await stopping
        else:
            stopping.cancel()
            await server.stop(0)


async def _stopped(server: grpc.aio.Server, ending: asyncio.Event, grace: float) -> None:
    await ending.wait()
    await server.stop(grace)


def _handler(answering: Answering, path: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """Return a handler of grpcio for one method, which takes and returns bytes."""
    service = answering.service

    async def answer(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        peer, size = unquote(context.peer()).partition(":")[2], len(data)  # ipv4:127.0.0.1:1234
        try:
            service.hold(size, size)
            try:
                return await answering.answer(path, _headers(context), data, peer)
            finally:
                service.held -= size
        except asyncio.CancelledError:
            service.cut += service.draining  # the server's time to end is over
            raise
        except Exception as e:
            code, text = answering.failed(path, e, peer)
        await context.abort(STATUSES.get(code, grpc.StatusCode.INTERNAL), text)
        raise AssertionError("abort raises")

    return answer


def _headers(context: grpc.aio.ServicerContext[Any, Any]) -> dict[bytes, bytes]:
    pairs = context.invocation_metadata() or ()
    return {key.encode(): value.encode() if isinstance(value, str) else bytes(value) for key, value in pairs}
