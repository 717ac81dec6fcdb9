"""The real Triton Inference Server of the wheel nvidia-pytriton, which has its Python backend only, for tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
import venv
from pathlib import Path

import psutil

NEEDS = ("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime")
"""Of the server, its client and the models of ours: an environment of their own, for NumPy's sake."""

PYTHON = "SUBCOMPRESS_TRITON_PYTHON"
"""The environment variable that names the Python of such an environment, to save the minutes of making one."""


class UnavailableError(Exception):
    """Why there is no such environment here."""


def environment(folder: Path) -> Path:
    """The Python of an environment with the server: the one that is named, else one that is made in the folder, from
    pip's index. Raises UnavailableError."""
    if named := os.environ.get(PYTHON):
        return Path(named)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
        raise UnavailableError(f"pip cannot install {NEEDS[0]}: {reason[:200]}")
    return python


class TritonServer:
    """A server on loopback, ready when it is made, until it is closed. address: host and port."""

    def __init__(self, python: Path, repository: Path, folder: Path, *options: str, patience: float = 120) -> None:
        """folder: for its backends and its log. Raises RuntimeError, with its last lines, where it does not start."""
        packages = Path(_ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
        version = _ask(python, "import sys; print('%d.%d' % sys.version_info[:2])")
        root, stub = packages / "pytriton" / "tritonserver", "triton_python_backend_stub"
        backends = Path(shutil.copytree(root / "backends", folder / "backends"))
        shutil.copy(root / "python_backend_stubs" / version / stub, backends / "python" / stub)
        path = os.pathsep.join([str(python.parent), os.environ["PATH"]])  # where the backend looks for its Python
        self._log = folder / "triton.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    root / "bin" / "tritonserver",
                    f"--model-repository={repository}",
                    f"--backend-directory={backends}",
                    "--http-address=127.0.0.1",
                    "--http-port=0",  # any that is free
                    "--allow-grpc=false",
                    "--allow-metrics=false",
                    *options,
                ],
                env=os.environ | {"PATH": path, "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + patience
        while (address := self._ready()) is None:
            if self._process.poll() is not None or time.monotonic() > until:
                self.close()
                raise RuntimeError(f"Triton does not start:\n{self.log()}")
            time.sleep(0.05)
        self.address = address

    def _ready(self) -> str | None:
        """Where it answers that it is ready."""
        try:
            for found in psutil.Process(self._process.pid).net_connections("tcp4"):
                if found.status == psutil.CONN_LISTEN:
                    address = f"127.0.0.1:{found.laddr.port}"
                    with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5):
                        return address
        except (OSError, psutil.Error):
            pass
        return None

    def log(self) -> str:
        """The end of what it printed."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-40:])

    def close(self) -> None:
        """Let it drain, then end it and what it started."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(45)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def _ask(python: Path, program: str) -> str:
    return subprocess.check_output([python, "-c", program], text=True).strip()
