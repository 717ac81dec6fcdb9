"""compare: our file against other ways to ship the same network, in one run, with the user's model and data.

Rows are kept in the run folder as they come; the same command goes on where it was.

    compare/             the files that peers wrote
    compare.json         the rows, and what was skipped and why
    compare.md           the same as a table
    compare.png          bytes against the metric
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from subcompress import format
from subcompress.data import Data
from subcompress.data.splits import as_data
from subcompress.errors import SubcompressError
from subcompress.peers import PEERS, Bench, Row, SkippedError, schemas
from subcompress.peers.charts import comparison_chart
from subcompress.subspace.copying import copied
from subcompress.subspace.standing import standing
from subcompress.subspace.unwrapping import fitting
from subcompress.support.bars import with_bars
from subcompress.support.charts import Chart
from subcompress.support.files import write_bytes
from subcompress.support.listener import Listener
from subcompress.support.suggestions import suggestion
from subcompress.support.tables import html_png, html_table
from subcompress.training import run
from subcompress.training.loop import TrainOptions
from subcompress.training.machine import machine
from subcompress.training.schemas import check, many, read, struct_of
from subcompress.training.tasks import Loss, Metric, Task

JSON, MARKDOWN, PLOT = "compare.json", "compare.md", "compare.png"

WIDTH = 750
"""The width of the plot in a notebook, in pixels."""


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        digest: The digest of the weights in our file.
        title: Network and data.
        metric: The name of the metric.
        rows: One for each method: bytes of the whole file, value of the metric, seconds.
        skipped: The methods that were left out, and why.
    """

    digest: str
    title: str
    metric: str
    minimise: bool
    epochs: int
    rows: tuple[Row, ...]
    skipped: dict[str, str]

    def __repr__(self) -> str:
        lines = [f"Comparison of {len(self.rows)} methods, {self.title}: bytes and test {self.metric}"]
        lines += [f"  {row.name}: {row.bytes:,} bytes, {row.value:.4f}" for row in self.ordered]
        return "\n".join([*lines, *([f"  skipped: {', '.join(self.skipped)}"] if self.skipped else [])])

    def _repr_html_(self) -> str:
        """The table and the plot, for a notebook."""
        ours = self.rows[0].bytes if self.rows else 1
        head = ("", "method", "bytes", "times ours", f"test {self.metric}", "seconds", "")
        rows = [
            (i, r.name, f"{r.bytes:,}", f"{r.bytes / ours:,.1f}", f"{r.value:.4f}", f"{r.seconds:.0f}", r.note)
            for i, r in enumerate(self.ordered, 1)
        ]
        told = [f"<p>Skipped: {escape(name)}, {escape(why)}.</p>" for name, why in self.skipped.items()]
        plot = [html_png(self._chart().png(200), WIDTH, "bytes against the metric")] if self.rows else []
        return "".join([f"<p><b>{escape(self.title)}</b></p>", html_table(rows, head), *told, *plot])

    def _chart(self) -> Chart:
        return comparison_chart(self.ordered, self.metric, legend=True)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Comparison:
        """What `to_json` gave."""
        return cls(**{**held, "rows": tuple(Row(**row) for row in held["rows"])})

    def markdown(self) -> str:
        """A table with a row a method, our file first, then by bytes."""
        ours = self.rows[0].bytes if self.rows else 1
        lines = [
            f"{self.title}: whole files, {self.metric} on the test split, {self.epochs} epochs each",
            "",
            f"| | method | bytes | times ours | test {self.metric} | seconds | |",
            "|---|---|---|---|---|---|---|",
        ]
        for i, row in enumerate(self.ordered, 1):
            times = f"{row.bytes / ours:,.1f}" if row is not self.rows[0] else ""
            name = f"**{row.name}**" if row is self.rows[0] else row.name
            lines.append(
                f"| {i} | {name} | {row.bytes:,} | {times} | {row.value:.4f} | {row.seconds:.0f} | "
                f"{row.note.replace('|', '/')} |"
            )
        lines += ["", *(f"Skipped: {name}, {why}." for name, why in self.skipped.items())]
        return "\n".join(lines).rstrip() + "\n"

    @property
    def ordered(self) -> list[Row]:
        """Our file, then the others by bytes."""
        return [*self.rows[:1], *sorted(self.rows[1:], key=lambda row: row.bytes)]


