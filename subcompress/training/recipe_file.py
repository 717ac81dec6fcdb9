"""Recipe files: the options of a fit as TOML, which `fit --recipe` reads and every run folder holds.

    [network]  model, data, data_dir and augment, by the names that the command line takes
    [recipe]   the fields of `Recipe`
    [goal]     the fields of `Goal`
    [base]     the fields of `Base`
    [machine]  the fields of `Machine`

Every section and every field may be left out.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from subcompress.errors import SubcompressError, one_line, shown
from subcompress.support.files import read_bytes, write_bytes
from subcompress.support.suggestions import suggestion
from subcompress.training.options import GROUPS, Goal, Machine, Options, Recipe, options_of
from subcompress.training.run import RECIPE

MAX_BYTES = 1 << 16
"""The most bytes of a recipe file."""

HEADER = """\
# The options of this run. Give them again: subcompress fit --recipe RUN/recipe.toml -o FOLDER
# An option on the command line replaces the one here. Paths are relative to the folder where the command runs.
"""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What to train and on what, by name: None if the file does not say."""

    model: str | None = None
    data: str | None = None
    data_dir: str | None = None
    augment: str | None = None


SECTIONS: dict[str, type[Any]] = {"network": Network, **GROUPS}

TYPES: dict[str, Any] = {
    "loss": str,
    "metric": str,
    "minimize": bool,
    "checkpointing": bool,
    "drop": tuple[str, ...],
    "new": tuple[str, ...],
    "baseline": float | str,
    **dict.fromkeys(
        (
            *("bits", "epochs", "steps", "batch_size", "shards", "accumulate", "seed"),
            *("d", "bytes", "seeds", "threads", "workers", "jobs"),
        ),
        int,
    ),
    **dict.fromkeys(
        ("rate", "lr", "min_accuracy", "max_drop", "target", "baseline_lr", "max_fits", "max_minutes"), float
    ),
}
"""Field -> its type in TOML. Fields that are not named here are text."""

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file says."""

    network: Network
    options: Options


def read(path: str | Path) -> RecipeFile:
    """Read a recipe file. Raises SubcompressError as `fields_of` does."""
    values = fields_of(path)
    objects = {
        section: kind(**{name: value for (at, name), value in values.items() if at == section})
        for section, kind in SECTIONS.items()
    }
    network = objects.pop("network")
    return RecipeFile(network, Options(**objects))


def fields_of(path: str | Path) -> dict[tuple[str, str], Any]:
    """The values of a recipe file by section and name.

    Raises:
        SubcompressError: The file is not there or is no TOML; a section or a field that there is not; a value of
            another type.
    """
    path = Path(path)
    try:
        found = tomllib.loads(read_bytes(path, MAX_BYTES).decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise SubcompressError(f"{path} is not a recipe file, because it is not valid TOML ({one_line(e, 100)})") from e
    values = {}
    for section, held in found.items():
        _check_section(path, section, held)
        for name, value in held.items():
            values[section, name] = tuple(value) if isinstance(value, list) else value
    return values


def _check_section(path: Path, section: str, held: Any) -> None:
    """Raise SubcompressError unless the section and its fields are known, and its values of their types."""
    if section not in SECTIONS:
        names = ", ".join(f"[{name}]" for name in SECTIONS)
        raise SubcompressError(
            f"{path}: the sections of a recipe file are {names}; got {shown(section)}{suggestion(section, SECTIONS)}"
        )
    if not isinstance(held, dict):
        raise SubcompressError(f"{path}: {section} is a section: write [{section}] on its own line")
    known = [f.name for f in fields(SECTIONS[section])]
    for name, value in held.items():
        if name not in known:
            more = suggestion(name, known) or "; it has " + ", ".join(known)
            raise SubcompressError(f"{path}: [{section}] has no option {shown(name)}{more}")
        if "\0" in str(value):
            raise SubcompressError(f"{path}: [{section}] {name} must be text without null characters")
        kind = TYPES.get(name, str)
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as e:
            words = WORDS.get(kind, "a number or text" if name == "baseline" else "a list of texts")
            raise SubcompressError(f"{path}: [{section}] {name} must be {words}; got {shown(repr(value))}") from e


def given_options(
    caller: str,
    keywords: Mapping[str, Any],
    *,
    recipe: Recipe | str | Path | None,
    goal: Goal | None,
    base: Any,
    machine: Machine | None,
) -> Options:
    """See `options_of`; the recipe may be a recipe file, whose other sections hold where no object is given."""
    if isinstance(recipe, (str, Path)):
        found = read(recipe).options
        recipe, goal = found.recipe, goal or found.goal
        base, machine = found.base if base is None else base, machine or found.machine
    return options_of(caller, keywords, recipe=recipe, goal=goal, base=base, machine=machine)


def write(folder: Path, options: Options, origin: Mapping[str, Any], threads: int) -> None:
    """Write the recipe file of a run folder.

    Args:
        folder: The run folder.
        options: What was asked for.
        origin: The names of network, data, loss, metric and base on the command line, where they came from there.
        threads: The CPU threads that torch uses: sums depend on their number.
    """
    named = {name: origin[name] for name in ("loss", "metric") if origin.get(name)}
    recipe = replace(options.recipe, **named)
    base = replace(options.base, source=origin.get("base") or options.base.source)
    machine = replace(options.machine, threads=threads)
    network = Network(**{f.name: origin.get(f.name) for f in fields(Network)})
    objects: dict[str, Any] = {
        "network": network,
        "recipe": recipe,
        "goal": options.goal,
        "base": base,
        "machine": machine,
    }
    sections, unnamed = {}, []
    for section, held in objects.items():
        values = {f.name: getattr(held, f.name) for f in fields(held)}
        sections[section] = {name: _plain(value) for name, value in values.items() if _can_be_written(value)}
        unnamed += [name for name, value in values.items() if value is not None and not _can_be_written(value)]
    sections = {section: held for section, held in sections.items() if held and (section != "base" or "source" in held)}
    lines = HEADER + "".join(f"# {name} is an object of Python: give it again.\n" for name in unnamed)
    write_bytes(folder / RECIPE, (lines + "\n" + tomli_w.dumps(sections)).encode())


def _can_be_written(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, Path, tuple, list))


def _plain(value: Any) -> Any:
    """The value as TOML has it."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


__all__ = ["Network", "RecipeFile", "given_options", "read", "write"]
