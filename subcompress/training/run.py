"""The run folder: what a fit leaves, goes on from after an interruption, and pack takes.

    record.safetensors       the record, exactly as it will be packed
    run.json                 for people and scripts; a folder that has it is finished
    command.json             what was asked for: only the same command goes on, its limits aside
    recipe.toml              the same for a person to read, change and give to `fit --recipe`
    journal.json             the trainings that have ended
    probes/                  their records
    outputs.json             what the network gives for a few examples, see `subcompress.training.likeness`
    checkpoints/             the trainings that are under way
    compare/, compare.*      what `compare` left; report.html: what `report` did
    workers/, claims/        the processes that work here, see `subcompress.training.workers`

Every file is replaced whole: a process may be killed at any moment. Every file that is read is checked first
(`subcompress.training.schemas`): somebody may have edited it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from subcompress import format
from subcompress.errors import SubcompressError, one_line, shown
from subcompress.format.record import Record
from subcompress.operators import EXACT
from subcompress.support.files import MAX_FILE_BYTES, read_bytes, write_bytes
from subcompress.training import schemas
from subcompress.training.loop import Like
from subcompress.training.probe import Fit
from subcompress.training.workers import Other, Worker

RECORD, SUMMARY = "record.safetensors", "run.json"
COMMAND, JOURNAL, PROBES, CHECKPOINTS = "command.json", "journal.json", "probes", "checkpoints"

OLD_CHECKPOINT = "checkpoint.safetensors"
"""The one checkpoint of a folder from before several processes could work in it."""

RECIPE = "recipe.toml"
"""See `subcompress.training.recipe_file`."""

PEERS, COMPARED = "compare", ("compare.json", "compare.md", "compare.png", "report.html")
"""The files that `compare` and `report` leave; they are removed with their run."""

DISCARD = "--restart discards the run and starts again"
AGAIN = "fit again, with --restart"


class Run:
    """A folder that this process works in, perhaps with others. command: in groups, see `schemas`; journal: the
    trainings that have ended, by name, in the order in which they ended; noise: what the search believed of the noise
    between seeds when it began, None for the usual."""

    def __init__(self, path: Path, command: dict[str, Any], worker: Worker) -> None:
        self.path, self.command, self.worker = path, json.loads(json.dumps(command, default=_plain)), worker
        schemas.check_command(self.command, "the options", "give others")
        self.journal: dict[str, Any] = {}
        self.noise: dict[str, Any] | None = None
        self._begun: str | None = None
        self._read_at: tuple[int, ...] | None = None

    @property
    def finished(self) -> dict[str, Any] | None:
        """The summary of a run of the same command that has ended. Raises SubcompressError for a damaged folder."""
        held = schemas.summary(self.path / SUMMARY, AGAIN)
        return held if held is not None and _without_history(self._before()) == self.command else None

    def _before(self) -> dict[str, Any] | None:
        return schemas.command(self.path / COMMAND, DISCARD)

    def begin(self, restart: bool, noise: Callable[[], dict[str, Any] | None] = lambda: None) -> bool:
        """Take up what is there, or clear it for a new command; whether there is something to go on from.

        noise: what a search that begins here believes of the noise between seeds; one that goes on keeps to what it
        began with.

        The limits of a command may differ from those before, also of a run that has ended: it goes on. Raises
        SubcompressError where the folder holds an unfinished run of another command, where others work on something
        else in it, or where it is damaged.
        """
        others = self._others()
        before = None if restart else self._before()
        if before is not None:
            differences = _differences(before, self.command)
            if not differences:
                return self._go_on(before, others)
            if self._worked() and schemas.summary(self.path / SUMMARY, AGAIN) is None:
                raise SubcompressError(
                    f"{self.path} holds an unfinished run with other options ({'; '.join(differences)}): give "
                    "the same options to continue it (limits may change), give another folder, or --restart to "
                    "discard it"
                )
        if others and (restart or before is not None):  # else all have just come, and the first one begins
            how = f" with other options: {'; '.join(differences)}" if before is not None else ""
            raise SubcompressError(
                f"another process works in {self.path} ({others[0]}){how}: wait for it, or give another folder"
            )
        if before is not None and (self.path / SUMMARY).exists():
            self.worker.log(
                f"warning: the finished run in {self.path} had other options ({'; '.join(differences)}): it is replaced"
            )
        for name in (SUMMARY, RECORD, COMMAND, JOURNAL, CHECKPOINTS, OLD_CHECKPOINT, PROBES, RECIPE, PEERS, *COMPARED):
            _remove(self.path / name)
        self._begun, self.noise = secrets.token_hex(8), noise()
        self._write_command({})
        return False

    def _others(self) -> list[Other]:
        """Other workers that are alive. Raises SubcompressError if they do something else, or are of another
        version."""
        found, own = self.worker.others(), self.worker.about
        for other in found:
            if other.about.get("task", own["task"]) != own["task"]:
                raise SubcompressError(
                    f"another process works in {self.path} ({other}): wait for it, or give another folder"
                )
            if (version := other.about.get("version", own["version"])) != own["version"]:
                raise SubcompressError(
                    f"all workers in a folder need the same version of subcompress; {other} has "
                    f"{shown(str(version))}, this one {own['version']}: install the same one"
                )
        return found

    def _go_on(self, before: dict[str, Any], others: list[Other]) -> bool:
        """Take up the trainings of a command that differs in its limits at most."""
        self.refresh()
        earlier = before.get("earlier", [])
        if (limits := before.get("limits", {})) != self.command.get("limits", {}):
            if others:
                raise SubcompressError(
                    f"{others[0]} works in {self.path} with other limits: give the same limits, or wait until it ends"
                )
            ended = sum("value" in entry for entry in self.journal.values())
            earlier = [e for e in earlier if e["trainings"] < ended] + [limits | {"trainings": ended}]
            for name in (SUMMARY, RECORD, PEERS, *COMPARED):
                _remove(self.path / name)
        self._begun, self.noise = before.get("begun"), before.get("noise")
        self._write_command({"earlier": earlier} if earlier else {})
        return bool(self.journal) or self._checkpointed() or bool(others)

    def _write_command(self, history: dict[str, Any]) -> None:
        told = {"begun": self._begun, "noise": self.noise}  # a folder of an older version has neither
        begun = {name: value for name, value in told.items() if value is not None}
        write_bytes(self.path / COMMAND, _json(self.command | history | begun))

    def _worked(self) -> bool:
        return (self.path / JOURNAL).exists() or self._checkpointed()

    def _checkpointed(self) -> bool:
        return (self.path / OLD_CHECKPOINT).exists() or any((self.path / CHECKPOINTS).glob("*"))

    def check_own(self) -> None:
        """Raise SubcompressError if the folder is gone, or holds another run by now: this process was silent for so
        long that another one has started again."""
        before = self._before()
        if before is None:
            raise SubcompressError(f"{self.path} was removed while the run was under way: give the command again")
        if before.get("begun") != self._begun or _differences(before, self.command):
            raise SubcompressError(
                f"another process began another run in {self.path} while this one paused: give another folder"
            )

    def refresh(self) -> None:
        """Read what has ended in the meantime. Raises SubcompressError for a damaged journal."""
        try:
            stat = (self.path / JOURNAL).stat()
            at: tuple[int, ...] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            at = ()
        if at != self._read_at:
            self.journal, self._read_at = schemas.journal(self.path / JOURNAL, DISCARD), at

    def note(self, key: str, entry: dict[str, Any], record: Record | None = None) -> None:
        """Remember a training that has ended, unless another worker did; its checkpoint is no longer needed."""
        with self.worker.alone("journal"):
            self.check_own()
            self.refresh()
            if key not in self.journal:
                if record is not None:
                    make_folder(self.path / PROBES)
                    format.save(record, self.probe(key))
                self.journal[key] = json.loads(json.dumps(entry))
                write_bytes(self.path / JOURNAL, _json(self.journal))
                self._read_at = None
        for name in (f"{CHECKPOINTS}/{key}.safetensors", OLD_CHECKPOINT):
            _remove(self.path / name)

    def probe(self, key: str) -> Path:
        """The path of the record of a training."""
        return self.path / PROBES / f"{key}.safetensors"

    def checkpoint(self, key: str) -> _Checkpoint:
        """The checkpoint of the training of that name."""
        old, path = self.path / OLD_CHECKPOINT, self.path / CHECKPOINTS / f"{key}.safetensors"
        return _Checkpoint(old if old.exists() and not path.exists() else path, key, self.check_own)

    def finish(self, record: Record | None, summary: Any) -> None:
        """Write the record, then the summary that marks the run as finished. Raises SubcompressError as `check_own`."""
        self.check_own()
        if record is not None:
            format.save(record, self.path / RECORD)
        write_bytes(self.path / SUMMARY, _json(asdict(summary) if is_dataclass(summary) else summary))  # type: ignore[arg-type]
        _remove(self.path / CHECKPOINTS)


class _Checkpoint:
    def __init__(self, path: Path, key: str, check_own: Callable[[], None]) -> None:
        self.path, self.key, self.check_own = path, key, check_own
        self.then = f"remove {path.name} to start this training again"

    def load(self, expected: Mapping[str, Like]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save` kept, None if there is nothing or it belongs to another training.

        Raises SubcompressError if it is damaged, or its tensors are others than expected; before any is read.
        """
        if not os.path.lexists(self.path):
            return None
        if not self.path.is_file():
            raise SubcompressError(f"{self.path} is not a file: move it away, or {self.then}")
        try:
            with safetensors.safe_open(self.path, "pt") as f:
                meta = schemas.checkpoint((f.metadata() or {}).get("state", ""), str(self.path), self.then)
                if meta["key"] != self.key:
                    return None
                self._check({name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}, expected)  # noqa: SIM118
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - no mapping
        except (safetensors.SafetensorError, OSError) as e:
            raise SubcompressError(
                f"{self.path} is not a checkpoint of subcompress ({one_line(e, 100)}): {self.then}"
            ) from e
        for name, tensor in tensors.items():
            if tensor.dtype != expected[name].dtype:
                raise self._error(name, f"expected {expected[name].dtype}, got {tensor.dtype}")
        return tensors, meta

    def _check(self, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, Like]) -> None:
        """Raise SubcompressError unless the tensors are those expected."""
        for name, shape in shapes.items():
            if name not in expected:
                raise self._error(name, "this training has no tensor of that name")
            if (wanted := expected[name].shape) is not None and shape != wanted:
                raise self._error(name, f"expected the shape {list(wanted)}, got {list(shape)}")
        for name, like in expected.items():
            if name not in shapes and (like.needed or like.group & shapes.keys()):
                raise self._error(name, "the tensor is missing")

    def _error(self, name: str, words: str) -> SubcompressError:
        return SubcompressError(f"{self.path}: {shown(name)}: {words}: {self.then}")

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Keep it, whole or not at all. Raises SubcompressError if the run is no longer this process's."""
        self.check_own()
        held = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
        write_bytes(self.path, safetensors.torch.save(held, {"state": json.dumps({**meta, "key": self.key})}))


