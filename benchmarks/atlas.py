"""An atlas of intrinsic dimension: how many coordinates a task takes, whatever its network.

    python benchmarks/atlas.py [TASK...] [--budget MINUTES] [--seeds 3] [-o benchmarks/results] [--runs runs/atlas]

A row a task of examples/atlas. Direct training: the mean of the seeds, with the step that the task's file gives.
d_int90: the d at which float32 coordinates reach 0.9 of it (a loss: 1 / 0.9 of it), and the d at which they reach the
absolute threshold of the task, each between two neighbors of a ladder of d's whose ratio is the square root of 2, where
all seeds are trained; the interval is the bootstrap's. File: the smallest that the search of `fit` finds at 95 % of
direct training. All of it is on the validation split. Bound: on the error for new examples, from the bytes of the file
alone (see `subcompress info --bound`). Each network is given to the tool as its file makes it.

A task is kept in TASK.json of the output's folder atlas, and is not measured again. --runs holds the trainings, so that
an interrupted task goes on. --budget: no task begins after so many minutes. --table: write table and picture of what
there is. With -o, atlas.md and atlas.png are written after each task. One thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from atlas import evolution, measure
from atlas.picture import drawn
from atlas.row import HEADER, Row
from atlas.task import Task, names, task_of

from subcompress import SubcompressError


def table(rows: list[Row]) -> Iterator[str]:
    """The lines of atlas.md."""
    yield "| " + " | ".join(HEADER) + " |"
    yield "|---" * len(HEADER) + "|"
    yield from (row.markdown() for row in rows)
    exported = sum(not row.onnx.startswith("no") for row in rows)
    unfolding = sum(row.onnx.startswith("self-unfolding") for row in rows)
    minutes = sum(row.seconds for row in rows) / 60
    yield ""
    yield (
        f"{len(rows)} tasks, {exported} exported to ONNX, of which {unfolding} unfold themselves; "
        f"{minutes:.0f} minutes of one core in all."
    )
    if missing := sorted(set(names()) - {row.name for row in rows}):
        yield ""
        yield f"Tasks of `examples/atlas/` that were not measured: {', '.join(missing)}."
    yield ""
    for row in rows:
        yield f"- {row.name}: {row.title} Elsewhere: {row.literature}"
        yield from (f"    - {line}" for line in (row.remark, *row.warnings) if line)


def written(folder: Path, rows: list[Row]) -> None:
    """The table and the picture."""
    lines = ["# Atlas of intrinsic dimension", "", *table(rows)]
    (folder / "atlas.md").write_text("\n".join(lines) + "\n")
    drawn(rows, folder / "atlas.png")


def measured(task: Task, runs: Path, seeds: int) -> Row:
    """The row of a task. Its seconds, of the processor, count what interrupted calls took before."""
    folder = runs / task.name
    folder.mkdir(parents=True, exist_ok=True)
    spent, began = folder / "seconds.txt", time.process_time()
    before = float(spent.read_text()) if spent.exists() else 0.0
    try:
        row = (measure if task.evolve is None else evolution).row_of(task, folder, seeds)
    finally:
        spent.write_text(f"{before + time.process_time() - began:.1f}\n")
    row.seconds = before + time.process_time() - began
    return row


def held(folder: Path) -> list[Row]:
    """The rows of the tasks that are finished."""
    return [Row.read(path) for name in names() if (path := folder / "atlas" / f"{name}.json").exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(names()))
    parser.add_argument("--budget", type=float, default=90.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/atlas"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/atlas"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks, began = [task_of(name) for name in options.tasks or names()], time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    for task in () if options.table else tasks:
        path = options.output / "atlas" / f"{task.name}.json"
        if path.exists():
            continue
        if time.monotonic() - began > 60 * options.budget:
            print(f"{task.name}: not begun, {options.budget:g} minutes are over", flush=True)
            continue
        try:
            row = measured(task, options.runs, options.seeds)
        except SubcompressError as e:
            print(f"{task.name}: {e}", flush=True)
            continue
        row.write(path)
        print(row.markdown(), flush=True)
        written(options.output, held(options.output))
    if rows := held(options.output):
        written(options.output, rows)


if __name__ == "__main__":
    main()
