"""Graphs for a server, traced in a process of its own: torch and the user's code stay out of the one that serves.

`python -m subcompress_cli.tracing` reads jobs from stdin, one JSON object, and writes what it found to stdout.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.serving.networks import Job, Trace, Traced


def traced_beside(models: Sequence[str], say: Any) -> Trace:
    """A `Trace` by a child process, for the networks of these names and those that are known by their layout."""

    def trace(jobs: Sequence[Job]) -> list[Traced | str]:
        said = {
            "models": list(models),
            "jobs": [
                {"name": j.name, "data": base64.b64encode(j.data).decode(), "base": j.base, "inputs": j.inputs}
                for j in jobs
            ],
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "subcompress_cli.tracing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        assert child.stdin is not None and child.stdout is not None
        found: list[Traced | str] = []
        try:
            child.stdin.write(json.dumps(said))
            child.stdin.close()
            for job, line in zip(jobs, child.stdout, strict=False):
                answer = json.loads(line)
                if "error" in answer:
                    found.append(str(answer["error"]))
                else:
                    graph = base64.b64decode(answer["graph"])
                    found.append(Traced(graph, tuple(answer["names"]), answer["general"], answer["network"]))
                    say(f"traced {answer['network']} for {job.name} in {answer['seconds']:.1f} s")
        except (OSError, ValueError) as e:
            found.append(f"its network could not be traced ({e})")
        finally:
            child.stdout.close()
            if len(found) < len(jobs):
                child.terminate()
            child.wait()
        return found + ["its network could not be traced: the process that does it ended"] * (len(jobs) - len(found))

    return trace


def main() -> None:
    """The child: a line of JSON a job."""
    said = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # what the user's code prints is no answer
    for job in said["jobs"]:
        began = time.perf_counter()
        try:
            answer = _answer(said["models"], job)
        except SubcompressError as e:
            answer = {"error": " ".join(str(e).split())}
        print(json.dumps(answer | {"seconds": time.perf_counter() - began}), file=answers, flush=True)


def _answer(models: Sequence[str], job: dict[str, Any]) -> dict[str, Any]:
    from subcompress import format
    from subcompress.graph.lifting import lifted_of

    record, _ = format.from_bytes(base64.b64decode(job["data"]), job["base"])
    network, module = _network(models, record, job["name"])
    found = lifted_of(record, module, job["inputs"])
    return {
        "graph": base64.b64encode(found.data).decode(),
        "names": found.names,
        "general": found.general,
        "network": network,
    }


def _network(models: Sequence[str], record: Any, name: str) -> Any:
    """The network that has the record's tensors, of those named or, by its layout, of ours."""
    from subcompress.format import tables
    from subcompress.layout import Layout
    from subcompress_cli.loading import model_of
    from subcompress_models import MODELS

    known = tables.network_of(record.layout)
    candidates = [*models, *([known] if known in MODELS and known not in models else [])]
    why = "the network of its tensors is not known by name"
    for candidate in candidates:
        module = model_of(candidate, layout=record.layout)
        try:
            record.layout.require(Layout.of(module.state_dict()), f"the network {candidate}")
            return candidate, module
        except SubcompressError as e:
            why = str(e)
    raise SubcompressError(f"{name} needs its network, to trace a graph ({why}): give it with --model")


if __name__ == "__main__":
    main()
