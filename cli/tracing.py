"""Graphs for a server, traced in a process of its own: torch and the user's code stay out of the one that serves.

`python -m subcompress_cli.tracing` reads jobs from stdin, one JSON object, and writes what it found to stdout.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from subcompress.errors import SubcompressError, one_line

if TYPE_CHECKING:
    from subcompress.serving.networks import Job, Traced

PATIENCE = 600
"""Seconds that one network may take: whoever waits for a model waits behind it."""

ENDED = "its network could not be traced: the process that does it ended, or took longer than {} seconds"


def traced_beside(models: Sequence[str], say: Any) -> Beside:
    """A `Trace` by child processes, for the networks of these names and those that are known by their layout."""
    return Beside(models, say)


class Beside:
    """See `traced_beside`. A network at which the child ends is not traced; another child goes on with those after."""

    def __init__(self, models: Sequence[str], say: Any) -> None:
        self._models, self._say = list(models), say
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def __call__(self, jobs: Sequence[Job]) -> list[Traced | str]:
        found: list[Traced | str] = []
        names = ", ".join(job.name for job in jobs[:3]) + (", ..." if len(jobs) > 3 else "")
        self._say(f"tracing {names}: some seconds, and one or two for each more network")
        while len(found) < len(jobs) and not self._closed:
            found += self._some(jobs[len(found) :])
            if len(found) < len(jobs) and not self._closed:
                found.append(ENDED.format(PATIENCE))
        return found + ["the server is ending"] * (len(jobs) - len(found))

    def close(self) -> None:
        """End what is under way, from another thread; nothing is traced any more."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()

    def _start(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._closed:
                return None
            # By -P, what lies in the working directory is no module of ours; in a session of its own, it hears no
            # Ctrl-C, which is for the server.
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "subcompress_cli.tracing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
                start_new_session=True,
            )
            return self._child

    def _some(self, jobs: Sequence[Job]) -> list[Traced | str]:
        """Of as many of the first jobs as a child gets through."""
        found: list[Traced | str] = []
        said = [
            {"name": j.name, "data": base64.b64encode(j.data).decode(), "base": j.base, "inputs": j.inputs}
            for j in jobs
        ]
        try:
            if (child := self._start()) is None:
                return found
        except OSError as e:
            return [f"its network could not be traced ({one_line(e)})"] * len(jobs)
        assert child.stdin is not None and child.stdout is not None
        try:
            with suppress(OSError):  # it ended before it read all
                child.stdin.write(json.dumps({"models": self._models, "jobs": said}))
                child.stdin.close()
            for job in jobs:
                clock = threading.Timer(PATIENCE, child.kill)
                clock.start()
                try:
                    line = child.stdout.readline()
                finally:
                    clock.cancel()
                if not line.endswith("\n"):
                    break
                found.append(self._taken(job, json.loads(line)))
        finally:
            child.kill()
            with suppress(OSError):
                child.stdin.close()
            child.stdout.close()
            child.wait()
        return found

    def _taken(self, job: Job, answer: dict[str, Any]) -> Traced | str:
        if "error" in answer:
            return str(answer["error"])
        from subcompress.serving.networks import Traced

        self._say(f"traced {answer['network']} for {job.name} in {answer['seconds']:.1f} s")
        if note := answer.get("note"):
            self._say(note)
        graph = base64.b64decode(answer["graph"])
        return Traced(graph, tuple(answer["names"]), answer["general"], answer["network"])


def main() -> None:
    """The child: a line of JSON a job."""
    said = json.load(sys.stdin)
    # What the user's code and its children print is no answer.
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    for job in said["jobs"]:
        began = time.perf_counter()
        try:
            answer = _answer(said["models"], job)
        except SubcompressError as e:
            answer = {"error": " ".join(str(e).split())}
        except BaseException as e:  # whatever the user's code raises, others are traced
            answer = {"error": f"its network could not be traced ({type(e).__name__}: {one_line(e)})"}
        print(json.dumps(answer | {"seconds": time.perf_counter() - began}), file=answers, flush=True)


def _answer(models: Sequence[str], job: dict[str, Any]) -> dict[str, Any]:
    """The graph of the first network that has the file's tensors and can be traced, and a note on the others."""
    from subcompress import format
    from subcompress.onnx.weightless import weightless_graph_of
    from subcompress_cli.finding import networks_of

    record, _ = format.from_bytes(base64.b64decode(job["data"]), job["base"])
    failed: list[SubcompressError] = []
    fitting = networks_of(record.layout, models, job["name"])
    for network, module in fitting:
        try:
            found = weightless_graph_of(record, module, job["inputs"])
        except SubcompressError as e:
            failed.append(e)
            continue
        others = [name for name, _ in fitting if name in models]
        return {
            "graph": base64.b64encode(found.data).decode(),
            "names": found.names,
            "general": found.general,
            "network": network,
            "note": _note(job["name"], network, failed, others),
        }
    raise failed[0]


def _note(name: str, network: str, failed: Sequence[SubcompressError], others: Sequence[str]) -> str:
    """What to say of the other networks that have the tensors of a file: nothing where there are none."""
    if others:
        return (
            f"{name} is served as {network}; {', '.join(others)} has the same tensors: serve it by itself, as that one"
        )
    return f"{name} is served as {network}, because one before it could not be traced: {failed[0]}" if failed else ""


if __name__ == "__main__":
    main()
