"""What the JSON of a run folder looks like, and the one place where it is read.

A file of another shape is refused in one line that names the file and the field: a list or a number in place of an
object, a field too few or too many, a value of another type or out of its range, nesting without end, a folder.
The fields of command.json are grouped by what they are about: `recipe` (how to train), `goal` (what for), `base` (what
the weights stand on), `network` (digests of start, code and data), `machine` and `limits`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from subcompress.errors import SubcompressError, shown
from subcompress.format.wire import unique_keys
from subcompress.support.files import read_bytes

MAX_JSON_BYTES = 1 << 26
"""The most bytes of a JSON file in a run folder."""

MAX_LR = 1e6
"""The largest step size that counts as valid."""

Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Positive = Annotated[int, Meta(ge=1, le=1 << 53)]
Natural = Annotated[int, Meta(ge=0)]
Size = Annotated[float, Meta(ge=0, le=1e300)]
Step = Annotated[float, Meta(gt=0, le=MAX_LR)]
Limit = Annotated[float, Meta(gt=0)]
Beta = Annotated[float, Meta(ge=0, lt=1)]

RANGES: dict[str, Any] = {
    "d": Count,
    "D": Count,
    "bits": Annotated[int, Meta(ge=1, le=16)],
    "bytes": Count,
    "coded": Count,
    "warm": Count,
    "epochs": Count,
    "batch_size": Positive,
    "shards": Positive,
    "accumulate": Positive,
    "seed": Natural,
    "seconds": Size,
    "lr": Step,
    "rate": Size,
    "full_fits": Size,
    "quantise_after": Annotated[float, Meta(ge=0, le=1)],
}
"""Name of a field -> what it must hold in every object, if its type alone says too little."""

OLD_RECIPE = "batch_size"
"""A field at the top of command.json as it was before fields had groups."""


class Struct(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An object of which every field is known."""


@cache
def struct_of(kind: type, required: bool, *more: tuple[Any, ...]) -> Any:
    """The object that holds the fields of a dataclass, with their types and `RANGES`. required: also those that have
    a default; else older files may lack them. more: (name, type) or (name, type, default), beside the dataclass's own
    fields or in place of one."""
    hints = get_type_hints(kind)
    fields: dict[str, tuple[Any, ...]] = {}
    for f in dataclasses.fields(kind):
        optional = not required and f.default is not dataclasses.MISSING
        fields[f.name] = (f.name, _ranged(f.name, hints[f.name]), *((f.default,) if optional else ()))
    fields |= {field[0]: field for field in more}
    return msgspec.defstruct(kind.__name__, list(fields.values()), bases=(Struct,), kw_only=True)


def _ranged(name: str, hint: Any) -> Any:
    found = RANGES.get(name, hint)
    return found | None if type(None) in getattr(hint, "__args__", ()) and name in RANGES else found


def many(kind: Any) -> Any:
    """Any number of a kind that is made here."""
    return GenericAlias(tuple, (kind, ...))


class Limits(Struct):
    """What may change when a run goes on."""

    seeds: Positive | None = None
    max_fits: Limit | None = None
    max_minutes: Limit | None = None
    repeats: Positive | None = None


class Earlier(Limits, kw_only=True):
    """Limits that held until the given number of trainings had ended."""

    trainings: Count


class Network(Struct):
    """Digests of what is trained."""

    start: str
    code: str
    data: str


class Machine(Struct):
    """Where and how it is computed: sums depend on it."""

    device: str
    threads: Positive


