"""The atlas: every task can be built, trained for a step and written, and its rows are read back."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from atlas.exporting import exported
from atlas.picture import drawn
from atlas.remarks import Findings, remark_of, started
from atlas.row import HEADER, Crossing, Row
from atlas.task import names, task_of
from families.direct import made
from families.family import rows, stacked

import subcompress
from subcompress.training.dimension import Dimension, Point, absolute, estimate
from subcompress.training.probe import Fit

TRAINED = [name for name in names() if name != "pendulum"]
QUICK = [pytest.param(n, marks=pytest.mark.slow) if n == "bridge" else n for n in TRAINED]
"""The data of the bridge take seconds."""

ROW = Row(
    "graph",
    "A message-passing network.",
    "70 to 90 %.",
    "accuracy",
    False,
    5000,
    [0.9, 0.92, 0.91],
    Crossing(0.819, 60.0, "60", "50 to 70"),
    Crossing(0.8, 55.0, "55", "45 to 66"),
    300,
    200,
    3.1,
    [0.87, 0.88],
    True,
    1200,
    0.7,
    0.1,
    "self-unfolding, 7,000 bytes",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_task_takes_a_step(name):
    """Its network takes its data, the loss has gradients, and the metric is one number, the same in every call."""
    task = task_of(name)
    assert task.title and task.literature and task.lr > 0
    net, splits = made(task.family, 0), [stacked(split) for split in task.family.load()]
    assert min(len(y) for _, y in splits) >= 30
    task.family.loss_of(net, rows(splits[0], torch.arange(16))).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    few = rows(splits[1], torch.arange(30))
    value = task.family.value(net, few)
    assert math.isfinite(value) and value == task.family.value(net, few)
    lines = (ROOT / "examples" / "atlas" / f"{name}.py").read_text().splitlines()
    assert 40 <= len(lines) <= 125 and "https://arxiv.org" in "\n".join(lines[:6])


def small(name: str):
    """The task with a few examples."""
    task = task_of(name)
    splits = [torch.utils.data.Subset(split, range(64)) for split in task.family.load()]
    return replace(task, family=replace(task.family, load=lambda: splits, epochs=1, batch_size=32))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_task_fits_and_its_file_says_how_it_exports(name, tmp_path):
    task = small(name)
    subcompress.fit(task.family.make_net, task.family.load(), tmp_path / "run", d=4, **task.options)
    subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors")
    told = exported(tmp_path / "net.safetensors", made(task.family, 0), tmp_path)
    assert told.startswith(("self-unfolding, ", "plain, ", "no: "))


def test_evolution_writes_what_it_tried(tmp_path, monkeypatch):
    task = task_of("pendulum")
    module = sys.modules["atlas_of_pendulum"]
    for name, value in (("MOST", 1), ("LONGEST", 5), ("TESTED", 2), ("JUDGED", 2)):
        monkeypatch.setattr(module, name, value)
    assert 0 < task.evolve(2, 0, tmp_path / "net.safetensors") <= 1
    assert subcompress.info(tmp_path / "net.safetensors")["d"] == 2


def test_an_unknown_task_is_named():
    with pytest.raises(SystemExit, match=r"task must be one of .*; got 'chess'"):
        task_of("chess")


def test_a_row_is_read_back_and_has_a_cell_for_each_heading(tmp_path):
    ROW.write(tmp_path / "graph.json")
    assert Row.read(tmp_path / "graph.json") == ROW
    cells = ROW.markdown().strip("| ").split(" | ")
    assert len(cells) == len(HEADER)
    assert cells[3:5] == ["0.9100 ± 0.01", "60 (50 to 70)"] and cells[10] == "0.80 (gap 0.70)"
    assert replace(ROW, training_error=0.4).bound() == "vacuous (gap 0.70)"
    assert replace(ROW, training_error=None, gap=1.2).bound() == "gap 1.20 (vacuous)"


def test_the_picture_names_each_task(tmp_path):
    pytest.importorskip("matplotlib")
    other = replace(ROW, name="far", own=Crossing(0.8, None, "> 2,500", ""))
    drawn([ROW, other], tmp_path / "atlas.png")
    assert (tmp_path / "atlas.png").read_bytes().startswith(b"\x89PNG")


def findings(means: dict[int, float], reached: bool = False, d: int = 64) -> Findings:
    points = tuple(Point(d, (mean,), 0.0) for d, mean in means.items())
    dimension = Dimension("", "", 1000, "accuracy", False, (1.0,), points, (estimate(points, absolute(0.9)),))
    fit = Fit(Path(), d, 1000, 4, 0, "accuracy", 0.9, 0.9, 0.0, reached=reached)
    return Findings(dimension, fit, 1.0, 0.95)


def test_remarks_name_the_reason(tmp_path):
    task = task_of("experts")
    assert remark_of(task, findings({16: 0.5, 64: 0.96}, reached=True), tmp_path) == ""
    assert remark_of(task, findings({16: 0.5, 64: 0.96}), tmp_path).startswith("rounding: ")
    assert remark_of(task, findings({16: 0.5, 64: 0.92}), tmp_path).startswith("dimension: ")
    (tmp_path / "from-start.json").write_text("0.5")
    assert remark_of(task, findings({16: 0.5, 64: 0.8}), tmp_path).startswith("start: ")
    (tmp_path / "from-start.json").write_text("0.97")
    assert remark_of(task, findings({16: 0.5, 64: 0.8}), tmp_path).startswith("dimension: ")
    assert remark_of(task, findings({16: 0.5, 64: 0.51}), tmp_path).startswith("scale: ")


def test_the_start_of_a_subspace_is_another_one_of_the_same_network():
    net = made(task_of("experts").family, 0)
    found = started(net)
    before, after = dict(net.named_parameters()), dict(found.named_parameters())
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
