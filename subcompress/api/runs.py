"""runs: the state of run folders, at a glance."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError, one_line, shown
from subcompress.training import run, schemas
from subcompress.training.workers import is_alive, workers


@dataclass(frozen=True)
class RunState:
    """The state of a run folder.

    Attributes:
        folder: The folder.
        state: finished, running, interrupted or damaged.
        goal: What was asked for, such as `d = 300` or `accuracy >= 0.9`.
        trainings: Trainings that have ended.
        best: The best metric on the validation split so far; None before any.
        bytes: The size of the file of a finished run, else of the best training's.
        minutes: The time that the trainings have taken, all workers added up.
        workers: Who works there, one line each.
        problem: What is wrong with a damaged folder.
    """

    folder: str
    state: str
    goal: str = ""
    trainings: int = 0
    best: float | None = None
    bytes: int | None = None
    minutes: float = 0.0
    workers: tuple[str, ...] = ()
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def runs(folders: Sequence[str | Path]) -> list[RunState]:
    """Return the states of run folders without changing them.

    Args:
        folders: Run folders, or folders that contain run folders.

    Returns:
        The state of each, in the order of their names.

    Raises:
        SubcompressError: A folder does not exist.
    """
    return [_state(path) for folder in folders for path in _run_folders(Path(folder))]


def _run_folders(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise SubcompressError(f"{folder} is not a folder: give run folders, or a folder that contains run folders")
    if _is_run(folder):
        yield folder
        return
    try:
        paths = sorted(folder.iterdir())
    except OSError as e:
        raise SubcompressError(f"{folder} cannot be read: {e.strerror or e}") from e
    yield from (path for path in paths if _is_run(path))


def _is_run(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in (run.COMMAND, run.SUMMARY))  # false where it may not be read


def _state(folder: Path) -> RunState:
    try:
        return _read(folder)
    except SubcompressError as e:
        return RunState(str(folder), "damaged", problem=one_line(e, 300))


def _read(folder: Path) -> RunState:
    command = schemas.command(folder / run.COMMAND, run.DISCARD) or {}
    journal = schemas.journal(folder / run.JOURNAL, run.DISCARD)
    summary = schemas.summary(folder / run.SUMMARY, run.AGAIN)
    smaller_is_better = bool(command.get("recipe", {}).get("minimise"))
    ended = [entry for entry in journal.values() if "value" in entry]
    inside = [entry for entry in ended if entry["d"]]
    best = (min if smaller_is_better else max)(inside, key=lambda entry: entry["value"], default=None)
    fit = (summary or {}).get("fit")
    now = time.time()
    busy = tuple(
        f"{other}" + (f": {other.about['status']}" if other.about.get("status") else "")
        for other, written in workers(folder)
        if is_alive(other, now - written)
    )
    return RunState(
        str(folder),
        "finished" if summary is not None else "running" if busy else "interrupted",
        _goal(command.get("goal", {}), str(command.get("recipe", {}).get("metric", "metric")), smaller_is_better),
        len(ended),
        fit["validation"] if fit else best and best["value"],
        (fit["bytes"] if fit else best and best["bytes"]) or None,
        sum(float(entry["seconds"]) for entry in journal.values()) / 60,
        busy,
    )


def _goal(goal: dict[str, Any], metric: str, smaller_is_better: bool) -> str:
    """The goal in a few words."""
    words = {
        "d": "d = {:.0f}",
        "target": f"{shown(metric).replace('{', '(').replace('}', ')')} {'<=' if smaller_is_better else '>='} {{:g}}",
        "max_drop": "at most {:g} below direct training",
        "bytes": "at most {:.0f} bytes",
    }
    found = [text.format(goal[name]) for name, text in words.items() if goal.get(name) is not None]
    return ", ".join(found) or ("d = " + ", ".join(map(str, goal["ds"])) if goal.get("ds") else "")


__all__ = ["RunState", "runs"]
