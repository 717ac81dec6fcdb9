"""Several processes on one port: figures added up, a worker that dies, and what only some of them know."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import cli
from onnx import helper
from served import graph
from serving import Client

from subcompress import SubcompressError
from subcompress.errors import ToldError
from subcompress.serving import workers
from subcompress.serving.figures import ModelFigures, added, of_model
from subcompress.serving.workers import Place, Supervisor

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ports are shared on Linux")

X = np.ones((1, 2), np.float32)
WORKERS = 2


class Running:
    """`subcompress serve --workers 2` as a process. A connection a request, so that both workers get some."""

    def __init__(self, folder: Path) -> None:
        options = ["--workers", str(WORKERS), "--port", "0", "--memory", "64MB", "--queue", "8", "--access-log"]
        options += ["--grpc-port", "0"] if importable("grpc") else []
        command = [sys.executable, "-m", "subcompress_cli", "serve", str(folder), *options]
        self.log = folder.parent / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", self.line)]
        self.client = Client("127.0.0.1", self.ports[0], SimpleNamespace())  # type: ignore[arg-type]

    def pids(self) -> list[int]:
        """The workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def status(self) -> Any:
        return self.client("GET", "/status").said

    def until(self, what: Callable[[], bool]) -> None:
        """Wait for it."""
        ends = time.monotonic() + 30
        while not what():
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.02)


def importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of a graph."""
    folder = tmp_path_factory.mktemp("served") / "models"
    folder.mkdir()
    graph(folder / "same.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"x": ["n", 2], "y": ["n", 2]})
    found = Running(folder)
    yield found
    found.process.kill()
    found.process.wait()
    found.process.stdout.close()  # type: ignore[union-attr]


def infer(client: Client) -> int:
    """The status of a request. One connection that a dying worker had taken may be reset."""
    try:
        return client.infer("same", X, name="x").status
    except (OSError, IndexError, ValueError):
        return 0


def test_figures_are_added_up(running: Running) -> None:
    assert running.line.endswith(": 1 model\n") and len(running.pids()) == WORKERS
    before = running.status()
    assert (before["workers"], before["memory"]["limit"], before["queue"]["limit"]) == (WORKERS, 64_000_000, 8)
    assert [infer(running.client) for _ in range(40)] == [200] * 40
    assert running.client.infer("same", X).status == 400
    for _ in range(6):  # whichever of them answers
        found = running.status()
        assert found["requests"]["total"] == before["requests"]["total"] + 41
        assert (found["models"][0]["requests"], found["models"][0]["failed"]) == (41, 1)
        counted = running.client("GET", "/metrics").body.decode()
        assert 'subcompress_requests_total{code="200",model="same"} 40.0' in counted
        assert "subcompress_memory_limit_bytes 6.4e+07" in counted
        stats = running.client("GET", "/v2/models/same/stats").said["model_stats"][0]["inference_stats"]
        assert (stats["success"]["count"], stats["fail"]["count"]) == (40, 1)


def test_all_workers_load_and_unload(running: Running) -> None:
    assert running.client("POST", "/v2/repository/models/same/unload").status == 200
    assert {infer(running.client) for _ in range(12)} == {503}
    assert running.client("POST", "/v2/repository/models/same/load").status == 200
    assert {infer(running.client) for _ in range(12)} == {200}
    assert running.client("POST", "/v2/repository/models/none/unload").status == 404


def test_grpc_is_shared_as_well(running: Running) -> None:
    pytest.importorskip("grpc")
    triton = pytest.importorskip("tritonclient.grpc")
    before = running.status()["requests"]["total"]
    for _ in range(4):
        with triton.InferenceServerClient(f"127.0.0.1:{running.ports[1]}") as real:
            given = triton.InferInput("x", X.shape, "FP32").set_data_from_numpy(X)
            assert real.infer("same", [given]).as_numpy("y").tolist() == X.tolist()
            running.until(real.is_server_ready)
    assert running.status()["requests"]["total"] == before + 4
    assert running.client.infer("same", X).status == 400
    log = running.log.read_text()  # a line for each request, of both protocols
    assert log.count('"POST /inference.GRPCInferenceService/ModelInfer HTTP/2" 200') == 4
    assert '"POST /v2/models/same/infer HTTP/1.1" 400' in log


def test_a_worker_that_dies_is_started_again(running: Running) -> None:
    ready = lambda: running.client("GET", "/v2/health/ready").status  # noqa: E731
    running.until(lambda: ready() == 200)
    first, second = running.pids()
    counted = running.client("GET", "/metrics").body.decode()
    os.kill(first, signal.SIGKILL)
    running.until(lambda: first not in running.pids())
    assert [infer(running.client) for _ in range(10)] == [200] * 10  # the other goes on
    running.until(lambda: len(running.pids()) == WORKERS)
    running.until(lambda: ready() == 200)
    assert second in running.pids() and first not in running.pids()
    assert "worker 0 ended (signal 9) and is started again" in running.log.read_text()
    line = next(x for x in counted.splitlines() if x.startswith('subcompress_requests_total{code="200",model="same"}'))
    found = running.client("GET", "/metrics").body.decode()
    key, _, value = line.rpartition(" ")
    assert f"{key} {float(value) + 10}" in found  # what the dead one counted stays


def test_they_end_together(running: Running) -> None:
    pids = running.pids()
    with socket.create_connection(("127.0.0.1", running.ports[0])):
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert running.log.read_text().count("stopped after the last request was answered") == 1


def test_a_worker_that_cannot_start_ends_all(tmp_path: Path) -> None:
    def supervised(code: str) -> Supervisor:
        return Supervisor(2, "127.0.0.1", 0, None, [sys.executable, "-S", "-c", code], print, print)

    with pytest.raises(ToldError, match="worker 0 could not start"):
        supervised("raise SystemExit(1)").run()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SubcompressError, match="give another --port"):
        Supervisor(2, "127.0.0.1", taken.getsockname()[1], None, [], print, print).run()
    assert "no such file" in cli("serve", "--workers", "2", tmp_path / "none").stderr


def test_a_place_is_read_once_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Place.of_this_process() is None
    text = '{"index": 1, "count": 4, "folder": "", "port": 1, "grpc_port": null, "lifeline": -1}'
    monkeypatch.setenv(workers.VARIABLE, text)
    place = Place.of_this_process()
    assert place is not None and workers.VARIABLE not in os.environ
    assert (place.share(1000), place.share(3)) == (250, 1)
    place.tell({"nobody": "listens"})


def test_figures_of_two() -> None:
    own = {"total": 3, "per_s": 1.5, "recent": [1.0], "models": {}}
    other = {"total": 4, "per_s": 0.5, "recent": [2.0], "models": {"a": ["loaded", 2, 1, 1, 1, 0.5, 10, 7.0, [2.0]]}}
    assert added(own, [other]) == {"total": 7, "per_s": 2.0, "recent": [1.0, 2.0]}
    counted = dict.fromkeys(("requests", "failed", "runs", "examples", "memory"), 1) | {"seconds": 1.0}
    model: Any = SimpleNamespace(name="a", state="idle", last=None, recent=[1.0], **counted)
    assert of_model(model, [other]) == ModelFigures("loaded", 3, 2, 2, 2, 1.5, 11, 7.0, [1.0, 2.0])
    with contextlib.suppress(KeyError):
        assert of_model(model, [{"models": {}}]).requests == 1
