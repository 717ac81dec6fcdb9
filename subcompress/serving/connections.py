"""Connections that nobody can hold, or fill, by what is sent slowly, without end, or never read."""

from __future__ import annotations

from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = 1 << 16
"""Bytes of a request's first line and headers, or of what follows its body."""

PATIENCE = 30.0
"""Seconds that these may take, or in which nothing of an answer is read."""


class Connection(HttpToolsProtocol):
    """Uvicorn's, within bounds. Requests to change to another protocol are heard as they are."""

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._head = True  # whether headers are awaited
        self._since: float | None = self.loop.time()  # of which they are, or of the request that is not whole yet
        self._read = 0  # bytes since something was complete
        self._unread = 0, self._since  # bytes of answers that wait to be taken, and since when it is so many
        self._framing: list[bytes] | None = None  # of a request that asks for another protocol
        self._mute = False

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._unset_keepalive_if_required()
        self._read += len(data)
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as e:
                data = data[e.args[0] :]
                self._as_it_is()
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                break
        if self._read > HEAD and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                text = orjson.dumps({"error": f"a request's headers have at most {HEAD} bytes: send fewer"})
                head = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                self.transport.write(head + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
            self.transport.close()

    def _as_it_is(self) -> None:
        """Go on behind the headers of a request whose body the parser took for another protocol."""
        self.parser = httptools.HttpRequestParser(self)
        if self._framing:
            self._mute = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(self._framing) + b"\r\n")
            self._mute = False
            self.cycle.more_body = True

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
        if self.parser.should_upgrade():
            framing = (b"content-length", b"transfer-encoding")
            self._framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in framing]
        HttpToolsProtocol.on_headers_complete(self)

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._read = 0
        HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """It is whole."""
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
