"""Connections of gRPC: HTTP/2 with limits, on the event loop of the server, so that a call costs no thread.

A call is one message there and one back. What it may take, and how slowly it may come, is as over HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from subcompress.serving import encodings
from subcompress.serving.http2 import CALM, Event, Http2, Http2Error, encoded
from subcompress.serving.models import now
from subcompress.serving.refusals import RefusedError, shown
from subcompress.serving.service import IDLE, PACE, Service
from subcompress.serving.sockets import address_of, open_socket

MOST_CALLS = 1000
"""Calls at once on a connection."""

UNUSED = 300.0
"""Seconds after which a connection without a call is closed."""

PATIENCE = 30.0
"""Seconds in which nothing of an answer is read."""

RESETS = 200
"""Calls that may be given up beyond those that were answered: who gives up more keeps the server busy with nothing."""

CODES = {200: 0, 400: 3, 401: 16, 404: 5, 408: 4, 413: 8, 415: 12, 501: 12, 503: 14}
"""The status of gRPC for each of HTTP; 13, INTERNAL, for others."""

_HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_BEGIN, _DONE = encoded(_HEAD), encoded([(b"grpc-status", b"0")])
_REFUSED = [*_HEAD, (b"grpc-accept-encoding", b"identity, deflate, gzip")]
LONGEST_LINE = 2000
"""Bytes of the line of a refusal."""


class Answering(Protocol):
    """What answers calls."""

    service: Service

    async def answer(self, path: str, headers: dict[bytes, bytes], data: bytes, peer: str) -> bytes:
        """Return the message that answers one. Raises what `failure_of` knows."""

    def failed(self, path: str, e: Exception, peer: str) -> tuple[int, str]:
        """Return the status of HTTP and the line for a call that raised this."""


@dataclass
class _Call:
    """A call as it comes in and goes out. until: when its next bytes are late; rest: of the answer."""

    headers: dict[bytes, bytes]
    until: float
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    held: int = 0
    is_whole: bool = False
    task: asyncio.Task[None] | None = None
    rest: memoryview | None = None


class Connection(asyncio.Protocol):
    """A connection, which `connections` holds while it is open."""

    def __init__(self, answering: Answering, connections: set[Connection]) -> None:
        self._answering, self._service, self._connections = answering, answering.service, connections
        self._http2 = Http2(MOST_CALLS)
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[int] = deque()  # calls whose answers wait for room
        self._used = self._read = now()  # when there was a call, and when something of an answer was taken
        self._given_up = self._answered = 0
        self._ending = False

    # What comes

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        self._transport = transport
        peer = transport.get_extra_info("peername") or ("", 0)
        self._peer = address_of(str(peer[0]), int(peer[1])) if len(peer) > 1 else ""
        self._connections.add(self)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._connections.discard(self)
        for number in list(self._calls):
            self._forget(number)

    def pause_writing(self) -> None:
        """See asyncio. Who reads no answers is not read from either."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        try:
            for event in self._http2.feed(data):
                self._take(event)
        except Http2Error as e:
            self._give_up(e.code)
            return
        if self._waiting:
            self._write()
        self._flush()

    def _take(self, event: Event) -> None:
        number = event.number
        if event.what == "headers":
            self._used = now()
            self._calls[number] = _Call(event.headers or {}, self._used + IDLE)
        elif event.what == "data":
            self._add(number, event.data)
        elif event.what == "end":
            if (call := self._calls.get(number)) is not None:
                call.is_whole = True
                call.task = asyncio.create_task(self._run(number, call))
        elif event.what == "reset":
            self._forget(number)
            self._given_up += 1
            if self._given_up > RESETS + self._answered:
                raise Http2Error(CALM, "calls are given up")
        elif event.what == "window":
            self._read = now()
        elif event.what == "goaway":
            self.end()

    def _give_up(self, code: int) -> None:
        """Close the connection, and say why."""
        self._http2.goaway(code)
        self._flush()
        self._transport.close()

    def _add(self, number: int, data: bytes) -> None:
        """Keep a part of a message, unless there is too much of it."""
        call = self._calls.get(number)
        if call is None or call.is_whole:
            return
        call.parts.append(data)
        call.size += len(data)
        call.until = min(now() + IDLE, call.until + len(data) / PACE)
        call.held += len(data)
        try:
            self._service.hold(call.size, len(data))
            if len(call.parts) == 1 and len(data) >= 5:
                self._service.check_size(int.from_bytes(data[1:5], "big"))
        except RefusedError as e:
            self._refuse(number, e)

    # What goes

    async def _run(self, number: int, call: _Call) -> None:
        """Answer a call that came whole."""
        path = call.headers.get(b":path", b"").decode("latin-1")
        try:
            message = await self._message(call)
            answer = await self._answering.answer(path, call.headers, message, self._peer)
        except asyncio.CancelledError:
            raise
        except Exception as e:
            self._refuse(number, e)
            self._flush()
            return
        if number in self._calls:
            call.rest = memoryview(struct.pack(">BI", 0, len(answer)) + answer)
            self._http2.send_headers(number, _BEGIN)
            self._waiting.append(number)
            self._write()
            self._flush()

    async def _message(self, call: _Call) -> bytes:
        """The one message of a call, decompressed. Raises RefusedError."""
        if not call.headers.get(b"content-type", b"").startswith(b"application/grpc"):
            raise RefusedError(415, "a call has the content-type application/grpc")
        data = call.parts[0] if len(call.parts) == 1 else b"".join(call.parts)
        call.parts.clear()
        if len(data) < 5 or int.from_bytes(data[1:5], "big") != len(data) - 5:
            raise RefusedError(400, f"a call has one message, behind its length; these {len(data)} bytes are not that")
        if not data[0]:
            return data[5:]
        encoding = call.headers.get(b"grpc-encoding", b"")
        if encoding not in (b"gzip", b"deflate"):
            given = shown(encoding.decode("latin-1"))
            raise RefusedError(501, f"a message comes as it is, or in gzip or deflate; got {given}")
        parts, size = [], 0
        for part in encodings.pieces(data[5:], encoding):
            size += len(part)
            call.held += len(part)
            self._service.hold(size, len(part))
            parts.append(part)
            await asyncio.sleep(0)  # others' requests go on
        return b"".join(parts)

    def _refuse(self, number: int, e: Exception) -> None:
        """Answer a call with a status, whether or not it came whole."""
        call = self._calls.get(number)
        if call is None:
            return
        path = call.headers.get(b":path", b"").decode("latin-1")
        status, text = self._answering.failed(path, e, self._peer)
        line = quote(text, safe=" ").encode()[:LONGEST_LINE]
        trailers = [*_REFUSED, (b"grpc-status", b"%d" % CODES.get(status, 13)), (b"grpc-message", line)]
        self._http2.send_headers(number, encoded(trailers), end=True)
        self._end(number)

    def _write(self) -> None:
        """Send what there is room for of the answers."""
        for _ in range(len(self._waiting)):
            number = self._waiting.popleft()
            call = self._calls.get(number)
            if call is None or call.rest is None:
                continue
            if rest := self._http2.send_data(number, call.rest):
                call.rest = rest
                self._waiting.append(number)
                continue
            self._http2.send_headers(number, _DONE, end=True)
            self._end(number)

    def _end(self, number: int) -> None:
        """A call is answered."""
        self._answered += 1
        self._used = self._read = now()
        self._forget(number)
        if self._ending and not self._calls:
            self._flush()
            self._transport.close()

    def _forget(self, number: int) -> None:
        """A call is over, or given up."""
        call = self._calls.pop(number, None)
        if call is None:
            return
        self._service.held -= call.held
        if call.task is not None and call.task is not _current_task():
            call.task.cancel()

    def _flush(self) -> None:
        if self._http2.out:
            self._transport.write(bytes(self._http2.out))
            self._http2.out.clear()

    # The course of time

    def check(self) -> None:
        """Refuse calls that come too slowly, and close what is of no use. Called every second."""
        time = now()
        late = f"a message comes within {IDLE} seconds, or {PACE} bytes a second; this one does not"
        for number, call in list(self._calls.items()):
            if not call.is_whole and time > call.until:
                self._refuse(number, RefusedError(408, late))
                self._flush()
        if not self._waiting and not self._transport.get_write_buffer_size():
            self._read = time
        elif time - self._read > PATIENCE:
            self._transport.abort()
        if not self._calls and time - self._used > (UNUSED if self._http2.is_greeted else PATIENCE):
            self.end()

    def end(self) -> None:
        """Take no more calls, and close once all are answered."""
        if not self._ending:
            self._ending = True
            self._http2.goaway()
            self._flush()
        if not self._calls:
            self._transport.close()

    def cut(self) -> int:
        """Close now; return how many calls were not answered."""
        lost = len(self._calls)
        self._transport.abort()
        return lost


