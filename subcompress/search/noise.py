"""What a search believes of the noise between seeds, before its own trainings tell.

A folder that holds several runs knows how much trainings on this machine vary. A search begins with that belief, and
its run folder records it, so that a search that goes on, or that another machine joins, decides alike.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.search.knobs import Coordinates
from subcompress.training import run, schemas

NOISE = 0.10
"""Standard deviation of log(error) between seeds, until more is known, at an accuracy of 0.9 or more:
benchmarks/search.py shows 0.03 to 0.11."""

WEIGHT = 3
"""How many repeated trainings this belief is worth."""

MOST_WEIGHT = 9
"""The most repeated trainings that a belief may be worth, because other tasks differ from this one."""

NEARBY = 1.4
"""The factor in the turn of a knob within which trainings are neighbors: the line carries one to the other with an
error that is small beside their noise."""

ONE_RUN = 0.5, 2.0
"""Bounds of the noise that is learned from one run, in units of the expected noise. An unusual task, or a run that went
wrong, says little about other tasks."""

FOLDERS = 64
"""The most runs that are read."""

MISSES = 0.005, 0.5
"""Shares of wrong answers between which trainings tell of noise: with fewer it is that of counting, and with more they
have hardly learned."""


def expected_noise(accuracy: float) -> float:
    """`NOISE` at an accuracy. Accuracies vary between seeds like shares of examples, sqrt(e (1 - e)), so that log(e)
    varies like sqrt((1 - e) / e): less where the error e is large."""
    return NOISE * min(1.0, math.sqrt(accuracy / (1 - accuracy)) / 3) if 0 < accuracy < 1 else NOISE


@dataclass(frozen=True)
class Belief:
    """The noise between seeds, in units of the expected one; how many repeated trainings that is worth; and the runs
    that it was learned from."""

    factor: float = 1.0
    n: int = WEIGHT
    runs: int = 0

    def to_json(self) -> dict[str, Any]:
        """What command.json holds."""
        return {"factor": self.factor, "n": self.n, "runs": self.runs}

    @property
    def words(self) -> str:
        """A line for the log."""
        return (
            f"noise between seeds: {self.factor:.2f} of the usual, learned from {self.runs} other "
            f"run{'s' if self.runs > 1 else ''} in the folder above"
        )


USUAL = Belief()


def clusters(points: Iterable[tuple[float, float]], slope: float) -> Iterator[list[float]]:
    """Neighbors among points (log(turn), log(error)): the log(error) of each, carried along the slope."""
    group: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if group and x - group[0][0] > math.log(NEARBY):
            yield [other - slope * at for at, other in group]
            group = []
        group.append((x, y))
    if group:
        yield [y - slope * x for x, y in group]


def spread(points: Iterable[tuple[float, float]], slope: float) -> tuple[float, int]:
    """The sum of squares among neighbors, about their means, and its degrees of freedom."""
    groups = [group for group in clusters(points, slope) if len(group) > 1]
    return sum(statistics.variance(g) * (len(g) - 1) for g in groups), sum(len(g) - 1 for g in groups)


def learned(folder: Path, command: dict[str, Any]) -> Belief:
    """The belief from the runs in the same folder as a run, of other networks or data with the same metric.

    Runs of the same network and data do not count: a search that is made again gives the same file.
    """
    squares, n, found = float(WEIGHT), WEIGHT, 0
    for other in _beside(folder):
        try:
            held = schemas.command(other / run.COMMAND, run.DISCARD)
            journal = schemas.journal(other / run.JOURNAL, run.DISCARD)
        except SubcompressError:
            continue  # it is damaged, or of a version that is not known yet
        if held is None or not _tells(held, command):
            continue
        more, times = _noise_of(journal.values())
        bounds = [times * factor**2 for factor in ONE_RUN]
        squares, n, found = squares + min(max(more, bounds[0]), bounds[1]), n + times, found + (times > 0)
    return Belief(round(math.sqrt(squares / n), 3), min(n, MOST_WEIGHT), found) if found else USUAL


def _beside(folder: Path) -> list[Path]:
    """Other run folders in the folder that holds this one, by name."""
    try:
        paths = sorted(folder.parent.iterdir())
    except OSError:
        return []
    return [p for p in paths if p.name != folder.name and os.path.isfile(p / run.COMMAND)][:FOLDERS]


def _tells(other: dict[str, Any], command: dict[str, Any]) -> bool:
    """Whether a run tells something of the noise of another command."""
    metric = command["recipe"].get("metric")
    ours, theirs = command["network"], other["network"]
    same_metric = str(metric).endswith("accuracy") and other["recipe"].get("metric") == metric
    return same_metric and any(ours.get(name) != theirs.get(name) for name in ("start", "data"))


def _noise_of(entries: Iterable[dict[str, Any]]) -> tuple[float, int]:
    """The squares of what trainings of a journal differ from their neighbors by, in units of the expected noise, and
    the degrees of freedom."""
    squares, n = 0.0, 0
    for point in _groups([e for e in entries if _counts(e)]):
        usual = expected_noise(statistics.fmean(e["value"] for e in point))
        more, times = spread(((math.log(e["d"]), math.log(1 - e["value"])) for e in point), Coordinates.slope[0])
        squares, n = squares + more / usual**2, n + times
    return squares, n


def _groups(entries: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Trainings of neighboring d's, those of one price together."""
    group: list[dict[str, Any]] = []
    for entry in sorted(entries, key=lambda e: (e.get("rate") or 0.0, e["d"])):
        first = group[0] if group else entry
        if entry.get("rate") != first.get("rate") or entry["d"] > first["d"] * NEARBY:
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _counts(entry: dict[str, Any]) -> bool:
    """Whether a journal's entry is a whole training in coordinates that has learned something."""
    whole = bool(entry.get("d")) and not (entry.get("short") or entry.get("warm") or entry.get("stopped"))
    return whole and MISSES[0] < 1 - entry.get("value", 1.0) < MISSES[1]


__all__ = ["NEARBY", "NOISE", "USUAL", "Belief", "expected_noise", "learned", "spread"]
