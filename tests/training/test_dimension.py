"""The intrinsic dimension read off curves whose crossings are known, its spread, its tables and its plot."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import subcompress
from subcompress import Data, Split
from subcompress.errors import SubcompressError
from subcompress.training.dimension import (
    HEIGHT,
    WIDTH,
    Dimension,
    Estimate,
    Point,
    Threshold,
    absolute,
    estimate,
    of_baseline,
)

DS = (50, 100, 200, 400, 800)


def curve(of: Callable[[int], float], ds: Sequence[int] = DS) -> list[Point]:
    """One repeat at each d."""
    return [Point(d, (of(d),), 1.0) for d in ds]


def noisy(repeats: int, noise: float, seed: int, ds: Sequence[int] = DS) -> list[Point]:
    """A curve that rises by 0.1 with each doubling of d, from 0.5 at 50: it meets 0.75 at 50 * 2 ** 2.5 = 282.8."""
    rng = np.random.default_rng(seed)
    level = [0.5 + 0.1 * math.log2(d / 50) for d in ds]
    return [
        Point(d, tuple((mean + rng.normal(0, noise, repeats)).tolist()), 2.0) for d, mean in zip(ds, level, strict=True)
    ]


def found(e: Estimate) -> float:
    """The d of an estimate that has one."""
    assert e.d is not None
    return e.d


def test_crossing_is_exact_on_a_curve_linear_in_log_d() -> None:
    e = estimate(noisy(1, 0.0, 0), absolute(0.75))
    assert e.d == pytest.approx(50 * 2**2.5)
    assert e.d_grid == 400
    assert (e.low, e.high, e.never, e.at_once) == (None, None, None, None)
    assert e.note == "one repeat, so no spread"


def test_threshold_met_exactly_is_met() -> None:
    e = estimate([Point(10, (0.5,), 1.0), Point(20, (0.899, 0.901), 1.0), Point(40, (0.95,), 1.0)], absolute(0.9))
    assert e.d == 20 == e.d_grid


def test_rounding_of_a_mean_decides_nothing() -> None:
    e = estimate([Point(10, (0.1,) * 3, 1.0), Point(20, (0.7,) * 3, 1.0)], absolute(0.7))
    assert (e.d, e.d_grid, e.low, e.high, e.never) == (20, 20, 20, 20, 0)


def test_first_crossing_of_a_curve_that_falls_again() -> None:
    means = {50: 0.2, 100: 0.6, 200: 0.4, 400: 0.45, 800: 0.9}
    e = estimate(curve(means.__getitem__), absolute(0.5))
    assert e.d_grid == 100
    assert 50 < found(e) < 100
    assert "missed again at d = 200, 400" in e.note


def test_not_reached() -> None:
    e = estimate(noisy(3, 0.01, 0), absolute(0.99))
    assert (e.d, e.d_grid, e.low, e.high, e.never, e.at_once) == (None, None, None, None, 1.0, 0.0)
    assert e.note == "not reached up to d = 800; 100 % of the resamples never meet it"


def test_met_at_the_smallest() -> None:
    e = estimate(noisy(3, 0.01, 0), absolute(0.3))
    assert (e.d, e.d_grid, e.low, e.high, e.never, e.at_once) == (None, 50, None, None, 0.0, 1.0)
    assert e.note.startswith("met at the smallest d measured, 50: try smaller ones")


def test_share_that_never_crosses_is_named_and_opens_the_interval() -> None:
    points = [Point(10, (0.1, 0.1), 1.0), Point(20, (0.4, 0.7), 1.0)]  # a mean of 0.4 with a chance of 1/4
    e = estimate(points, absolute(0.5))
    assert e.never == pytest.approx(0.25, abs=0.03)
    assert e.d is not None and e.low is not None and e.high is None
    assert "of the resamples never meet it" in e.note


def test_repeats_missing_at_one_d_are_named() -> None:
    points = [Point(10, (0.1,), 1.0), Point(20, (0.6, 0.7), 1.0)]
    assert "no spread at d = 10, measured once" in estimate(points, absolute(0.5)).note


def test_interval_covers_the_estimate_and_the_truth() -> None:
    holds_estimate = holds_truth = 0
    for seed in range(40):
        e = estimate(noisy(8, 0.02, seed), absolute(0.75))
        assert e.low is not None and e.high is not None
        holds_estimate += e.low <= found(e) <= e.high
        holds_truth += e.low <= 50 * 2**2.5 <= e.high
    assert holds_estimate >= 38
    assert holds_truth >= 30  # 90 % wanted, some less with 8 repeats


def test_interval_shrinks_with_more_repeats() -> None:
    def width(repeats: int) -> float:
        spans = [estimate(noisy(repeats, 0.02, seed), absolute(0.75)) for seed in range(5)]
        return float(np.mean([(e.high or math.inf) - (e.low or 0.0) for e in spans]))

    assert width(64) < 0.6 * width(8)


values = st.integers(0, 1000).map(lambda i: i / 1000)  # coarse, so that means and thresholds tie
measured = st.dictionaries(
    st.integers(1, 10_000), st.lists(values, min_size=1, max_size=3), min_size=1, max_size=6
).map(lambda found: [Point(d, tuple(v), 1.0) for d, v in found.items()])


@settings(max_examples=40, deadline=None)
@given(measured, values)
def test_estimate_lies_between_neighboring_ds(points: list[Point], value: float) -> None:
    e = estimate(points, absolute(value))
    ordered = sorted(points, key=lambda p: p.d)
    if e.d is None:
        assert e.d_grid in (None, ordered[0].d)
        return
    at = [p.d for p in ordered].index(e.d_grid or 0)
    assert ordered[at - 1].d <= e.d <= ordered[at].d
    assert all(p.mean < value + 1e-9 for p in ordered[:at])
    assert ordered[at].mean >= value - 1e-9
    for end in (e.low, e.high):
        assert end is None or ordered[0].d <= end <= ordered[-1].d


@settings(max_examples=40, deadline=None)
@given(measured, values, st.randoms(use_true_random=False))
def test_order_does_not_matter(points: list[Point], value: float, random: Random) -> None:
    shuffled = [Point(p.d, tuple(sorted(p.values, reverse=True)), p.seconds) for p in points]
    random.shuffle(shuffled)
    assert estimate(shuffled, absolute(value)) == estimate(points, absolute(value))


@settings(max_examples=40, deadline=None)
@given(measured, values, st.sampled_from([2, 8, 1024]))
def test_scale_of_the_metric_does_not_matter(points: list[Point], value: float, by: int) -> None:
    e = estimate(points, absolute(value))
    scaled = estimate([Point(p.d, tuple(by * v for v in p.values), 1.0) for p in points], absolute(by * value))
    assert (scaled.d, scaled.d_grid, scaled.low, scaled.high, scaled.note) == (e.d, e.d_grid, e.low, e.high, e.note)


@settings(max_examples=40, deadline=None)
@given(measured, values, st.sampled_from([2, 4, 64]))
def test_estimate_scales_with_the_ds(points: list[Point], value: float, by: int) -> None:
    e = estimate(points, absolute(value))
    scaled = estimate([Point(by * p.d, p.values, 1.0) for p in points], absolute(value))
    assert scaled.d == (None if e.d is None else pytest.approx(by * e.d))
    assert scaled.low == (None if e.low is None else pytest.approx(by * e.low))


@settings(max_examples=40, deadline=None)
@given(measured, values)
def test_minimizing_errors_is_maximizing_their_negatives(points: list[Point], value: float) -> None:
    e = estimate(points, absolute(-value))
    negated = estimate([Point(p.d, tuple(-v for v in p.values), 1.0) for p in points], absolute(value), minimise=True)
    assert (negated.d, negated.low, negated.high, negated.note) == (e.d, e.low, e.high, e.note)


@settings(max_examples=40, deadline=None)
@given(measured, values, values)
def test_harder_thresholds_need_no_fewer_dimensions(points: list[Point], a: float, b: float) -> None:
    def place(e: Estimate) -> float:
        return e.d if e.d is not None else math.inf if e.d_grid is None else -math.inf

    easy, hard = (place(estimate(points, absolute(v))) for v in sorted((a, b)))
    assert easy <= hard or easy == pytest.approx(hard)


def test_thresholds() -> None:
    share, over = of_baseline((0.98, 1.0)), of_baseline((0.018,), minimise=True)
    assert (share.name, share.value) == ("0.9 of the baseline", pytest.approx(0.891))
    assert (over.name, over.value) == ("baseline / 0.9", pytest.approx(0.02))
    assert of_baseline((0.5,), 1.0).value == 0.5
    assert absolute(0.9) == Threshold("0.9 absolute", 0.9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(SubcompressError, match="the metric at d = 50 must be a finite number"):
        Point(50, (0.9, bad), 1.0)
    with pytest.raises(SubcompressError, match="the time at d = 50"):
        Point(50, (0.9,), bad)
    with pytest.raises(SubcompressError, match="the threshold 'given'"):
        Threshold("given", bad)
    with pytest.raises(SubcompressError, match="the baseline must be a finite number"):
        of_baseline((0.9, bad))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Point(0, (0.9,), 1.0), "must be at least 1"),
        (lambda: Point(5, (), 1.0), "has no value"),
        (lambda: of_baseline(()), "the baseline has no value"),
        (lambda: of_baseline((-21.0,)), "needs a positive baseline"),
        (lambda: of_baseline((0.0,), minimise=True), "needs a positive baseline"),
        (lambda: of_baseline((0.9,), 1.5), "at most 1: 1.5"),
        (lambda: of_baseline((0.9,), math.nan), "at most 1: nan"),
        (lambda: estimate([], absolute(0.9)), "no d was measured"),
        (lambda: estimate(2 * curve(float), absolute(0.9)), "d = 50 is given twice"),
        (lambda: result(noisy(1, 0, 0), D=700), "at most D = 700; got 800"),
        (lambda: result(noisy(1, 0, 0), baseline=(math.nan,)), "the baseline must be a finite number"),
    ],
)
def test_mistakes_are_refused_in_one_line(call: Callable[[], object], text: str) -> None:
    with pytest.raises(SubcompressError, match=text) as e:
        call()
    assert "\n" not in str(e.value)


def result(
    points: Sequence[Point],
    thresholds: Sequence[float] = (0.75,),
    D: int = 44_426,
    baseline: tuple[float, ...] | None = (0.98, 0.99),
) -> Dimension:
    """A measurement of the points at absolute thresholds."""
    estimates = tuple(estimate(points, absolute(v)) for v in thresholds)
    return Dimension(
        "lenet",
        "digits",
        D,
        "test accuracy",
        False,
        baseline,
        tuple(points),
        estimates,
        epochs=20,
        command="subcompress dim --model lenet",
        notes=("A note.",),
    )


def test_markdown_has_a_row_a_d_and_a_row_a_threshold() -> None:
    text = result(noisy(3, 0.01, 0)[::-1], (0.75, 0.99, 0.3)).markdown()
    lines = text.splitlines()
    assert lines[0].startswith("lenet on digits, D = 44,426; 20 epochs; all D weights trained: test accuracy 0.9850 ±")
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == [
        "d",
        *map(str, DS),
        "threshold",
        "0.75 absolute",
        "0.99 absolute",
        "0.3 absolute",
    ]
    assert all(" ± " in row and "| 3 | 2 |" in row for row in rows[1:6])
    assert "| > 800 | > 800 |" in rows[8] and "| ≤ 50 | ≤ 50 | 50 |" in rows[9]
    assert "A note." in lines and "subcompress dim --model lenet" in lines


def test_markdown_puts_known_values_in_a_column() -> None:
    text = result(noisy(3, 0.01, 0), (0.75, 0.8)).markdown({"0.75 absolute": "290 | 300"})
    head, rule, first, second = text.split("\n\n")[2].splitlines()
    assert "| known | note |" in head
    assert "| 290 \\| 300 |" in first
    assert "|  |" in second
    assert head.count("|") == rule.count("|") == second.count("|") == first.count("|") - 1


def test_open_ends_of_an_interval_are_bounds() -> None:
    points = [Point(10, (0.1, 0.1), 1.0), Point(20, (0.4, 0.7), 1.0)]
    shown = result(points, (0.5,))
    assert shown.interval_text(shown.estimates[0]).endswith(" to > 20")
    points = [Point(10, (0.1, 0.8), 1.0), Point(20, (0.9, 0.9), 1.0)]
    shown = result(points, (0.5,))
    assert shown.interval_text(shown.estimates[0]).startswith("≤ 10 to 1")


def test_json_holds_everything() -> None:
    shown = result(noisy(3, 0.01, 0), (0.75, 0.99))
    held = json.loads(json.dumps(shown.to_json(), allow_nan=False))
    assert held == shown.to_json()
    assert [p["d"] for p in held["points"]] == list(DS)
    assert held["estimates"][0]["d"] == shown.estimates[0].d
    assert held["estimates"][1]["d"] is None
    assert held["baseline"]["mean"] == pytest.approx(0.985)
    assert held["bootstrap"] == {"resamples": 2000, "seed": 0, "percentiles": [5, 95]}


def test_json_is_read_back_and_so_is_that_of_before() -> None:
    shown = replace(result(noisy(3, 0.01, 0), (0.75, 0.99)), warnings=("d = 50, seed 1: it looks wrong",))
    held = json.loads(json.dumps(shown.to_json()))
    assert Dimension.from_json(held) == shown
    assert held["warnings"] == ["d = 50, seed 1: it looks wrong"]
    assert shown.markdown().endswith("\n\n- warning: d = 50, seed 1: it looks wrong\n")
    del held["warnings"]
    assert Dimension.from_json(held).warnings == ()
    assert "warning" not in Dimension.from_json(held).markdown()


@pytest.mark.slow
def test_a_measurement_tells_what_looks_wrong(tmp_path: Path) -> None:
    class Idle(nn.Module):
        """A network with a part that it does not read, and inputs that tell nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    y = torch.arange(40) % 4 // 3
    split = Split(torch.ones(40, 3), y)
    data = Data(split, split, split)
    net = Idle()
    shown, again = (
        subcompress.measure_dimension(net, data, tmp_path / "dim", ds=[4], repeats=2, epochs=1, batch_size=8, threads=1)
        for _ in range(2)
    )
    assert any("unused" in w for w in shown.warnings)
    assert [w.partition(": ")[0] for w in shown.warnings if "constant answer" in w] == [
        "d = 4, seed 0",
        "d = 4, seed 1",
    ]
    held = json.loads((tmp_path / "dim" / "dim.json").read_text())
    assert Dimension.from_json(held) == again
    assert "- warning: d = 4, seed 0: " in (tmp_path / "dim" / "dim.md").read_text()
    assert again.warnings == shown.warnings


