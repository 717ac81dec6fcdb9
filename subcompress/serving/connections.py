"""HTTP connections with limits, so that slow, endless or unread data cannot occupy them.

They also refuse requests whose end a proxy in front could see elsewhere (request smuggling).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from subcompress.serving.addresses import host_of
from subcompress.serving.refusals import shown

HEAD = 1 << 16
"""Bytes of a request's first line and headers, or of what follows its body."""

PATIENCE = 30.0
"""Seconds that these may take, and seconds in which a client may read nothing of an answer."""

Wrong = tuple[int, str]
"""The status and the line for a request that is refused before it is parsed."""


def wrong_head(headers: Sequence[tuple[bytes, bytes]], version: str) -> Wrong | None:
    """What is wrong with the headers for the host and for the end of the body; None if nothing is.

    A proxy in front that read them in another way would take a part of this body for the next request.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return 400, f"a request must have one Host header; this one has {len(hosts)}"
    if hosts and hosts[0] and host_of(text := hosts[0].decode("latin-1")) is None:
        return 400, f"Host must be a name or an address, optionally with a port; got {shown(text)}"
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked" or version == "1.0"):
        given = shown(", ".join(value.decode("latin-1") for value in codings))
        return 501, f"a request's Transfer-Encoding must be chunked, in HTTP/1.1, or left out; got {given}"
    return None


class Connection(HttpToolsProtocol):
    """Uvicorn's connection with limits. Requests to switch the protocol are treated as plain requests."""

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._head = True  # whether headers are awaited
        self._since: float | None = self.loop.time()  # of which they are, or of the request that is not whole yet
        self._read = 0  # bytes since something was complete
        self._unread = 0, self._since  # bytes of answers that the client has not read, and since when
        self._framing: list[bytes] | None = None  # of a request that asks for another protocol
        self._mute = False
        self._over = False  # whether further bytes are ignored
        self._running: RequestResponseCycle | None = None  # the request that is being answered, or was last

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio. Who is answered need not be who came last."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """See asyncio: whether the connection stays open. It does for answers to requests that came whole."""
        if self._open() and self.cycle.more_body:  # cut off: what came before it is answered
            if not self.pipeline:
                return False
            self.cycle = self._before_the_last()
        self._over = True
        if self._open():
            self.cycle.keep_alive = False
        return self._open()

    def _open(self) -> bool:
        """Whether the last request waits for its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _before_the_last(self) -> RequestResponseCycle:
        """Forget the last of the requests that wait; the one before it."""
        self.pipeline.popleft()
        assert self._running is not None
        return self.pipeline[0][0] if self.pipeline else self._running

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._unset_keepalive_if_required()
        if self._over:
            return
        self._read += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(400, "this is not a request in HTTP/1.1")
        if self._read > HEAD and not self._over:
            self._refuse(431, f"the headers of a request may have at most {HEAD} bytes: send fewer")

    def _feed(self, data: bytes) -> None:
        while data and not self._over:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as e:
                data = data[e.args[0] :]
                self._as_it_is()

    def _as_it_is(self) -> None:
        """Go on behind the headers of a request whose body the parser took for another protocol."""
        self.parser = httptools.HttpRequestParser(self)
        if self._framing and not self._over:
            self._mute = True
            try:
                self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(self._framing) + b"\r\n")
            finally:
                self._mute = False
            self.cycle.more_body = True

    def _refuse(self, status: int, text: str) -> None:
        """Answer so, after those who came before, and look at nothing more."""
        if self._over or self.transport.is_closing():
            return
        self._over = True
        if self._open() and self.cycle.more_body:  # its own body is at fault
            if self.cycle is self._running:
                self._end_now(status, text)
            else:
                self.cycle.keep_alive = False
                self.pipeline[0] = self.cycle, _answering(status, text)
            return
        if self.scope is None:
            HttpToolsProtocol.on_message_begin(self)
        self.scope = {**self.scope, "method": "GET"}
        self._ask(_answering(status, text))

    def _end_now(self, status: int, text: str) -> None:
        """Answer the request whose body is being read, in place of the application."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        if not self.cycle.response_started:
            said = orjson.dumps({"error": text})
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(said)
            self.transport.write(STATUS_LINE[status] + head + said)
        self.transport.close()

    def _ask(self, app: Any) -> None:
        """Have the application answer a request without a body, in its turn. See HttpToolsProtocol."""
        before = self._open()
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,  # the request that it describes may not have been read
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        self.cycle.more_body = False
        if before:
            self.pipeline.appendleft((self.cycle, app))
        else:
            self._start_asgi_task(self.cycle, app)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_begin(self) -> None:
        """A request begins."""
        HttpToolsProtocol.on_message_begin(self)
        if not self._mute:
            self._head, self._since = True, self.loop.time()

    def on_headers_complete(self) -> None:
        """Its body is next."""
        if self._mute:
            return
        self._head, self._read = False, 0
        if (wrong := wrong_head(self.headers, self.parser.get_http_version())) is not None:
            self._refuse(*wrong)
            return
        if self.parser.should_upgrade():
            framing = (b"content-length", b"transfer-encoding")
            self._framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in framing]
        HttpToolsProtocol.on_headers_complete(self)

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        if not self._over:
            self._read = 0
            HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """It is whole."""
        if not self._over:
            self._read, self._since = 0, None
            HttpToolsProtocol.on_message_complete(self)

    def check(self) -> None:
        """Close the connection where it takes too long. Called every second or so."""
        now, left = self.loop.time(), self.transport.get_write_buffer_size()
        between = self._head or (self.cycle is not None and self.cycle.response_complete)
        if left != self._unread[0]:
            self._unread = left, now
        if left and now - self._unread[1] > PATIENCE:
            self.transport.abort()
        elif self._since is not None and now - self._since > PATIENCE and between:
            self.transport.close()


def _answering(status: int, text: str) -> Any:
    """An application that answers so."""
    said = orjson.dumps({"error": text})

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    return answer