def _current_task() -> asyncio.Task[Any] | None:
    with suppress(RuntimeError):
        return asyncio.current_task()
    return None


@asynccontextmanager
async def listening(answering: Answering, host: str, port: int, grace: float, shared: bool) -> AsyncIterator[str]:
    """Answer calls within the block, which is given the address, until the service is ending.

    grace: seconds that calls may take to finish then; shared: whether other processes listen on the same port. Raises
    SubcompressError if nothing can listen there.
    """
    connections: set[Connection] = set()
    loop, service = asyncio.get_running_loop(), answering.service
    with open_socket(host, port, shared, "--grpc-port") as sock:
        bound = int(sock.getsockname()[1])
        server = await loop.create_server(lambda: Connection(answering, connections), sock=sock)
        course = asyncio.create_task(_course(server, connections, service, grace))
        try:
            yield address_of(host, bound)
        finally:
            if not service.ending.is_set() or service.is_forced:
                course.cancel()
            with suppress(asyncio.CancelledError):
                await course
            server.close()
            service.cut += sum(connection.cut() for connection in list(connections))


async def _course(server: asyncio.Server, connections: set[Connection], service: Service, grace: float) -> None:
    """Check the connections every second, and end them when the service is ending."""
    while not service.ending.is_set():
        for connection in list(connections):
            connection.check()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await service.ending.wait()
    server.close()
    until = now() + grace
    for connection in list(connections):
        connection.end()
    while connections and now() < until:
        for connection in list(connections):
            connection.check()
        await asyncio.sleep(0.05)
