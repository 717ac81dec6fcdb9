"""A load generator for HTTP servers: connections in a closed loop, requests made beforehand, every answer read.

    python benchmarks/load.py < plan.json          # one JSON object: the counts and the latencies
    python benchmarks/load.py ceiling              # its own limit, against a server that does nothing

A process of its own and nothing but the standard library, so that the server under load is what is measured. Each
connection sends its next request as soon as the answer to the last one is whole. A latency is from before the request
is handed to the socket to after the answer is read; answers other than 200 are counted by their status and have none.
"""

from __future__ import annotations

import base64
import json
import math
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from typing import Any

PATIENCE = 60.0
"""Seconds without any answer after which a server is given up."""


class Answer:
    """An HTTP/1.1 answer as it comes in: `feed` says when it is whole; then `status`, `head` (lower case), `body`."""

    def __init__(self) -> None:
        self.buffer, self.status, self.head, self.body = bytearray(), 0, b"", b""
        self._begins = self._ends = 0  # of the body; an end of -1 is that of its last chunk, or of the connection
        self._chunked = False

    def feed(self, data: bytes) -> bool:
        """Take what was received. Raises ValueError for what is not HTTP, and for more than one answer."""
        self.buffer += data
        if not self._begins and not self._headed():
            return False
        if self._chunked:
            return self._dechunked()
        if self._ends < 0 or len(self.buffer) < self._ends:
            return False
        if len(self.buffer) > self._ends:
            raise ValueError(f"{len(self.buffer) - self._ends} bytes after the answer")
        self.body = bytes(self.buffer[self._begins :])
        return True

    def _headed(self) -> bool:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        line, _, head = bytes(self.buffer[:end]).partition(b"\r\n")
        if not line.startswith(b"HTTP/1.1 ") or not line[9:12].isdigit():
            raise ValueError(f"no status line: {line[:60]!r}")
        self.status, self.head, self._begins = int(line[9:12]), b"\r\n" + head.lower(), end + 4
        length = self.header(b"content-length")
        self._chunked = self.header(b"transfer-encoding") == b"chunked"
        empty = self.status in (204, 304)
        self._ends = self._begins + int(length) if length is not None else self._begins if empty else -1
        return True

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, None if it is not there."""
        at = self.head.find(b"\r\n" + name + b":")
        return None if at < 0 else self.head[at + len(name) + 3 :].partition(b"\r\n")[0].strip()

    def _dechunked(self) -> bool:
        chunks, at = list[bytes](), self._begins
        while True:
            end = self.buffer.find(b"\r\n", at)
            if end < 0:
                return False
            size = int(self.buffer[at:end].partition(b";")[0], 16)
            begins, at = end + 2, end + 4 + size
            if len(self.buffer) < at:
                return False
            if not size:
                self.body = b"".join(chunks)
                return True
            chunks.append(bytes(self.buffer[begins : begins + size]))

    @property
    def closes(self) -> bool:
        """Whether the server will take no other request on this connection."""
        return self.header(b"connection") == b"close"

    def values(self) -> list[float]:
        """The values of the first output: float32, from JSON or from binary data."""
        length = self.header(b"inference-header-content-length")
        head = json.loads(self.body[: int(length)] if length is not None else self.body)
        output = head["outputs"][0]
        if "data" not in output:
            size = output["parameters"]["binary_data_size"]
            return list(struct.unpack_from(f"<{size // 4}f", self.body, int(length or 0)))
        values: Any = output["data"]
        while isinstance(values[0], list):
            values = values[0]
        return list(values)

    def answers(self, expected: int | list[float]) -> bool:
        """Whether the values are those that are expected, except for rounding; of an integer: whether that one is the
        largest."""
        values = self.values()
        if isinstance(expected, int):
            return max(range(len(values)), key=values.__getitem__) == expected
        return near(values, expected)


def near(values: list[float], expected: list[float]) -> bool:
    """Whether values are those that are expected, except for rounding."""
    apart = 1e-3 * max(map(abs, expected))
    return len(values) == len(expected) and all(abs(a - b) <= apart for a, b in zip(values, expected, strict=True))


def request(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """A POST, whole."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """One client: its socket, the request it waits for, and when it was sent."""

    def __init__(self, port: int) -> None:
        self.port, self.index, self.sent, self.checked = port, -1, 0.0, False
        self.socket = self.opened()
        self.answer = Answer()

    def opened(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


class Load:
    """A plan carried out: what came back, in `statuses`, `samples` [(request, ms)], `wrong`, `lost`, `reopened`.

    all: answers, those to the warm-up too.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        bodies = [base64.b64decode(b) for b in plan["bodies"]]
        self.port, self.clients = plan["port"], plan["clients"]
        self.requests = [request(r["path"], bodies[r["body"]], r.get("headers")) for r in plan["requests"]]
        self.expected = [r.get("expected") for r in plan["requests"]]
        self.order, self.every = plan.get("order", range(len(self.requests))), plan.get("every", False)
        self.warmup, self.duration = plan.get("warmup", 0.0), plan.get("seconds")
        self.statuses: Counter[int] = Counter()
        self.samples: list[tuple[int, float]] = []
        self.wrong = self.lost = self.reopened = self.whole = self.all = 0
        self.said = ""
        self.seconds = 0.0

    def run(self) -> None:
        """Once through the order, or round and round for `warmup` + `seconds`; answers to the warm-up do not count."""
        clock, selector = time.perf_counter, selectors.DefaultSelector()
        began = clock()
        counts = began + self.warmup
        ends = math.inf if self.duration is None else counts + self.duration
        todo: Iterator[int] = iter(self.order) if self.duration is None else cycle(self.order)
        self.last = began
        for _ in range(self.clients):
            self._start(Connection(self.port), todo, selector)
        while selector.get_map():
            ready = selector.select(PATIENCE)
            if not ready:
                raise SystemExit(f"no answer from port {self.port} in {PATIENCE:.0f} s")
            for key, _ in ready:
                connection: Connection = key.data
                try:
                    data = connection.socket.recv(1 << 18)
                except ConnectionError:
                    data = b""
                if data and not connection.answer.feed(data):
                    continue
                now = clock()
                self.all += bool(data)
                if not data:
                    self.lost += 1
                elif connection.sent >= counts:
                    self._count(connection, now, ends)
                again = connection.answer.closes if data else True
                if now >= ends or (index := next(todo, None)) is None:
                    selector.unregister(connection.socket)
                    connection.socket.close()
                    continue
                if again:
                    selector.unregister(connection.socket)
                    connection.socket.close()
                    connection.socket = connection.opened()
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
                    self.reopened += 1
                self._send(connection, index)
        self.seconds = self.duration if self.duration is not None else clock() - began

    def _start(self, connection: Connection, todo: Iterator[int], selector: selectors.BaseSelector) -> None:
        index = next(todo, None)
        if index is not None:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            self._send(connection, index)

    def _send(self, connection: Connection, index: int) -> None:
        connection.index, connection.answer, connection.sent = index, Answer(), time.perf_counter()
        with suppress(ConnectionError):  # the next read sees it
            connection.socket.sendall(self.requests[index])

    def _count(self, connection: Connection, now: float, ends: float) -> None:
        answer = connection.answer
        self.statuses[answer.status] += 1
        if answer.status != 200:
            self.said = self.said or answer.body[:300].decode(errors="replace")
            return
        self.samples.append((connection.index, 1000 * (now - connection.sent)))
        self.whole += now <= ends
        expected = self.expected[connection.index]
        if expected is not None and (self.every or not connection.checked):
            connection.checked = True
            self.wrong += not answer.answers(expected)

    def found(self, samples: bool = False) -> dict[str, Any]:
        """What was measured: rates in requests a second, latencies in ms; with `samples`, each request's own."""
        times = sorted(ms for _, ms in self.samples)
        found: dict[str, Any] = {
            "seconds": self.seconds,
            "all": self.all,
            "rate": self.whole / self.seconds,
            "answers": {str(k): n for k, n in sorted(self.statuses.items())},
            "wrong": self.wrong,
            "lost": self.lost,
            "reopened": self.reopened,
            "said": self.said,
        }
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
            found[name] = times[min(len(times) - 1, int(share * len(times)))] if times else math.nan
        return found | ({"samples": self.samples} if samples else {})


