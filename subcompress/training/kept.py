"""What is kept of a training that has ended: the record of its file, and that file's bytes, cut where they are too
many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from subcompress import format
from subcompress.data import Data
from subcompress.format.record import Record
from subcompress.subspace.module import Subspace
from subcompress.training.cutting import cut
from subcompress.training.tasks import Task

Sizes = Callable[[Record], tuple[int, int]]
"""The bytes of a record's file without the coordinates, and those of the coordinates with running statistics."""


@dataclass(frozen=True)
class Kept:
    """The result of a training: its record, if it can be packed; the bytes of the file without the coordinates, and of
    the coordinates; the bytes of running statistics among the latter; by how many bytes the file was cut, and how many
    coordinates were made smaller for this."""

    record: Record | None = None
    other: int = 0
    coded: int = 0
    statistics: int = 0
    cut: int = 0
    changed: int = 0

    @property
    def note(self) -> str:
        """How the file was cut, empty if it was not."""
        return f"cut by {self.cut} bytes: {self.changed} coordinates made smaller" if self.cut else ""


def sizes_for(data: Data, task: Task) -> Sizes:
    """The sizes of files that will hold the facts of these data, and the accuracy where the task has one."""
    accuracy = 0.5 if task.is_accuracy else None  # any accuracy from 1.3 % on takes as much

    def sizes(record: Record) -> tuple[int, int]:
        whole = format.to_bytes(replace(record, facts=data.facts, test_accuracy=accuracy))
        coded = format.parse(whole).ledger.get("coordinates", 0)
        return len(whole) - coded, coded

    return sizes


def kept_of(subspace: Subspace, sizes: Sizes, within: int | None) -> Kept:
    """The record of a trained subspace, its coordinates made smaller where its file would be longer than `within`
    bytes: the subspace is changed then. The file may still be longer, where it would be with no coordinates at all."""
    record = subspace.record()
    other, coded = sizes(record)
    statistics = coded - subspace.coded_bytes()  # they are in the same stream
    whole, changed = other + coded, 0
    if within is None or whole <= within:
        return Kept(record, other, coded, statistics)
    for slack in range(4):
        changed += cut(subspace, within - other - statistics - slack)
        record = subspace.record()
        other, coded = sizes(record)
        if other + coded <= within:
            break
    return Kept(record, other, coded, statistics, whole - other - coded, changed)
