"""HTTP/2 of the gRPC server: frames that are right, wrong, late or too many."""

from __future__ import annotations

import asyncio
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subcompress.serving.models import now
from subcompress.serving.refusals import RefusedError
from subcompress.serving.service import Limits, Service, failure_of

hpack = pytest.importorskip("hpack")

from subcompress.serving import grpc_connections, http2  # noqa: E402
from subcompress.serving.grpc_connections import Connection, listening  # noqa: E402
from subcompress.serving.http2 import PREFACE, Event, Http2, Http2Error, encoded  # noqa: E402


def frame(kind: int, flags: int, number: int, payload: bytes = b"", size: int | None = None) -> bytes:
    """A frame, of a size that it may not have."""
    length = len(payload) if size is None else size
    return length.to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + payload


START = PREFACE + frame(http2.SETTINGS, 0, 0)
PATH = {b":method": b"POST", b":path": b"/x", b"content-type": b"application/grpc"}
BLOCK = encoded(PATH.items())
CALL = frame(http2.HEADERS, 4, 1, BLOCK)


def windows(by: int, number: int = 0) -> bytes:
    return frame(http2.WINDOW_UPDATE, 0, number, struct.pack(">I", by))


def fed(*data: bytes, streams: int = 10) -> tuple[Http2, list[Event]]:
    """A connection that was given this, and what it said."""
    connection, found = Http2(streams), []
    for part in (START, *data):
        found += connection.feed(part)
    return connection, [e for e in found if e.what != "window"]


def test_a_call_however_its_bytes_arrive() -> None:
    data = START + CALL + frame(http2.DATA, 9, 1, b"\x02ab\0\0")  # with padding
    wanted = [Event("headers", 1, headers=PATH), Event("data", 1, b"ab"), Event("end", 1)]
    for size in (1, 7, len(data)):
        connection, found = Http2(10), []
        for at in range(0, len(data), size):
            found += connection.feed(data[at : at + size])
        assert [e for e in found if e.what != "window"] == wanted
    first, rest = BLOCK[:5], BLOCK[5:]
    cut = frame(http2.HEADERS, 1 | 32, 1, bytes(5) + first), frame(http2.CONTINUATION, 4, 1, rest)
    assert fed(*cut)[1] == [wanted[0], wanted[2]]
    assert fed(CALL, frame(http2.HEADERS, 5, 1, encoded([(b"a", b"b")])))[1] == [wanted[0], wanted[2]]  # trailers


WRONG = {
    "no HTTP/2": b"GET / HTTP/1.1\r\n\r\n",
    "no settings": PREFACE + CALL,
    "a large frame": START + frame(http2.DATA, 0, 1, b"", (1 << 14) + 1),
    "an even stream": START + frame(http2.HEADERS, 4, 2, BLOCK),
    "stream 0": START + frame(http2.HEADERS, 4, 0, BLOCK),
    "data of no stream": START + frame(http2.DATA, 0, 1, b"a"),
    "data after the end": START + CALL + frame(http2.DATA, 1, 1, b"a") * 2,
    "headers that are none": START + frame(http2.HEADERS, 4, 1, b"\xff" * 20),
    "headers too large": START + frame(http2.HEADERS, 4, 1, encoded([(b"a", b"b" * 10_000)] * 2)),
    "many continuations": START + frame(http2.HEADERS, 0, 1) + frame(http2.CONTINUATION, 0, 1, bytes(1 << 13)) * 3,
    "a frame between headers": START + frame(http2.HEADERS, 0, 1) + frame(http2.PING, 0, 0, bytes(8)),
    "a continuation of nothing": START + frame(http2.CONTINUATION, 4, 1, BLOCK),
    "padding beyond the frame": START + CALL + frame(http2.DATA, 8, 1, b"\x09a"),
    "a push": START + frame(http2.PUSH, 4, 1, BLOCK),
    "a ping of another size": START + frame(http2.PING, 0, 0, b"a"),
    "settings of a stream": START + frame(http2.SETTINGS, 0, 1),
    "settings cut short": START + frame(http2.SETTINGS, 0, 0, b"abc"),
    "a reset of nothing": START + frame(http2.RESET, 0, 7, bytes(4)),
    "a window of nothing": START + windows(0),
    "a window too large": START + windows((1 << 31) - 1),
    "a stream's window too large": START + CALL + windows((1 << 31) - 1, 1),
    "a first window too large": START + frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)),
    "second headers within": START + CALL * 2,
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_http2_ends_the_connection(what: str) -> None:
    with pytest.raises(Http2Error):
        Http2(10).feed(WRONG[what])


KINDS = st.integers(0, 10)
FRAMES = st.builds(
    frame, KINDS, st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 5]), st.binary(max_size=12) | st.just(BLOCK)
)


