"""Whether a model runs at all: it is run once, with values made up, before anybody is told that it is ready.

What others wrote, an .onnx file, is run in a process of its own: some graphs end the process that runs them, and some
never end. `python -m subcompress.serving.trial` reads paths from stdin, a JSON list, and writes a line for each.
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
from subcompress.serving.engines import Engine, Port, external_values, open_session

PATIENCE = 60
"""Seconds that opening a graph and its first run may take."""

SIZES = (1, 8, 32, 128)
"""What axes that vary are tried as: a graph may ask for more than one."""

LARGEST = 1 << 22
"""Values of an input that is made up."""

DIED = "it ends the process that runs it"
"""What is said of a graph at which ONNX Runtime dies."""


def try_once(engine: Engine) -> str:
    """Run the engine with values made up. Empty where a run has ended well, else why the first one did not."""
    said = ""
    for feeds in _examples(engine):
        try:
            engine.run(feeds)
            return ""
        except SubcompressError as e:
            said = said or str(e)
    return f"it has not run yet: {said or 'its inputs are too large to be made up'}"


def _examples(engine: Engine) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of several sizes: ones, which are in every vocabulary and no empty length, then zeros."""
    seen = set()
    for size in SIZES:
        shapes = {p.name: _shape(p, size, engine.batched) for p in engine.inputs}
        if str(shapes) in seen or any(math.prod(shape) > LARGEST for shape in shapes.values()):
            continue
        seen.add(str(shapes))
        for fill in (1, 0) if shapes else (0,):
            yield {p.name: np.full(shapes[p.name], fill, p.dtype) for p in engine.inputs}


def _shape(port: Port, size: int, batched: bool) -> tuple[int, ...]:
    """One example, each axis that varies of that size; where the number of axes varies, as many as SIZES come to it."""
    if not port.ranked:
        return (1,) * (SIZES.index(size) + 1)
    sizes = tuple(size if k == -1 else k for k in port.shape)
    return (1, *sizes[1:]) if batched else sizes


class Trials:
    """Runs .onnx files in processes of their own, one after another; not for several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def __call__(self, paths: Sequence[Path]) -> list[str]:
        """Of each file: empty where it has run, else why not, DIED for one that took its process along."""
        found: list[str] = []
        while len(found) < len(paths) and not self._closed:
            rest = [str(p.absolute()) for p in paths[len(found) :]]
            try:
                found += self._some(rest)
            except OSError as e:
                return found + [f"it could not be tried ({one_line(e)})"] * len(rest)
        return found + ["the server is ending"] * (len(paths) - len(found))

    def close(self) -> None:
        """End what is under way, from another thread."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()

    def _start(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._closed:
                return None
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "subcompress.serving.trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # it hears no Ctrl-C, which is for the server
            )
            return self._child

    def _some(self, paths: Sequence[str]) -> list[str]:
        """Of as many of the first files as a child gets through, and of the one at which it ends."""
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
    """What the child says next, and whether it was ended because that came too late."""
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
    """The engine of an .onnx file. Raises SubcompressError."""
    return Engine(open_session(path, external_values(path)), path=path)


def main() -> None:
    """The child: a line of JSON for each path, empty text where its graph has run."""
    paths = json.load(sys.stdin)
    answers: Any = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for path in paths:
        try:
            said = try_once(open_graph_file(Path(path)))
        except Exception as e:  # whatever it is, others are tried
            said = one_line(e)
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
