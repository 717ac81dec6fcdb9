"""Changes to a base that make it fit a network: renamed tensors, and tables cut or extended to another number of rows.

A file appends them to the base's name after a mark: `hub:ORG/NAME#_orig_mod>,12:30530`. The digest in the file is that
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
"""The separator between the name of a base and its changes."""

_PART = r"[^,>#:]*>[^,>#:]*|[0-9]+:[0-9]+"
_NAMED = re.compile(rf"(.+){MARK}((?:{_PART})(?:,(?:{_PART}))*)", re.DOTALL)

SAMPLE = 4096
"""The number of rows from which the scale of new rows is estimated."""

_TO_DEVIATION = 1.4826
"""The standard deviation of normally distributed values whose absolute values have the median 1."""


@dataclass(frozen=True)
class Changes:
    """Renames and row counts, applied to a base.

    renames: (old, new), dotted parts of a name, where `^` is its beginning; each is applied in turn wherever it occurs.
    rows: (number of a tensor in the order of the base's own names, the number of rows that it is cut or extended to).
    """

    renames: tuple[tuple[str, str], ...] = ()
    rows: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.renames or self.rows)

    def __str__(self) -> str:
        return ",".join([*(f"{a}>{b}" for a, b in self.renames), *(f"{i}:{n}" for i, n in self.rows)])

    @property
    def is_valid(self) -> bool:
        """Whether parsing their text gives the same changes back."""
        return not self or split_changes(f"x{MARK}{self}") == ("x", self)

    def renamed(self, name: str) -> str:
        """Apply all renames to a name; the name itself if nothing would be left of it."""
        parts = ["^", *name.split(".")]
        for old, new in self.renames:
            parts = _replace_parts(parts, old.split("."), new.split(".") if new else [])
        return ".".join(parts[1:] if parts[:1] == ["^"] else parts) or name

    def names(self, names: Iterable[str]) -> dict[str, str]:
        """Map the base's names to their new names; a tensor whose new name is taken keeps its own."""
        own = list(names)
        taken, renamed = set(own), {}
        for name in own:
            new = self.renamed(name)
            renamed[name] = name if new in taken else new
            taken.add(renamed[name])
        return renamed

    def applied(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the changed tensors of a base, sorted by name. arrays: its own tensors, sorted."""
        sized, originals = dict(self.rows), list(arrays.values())
        names = self.names(arrays)
        changed = {
            new: _resize_rows(array, sized[i]) if i in sized and array.ndim else array
            for i, (new, array) in enumerate(zip(names.values(), originals, strict=True))
        }
        return {name: changed[name] for name in sorted(changed, key=str.encode)}

    def notes(self, arrays: Mapping[str, np.ndarray]) -> list[str]:
        """Describe the changes to the user, one line each."""
        names, lines = list(arrays), []
        renamed = [f"{a} is {b}" for a, b in self.names(arrays).items() if a != b]
        if renamed:
            lines.append(f"{len(renamed)} tensors of the base have another name in the model: {renamed[0]}")
        for i, n in self.rows:
            before = arrays[names[i]].shape[0]
            what = (
                f"the last {before - n} are left out" if n < before else f"rows {before} to {n - 1} start from a seed"
            )
            lines.append(f"warning: the base has {before} rows in {names[i]}, the model {n}: {what}")
        return lines


def split_changes(name: str) -> tuple[str, Changes]:
    """Split the name of a base into the name without its changes, and the changes."""
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


def _replace_parts(parts: list[str], old: list[str], new: list[str]) -> list[str]:
    result, at = [], 0
    while at < len(parts):
        matches = parts[at : at + len(old)] == old
        result += new if matches else parts[at : at + 1]
        at += len(old) if matches else 1
    return result


def _resize_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Cut a tensor to its first rows, or extend it with random rows of the same scale, equal on every machine.

    New rows are zero in a vector (a bias) and in tensors that hold no real numbers. Tied tensors stay equal.
    """
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


def shortest_rename(old: str, new: str) -> tuple[str, str] | None:
    """Return the shortest rename that turns one name into the other, with one common part before it; None if none is
    needed."""
    a, b = ["^", *old.split(".")], ["^", *new.split(".")]
    while a and b and a[-1] == b[-1] and len(a) > 1 and len(b) > 1:
        a.pop()
        b.pop()
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rename = ".".join(a[common - 1 :]), ".".join(b[common - 1 :])
    return None if rename[0] == rename[1] else rename