@given(st.lists(FRAMES, max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_frames_are_taken_or_refused(frames: list[bytes]) -> None:
    connection = Http2(2)
    try:
        connection.feed(START + b"".join(frames))
    except Http2Error:
        return
    assert len(connection._streams) <= 2


def test_more_calls_at_once_than_there_may_be() -> None:
    calls = b"".join(frame(http2.HEADERS, 4, number, BLOCK) for number in (1, 3, 5))
    connection, found = fed(calls, frame(http2.DATA, 1, 5, b"a"), streams=2)
    assert [e.number for e in found] == [1, 3]
    assert bytes(connection.out).endswith(frame(http2.RESET, 0, 5, struct.pack(">I", http2.REFUSED)))


def test_answers_wait_for_room() -> None:
    connection, _ = fed(frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 4, 10)), CALL)
    rest = connection.send_data(1, memoryview(bytes(100)))
    assert len(rest) == 90
    connection.feed(windows(5, 1))
    rest = connection.send_data(1, rest)
    assert len(rest) == 85
    connection.feed(frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 4, 1000)))  # for open streams as well
    assert not connection.send_data(1, rest)


def test_messages_have_room_that_is_given_back() -> None:
    connection, _ = fed(CALL)
    connection.out.clear()
    for _ in range(80):  # more than the window
        connection.feed(frame(http2.DATA, 0, 1, bytes(1 << 14)))
    assert bytes(connection.out).count(frame(http2.WINDOW_UPDATE, 0, 1)[3:]) == 2
    connection._streams[1].room = 5
    with pytest.raises(Http2Error, match="more data"):
        connection.feed(frame(http2.DATA, 0, 1, bytes(6)))


@pytest.mark.parametrize("size", [0, 126, 127, 128, 300, 20_000])
def test_headers_are_read_by_others(size: int) -> None:
    sent = [(b"grpc-message", b"x" * size), (b"a", b"")]
    assert hpack.Decoder(1 << 15).decode(encoded(sent), raw=True) == sent


# Connections


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written, self.closed = bytearray(), False
        self.write = self.written.extend

    def get_extra_info(self, name: str) -> Any:
        return "127.0.0.1", 1

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    abort = close

    def statuses(self) -> list[bytes]:
        """The statuses of gRPC in it."""
        mark = encoded([(b"grpc-status", b"")])[1:-1]
        return [bytes(part[1 : 1 + part[0]]) for part in bytes(self.written).split(mark)[1:]]


class Echo:
    """Answers what was asked."""

    def __init__(self) -> None:
        self.service: Any = Service(SimpleNamespace(), SimpleNamespace(), Limits(body=1000))  # type: ignore[arg-type]

    async def answer(self, path: str, headers: dict[bytes, bytes], data: bytes, peer: str) -> bytes:
        if data == b"wait":
            await asyncio.sleep(60)
        if data == b"fail":
            raise RefusedError(404, "nothing here")
        return data

    def failed(self, path: str, e: Exception, peer: str) -> tuple[int, str]:
        return failure_of(e)


def message(data: bytes, number: int = 1, end: int = 1) -> bytes:
    return frame(http2.HEADERS, 4, number, BLOCK) + frame(
        http2.DATA, end, number, struct.pack(">BI", 0, len(data)) + data
    )


def connected() -> tuple[Echo, Connection, Pipe]:
    echo, pipe, open_ones = Echo(), Pipe(), set[Connection]()
    connection = Connection(echo, open_ones)
    connection.connection_made(pipe)
    connection.data_received(START)
    return echo, connection, pipe


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_calls_are_answered_and_let_go_of() -> None:
    async def course() -> None:
        echo, connection, pipe = connected()
        connection.data_received(message(b"hello") + message(b"fail", 3) + message(b"wait", 5))
        await turns()
        assert b"hello" in pipe.written and sorted(pipe.statuses()) == [b"0", b"5"]
        assert echo.service.held == 9
        connection.data_received(frame(http2.RESET, 0, 5, bytes(4)))
        await turns()
        assert echo.service.held == 0 and not connection._calls
        connection.data_received(message(bytes(2000), 7, end=0))  # refused before the rest comes
        connection.data_received(frame(http2.HEADERS, 5, 9, BLOCK) + message(b"x", 11)[:-1] + b"")
        assert pipe.statuses()[2:] == [b"8"] and echo.service.held <= 6
        await turns()
        connection.end()
        connection.connection_lost(None)
        assert echo.service.held == 0 and pipe.statuses()[3:] == [b"3"]

    asyncio.run(course())


def test_who_is_late_or_gives_up_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    async def course() -> None:
        _, connection, pipe = connected()
        connection.data_received(message(b"hello", end=0))
        time = now()
        monkeypatch.setattr(grpc_connections, "now", lambda: time + 31)
        connection.check()
        assert pipe.statuses() == [b"4"] and not pipe.closed
        monkeypatch.setattr(grpc_connections, "now", lambda: time + 400)
        connection.check()
        assert pipe.closed  # nobody calls
        _, connection, pipe = connected()
        for number in range(3, 3 + 2 * (grpc_connections.RESETS + 1), 2):
            connection.data_received(message(b"wait", number) + frame(http2.RESET, 0, number, bytes(4)))
        assert pipe.closed
        _, connection, pipe = connected()
        connection.data_received(b"x" * 100)
        assert pipe.closed

    asyncio.run(course())


def test_calls_under_way_end_first() -> None:
    async def course() -> int:
        echo = Echo()
        async with listening(echo, "127.0.0.1", 0, 0.2, False) as address:
            host, _, port = address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(START + message(b"wait"))
            while not echo.service.held:
                await asyncio.sleep(0.001)
            echo.service.ending.set()
        assert await reader.read() and not echo.service.held
        writer.close()
        return echo.service.cut

    assert asyncio.run(course()) == 1  # which took too long
