"""Tracing graphs for a server in a child process, which keeps torch and the user's code out of the server's.

`python -m subcompress_cli.tracing` reads jobs as a JSON object from stdin and writes one line of JSON for each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress.errors import SubcompressError, missing_package, one_line
from subcompress.onnx.graph_cache import GraphCache, Reads, Traced
from subcompress.remote.references import PREFIX as HUB

if TYPE_CHECKING:
    from subcompress.serving.networks import Job

PATIENCE = 600
"""Seconds that one network may take; requests for other models wait meanwhile."""

ENDED = "its network could not be traced: the tracing process ended, or took longer than {} seconds"


def subprocess_tracer(models: Sequence[str], log: Any, cache: GraphCache | None = None) -> SubprocessTracer:
    """Return a `Trace` that uses child processes, for the networks `models` and those that are known by their layout.

    log: called with each line for the user; cache: the graphs that were traced before, None to trace all.
    """
    return SubprocessTracer(models, log, cache)


class SubprocessTracer:
    """Traces jobs in a child process. If the child dies at a job, that job fails, and a new child takes the next one.

    Jobs whose graphs are in the cache need no child.
    """

    def __init__(self, models: Sequence[str], log: Any, cache: GraphCache | None = None) -> None:
        self._models, self._log, self._cache = list(models), log, cache
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def __call__(self, jobs: Sequence[Job]) -> list[Traced | str]:
        known = self._cached(jobs)
        traced = iter(self._trace([job for job, graph in zip(jobs, known, strict=True) if graph is None]))
        return [next(traced) if graph is None else graph for graph in known]

    def _cached(self, jobs: Sequence[Job]) -> list[Traced | None]:
        """Return the graphs that the cache has."""
        if self._cache is None:
            return [None] * len(jobs)
        self._cache.forget_states()
        found = [self._cached_graph(job) for job in jobs]
        if count := sum(graph is not None for graph in found):
            self._log(f"{count} graph{'s' if count > 1 else ''} from {self._cache.folder}")
        return found

    def _cached_graph(self, job: Job) -> Traced | None:
        assert self._cache is not None
        general, own = (self._question(job, general=general) for general in (True, False))
        return self._cache.find(general) or self._cache.find(own)

    def _question(self, job: Job, *, general: bool) -> str:
        """Return all that decides which graph serves a job. general: for all files that one graph can serve."""
        from subcompress.serving.networks import Packed

        key = Packed(job.name, job.data).key
        own = "" if general else hashlib.sha256(job.data).hexdigest()
        where = str(Path.cwd()) if self._models else ""  # names of user code are relative to it
        base = job.base if job.base is None or job.base.startswith(HUB) else os.path.abspath(job.base)
        return json.dumps([key, own, sorted(job.inputs), base, self._models, where])

    def _trace(self, jobs: Sequence[Job]) -> list[Traced | str]:
        found: list[Traced | str] = []
        if not jobs:
            return found
        names = ", ".join(job.name for job in jobs[:3]) + (", ..." if len(jobs) > 3 else "")
        self._log(f"tracing {names}: this takes some seconds, and one or two for each further network")
        while len(found) < len(jobs) and not self._closed:
            found += self._trace_until_failure(jobs[len(found) :])
            if len(found) < len(jobs) and not self._closed:
                found.append(ENDED.format(PATIENCE))
        return found + ["the server is shutting down"] * (len(jobs) - len(found))

    def close(self) -> None:
        """Kill the child and trace nothing more; may be called from another thread."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()

    def _start(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._closed:
                return None
            # -P keeps the working directory off the module path. A session of its own keeps Ctrl-C, which is for the
            # server, from the child.
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "subcompress_cli.tracing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
                start_new_session=True,
            )
            return self._child

    def _trace_until_failure(self, jobs: Sequence[Job]) -> list[Traced | str]:
        """Trace jobs in a new child until one ends it; return the results of those before."""
        found: list[Traced | str] = []
        encoded = [
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
            with suppress(OSError):  # it ended before it read everything
                child.stdin.write(json.dumps({"models": self._models, "jobs": encoded}))
                child.stdin.close()
            for job in jobs:
                timer = threading.Timer(PATIENCE, child.kill)
                timer.start()
                try:
                    line = child.stdout.readline()
                finally:
                    timer.cancel()
                if not line.endswith("\n"):
                    break
                found.append(self._decode_answer(job, json.loads(line)))
        finally:
            child.kill()
            with suppress(OSError):
                child.stdin.close()
            child.stdout.close()
            child.wait()
        return found

    def _decode_answer(self, job: Job, answer: dict[str, Any]) -> Traced | str:
        if "error" in answer:
            return str(answer["error"])
        self._log(f"traced {answer['network']} for {job.name} in {answer['seconds']:.1f} s")
        if note := answer.get("note"):
            self._log(note)
        graph = base64.b64decode(answer["graph"])
        found = Traced(graph, tuple(answer["names"]), answer["general"], answer["network"])
        if self._cache is not None:
            self._cache.keep(self._question(job, general=found.general), found, answer["reads"])
        return found


def main() -> None:
    """Run the child: trace jobs and write one line of JSON for each."""
    reads = Reads()
    request = json.load(sys.stdin)
    # Keep what the user's code and its children print out of the answers.
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    for job in request["jobs"]:
        start = time.perf_counter()
        try:
            answer = _answer(request["models"], job)
            answer["reads"] = reads.names()
        except SubcompressError as e:
            answer = {"error": " ".join(str(e).split())}
        except BaseException as e:  # whatever the user's code raises, go on with the next job
            answer = {"error": _untraced(e)}
        print(json.dumps(answer | {"seconds": time.perf_counter() - start}), file=answers, flush=True)


def _untraced(e: BaseException) -> str:
    """Say in one line why there is no graph."""
    error = missing_package(e, "tracing its network") if isinstance(e, ModuleNotFoundError) else None
    if error is None:
        return f"its network could not be traced ({type(e).__name__}: {one_line(e)})"
    return f"{error}, or serve the graph that `subcompress unpack --self-unfolding` writes elsewhere"


def _answer(models: Sequence[str], job: dict[str, Any]) -> dict[str, Any]:
    """Trace the first network with the file's tensors that can be traced; add a note on the others."""
    from subcompress import format
    from subcompress_cli.finding import networks_of, place_of

    data = base64.b64decode(job["data"])
    record, _ = format.from_bytes(data, job["base"])
    failed: list[SubcompressError] = []
    place = place_of(format.parse(data).base, job["base"])
    fitting = networks_of(record.layout, models, job["name"], place)
    for network in fitting:
        try:
            found = network.compared(record, job["inputs"])
        except SubcompressError as e:
            failed.append(e)
            continue
        others = [other.name for other in fitting if other.name in models]
        return {
            "graph": base64.b64encode(found.data).decode(),
            "names": found.names,
            "general": found.general,
            "network": network.name,
            "note": _note(job["name"], network.name, failed, others),
        }
    raise failed[0]


def _note(name: str, network: str, failed: Sequence[SubcompressError], others: Sequence[str]) -> str:
    """Describe the other networks with the tensors of a file; empty if there are none."""
    if others:
        return (
            f"{name} is served as {network}; if it is {', '.join(others)}, which has the same tensors, serve it "
            "alone with that --model"
        )
    return (
        f"{name} is served as {network}, because an earlier choice could not be traced: {failed[0]}" if failed else ""
    )


if __name__ == "__main__":
    main()
