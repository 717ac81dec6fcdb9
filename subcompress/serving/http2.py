"""HTTP/2 as gRPC uses it, for a server (RFC 9113): frames, flow control and limits, without input or output.

Nothing is pushed, nothing has priority, and headers that are sent are not compressed, so they need no table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from hpack import Decoder, HPACKError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""How every connection begins."""

FRAME = 1 << 14
"""Bytes of a frame at most, in both directions: what every peer takes."""

HEADERS_MOST = 1 << 14
"""Bytes of a call's headers."""

WINDOW = 1 << 20
"""Bytes of a message, and of all messages of a connection, that may come before they are looked at."""

LARGEST_WINDOW = (1 << 31) - 1

FIRST_WINDOW = (1 << 16) - 1
"""Of a connection, before anything is said of it."""

DATA, HEADERS, _, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS, PADDED, PRIORITIZED = 4, 8, 32
TABLE_SIZE, PUSHING, MOST_STREAMS, INITIAL_WINDOW, FRAME_SIZE, HEADER_LIST = range(1, 7)
NO_ERROR, PROTOCOL, _, FLOW, _, _, SIZE, REFUSED, CANCEL, COMPRESSION, _, CALM = range(12)

_INDEXED = bytes(range(0x81, 0xFF))
"""Header fields of one byte: those that stand in the table already."""

_KNOWN_MOST = 64


class Http2Error(Exception):
    """What the peer does is no HTTP/2. code: of the protocol."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Event:
    """Something that came. what: headers, data, end, reset, window or goaway; number: the stream's."""

    what: str
    number: int = 0
    data: bytes = b""
    headers: dict[bytes, bytes] | None = None


@dataclass
class _Stream:
    """room: bytes that may come; window: bytes that may be sent."""

    room: int
    window: int
    ended: bool = False


