"""benchmarks/families: every registered family can be made, loaded and judged, and the rules of benchmarks/moves.py."""

import math
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import moves
from families import FAMILIES
from families.direct import train
from families.family import Family, outputs_of, rows, stacked

BENCHMARK = Path(moves.__file__).parent / "families"
HELPERS = {"__init__", "family", "data", "direct", "examples"}


def test_every_file_is_registered() -> None:
    assert set(FAMILIES) == {path.stem for path in BENCHMARK.glob("*.py")} - HELPERS


LONG = ("layer_scale", "tiny_bert")
"""Families of which a step takes seconds."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in FAMILIES])
def test_a_family_can_be_judged(name: str) -> None:
    """Its network takes its data, loss and metric are finite, d is below D."""
    if name == "tiny_bert":
        pytest.importorskip("transformers")
    family = FAMILIES[name]
    torch.manual_seed(0)
    net, splits = family.make_net(), [stacked(s) for s in family.load()]
    sizes = [len(y) for _, y in splits]
    assert sizes[0] >= family.batch_size and min(sizes) > 1
    batch = rows(splits[1], torch.arange(min(64, sizes[1])))
    assert all(family.loss_of(net, rows(s, torch.arange(8))).isfinite() for s in splits)
    before = family.value(net, batch)
    assert math.isfinite(before) and before == family.value(net, batch), "the same in every call"
    assert (family.d or 0) < sum(p.numel() * (2 if p.is_complex() else 1) for p in net.parameters())
    assert family.meets(0.1, 0.2) == family.minimize


@pytest.mark.parametrize(
    "name", ["scalar_head", *(pytest.param(name, marks=pytest.mark.slow) for name in ("checkpointed", "chosen"))]
)
def test_direct_training_learns(name: str) -> None:
    family = FAMILIES[name]
    torch.manual_seed(0)
    net, (data, validation, _) = family.make_net(), [stacked(s) for s in family.load()]
    before = family.value(net, validation)
    after = family.value(train(family, net, data, family.steps[-1], 0), validation)
    assert family.meets(after, before) and after != before


def test_the_bound_without_a_goal_is_of_direct_training() -> None:
    assert FAMILIES["lenet"].bound(0.9) == pytest.approx(0.81)
    assert FAMILIES["denoiser"].bound(0.2) == pytest.approx(0.4)
    assert FAMILIES["fno"].bound(0.2) == 0.015


def test_outputs_of_a_padded_bag_do_not_change() -> None:
    family = FAMILIES["bag"]
    net, (x, _) = family.make_net(), stacked(family.load()[1])
    assert torch.allclose(outputs_of(net, x), outputs_of(net, torch.nn.functional.pad(x, (0, 3))), atol=1e-5)


def test_the_rules_of_moves() -> None:
    guessed, r = {"a": 0.5, "b": 0.01}, {"a": 0.02, "b": 0.16}
    assert moves.ruled("guessed", guessed, {}, 1) == guessed
    assert moves.ruled("measured:2", guessed, r, 1) == {"a": 0.04, "b": 0.32}
    assert moves.ruled("measured:d", guessed, r, 256 * moves.USUAL) == pytest.approx({"a": 0.04, "b": 0.32})
    assert moves.ruled("floor:1", guessed, r, 1) == {"a": 0.5, "b": 0.04}
    assert moves.ruled("mean:1", guessed, r, 1) == pytest.approx({"a": 0.1, "b": 0.04})
    assert moves.ruled("measured:1", {"unread": 1.0}, {"unread": 0.0}, 1) == {"unread": moves.LEAST}


def small() -> Family:
    """A network that trains in a fraction of a second."""
    family = FAMILIES["scalar_head"]
    return Family("small", family.make_net, family.load, 4, 1, loss="mse", metric=family.metric, minimize=True)


def test_moves_changes_the_scales_and_nothing_else() -> None:
    family = small()
    net, _ = moves.start(family, 0)
    plan = moves.planned(family, net, 0)
    scales = {name: 2 * s for name, s in moves.scales_of(plan).items()}
    mine = moves.with_scales(plan, scales)
    assert moves.scales_of(mine) == scales
    before, after = (moves.Subspace(net, p).weights() for p in (plan, mine))
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_moves_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, family = tmp_path / "runs.jsonl", small()
    args = ["--rules", "guessed,measured:1", "--steps", "5", "--lrs", "1e-3", "--seeds", "1", "--networks", "small"]
    options = moves.parsed([*args, "--runs", str(file)])
    moves.work(options, {"small": family})
    first = file.read_text()
    assert len(first.splitlines()) == 2
    file.write_text(first + '{"network": "sma')  # cut by an interruption
    moves.work(options, {"small": family})
    assert len(moves.held(file)) == 2 and first in file.read_text()
    text = "\n".join(moves.table(moves.held(file), {"small": family}))
    assert "| guessed |" in text and "| measured:1 | 5 | 0.001 |" in text
