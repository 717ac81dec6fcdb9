"""The run folder: what a fit leaves, goes on from after an interruption, and pack takes.

    record.safetensors       the record, exactly as it will be packed
    run.json                 for people and scripts; a folder that has it is finished
    command.json             what was asked for: only the same command goes on
    journal.json             the trainings that have ended
    probes/                  their records
    outputs.json             what the network gives for a few examples, see `subcompress.likeness`
    checkpoint.safetensors   the training that is under way
    compare/, compare.*      what `compare` left; report.html: what `report` did
    .lock                    held by the process that works here

Every file is replaced whole: a process may be killed at any moment.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor

from subcompress import format
from subcompress.errors import SubcompressError
from subcompress.files import MAX_FILE_BYTES, read_bytes, write_bytes
from subcompress.operators import EXACT
from subcompress.probe import Fit
from subcompress.record import Record

RECORD, SUMMARY = "record.safetensors", "run.json"
COMMAND, JOURNAL, CHECKPOINT, PROBES, LOCK = "command.json", "journal.json", "checkpoint.safetensors", "probes", ".lock"

PEERS, COMPARED = "compare", ("compare.json", "compare.md", "compare.png", "report.html")
"""What `compare` and `report` leave, which goes with the run it is of."""


class Run:
    """A folder that this process holds."""

    def __init__(self, path: Path, command: dict[str, Any]) -> None:
        self.path, self.command = path, json.loads(json.dumps(command, default=str))
        self.journal: dict[str, Any] = {}

    @property
    def finished(self) -> dict[str, Any] | None:
        """The summary of a run of the same command that has ended."""
        held = read_json(self.path / SUMMARY)
        return held if held is not None and read_json(self.path / COMMAND) == self.command else None

    def begin(self, restart: bool) -> bool:
        """Take up what is there, or clear it for a new command; whether there is something to go on from.

        Raises SubcompressError where the folder holds an unfinished run of another command.
        """
        before = read_json(self.path / COMMAND)
        unfinished = before is not None and read_json(self.path / SUMMARY) is None
        if before == self.command and unfinished and not restart:
            self.journal = read_json(self.path / JOURNAL) or {}
            return bool(self.journal) or (self.path / CHECKPOINT).exists()
        if before is not None and unfinished and not restart and self._worked():
            raise SubcompressError(
                f"{self.path} holds an unfinished run of another command ({_difference(before, self.command)}): give "
                f"the "
                "same options to go on, another folder, or --restart to discard it"
            )
        for name in (SUMMARY, RECORD, COMMAND, JOURNAL, CHECKPOINT, *COMPARED):
            (self.path / name).unlink(missing_ok=True)
        for name in (PROBES, PEERS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.journal = {}
        write_bytes(self.path / COMMAND, _json(self.command))
        return False

    def _worked(self) -> bool:
        return (self.path / JOURNAL).exists() or (self.path / CHECKPOINT).exists()

    def note(self, key: str, entry: dict[str, Any], record: Record | None = None) -> None:
        """Remember a training that has ended; its checkpoint is no longer needed."""
        if record is not None:
            (self.path / PROBES).mkdir(exist_ok=True)
            format.save(record, self.probe(key))
        self.journal[key] = json.loads(json.dumps(entry))
        write_bytes(self.path / JOURNAL, _json(self.journal))
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def probe(self, key: str) -> Path:
        """Where the record of a training lies."""
        return self.path / PROBES / f"{key}.safetensors"

    def checkpoint(self, key: str) -> _Checkpoint:
        """Of the training of that name."""
        return _Checkpoint(self.path / CHECKPOINT, key)

    def finish(self, record: Record | None, summary: Any) -> None:
        """Write the record, then the summary that marks the run as finished."""
        if record is not None:
            format.save(record, self.path / RECORD)
        write_bytes(self.path / SUMMARY, _json(asdict(summary) if is_dataclass(summary) else summary))  # type: ignore[arg-type]


class _Checkpoint:
    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save` kept, None where there is nothing or it belongs to another training."""
        if not self.path.is_file():
            return None
        try:
            with safetensors.safe_open(self.path, "pt") as f:
                meta = json.loads(f.metadata()["state"])
                if meta["key"] != self.key:
                    return None
                return {name: f.get_tensor(name) for name in f.keys()}, meta  # noqa: SIM118 - no mapping
        except (safetensors.SafetensorError, TypeError, KeyError, ValueError):
            return None  # no checkpoint of ours: the training begins anew

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Keep it, whole or not at all."""
        held = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
        write_bytes(self.path, safetensors.torch.save(held, {"state": json.dumps({**meta, "key": self.key})}))


@contextmanager
def holding(folder: str | Path, command: dict[str, Any]) -> Iterator[Run]:
    """Make the folder, see that it can be written before hours are spent, and hold it against other processes.

    Raises SubcompressError where it cannot be made or another process works in it.
    """
    path = Path(folder)
    with locked(path):
        yield Run(path, command)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a folder against other processes. Raises SubcompressError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SubcompressError(f"the run folder {path} cannot be made: {e.strerror}; give another with -o") from e
    write_bytes(path / ".writable", b"")
    (path / ".writable").unlink(missing_ok=True)
    lock = FileLock(path / LOCK)  # the system lets go of it when a process ends, however it ends
    try:
        lock.acquire(timeout=0)
    except Timeout as e:
        raise SubcompressError(f"another process works in {path}: wait for it, or give another folder") from e
    try:
        yield
    finally:
        lock.release()


def packed(folder: str | Path) -> bytes:
    """The file of a finished run, as `load` reads it. Raises SubcompressError for a folder that is not one."""
    folder = Path(folder)
    summary(folder)
    if not os.path.isfile(folder / RECORD):
        raise SubcompressError(
            f"{folder} holds no record to pack: it is of a reference operator, which is not exact, or of "
            f"`subcompress dim`: fit with --operator {' or '.join(EXACT)}"
        )
    return read_bytes(folder / RECORD, MAX_FILE_BYTES)


def load(folder: str | Path, base: Any = None) -> Record:
    """The record of a finished run. base: what it stands on, see `format.from_bytes`; by default where it was trained
    on. Raises SubcompressError for a folder that is no finished run."""
    data = packed(folder)
    if base is None and format.parse(data).base is not None:
        given = summary(folder).get("origin", {}).get("base")
        if isinstance(given, str) and os.path.exists(given):  # else the commit that the file names
            base = given
    return format.from_bytes(data, base)[0]


def summary(folder: str | Path) -> dict[str, Any]:
    """What a finished run says of itself. Raises SubcompressError for a folder that is not one."""
    folder = Path(folder)
    if not os.path.isfile(folder / SUMMARY):  # false, not an error, for names no file can have
        begun = ": it was not finished; the same `subcompress fit` goes on with it"
        rule = f": make one with `subcompress fit -o {folder}`"
        raise SubcompressError(
            f"{folder} is not a finished run (it has no {SUMMARY})"
            + (begun if os.path.isfile(folder / COMMAND) else rule)
        )
    found = read_json(folder / SUMMARY)
    if not isinstance(found, dict):
        raise SubcompressError(f"{folder / SUMMARY} is no JSON of ours: fit again")
    return found


def fit_of(folder: str | Path) -> Fit:
    """The Fit of a finished run. Raises SubcompressError for a folder that is not one, or that of another command."""
    found = summary(folder)
    try:
        return Fit.from_json(found["fit"])
    except (KeyError, TypeError, IndexError) as e:
        raise SubcompressError(f"{folder} holds no fit of this version: it is of `dim`, or older; fit again") from e


def read_json(path: Path) -> Any:
    """The JSON of a file of ours, None where there is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, default=str) + "\n").encode()


def _difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    key = next((k for k in {**a, **b} if a.get(k) != b.get(k)), "")
    return f"its {key} was {a.get(key)}, now {b.get(key)}"