class Goal(Struct):
    """The goal: one of the first four for a fit, the others for a measurement."""

    d: Count | None = None
    target: float | None = None
    max_drop: Size | None = None
    bytes: Count | None = None
    baseline: float | str | None = None
    baseline_lr: Step | None = None
    knob: str | None = None
    ds: tuple[Positive, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    predict: bool | None = None


class Noise(Struct):
    """What a search believed of the noise between seeds when it began: see `subcompress.search.noise`."""

    factor: Limit
    n: Positive
    runs: Count


class Command(Struct):
    """command.json; earlier: limits that were in force before, in order; begun: drawn when the run began, to tell it
    from another run of the same command; noise: what a search began with."""

    recipe: dict[str, Any]
    network: Network
    machine: Machine
    goal: Goal
    base: str | None = None
    limits: Limits = msgspec.field(default_factory=Limits)
    earlier: tuple[Earlier, ...] = ()
    begun: str | None = None
    noise: Noise | None = None


class Died(Struct):
    """A try of a training that died, in journal.json."""

    epochs: Count
    seconds: Size
    note: str


class Moves(Struct):
    """How far tensors move, in journal.json; still: the length of each mask, and the packed mask."""

    sizes: dict[str, tuple[Size, ...]]
    still: dict[str, tuple[Count, str]]
    unread: tuple[str, ...]
    rate: Size
    steps: Count
    seconds: Size
    smoothness: Size | None = None


class Checkpoint(Struct):
    """The description in a checkpoint. losses: the last ones of the training; settings: those of the trained part."""

    key: str
    settings: dict[str, int | float | tuple[float, ...]]
    curve: tuple[float, ...]
    step: Count
    seconds: Size
    lr: Annotated[float, Meta(ge=0, le=MAX_LR)]
    betas: tuple[Beta, Beta]
    losses: tuple[float, ...]
    worst: float
    before: float


class Origin(msgspec.Struct):
    """The part that is read again of the origin of a run, as `fit` was given it."""

    command: str | None = None
    model: str | None = None
    data: str | None = None
    data_dir: str | None = None
    augment: str | None = None
    loss: str | None = None
    metric: str | None = None
    minimize: bool | None = None
    minimise: bool | None = None
    base: str | None = None


class Place(Struct):
    """A training on the frontier, by its place among the trainings."""

    bytes: Count
    value: float
    training: Count


class Summary(Struct):
    """run.json of a fit."""

    fit: dict[str, Any]
    recipe: dict[str, Any]
    date: str
    machine: str
    versions: dict[str, str]
    origin: Origin


class Measurement(Struct):
    """run.json of `dim`, whose result nothing reads again. prediction: of `dim --predict`."""

    dim: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None


def read(path: Path, then: str) -> Any:
    """The plain JSON of a file of subcompress; None if there is none. then: the advice if the file is damaged.

    Raises SubcompressError for what is no file, is too large, or is no JSON.
    """
    if not os.path.lexists(path):  # false, not an error, for names no file can have
        return None
    if not os.path.isfile(path):  # a folder, or what a read would wait for
        raise SubcompressError(f"{path} is not a file: move it away, or {then}")
    try:
        found = json.loads(read_bytes(path, MAX_JSON_BYTES).decode("utf-8"), object_pairs_hook=unique_keys)
    except RecursionError as e:
        raise SubcompressError(f"{path} is nested too deep for a file of subcompress: {then}") from e
    except ValueError as e:
        raise SubcompressError(
            f"{path} is not JSON that subcompress wrote ({' '.join(str(e).split())[:100]}): {then}"
        ) from e
    if found is None:
        raise SubcompressError(f"{path}: expected object, got null: {then}")
    return found


def check(value: Any, kind: Any, where: str, then: str) -> None:
    """Raise SubcompressError, in a line that begins with `where` and the field, unless a value is of that kind."""
    try:
        msgspec.convert(value, kind)
    except RecursionError as e:
        raise SubcompressError(f"{where} is nested too deep for a file of subcompress: {then}") from e
    except (msgspec.ValidationError, OverflowError) as e:
        raise SubcompressError(f"{where}: {_told(value, str(e))}: {then}") from e


def _told(value: Any, text: str) -> str:
    """msgspec's message with the field first, and with the number if one is out of range."""
    text, _, at = text.replace("`", "").partition(" - at $")
    field, text = shown(at.lstrip(".")), shown(text[:1].lower() + text[1:])
    if ", got" not in text and text.startswith("expected") and (given := _at(value, field)) is not None:
        text += f", got {given}"
    return f"{field}: {text}" if field else text


def _at(value: Any, field: str) -> float | str | None:
    """The number or the text of a field; None if it is something else or cannot be found."""
    try:
        for part in re.findall(r"[^.\[\]]+", field):
            value = value[int(part) if isinstance(value, list) else part]
    except (KeyError, ValueError, IndexError, TypeError):
        return None
    return value if isinstance(value, (int, float)) else shown(repr(value))[:40] if isinstance(value, str) else None


def command(path: Path, then: str) -> dict[str, Any] | None:
    """Read command.json, in groups; None if there is none. Raises SubcompressError."""
    held = read(path, then)
    if isinstance(held, dict) and OLD_RECIPE in held:
        held = grouped(held)
    if held is not None:
        check_command(held, str(path), then)
    return held


def check_command(held: Any, where: str, then: str) -> None:
    """Raise SubcompressError unless this is what command.json holds."""
    from subcompress.training.settings import Settings

    check(held, Command, where, then)
    named = ("loss", str), ("metric", str), ("minimise", bool), ("device", str, "")
    later = ("shards", Positive, 1), ("accumulate", Positive, 1), ("checkpointing", bool, False)
    more = *named, ("steps", Positive | None, None), *later
    check(held["recipe"], struct_of(Settings, True, *more), f"{where}: recipe", then)


def grouped(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a command in groups."""
    held = dict(flat)
    named = {"network": "start", "code": "code", "data": "data"}
    goal = ("d", "target", "max_drop", "bytes", "baseline", "ds", "thresholds", "predict")
    limits = ("seeds", "max_fits", "max_minutes", "repeats")
    found: dict[str, Any] = {
        "network": {new: held.pop(old) for old, new in named.items() if old in held},
        "machine": {name: held.pop(name) for name in ("device", "threads") if name in held},
        "goal": {name: held.pop(name) for name in goal if name in held},
        "limits": {name: held.pop(name) for name in limits if name in held},
    }
    found |= {"base": held.pop("base")} if "base" in held else {}
    return found | {"recipe": held}


def journal(path: Path, then: str) -> dict[str, Any]:
    """Read journal.json: trainings by name, empty if there is none. Raises SubcompressError."""
    held = read(path, then)
    if held is None:
        return {}
    check(held, dict[str, dict[str, Any]], str(path), then)
    for key, entry in held.items():
        check(entry, _entry(key), f"{path}: {shown(key)}", then)
        if (told := _other(key, entry)) is not None:
            raise SubcompressError(f"{path}: {shown(key)}: {told}: {then}")
    return held


def _entry(key: str) -> Any:
    """What the journal holds under a name."""
    from subcompress.training.probe import Probe

    if key == "moves":
        return Moves
    if key.endswith("-died"):
        return Died
    # Folders of former versions lack those with a default here.
    return struct_of(
        Probe, True, ("warnings", tuple[str, ...], ()), ("short", bool, False), ("rate", Size | None, None)
    )


def _other(key: str, entry: Mapping[str, Any]) -> str | None:
    """How a training differs from what its name says."""
    named = re.match(r"(?:d(\d+)|direct)-s(\d+)", key)
    if named is None or "value" not in entry:
        return None
    for field, said in (("d", int(named[1] or 0)), ("seed", int(named[2]))):
        if entry[field] != said:
            return f"{field}: expected {said}, got {entry[field]}"
    return None


def summary(path: Path, then: str) -> dict[str, Any] | None:
    """Read run.json; None if there is none. Raises SubcompressError."""
    from subcompress.training.loop import TrainOptions

    held = read(path, then)
    if held is None:
        return None
    if isinstance(held, dict) and held.keys() & {"dim", "prediction"}:
        check(held, Measurement, str(path), then)
        return held
    check(held, Summary, str(path), then)
    check(held["fit"], _fit(), f"{path}: fit", then)
    check(held["recipe"], struct_of(TrainOptions, False), f"{path}: recipe", then)
    for place in held["fit"]["frontier"]:
        if place["training"] >= len(held["fit"]["trainings"]):
            raise SubcompressError(f"{path}: fit: frontier: no training has the number {place['training']}: {then}")
    return held


@cache
def _fit() -> Any:
    """What `Fit.to_json` gives."""
    from subcompress.training.probe import Fit, Probe

    names = ("validation_accuracy", "test_accuracy", "baseline_accuracy")
    return struct_of(
        Fit,
        False,
        ("run", str),
        ("trainings", many(struct_of(Probe, False))),
        ("probes", tuple[dict[str, Any], ...]),
        ("frontier", tuple[Place, ...]),
        *((name, float | None, None) for name in names),
    )


def checkpoint(text: str, where: str, then: str) -> dict[str, Any]:
    """Read the description in a checkpoint's metadata. Raises SubcompressError."""
    try:
        held = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as e:
        raise SubcompressError(f"{where}: its state is not JSON that subcompress wrote: {then}") from e
    check(held, Checkpoint, where, then)
    return dict(held)


def check_origin(origin: Any) -> None:
    """Raise SubcompressError for an origin that a run folder could not give back."""
    check(origin, Origin, "origin", "give text, or leave it out")