@with_bars
def compare(
    run_folder: str | Path,
    model: nn.Module,
    data: Data | Sequence[Dataset[Any]],
    *,
    loss: str | Loss = "cross-entropy",
    metric: str | Metric | None = None,
    minimize: bool | None = None,
    minimise: bool | None = None,
    base: Any = None,
    peers: Sequence[str] | None = None,
    title: str = "",
    threads: int | None = None,
    restart: bool = False,
    listener: Listener | None = None,
) -> Comparison:
    """Compare the file of a finished run with other ways to ship its network.

    Each other way is trained for as many epochs as the run was. The test split is read once for each, after its
    training.

    Args:
        run_folder: A folder that `fit` wrote.
        model: The network of the run.
        data: The data of the run, as for `fit`.
        loss: As given to `fit`.
        metric: As given to `fit`.
        minimize: As given to `fit`.
        minimise: The former name of `minimize`.
        base: The base of the run, if it has one. By default the one that it was trained on; the others start there too.
        peers: Names of the ways to compare with. By default all; one that cannot be had is skipped, with the reason.
        title: The title of table and plot.
        threads: CPU threads that torch uses.
        restart: Discard results of an earlier call.
        listener: Receives progress; see `Listener`. By default, progress bars in a terminal and in a notebook.

    Returns:
        The table, which is also written to compare.md, compare.json and compare.png in the run folder.

    Raises:
        SubcompressError: The run is not finished, or is not of this network.
    """
    listener, path = listener or Listener(), Path(run_folder)
    names = list(PEERS) if peers is None else ["ours", *(p for p in peers if p != "ours")]
    if unknown := [name for name in names if name not in PEERS]:
        raise SubcompressError(f"--peers takes {', '.join(PEERS)}; got {unknown[0]!r}{suggestion(unknown[0], PEERS)}")
    task = Task.suiting(data := as_data(data), loss, metric, minimise if minimize is None else minimize)
    bench = _bench(path, model, data, task, base, listener)
    title = title or f"{type(bench.model).__name__}, D = {run.fit_of(path).D:,}"
    with machine("cpu", threads, bench.recipe.seed), run.locked(path, "compare"):
        run.make_folder(bench.folder)
        found = _Table(path, bench, title, restart)
        for name in names:
            found.measure(name)
        return found.finish(names)


def _bench(path: Path, model: nn.Module, data: Data, task: Task, base: Any, listener: Listener) -> Bench:
    """What the ways to ship the network of a run are measured with. Raises SubcompressError for a network or a metric
    that is not the run's."""
    record, fit = run.load(path, base), run.fit_of(path)
    model = fitting(model, record.layout)
    if record.base is not None:
        model = standing(model, record.base)
    data = task.prepare_labels(data)
    if task.metric_name != fit.metric:
        raise SubcompressError(
            f"the run was judged by {fit.metric}, but this comparison by {task.metric_name}: give --loss "
            "and --metric as to fit"
        )
    recipe = replace(TrainOptions(**run.summary(path)["recipe"]), shards=1)  # others train in whole batches
    size = len(format.to_bytes(record))
    return Bench(copied(model, "cpu"), data, task, record, size, fit.seconds, recipe, path / run.PEERS, listener)


class _Table:
    """Rows that are kept as they come, under the file and the data that they belong to."""

    def __init__(self, path: Path, bench: Bench, title: str, restart: bool) -> None:
        self.path, self.bench, self.title = path, bench, title
        self.key: dict[str, Any] = {
            "digest": bench.record.digest.hex(),
            "bytes": bench.size,
            "data": bench.data.digest(),
        }
        held = None if restart else schemas.table(bench.folder / JSON, "--restart compares again")
        same = held is not None and held["key"] == self.key
        self.found: dict[str, Any] = held["found"] if held is not None and same else {}
        if not same:
            bench.forget()

    def measure(self, name: str) -> None:
        """One peer, unless it is there already; one that was skipped is tried again."""
        if "rows" in self.found.get(name, {}):
            return
        try:
            rows = PEERS[name](self.bench)
        except SkippedError as e:
            why = " ".join(str(e).split())
            self.found[name] = {"skipped": why}
            self.bench.listener.note(f"{name}: skipped, {why}")
        else:
            self.found[name] = {"rows": [asdict(row) for row in rows]}
            for row in rows:
                self.bench.listener.note(f"{row.name}: {row.bytes:,} bytes, {row.value:.4f}, {row.seconds:.0f} s")
        held = {"key": self.key, "found": self.found}
        write_bytes(self.bench.folder / JSON, (json.dumps(held, indent=2) + "\n").encode())

    def finish(self, names: list[str]) -> Comparison:
        """The table of those names, written."""
        rows = [Row(**row) for name in names for row in self.found[name].get("rows", ())]
        skipped = {name: self.found[name]["skipped"] for name in names if "skipped" in self.found[name]}
        task = self.bench.task
        result = Comparison(
            self.key["digest"],
            self.title,
            task.metric_name,
            task.minimise,
            self.bench.recipe.epochs,
            tuple(rows),
            skipped,
        )
        write_bytes(self.path / JSON, (json.dumps(result.to_json(), indent=2) + "\n").encode())
        write_bytes(self.path / MARKDOWN, result.markdown().encode())
        write_bytes(self.path / PLOT, result._chart().png())
        return result


def read_comparison(path: Path, then: str) -> dict[str, Any] | None:
    """Read compare.json; None if there is none. Raises SubcompressError."""
    held = read(path, then)
    if held is not None:
        rows = ("rows", many(struct_of(Row, False)))
        check(held, struct_of(Comparison, True, rows), str(path), then)
    return held


__all__ = ["Comparison", "compare"]
