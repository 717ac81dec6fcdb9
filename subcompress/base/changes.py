"""What is changed of a base before a file stands on it: parts of names, and rows of tables.

A file says it after the base's name, behind a mark: `hub:ORG/NAME#_orig_mod>,12:30530`. The digest in the file is that
of the changed tensors, so that nothing else is taken for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from subcompress.operators.forms import NO_COORDINATES, seeded_integers, seeded_scale
from subcompress.tensors.layout import DTYPES
from subcompress.tensors.rounding import rounded

MARK = "#"
"""What stands between the name of a base and its changes."""

_PART = r"[^,>#:]*>[^,>#:]*|[0-9]+:[0-9]+"
_NAMED = re.compile(rf"(.+){MARK}((?:{_PART})(?:,(?:{_PART}))*)", re.DOTALL)

SAMPLE = 4096
"""Rows whose values say how large new ones are."""

_TO_DEVIATION = 1.4826
"""The standard deviation of normal values whose absolute values have the median one."""


@dataclass(frozen=True)
class Changes:
    """renames: (old, new), parts of a name with dots between, `^` for its beginning, each applied in turn wherever it
    occurs; rows: (number of a tensor in the order of the base's own names, rows that it is cut or grows to)."""

    renames: tuple[tuple[str, str], ...] = ()
    rows: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.renames or self.rows)

    def __str__(self) -> str:
        return ",".join([*(f"{a}>{b}" for a, b in self.renames), *(f"{i}:{n}" for i, n in self.rows)])

    @property
    def sound(self) -> bool:
        """Whether they come back as they are from their text."""
        return not self or split(f"x{MARK}{self}") == ("x", self)

    def renamed(self, name: str) -> str:
        """A name with all renames applied, itself where nothing would be left."""
        parts = ["^", *name.split(".")]
        for old, new in self.renames:
            parts = _replaced(parts, old.split("."), new.split(".") if new else [])
        return ".".join(parts[1:] if parts[:1] == ["^"] else parts) or name

    def names(self, names: Iterable[str]) -> dict[str, str]:
        """The base's names and what each becomes; one whose new name is taken keeps its own."""
        own = list(names)
        taken, found = set(own), {}
        for name in own:
            new = self.renamed(name)
            found[name] = name if new in taken else new
            taken.add(found[name])
        return found

    def applied(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The changed tensors of a base, sorted by their names. arrays: its own, sorted."""
        sized, held = dict(self.rows), list(arrays.values())
        names = self.names(arrays)
        found = {
            new: _with_rows(array, sized[i]) if i in sized and array.ndim else array
            for i, (new, array) in enumerate(zip(names.values(), held, strict=True))
        }
        return {name: found[name] for name in sorted(found, key=str.encode)}

    def notes(self, arrays: Mapping[str, np.ndarray]) -> list[str]:
        """What a person should know of them, a line each."""
        names, found = list(arrays), []
        renamed = [f"{a} is {b}" for a, b in self.names(arrays).items() if a != b]
        if renamed:
            found.append(f"{len(renamed)} tensors of the base have another name here: {renamed[0]}")
        for i, n in self.rows:
            had = arrays[names[i]].shape[0]
            what = f"the last {had - n} are left out" if n < had else f"rows {had} to {n - 1} start from a seed"
            found.append(f"warning: the base has {had} rows in {names[i]}, the model {n}: {what}")
        return found


def split(name: str) -> tuple[str, Changes]:
    """The name of a base without its changes, and the changes."""
    if (found := _NAMED.fullmatch(name)) is None:
        return name, Changes()
    renames, rows = [], []
    for part in found[2].split(","):
        if ">" in part:
            old, _, new = part.partition(">")
            renames.append((old, new))
        else:
            number, _, count = part.partition(":")
            rows.append((int(number), int(count)))
    return found[1], Changes(tuple(renames), tuple(rows))


def _replaced(parts: list[str], old: list[str], new: list[str]) -> list[str]:
    found, at = [], 0
    while at < len(parts):
        here = parts[at : at + len(old)] == old
        found += new if here else parts[at : at + 1]
        at += len(old) if here else 1
    return found


def _with_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """The first rows of a tensor; those that it lacks are random numbers as large as the others, the same everywhere:
    zeros in a vector (a bias), and where it holds no real numbers. Tensors that are tied stay equal."""
    if rows <= len(array):
        return array[:rows]
    shape = (rows - len(array), *array.shape[1:])
    more = np.zeros(shape, array.dtype)
    if array.ndim > 1 and array.dtype in (DTYPES[name] for name in ("F32", "F16", "BF16", "F64")):
        sample = np.abs(rounded(array[:SAMPLE], DTYPES["F32"])).reshape(-1)
        middle = float(np.partition(sample, len(sample) // 2)[len(sample) // 2]) if len(sample) else 0.0
        scale = seeded_scale((_TO_DEVIATION * middle) ** 2) if np.isfinite(middle) else 0.0
        integers = seeded_integers(len(array), more.size).rows(NO_COORDINATES, 0, more.size)
        more = rounded(scale * integers.astype(np.float64), array.dtype).reshape(shape)
    return np.concatenate([array, more])


def window(old: str, new: str) -> tuple[str, str] | None:
    """The shortest rename that makes the one name the other, with a part before it that both have."""
    a, b = ["^", *old.split(".")], ["^", *new.split(".")]
    while a and b and a[-1] == b[-1] and len(a) > 1 and len(b) > 1:
        a.pop()
        b.pop()
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    found = ".".join(a[same - 1 :]), ".".join(b[same - 1 :])
    return None if found[0] == found[1] else found
