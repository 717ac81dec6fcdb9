"""Start a server, wait until its models are ready, ask each of them once: `python3 deploy/ask_server.py COMMAND...`.

COMMAND is `subcompress serve ...` wherever it is installed; `--port 0` is added. Prints what answered and the server's
memory; the exit status is 1 if a model is not ready within a minute. Needs the standard library alone.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import urllib.request
from typing import Any

PATIENCE = 60
"""Seconds until all models must be ready."""

CODES = {"FP64", "FP32", "FP16", "INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8", "BOOL"}
"""Datatypes of inputs that can be made up."""


def ask(address: str, body: Any = None) -> Any:
    """GET, or POST a body; the answer's JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read() or b"{}")


def states(address: str) -> dict[str, str]:
    """Each model with its state, and the reason for one that is not ready."""
    found = ask(f"{address}/v2/repository/index", {})
    return {m["name"]: f"{m['state']} {m.get('reason', '')}".strip() for m in found}


def wait(address: str) -> dict[str, str]:
    """The states, once all are READY or the time is up."""
    end = time.monotonic() + PATIENCE
    while (found := states(address)) and any(s != "READY" for s in found.values()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def example(model: dict[str, Any]) -> dict[str, Any]:
    """A request of ones with the shapes that a model's metadata ask for."""
    inputs = []
    for each in model["inputs"]:
        assert each["datatype"] in CODES, each
        shape = [1 if size == -1 else size for size in each["shape"]]
        inputs.append({**each, "shape": shape, "data": [1] * math.prod(shape)})
    return {"inputs": [{k: i[k] for k in ("name", "datatype", "shape", "data")} for i in inputs]}


def resident(pid: int) -> str:
    """The memory of a process, where the system tells."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            return next(f"{int(line.split()[1]) / 1000:.0f} MB" for line in file if line.startswith("VmRSS"))
    except OSError:
        return "unknown"


def main(command: list[str]) -> int:
    """Run the command and ask."""
    start = time.monotonic()
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().partition(": ")[0]
            if not address.startswith("http"):
                return 1
            found = wait(address.replace("0.0.0.0", "127.0.0.1"))
            print(f"after {time.monotonic() - start:.1f} s: {found}; memory {resident(server.pid)}")
            for name in (name for name, state in found.items() if state == "READY"):
                model = f"{address.replace('0.0.0.0', '127.0.0.1')}/v2/models/{name}"
                answer = ask(f"{model}/infer", example(ask(model)))
                print(f"{name}: {[(o['name'], o['shape']) for o in answer['outputs']]}")
            return int(not found or any(state != "READY" for state in found.values()))
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