class Http2:
    """A connection. streams: how many may be open at once. `out` holds what is to be sent."""

    def __init__(self, streams: int) -> None:
        self.out = bytearray()
        self.last = 0  # the highest stream that was opened
        self._most, self._streams = streams, dict[int, _Stream]()
        self._buffer, self.is_greeted, self._settled = bytearray(), False, False
        self._room, self._window, self._initial = WINDOW, FIRST_WINDOW, FIRST_WINDOW
        self._block: tuple[int, bytearray, bool] | None = None  # headers that go on in the next frame
        self._decoder = Decoder(HEADERS_MOST)
        self._decoder.max_header_list_size = HEADERS_MOST
        self._known: dict[bytes, dict[bytes, bytes]] = {}
        own = {MOST_STREAMS: streams, INITIAL_WINDOW: WINDOW, HEADER_LIST: HEADERS_MOST}
        self._send(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *setting) for setting in own.items()))
        self._send(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW - FIRST_WINDOW))

    def feed(self, data: bytes) -> list[Event]:
        """Take what was received; return what it says. Raises Http2Error."""
        self._buffer += data
        if not self.is_greeted:
            if not self._buffer.startswith(PREFACE[: len(self._buffer)]):
                raise Http2Error(PROTOCOL, "this is no HTTP/2")
            if len(self._buffer) < len(PREFACE):
                return []
            self.is_greeted = True
            del self._buffer[: len(PREFACE)]
        found: list[Event] = []
        at, size = 0, len(self._buffer)
        with memoryview(self._buffer) as view:
            while size - at >= 9:
                length = int.from_bytes(view[at : at + 3], "big")
                if length > FRAME:
                    raise Http2Error(SIZE, "a frame is too large")
                if size - at - 9 < length:
                    break
                number = int.from_bytes(view[at + 5 : at + 9], "big") & LARGEST_WINDOW
                found += self._take(view[at + 3], view[at + 4], number, bytes(view[at + 9 : at + 9 + length]))
                at += 9 + length
        del self._buffer[:at]
        return found

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> Iterable[Event]:
        """What a frame says."""
        if self._block is not None and (kind != CONTINUATION or number != self._block[0]):
            raise Http2Error(PROTOCOL, "headers go on in the next frame")
        if not self._settled and kind != SETTINGS:
            raise Http2Error(PROTOCOL, "the first frame is of settings")
        if kind == DATA:
            return self._take_data(flags, number, payload)
        if kind == HEADERS:
            block = _without_padding(flags, payload)
            if flags & PRIORITIZED:
                block = block[5:]
            self._block = number, bytearray(block), bool(flags & END_STREAM)
            return self._take_block() if flags & END_HEADERS else ()
        if kind == CONTINUATION:
            if self._block is None:
                raise Http2Error(PROTOCOL, "there are no headers to go on with")
            self._block[1].extend(payload)
            if len(self._block[1]) > HEADERS_MOST:
                raise Http2Error(CALM, "headers are too large")
            return self._take_block() if flags & END_HEADERS else ()
        if kind in (RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE):
            return self._control(kind, flags, number, payload)
        if kind == PUSH:
            raise Http2Error(PROTOCOL, "a client pushes nothing")
        return ()  # of a kind that may be passed over

    def _take_data(self, flags: int, number: int, payload: bytes) -> Iterable[Event]:
        self._room -= len(payload)
        stream = self._streams.get(number)
        if stream is not None:
            stream.room -= len(payload)
        if number == 0 or number > self.last or (stream is not None and stream.ended):
            raise Http2Error(PROTOCOL, "data is of a stream that is open")
        if self._room < 0 or (stream is not None and stream.room < 0):
            raise Http2Error(FLOW, "more data than there is room for")
        self._room = self._given_back(0, self._room)
        if stream is None:  # one that was refused
            return ()
        data = _without_padding(flags, payload)
        if flags & END_STREAM:
            stream.ended = True
            return (Event("data", number, data), Event("end", number)) if data else (Event("end", number),)
        stream.room = self._given_back(number, stream.room)
        return (Event("data", number, data),)

    def _given_back(self, number: int, room: int) -> int:
        """Let more come where half of the window is used; return the room."""
        if room > WINDOW // 2:
            return room
        self._send(WINDOW_UPDATE, 0, number, struct.pack(">I", WINDOW - room))
        return WINDOW

    def _take_block(self) -> Iterable[Event]:
        """Headers that came whole."""
        assert self._block is not None
        (number, block, ended), self._block = self._block, None
        headers = self._decoded(bytes(block))
        stream = self._streams.get(number)
        if stream is not None:  # trailers
            if not ended or stream.ended:
                raise Http2Error(PROTOCOL, "a call's second headers are its last frame")
            stream.ended = True
            return (Event("end", number),)
        if number % 2 == 0:
            raise Http2Error(PROTOCOL, "a client opens odd streams")
        if number <= self.last:  # one that was refused
            return ()
        self.last = number
        if len(self._streams) >= self._most:
            self.reset(number, REFUSED)
            return ()
        self._streams[number] = _Stream(WINDOW, self._initial, ended)
        opened = Event("headers", number, headers=headers)
        return (opened, Event("end", number)) if ended else (opened,)

    def _decoded(self, block: bytes) -> dict[bytes, bytes]:
        """Headers; those of most calls are all in the table, and the same as before."""
        in_table = not block.translate(None, _INDEXED)
        if in_table and (known := self._known.get(block)) is not None:
            return known
        try:
            found = dict(self._decoder.decode(block, raw=True))
        except HPACKError as e:
            raise Http2Error(COMPRESSION, "headers cannot be read") from e
        if not in_table or len(self._known) >= _KNOWN_MOST:  # the table may have changed
            self._known.clear()
        if in_table:
            self._known[block] = found
        return found

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> Iterable[Event]:
        """Frames that carry no part of a call."""
        sizes = {RESET: 4, PING: 8, WINDOW_UPDATE: 4}
        if len(payload) != sizes.get(kind, len(payload)) or (kind == SETTINGS and len(payload) % 6):
            raise Http2Error(SIZE, "a frame has another size")
        if (number == 0) != (kind in (SETTINGS, PING, GOAWAY)) and kind != WINDOW_UPDATE:
            raise Http2Error(PROTOCOL, "a frame is of another stream")
        if number > self.last:
            raise Http2Error(PROTOCOL, "a stream was not opened")
        if kind == RESET:
            return (Event("reset", number),) if self._streams.pop(number, None) is not None else ()
        if kind == GOAWAY:
            return (Event("goaway"),)
        if kind == PING:
            if not flags & ACK:
                self._send(PING, ACK, 0, payload)
            return ()
        if kind == WINDOW_UPDATE:
            return self._widen(number, int.from_bytes(payload, "big") & LARGEST_WINDOW)
        self._settled = True
        if flags & ACK:
            return ()
        for setting, value in struct.iter_unpack(">HI", payload):
            if setting == INITIAL_WINDOW:
                self._begin_with(value)
        self._send(SETTINGS, ACK, 0)
        return (Event("window"),)

    def _begin_with(self, window: int) -> None:
        """Take another first window for streams, for those too that are open."""
        for stream in self._streams.values():
            stream.window += window - self._initial
            if stream.window > LARGEST_WINDOW:
                raise Http2Error(FLOW, "a window is too large")
        if window > LARGEST_WINDOW:
            raise Http2Error(FLOW, "a window is too large")
        self._initial = window

    def _widen(self, number: int, by: int) -> Iterable[Event]:
        if not by:
            raise Http2Error(PROTOCOL, "a window is widened by something")
        widest = 0
        if number == 0:
            widest = self._window = self._window + by
        elif (stream := self._streams.get(number)) is not None:
            widest = stream.window = stream.window + by
        if widest > LARGEST_WINDOW:
            raise Http2Error(FLOW, "a window is too large")
        return (Event("window"),)

    # What is sent

    def _send(self, kind: int, flags: int, number: int, payload: bytes | memoryview = b"") -> None:
        self.out += struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, number)
        self.out += payload

    def send_headers(self, number: int, block: bytes, end: bool = False) -> None:
        """Send headers, which `encoded` made; end: they are the last frame of the stream, which is closed."""
        self._send(HEADERS, END_HEADERS | (END_STREAM if end else 0), number, block)
        if end and (stream := self._streams.pop(number, None)) is not None and not stream.ended:
            self._send(RESET, 0, number, struct.pack(">I", NO_ERROR))  # the rest is not read

    def send_data(self, number: int, data: memoryview) -> memoryview:
        """Send as much as there is room for; return the rest."""
        stream = self._streams[number]
        while data and (room := min(FRAME, stream.window, self._window)) > 0:
            part, data = data[:room], data[room:]
            stream.window -= len(part)
            self._window -= len(part)
            self._send(DATA, 0, number, part)
        return data

    def reset(self, number: int, code: int = CANCEL) -> None:
        """Give a stream up."""
        self._streams.pop(number, None)
        self._send(RESET, 0, number, struct.pack(">I", code))

    def goaway(self, code: int = NO_ERROR) -> None:
        """Say that no more streams are taken."""
        self._send(GOAWAY, 0, 0, struct.pack(">II", self.last, code))


def _without_padding(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(PROTOCOL, "more padding than there is")
    return payload[1 : len(payload) - payload[0]]


def encoded(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode headers as literals that nobody keeps in a table."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    size -= 127
    found = bytearray([127])
    while size >= 128:
        found.append(size & 127 | 128)
        size >>= 7
    found.append(size)
    return bytes(found) + text


__all__ = ["CALM", "Event", "Http2", "Http2Error", "encoded"]