def carry_out(plan: dict[str, Any]) -> dict[str, Any]:
    """Run a plan in a process of its own; what it found. Raises RuntimeError with its last line where it failed."""
    done = subprocess.run([sys.executable, __file__], input=json.dumps(plan), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def nothing(size: int, answer: bytes) -> tuple[int, int]:
    """A process that answers each `size` bytes it reads with the same bytes: its id and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    if pid := os.fork():
        port = listener.getsockname()[1]
        listener.close()
        return pid, port
    selector, read = selectors.DefaultSelector(), dict[socket.socket, int]()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                taken, _ = listener.accept()
                taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(taken, selectors.EVENT_READ)
                read[taken] = 0
                continue
            taken = key.fileobj  # type: ignore[assignment]
            data = taken.recv(1 << 18)
            if not data:
                selector.unregister(taken)
                taken.close()
                continue
            read[taken] += len(data)
            if read[taken] >= size:
                read[taken] -= size
                taken.sendall(answer)


def ceiling(clients: int = 16, bytes_sent: int = 3_500, seconds: float = 2.0) -> dict[str, Any]:
    """What the generator reaches where the server does nothing: as `Load.found`."""
    body = b'{"outputs": [{"name": "output", "datatype": "FP32", "shape": [1, 10], "data": [1.0, 0, 0, 0]}]}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    sent = b" " * bytes_sent
    pid, port = nothing(len(request("/", sent)), answer)
    plan = {
        "port": port, "clients": clients, "bodies": [base64.b64encode(sent).decode()],
        "requests": [{"path": "/", "body": 0, "expected": 0}], "warmup": 0.3, "seconds": seconds,
    }  # fmt: skip
    try:
        return carry_out(plan)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def main() -> None:
    if sys.argv[1:] == ["ceiling"]:
        for clients in (1, 16):
            found = ceiling(clients)
            print(f"{clients} clients: {found['rate']:,.0f} requests/s, p50 {1000 * found['p50']:.0f} us")
        return
    plan = json.load(sys.stdin)
    load = Load(plan)
    load.run()
    json.dump(load.found(plan.get("samples", False)), sys.stdout)


if __name__ == "__main__":
    main()
