"""The servers that `serving.py` compares: each a process of its own, in its own environment, on a port of 127.0.0.1.

The peers get the same dense ONNX graph, run it with one thread, and log no request.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START = 120.0
"""Seconds a server may take until it is ready."""


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def tree(pid: int) -> list[int]:
    """A process and all processes that it has started, directly or indirectly."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                waiting += map(int, task.read_text().split())
            except OSError:
                continue  # ended in the meantime
    return found


def memory(pid: int, field: str = "VmRSS") -> int:
    """Bytes in memory of a process and its children, together; `VmHWM`: the sum of what each held at its highest."""
    total = 0
    for one in tree(pid):
        try:
            text = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        if f"{field}:" in text:
            total += int(text.split(f"{field}:")[1].split()[0]) * 1024
    return total


def processor_seconds(pid: int) -> float:
    """What a process and its living children have used of the processor."""
    total = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def all_seconds() -> float:
    """What everything on this machine has used of its processors."""
    fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # less idle and waiting for disks


class Server:
    """A process that listens: `with server:` starts it, waits until it is ready, and stops it with SIGTERM.

    started: seconds until it was ready; starting: the most bytes that it and its children held until then.
    """

    name, ready, infer = "server", "/v2/health/ready", "/v2/models/{}/infer"
    binary = True

    def __init__(self, command: Sequence[str], folder: Path, port: int, env: dict[str, str] | None = None) -> None:
        self.command, self.folder, self.port, self.env = list(command), folder, port, env
        self.started, self.starting = 0.0, 0

    def __enter__(self) -> Server:
        self.log = self.folder / f"{self.port}.log"
        began = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd=self.folder, env=self.env or os.environ.copy()
            )
        try:
            while not self._ready():
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {self.last_line()}")
                if time.perf_counter() - began > START:
                    raise RuntimeError(f"{self.name} was not ready after {START:.0f} s: {self.last_line()}")
                self.starting = max(self.starting, memory(self.process.pid))
                time.sleep(0.01)
        except BaseException:
            self._end()
            raise
        self.started = time.perf_counter() - began
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        """Stop it and the processes that it started, including children that it leaves behind."""
        left = tree(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in left[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue

    def _ready(self) -> bool:
        try:
            return self.get(self.ready, 0.2)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def get(self, path: str, timeout: float = 30) -> tuple[int, bytes]:
        """Status and body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def last_line(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


class Ours(Server):
    """`subcompress serve PATH...`, or what `--server` names in its place."""

    name = "subcompress"
    ready = "/v2/health/live"  # requests are answered from then on; ready waits until each model has run once

    def __init__(self, paths: Sequence[Path], folder: Path, *options: str, server: str | None = None) -> None:
        port = free_port()
        command = shlex.split(server) if server else [sys.executable, "-m", "subcompress_cli", "serve"]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        super().__init__([*command, *map(str, paths), "--port", str(port), *options], folder, port, env)


RUNTIME = """
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Graph(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        uri = self.settings.parameters.uri
        self.session = onnxruntime.InferenceSession(uri, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        (y,) = self.session.run(["output"], {"input": x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", y)])
"""


class MLServer(Server):
    """MLServer with a runtime of eight lines around the graph. workers: its processes for inference, 0 for none beside
    the server's own; batch: requests that its adaptive batching joins, 0 for off (it waits at most 1 ms)."""

    binary, ready = False, "/v2/models/lenet/ready"  # its REST server reads JSON only

    def __init__(self, python: Path, graph: Path, folder: Path, workers: int = 0, batch: int = 0) -> None:
        self.name = f"MLServer, parallel_workers={workers}, " + (f"max_batch_size={batch}" if batch else "no batching")
        port = free_port()
        settings: dict[str, Any] = {
            "debug": False, "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(),
            "metrics_endpoint": None, "parallel_workers": workers, "metrics_dir": str(folder / "metrics"),
        }  # fmt: skip
        model: dict[str, Any] = {"name": "lenet", "implementation": "runtime.Graph", "parameters": {"uri": str(graph)}}
        if batch:
            model |= {"max_batch_size": batch, "max_batch_time": 0.001}
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(model))
        (folder / "runtime.py").write_text(RUNTIME)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        start = "from mlserver.cli import main; main()"
        super().__init__([str(python), "-c", start, "start", str(folder)], folder, port, env)


MODEL = """
import json

import numpy
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        uri = json.loads(args["model_config"])["parameters"]["graph"]["string_value"]
        self.session = onnxruntime.InferenceSession(uri, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        parts = [pb_utils.get_input_tensor_by_name(r, "input").as_numpy() for r in requests]
        (y,) = self.session.run(["output"], {"input": numpy.concatenate(parts) if len(parts) > 1 else parts[0]})
        answers, at = [], 0
        for part in parts:
            tensor = pb_utils.Tensor("output", y[at : at + len(part)])
            answers.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
            at += len(part)
        return answers
"""

CONFIG = """
name: "lenet"
backend: "python"
max_batch_size: 64
input [ { name: "input", data_type: TYPE_FP32, dims: [ 1, 28, 28 ] } ]
output [ { name: "output", data_type: TYPE_FP32, dims: [ 10 ] } ]
dynamic_batching { }
instance_group [ { count: 1, kind: KIND_CPU } ]
parameters { key: "graph", value: { string_value: "%s" } }
"""


def plain_repository(graph: Path, folder: Path) -> Path:
    """A model repository for Triton that does the least: dynamic batching, and one run for what it joins."""
    made = folder / "plain" / "lenet"
    (made / "1").mkdir(parents=True)
    (made / "1" / "model.py").write_text(MODEL)
    (made / "config.pbtxt").write_text(CONFIG % graph)
    return made.parent


class Triton(Server):
    """Triton's own binary, from the nvidia-pytriton wheel, which has its python backend only."""

    name, ready = "Triton, python backend", "/v2/models/lenet/ready"

    def __init__(self, python: Path, repository: Path, folder: Path) -> None:
        self.python, port = python, free_port()
        found = "import pytriton, sys; print(pytriton.__path__[0], '%d.%d' % sys.version_info[:2])"
        where, version = subprocess.check_output([python, "-c", found], text=True, cwd=folder).split()
        server, backends = Path(where) / "tritonserver", folder / "backends"
        stub = "triton_python_backend_stub"
        shutil.copytree(server / "backends", backends)
        shutil.copy(server / "python_backend_stubs" / version / stub, backends / "python" / stub)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        env["LD_LIBRARY_PATH"] = f"{Path(where).parent / 'nvidia_pytriton.libs'}"
        env["PATH"] = f"{python.parent}{os.pathsep}{env['PATH']}"
        env["VIRTUAL_ENV"] = str(python.parent.parent)
        command = [
            str(server / "bin" / "tritonserver"), "--model-repository", str(repository), "--backend-directory",
            str(backends), "--http-address", "127.0.0.1", "--http-port", str(port), "--allow-grpc", "false",
            "--allow-metrics", "false", "--log-verbose", "0",
        ]  # fmt: skip
        super().__init__(command, folder, port, env)
