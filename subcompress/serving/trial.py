"""Trial runs: a model is run once with made-up inputs before it is reported as ready.

An .onnx file, which others wrote, runs in a child process, because some graphs crash or never end. `python -m
subcompress.serving.trial [DEVICE]` reads a JSON list of paths from stdin and writes a line for each.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from subcompress.errors import SubcompressError, one_line
from subcompress.serving.engines import Engine, Port, device, external_values, open_session, use_device

PATIENCE = 60
"""Seconds that opening a graph and its first run may take."""

SIZES = (1, 8, 32, 128)
"""The sizes tried for axes that vary; a graph may need more than one."""

LARGEST = 1 << 22
"""The most values of a made-up input."""

DIED = "it ends the process that runs it"
"""The reason given for a graph that crashes ONNX Runtime."""


def try_once(engine: Engine) -> str:
    """Run the engine on made-up inputs; return an empty string if a run succeeded, else why the first one failed."""
    reason = ""
    for feeds in _examples(engine):
        try:
            engine.run(feeds)
            return ""
        except SubcompressError as e:
            reason = reason or str(e)
    return f"it has not run yet: {reason or 'its inputs are too large to be generated'}"


def _examples(engine: Engine) -> Iterator[dict[str, np.ndarray]]:
    """Yield inputs of several sizes: ones, which are valid token numbers and lengths, then zeros."""
    seen = set()
    for size in SIZES:
        shapes = {p.name: _shape(p, size, engine.batched) for p in engine.inputs}
        if str(shapes) in seen or any(math.prod(shape) > LARGEST for shape in shapes.values()):
            continue
        seen.add(str(shapes))
        for fill in (1, 0) if shapes else (0,):
            yield {p.name: np.full(shapes[p.name], _value(p, fill), p.dtype) for p in engine.inputs}


def _value(port: Port, fill: int) -> Any:
    """A one or a zero, as the input has it."""
    return str(fill) if port.datatype == "BYTES" else 0x3F80 * fill if port.datatype == "BF16" else fill


def _shape(port: Port, size: int, batched: bool) -> tuple[int, ...]:
    """Return the shape of one example with axes that vary set to `size`; an unranked input gets as many axes as its
    index in SIZES."""
    if not port.ranked:
        return (1,) * (SIZES.index(size) + 1)
    sizes = tuple(size if k == -1 else k for k in port.shape)
    return (1, *sizes[1:]) if batched else sizes


class Trials:
    """Runs .onnx files in child processes, one after another; not thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def __call__(self, paths: Sequence[Path]) -> list[str]:
        """Return for each file an empty string if it has run, else why not: DIED if it crashed the child."""
        found: list[str] = []
        while len(found) < len(paths) and not self._closed:
            rest = [str(p.absolute()) for p in paths[len(found) :]]
            try:
                found += self._run_until_failure(rest)
            except OSError as e:
                return found + [f"it could not be tried ({one_line(e)})"] * len(rest)
        return found + ["the server is shutting down"] * (len(paths) - len(found))

    def close(self) -> None:
        """Kill the child; may be called from another thread."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()

    def _start(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._closed:
                return None
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "subcompress.serving.trial", device()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # it hears no Ctrl-C, which is for the server
            )
            return self._child

    def _run_until_failure(self, paths: Sequence[str]) -> list[str]:
        """Run files in a new child until one ends it; return the results up to and including that one."""
        if (child := self._start()) is None:
            return []
        assert child.stdin is not None and child.stdout is not None
        found: list[str] = []
        try:
            with suppress(OSError):
                child.stdin.write(json.dumps(list(paths)))
                child.stdin.close()
            while len(found) < len(paths):
                line, late = _line(child)
                if not line.endswith("\n"):
                    found.append(f"its first run took longer than {PATIENCE} seconds" if late else DIED)
                    break
                found.append(str(json.loads(line)))
        finally:
            child.kill()
            with suppress(OSError):
                child.stdin.close()
            child.stdout.close()
            child.wait()
        return found


def _line(child: subprocess.Popen[str]) -> tuple[str, bool]:
    """Read the child's next line; return it and whether the child was killed because it was late."""
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    clock = threading.Timer(PATIENCE, end)
    clock.start()
    try:
        assert child.stdout is not None
        return child.stdout.readline(), late.is_set()
    finally:
        clock.cancel()


def open_graph_file(path: Path) -> Engine:
    """Open the engine of an .onnx file. Raises SubcompressError."""
    return Engine(open_session(path, external_values(path)), path=path)


def main() -> None:
    """Run the child: write a line of JSON for each path, an empty text if its graph has run."""
    use_device(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    paths = json.load(sys.stdin)
    answers: Any = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep what libraries print out of the answers
    for path in paths:
        try:
            reason = try_once(open_graph_file(Path(path)))
        except Exception as e:  # whatever it is, go on with the next file
            reason = one_line(e)
        print(json.dumps(reason), file=answers, flush=True)


if __name__ == "__main__":
    main()