@contextmanager
def working(
    folder: str | Path, command: dict[str, Any], task: str, log: Callable[[str], None] = lambda line: None
) -> Iterator[Run]:
    """Make the folder, see that it can be written before hours are spent, and work in it, beside other processes that
    do the same. log: receives lines for the user. Raises SubcompressError if it cannot be made or written."""
    path = Path(folder)
    _check_writable(path)
    with Worker(path, task, log) as worker:
        yield Run(path, command, worker)


@contextmanager
def locked(folder: str | Path, task: str) -> Iterator[None]:
    """Work in a folder alone. Raises SubcompressError if another process works there."""
    path = Path(folder)
    _check_writable(path)
    with Worker(path, task) as worker:
        if others := worker.others():
            raise SubcompressError(
                f"another process works in {path} ({others[0]}): wait for it, or give another folder"
            )
        yield


def _check_writable(path: Path) -> None:
    make_folder(path)
    write_bytes(path / ".writable", b"")
    (path / ".writable").unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless they exist. Raises SubcompressError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SubcompressError(f"the run folder {path} cannot be made: {e.strerror}; give another one") from e


def packed(folder: str | Path) -> bytes:
    """The file of a finished run, as `load` reads it. Raises SubcompressError for a folder that is not one."""
    folder = Path(folder)
    summary(folder)
    if not os.path.isfile(folder / RECORD):
        raise SubcompressError(
            f"{folder} holds nothing to pack, because it was trained by `subcompress dim` or with an operator "
            f"that is not exact: fit with --operator {' or '.join(EXACT)}"
        )
    return read_bytes(folder / RECORD, MAX_FILE_BYTES)


