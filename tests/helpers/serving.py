"""A server that tests start in a thread, and a client that says exactly what it is told to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from subcompress import SubcompressError, format
from subcompress.onnx.graph_cache import Traced
from subcompress.onnx.weightless import weightless_graph_of
from subcompress.serving import service
from subcompress.serving.networks import Job, Trace
from subcompress.serving.running import Running, serve
from subcompress.tensors.layout import Layout

service.LOOK = (
    60.0  # a test that asks for the index goes on when the files have been looked at, however slow the machine
)


def until_closed(s: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    return b"".join(iter(lambda: s.recv(1 << 16), b""))


def traced_here(*modules: nn.Module) -> Trace:
    """Graphs in this process, for files whose tensors one of the modules has. `trace.jobs`: those it was given."""

    def trace(jobs: Sequence[Job]) -> list[Traced | str]:
        trace.jobs.extend(jobs)  # type: ignore[attr-defined]
        return [_traced(job) for job in jobs]

    def _traced(job: Job) -> Traced | str:
        try:
            record, _ = format.from_bytes(job.data, job.base)
            for module in modules:
                if {s.name: s.shape for s in record.layout} == {
                    s.name: s.shape for s in Layout.of(module.state_dict())
                }:
                    found = weightless_graph_of(record, module, job.inputs)
                    return Traced(found.data, found.names, found.general, type(module).__name__)
        except SubcompressError as e:
            return str(e)
        return f"{job.name} does not show which network it is"

    trace.jobs = []  # type: ignore[attr-defined]
    return trace


@dataclass
class Answer:
    """status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """What a refusal says: one line."""
        text = self.said["error"]
        assert "\n" not in text and text
        return text


@dataclass
class Client:
    """One connection a request. running: the server, where it is in this process."""

    host: str
    port: int
    running: Running
    said: list[str] = field(default_factory=list)  # lines of the server

    def __call__(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Send a request and read the answer."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}:{self.port}", "connection: close"]
        lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
        if body and "content_length" not in headers and "transfer_encoding" not in headers:
            lines.append(f"content-length: {len(body)}")
        return self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    def raw(self, data: bytes) -> Answer:
        """Bytes as they are, and what comes back until the server closes."""
        with socket.create_connection((self.host, self.port), timeout=30) as s:
            s.sendall(data)
            received = until_closed(s)
        head, _, body = received.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        return Answer(
            int(first.split()[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in rest)}, body
        )

    def wait_until_ready(self) -> None:
        """Ask whether the server is ready until it is: each model has been tried."""
        ends = time.monotonic() + 60
        while self("GET", "/v2/health/ready").status != 200:
            assert time.monotonic() < ends, self.said
            time.sleep(0.02)

    def infer(self, model: str, x: np.ndarray, **more: Any) -> Answer:
        """A request in JSON with one input."""
        return self("POST", f"/v2/models/{model}/infer", json.dumps(asking(x, **more)).encode())


def asking(x: np.ndarray, datatype: str = "FP32", name: str = "input", **more: Any) -> dict[str, Any]:
    """The JSON of a request with one input."""
    tensor = {"name": name, "shape": list(x.shape), "datatype": datatype, "data": x.ravel().tolist()}
    return {"inputs": [tensor], **more}


@contextmanager
def serving(*sources: Any, trace: Trace, **options: Any) -> Iterator[Client]:
    """Within, a server on a free port of this machine, in a thread of this process."""
    found: list[Running] = []
    failed: list[BaseException] = []
    up = threading.Event()
    said: list[str] = []

    def ready(running: Running) -> None:
        found.append(running)
        up.set()

    def run() -> None:
        try:
            serve([str(s) for s in sources], trace, port=0, log=said.append, ready=ready, **options)
        except BaseException as e:
            failed.append(e)
        finally:
            up.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(120)
    try:
        if failed:
            raise failed[0]
        host, _, port = found[0].address.removeprefix("http://").rpartition(":")
        yield Client(host, int(port), found[0], said)
    finally:
        if found:
            found[0].stop()
        thread.join(60)
        assert not thread.is_alive()


def packed(folder: Path, name: str, record: Any) -> Path:
    """A file of a record, made elsewhere and put there by a rename."""
    path = folder / f"{name}.safetensors"
    format.save(record, path)
    return path