def test_numpy_numbers_become_json() -> None:
    points = [Point(d, tuple(np.float32(v) for v in (0.1, d / 100)), np.float32(1)) for d in np.array([10, 90])]
    json.dumps(result(points, (0.3,)).to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("points", "thresholds"),
    [
        (noisy(3, 0.01, 0), (0.75, 0.99, 0.3)),
        pytest.param(noisy(1, 0.0, 0)[:1], (0.5,), marks=pytest.mark.slow),
        (curve(lambda d: 1.0), ()),
        ([Point(10, (0.1, 0.8), 1.0), Point(20, (0.4, 0.7), 1.0)], (0.5, 0.5, 0.51, 0.52, 0.53)),
    ],
)
def test_plot_is_a_png_of_the_stated_size(tmp_path: Path, points: list[Point], thresholds: tuple[float, ...]) -> None:
    from PIL import Image

    result(points, thresholds).plot(tmp_path / "dim.png")
    data = (tmp_path / "dim.png").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.size == (WIDTH, HEIGHT)
        image.load()
    assert [p.name for p in tmp_path.iterdir()] == ["dim.png"]


def test_plot_of_names_with_signs_of_formulas(tmp_path: Path) -> None:
    points = tuple(noisy(3, 0.01, 0))
    e = estimate(points, Threshold("costs $5 or $x_{", 0.75))
    Dimension("m$", "d$^", 900, "loss $_", False, None, points, (e,)).plot(tmp_path / "dim.png")


def test_plot_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SubcompressError, match="pip install matplotlib"):
        result(noisy(1, 0, 0)).plot(tmp_path / "dim.png")
    assert not list(tmp_path.iterdir())


def test_plot_leaves_pyplot_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    result(noisy(1, 0, 0)).plot(tmp_path / "dim.png")
    assert "matplotlib.pyplot" not in sys.modules