def load(folder: str | Path, base: Any = None) -> Record:
    """The record of a finished run. base: its base, see `format.from_bytes`; by default where it was trained
    on. Raises SubcompressError for a folder that is no finished run."""
    data = packed(folder)
    if base is None and format.parse(data).base is not None:
        given = summary(folder)["origin"].get("base")
        if given is not None and os.path.exists(given):  # else the commit that the file names
            base = given
    return format.from_bytes(data, base)[0]


def summary(folder: str | Path) -> dict[str, Any]:
    """What a finished run says of itself. Raises SubcompressError for a folder that is not one."""
    folder = Path(folder)
    if not os.path.isfile(folder / SUMMARY):  # false, not an error, for names no file can have
        begun = ": it was not finished; the same `subcompress fit` continues it"
        rule = f": make one with `subcompress fit -o {folder}`"
        raise SubcompressError(
            f"{folder} is not a finished run (it has no {SUMMARY})"
            + (begun if os.path.isfile(folder / COMMAND) else rule)
        )
    found = schemas.summary(folder / SUMMARY, "fit again")
    assert found is not None, "it is there"
    return found


def fit_of(folder: str | Path) -> Fit:
    """The Fit of a finished run. Raises SubcompressError for a folder that is not one, or that of another command."""
    found = summary(folder)
    if "fit" not in found:
        raise SubcompressError(f"{folder} holds a run of `dim`, or of another version: give the folder of a fit")
    return Fit.from_json(found["fit"])


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, default=str) + "\n").encode()


def _plain(value: Any) -> Any:
    """What stands in JSON for a value of another type."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _without_history(command: dict[str, Any] | None) -> dict[str, Any] | None:
    history = ("earlier", "begun", "noise")
    return None if command is None else {name: value for name, value in command.items() if name not in history}


def _differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The differences between two commands except limits, each with both values."""
    found = []
    for group in ("recipe", "base", "goal", "network", "machine"):
        one, other = a.get(group), b.get(group)
        if not isinstance(one, dict) or not isinstance(other, dict):
            found += [(group, one, other)]
            continue
        found += [(name, one.get(name), other.get(name)) for name in {**one, **other}]
    names = {"start": "network", "code": "code (by its digest)", "data": "data (by their digest)"}
    return [
        f"its {names.get(name, name)} was {shown(str(old))}, now {shown(str(new))}"
        for name, old, new in found
        if old != new
    ]


def _remove(path: Path) -> None:
    """Delete a file, or a folder of ours. Raises SubcompressError if that fails."""
    try:
        if path.name in (PROBES, PEERS, CHECKPOINTS) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as e:
        raise SubcompressError(f"{path} cannot be removed: {e.strerror or e}; remove it, or give another folder") from e
