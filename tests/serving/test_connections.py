"""Bytes on a connection: limits, bodies and headers in pieces, who is slow, who does not read."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from served import LENET, X, binary, posting
from serving import Client, asking, serving, until_closed

from subcompress import SubcompressError
from subcompress.serving import app, connections, running
from subcompress.serving.service import Limits


def test_limits(folder: Path) -> None:
    with serving(folder, trace=LENET, limits=Limits(body=20_000)) as client:
        found = client.infer("one", np.repeat(X, 3, axis=0))
        assert found.status == 413 and "at most 20000 bytes" in found.error
        chunks = b"".join(b"1000\r\n" + b" " * 4096 + b"\r\n" for _ in range(6)) + b"0\r\n\r\n"
        found = client("POST", "/v2/models/one/infer", chunks, transfer_encoding="chunked")
        assert found.status == 413
        found = client("POST", "/v2/models/one/infer", b"x" * 40, content_encoding="br")
        assert found.status == 415 and found.headers["accept-encoding"] == "gzip, deflate"
        bomb = gzip.compress(bytes(1 << 24))
        found = client("POST", "/v2/models/one/infer", bomb, content_encoding="gzip")
        assert len(bomb) < 20_000 and found.status == 413
        found = client("POST", "/v2/models/one/infer", content_length="30000")  # and nothing of it comes
        assert found.status == 413
        body, headers = binary(X)
        assert client("POST", "/v2/models/one/infer", body, **headers).status == 200
        assert client.running.service.held == client.running.service.waiting == 0


def test_a_body_that_waits_to_be_asked_for(client: Client) -> None:
    body = json.dumps(asking(X)).encode()
    with socket.create_connection((client.host, client.port), timeout=30) as s:
        s.sendall(posting(b"", "expect: 100-continue", length=len(body)))
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        s.sendall(body)
        assert s.recv(1 << 16).startswith(b"HTTP/1.1 200")
    # Refused before it was sent: what comes next on the connection would be taken for it.
    found = client.raw(posting(b"", "expect: 100-continue", path="/v2/models/three/infer", length=9))
    assert found.status == 404 and found.headers["connection"] == "close"


def test_requests_one_behind_the_other(client: Client) -> None:
    body = json.dumps(asking(X)).encode()
    last = b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection((client.host, client.port), timeout=30) as s:
        s.sendall(posting(body) + posting(b"{", path="/v2/models/three/infer") + posting(body) + last)
        received = until_closed(s)
    statuses = [received[m.end() :][:3] for m in re.finditer(rb"HTTP/1\.1 ", received)]
    assert statuses == [b"200", b"404", b"200", b"200"]


def test_a_body_is_read_whatever_protocol_is_asked_for_besides(client: Client) -> None:
    body = json.dumps(asking(X)).encode()
    asked = (
        "connection: upgrade, http2-settings",
        "upgrade: h2c",
        "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA",
    )  # Java's
    chunked = posting(b"", *asked, "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"")
    chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    last = b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade\r\nupgrade: websocket\r\n\r\n"
    with socket.create_connection((client.host, client.port), timeout=30) as s:
        whole = posting(body, *asked) + chunked + posting(body) + last
        for at in range(0, len(whole), 1000):
            s.sendall(whole[at : at + 1000])
        received = until_closed(s)
    assert received.count(b"HTTP/1.1 200") == 4


@pytest.mark.parametrize("what", ["a header", "headers", "a path", "behind the body"])
def test_headers_without_end(client: Client, what: str) -> None:
    line = b"x: " + b"y" * 1000 + b"\r\n"
    begun = {
        "a header": posting(b"")[:-2] + b"x: ",
        "headers": posting(b"")[:-2],
        "a path": b"GET /",
        "behind the body": posting(b"", "transfer-encoding: chunked").replace(b"content-length: 0\r\n", b"") + b"0\r\n",
    }[what]
    piece = line if what in ("headers", "behind the body") else b"y" * 1000
    with socket.create_connection((client.host, client.port), timeout=30) as s:
        s.sendall(begun)
        received, sent = b"", 0
        with suppress(ConnectionError):
            for _ in range(4000):
                s.sendall(piece)
                sent += len(piece)
            s.shutdown(socket.SHUT_WR)
            while part := s.recv(1 << 16):
                received += part
    if what != "behind the body":
        assert not received or b"at most 65536 bytes" in received
    assert sent < 4_000_000 or received
    assert client.infer("one", X).status == 200


def test_who_is_slow_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.2)
    monkeypatch.setattr(app, "IDLE", 0.2)
    with serving(folder, trace=LENET) as client:
        begun = [
            "",
            "GET /v2 HT",
            posting(b"x", length=100_000).decode(),
            "GET /v2 HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
        ]
        with ExitStack() as stack:
            slow = [stack.enter_context(socket.create_connection((client.host, client.port), 30)) for _ in begun]
            for s, text in zip(slow, begun, strict=True):
                s.sendall(text.encode())
            found = []
            for s in slow:
                received = until_closed(s)
                found.append(received[9:12])
        assert found == [b"", b"", b"408", b"200"]
        assert client.running.service.waiting == client.running.service.held == 0
        assert client.infer("one", X).status == 200


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    clock, left, done = [0.0], [0], []
    transport = SimpleNamespace(
        get_write_buffer_size=lambda: left[0], abort=lambda: done.append("aborted"), close=lambda: done.append("closed")
    )
    loop = SimpleNamespace(time=lambda: clock[0])
    held: Any = SimpleNamespace(transport=transport, loop=loop, cycle=None, _head=False, _since=None, _unread=(0, 0.0))
    for at, size in ((0, 1000), (29, 1000), (31, 900), (60, 900)):  # read slowly, but read
        clock[0], left[0] = at, size
        connections.Connection.check(held)
    assert not done
    clock[0] = 62
    connections.Connection.check(held)
    assert done == ["aborted"]


def test_a_full_queue_says_so_and_recovers(folder: Path) -> None:
    with serving(folder, trace=LENET, limits=Limits(waiting=1)) as client:
        with socket.create_connection((client.host, client.port)) as slow:
            slow.sendall(b"POST /v2/models/one/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
            while not client.running.service.waiting:
                time.sleep(0.001)
            found = client.infer("one", X)
            assert found.status == 503 and "queue is full" in found.error and found.headers["retry-after"] == "1"
        while client.running.service.waiting:  # it was cut off
            time.sleep(0.001)
        assert client.infer("one", X).status == 200


def test_who_is_not_answered_in_time_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(running, "DRAIN_SECONDS", 0.2)
    with serving(folder, trace=LENET) as client, socket.create_connection((client.host, client.port), 30) as s:
        s.sendall(posting(b"{", length=100))
        while not client.running.service.waiting:
            time.sleep(0.001)
        client.running.stop()
        received = until_closed(s)  # head and body may come apart
        assert received.startswith(b"HTTP/1.1 503") and b"this server is shutting down" in received
    assert client.running.service.cut == 1 and client.running.service.held == client.running.service.waiting == 0
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".com", "999.1.1.1"])
def test_an_address_that_is_none(folder: Path, host: str) -> None:
    with pytest.raises(SubcompressError, match="an address of this machine"):
        running.open_socket(host, 0)
