"""What a person sees of calls from Python: progress bars, and results at a prompt and in a notebook."""

from __future__ import annotations

import io
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import subcompress
from subcompress import Data, Listener, Split
from subcompress.api.compare import Comparison
from subcompress.format.facts import Facts
from subcompress.peers.bench import Row
from subcompress.support.bars import Bars, is_notebook, with_bars
from subcompress.support.listener import Progress, StepProgress
from subcompress.training.dimension import Dimension, Point, absolute, estimate
from subcompress.training.probe import Fit, Probe


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def at_terminal(monkeypatch) -> Terminal:
    """What is printed from here on. Called in the test itself: pytest takes stderr back after a fixture."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    return found


@pytest.fixture(scope="module")
def data():
    x, y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    return Data(*(Split(x, y) for _ in range(3)), facts=Facts(labels=("no", "yes")))


def fitted(data, folder, **options):
    torch.manual_seed(0)
    return subcompress.fit(nn.Linear(6, 2), data, folder, d=4, epochs=2, batch_size=20, threads=1, **options)


def test_a_fit_at_a_terminal_shows_a_bar(data, tmp_path, monkeypatch):
    terminal = at_terminal(monkeypatch)
    fitted(data, tmp_path / "run")
    shown = terminal.getvalue()
    assert "d = 4, seed 0: 100%" in shown
    assert "2/2 epochs" in shown
    assert "validation accuracy" in shown
    assert "start: " not in shown


def test_a_measurement_at_a_terminal_shows_a_bar(data, tmp_path, monkeypatch):
    terminal = at_terminal(monkeypatch)
    options = {"ds": [2, 3], "repeats": 1, "epochs": 1, "batch_size": 20, "threads": 1}
    subcompress.measure_dimension(nn.Linear(6, 2), data, tmp_path / "dim", **options)
    assert "trained directly" in terminal.getvalue()
    assert "d = 3, seed 0: 100%" in terminal.getvalue()


def test_a_fit_is_silent_elsewhere(data, tmp_path, capfd):
    fitted(data, tmp_path / "run")
    assert capfd.readouterr() == ("", "")


def test_a_listener_takes_the_place_of_bars(data, tmp_path, monkeypatch):
    terminal = at_terminal(monkeypatch)
    fitted(data, tmp_path / "run", listener=Listener())
    assert terminal.getvalue() == ""


def test_a_bar_ends_where_a_training_fails(monkeypatch):
    terminal = at_terminal(monkeypatch)

    @with_bars
    def fails(listener=None):
        listener.run("d = 7", 3)
        listener.step(StepProgress(1, 3, 5, 10, 0.5, 1.0))
        raise ValueError

    with pytest.raises(ValueError):
        fails()
    assert terminal.getvalue().endswith("\n")
    assert "d = 7:  50%" in terminal.getvalue()


def test_a_stopped_training_leaves_its_bar_and_the_next_has_its_own(monkeypatch):
    terminal = at_terminal(monkeypatch)
    bars = Bars()
    for title in ("d = 1", "d = 2"):
        bars.run(title, 4)
        bars.epoch(Progress(2, 4, 0.25, 0.5, 1.0, "stopped"))
        bars.probes(())
        assert bars.bar is None
    bars.note("start: quiet")
    bars.note("a line")
    assert [terminal.getvalue().count(text) for text in ("d = 1:  50%", "d = 2:  50%", "quiet")].count(0) == 1
    assert "accuracy 0.5000 (stopped)" in terminal.getvalue()
    assert "a line\n" in terminal.getvalue()


def test_a_notebook_is_known_by_its_kernel(monkeypatch):
    assert not is_notebook()
    shell = types.SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert not is_notebook()
    shell.kernel = object()
    assert is_notebook()


def test_the_arguments_of_a_function_with_bars_are_still_known():
    import inspect

    assert "run_folder" in inspect.signature(subcompress.fit).parameters
    assert subcompress.fit.__doc__.startswith("Train a network")


def a_fit(**changes) -> Fit:
    probes = tuple(Probe(d, 0, v, (v,), 1, 1.0, bytes=b) for d, v, b in ((10, 0.5, 90), (20, 0.8, 120), (40, 0.9, 200)))
    fields = {"probes": probes, "frontier": probes, "bytes": 120, "target": 0.75, "baseline": 0.95}
    return replace(Fit(Path("runs/<a>"), 20, 1234, 4, 0, "accuracy", 0.8, 0.79, 3.0), **(fields | changes))


def a_dimension() -> Dimension:
    points = tuple(Point(d, (v, v + 0.02), 1.0) for d, v in ((10, 0.5), (20, 0.7), (40, 0.9)))
    return Dimension(
        "net",
        "d<b>",
        900,
        "accuracy",
        False,
        (0.95,),
        points,
        (estimate(points, absolute(0.8)),),
        warnings=("odd <i>",),
    )


def a_comparison() -> Comparison:
    rows = (Row("subcompress", 247, 0.92, 1.0), Row("int8", 44_900, 0.97, 2.0, "in <torch>"))
    return Comparison("aa", "lenet & co", "accuracy", False, 3, rows, {"lora": "not <here>"})


def test_a_fit_says_what_was_reached_in_a_line():
    assert repr(a_fit()).count("\n") == 0
    for text in ("1,234 weights in 20 coordinates of 4 bits", "120 bytes", "0.8000 on validation", "0.7900 on test"):
        assert text in repr(a_fit())
    told = repr(a_fit(failure="missed", warnings=("look",)))
    assert told.splitlines()[1:] == ["  missed", "  warning: look"]


def test_a_fit_in_a_notebook_is_a_table():
    shown = a_fit(failure="it is < 1", warnings=("a & b",))._repr_html_()
    assert shown.startswith("<table>")
    for text in ("120 bytes", "0.9500", "0.75, met", "runs/&lt;a&gt;", "it is &lt; 1", "a &amp; b"):
        assert text in shown, text
    assert "bytes allowed" not in shown


def test_data_say_their_sizes(data):
    assert repr(data) == "Data(train 40, validation 40, test 40; input (6,) F32; 2 classes)"
    assert "<td>validation</td><td>40</td>" in data._repr_html_()
    assert "2 classes" in data._repr_html_()


def test_a_comparison_shows_its_table_and_plot():
    found = a_comparison()
    assert repr(found).splitlines()[1:] == [
        "  subcompress: 247 bytes, 0.9200",
        "  int8: 44,900 bytes, 0.9700",
        "  skipped: lora",
    ]
    shown = found._repr_html_()
    assert shown.count("data:image/png;base64,") == 1
    for text in ("44,900", "in &lt;torch&gt;", "lenet &amp; co", "not &lt;here&gt;"):
        assert text in shown, text
    assert Comparison.from_json(found.to_json()) == found


def test_a_dimension_shows_its_tables_and_plot():
    found = a_dimension()
    first, second, third = repr(found).splitlines()
    assert first == "Dimension of net on d<b>, D = 900, measured at d = 10, 20, 40"
    assert second.startswith("  d_int = 2")
    assert second.endswith(") at 0.8 absolute, accuracy 0.8000")
    assert third == "  warning: odd <i>"
    shown = found._repr_html_()
    assert shown.count("data:image/png;base64,") == 1
    assert "odd &lt;i&gt;" in shown
    assert "0.5100 ± 0.014" in shown
