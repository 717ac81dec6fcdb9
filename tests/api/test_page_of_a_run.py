"""The page of a run: its plots, its confusion matrix, and what the network gets right and wrong."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from commands import cli
from PIL import Image
from test_showing import a_dimension, a_fit
from torch import nn
from torch.utils.data import Dataset

import subcompress
from subcompress import Data, Split
from subcompress.api.examples import MOST_CLASSES, _answers, _examined, _png, examine, pixels
from subcompress.data.ragged import Ragged
from subcompress.format.facts import Facts
from subcompress.peers.bench import Row
from subcompress.peers.charts import FEW, comparison_chart, curves_chart, frontier_chart, has_frontier_chart
from subcompress.support.charts import apart
from subcompress.training import run
from subcompress.training.dimension_chart import dimension_chart

LABELS = ("circle", "<b>square", "star")


def made(examples: int, seed: int) -> Split:
    """Images of three classes, each brighter in rows of its own."""
    rng, y = torch.Generator().manual_seed(seed), torch.arange(examples) % 3
    x = torch.randn(examples, 1, 8, 8, generator=rng)
    for i, label in enumerate(y.tolist()):
        x[i, :, 2 * label : 2 * label + 2] += 1
    return Split(x, y)


class Closed(Dataset):
    """A split that can be closed: then nobody may read it."""

    def __init__(self, split: Split) -> None:
        self.split, self.closed = split, False

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int):
        assert not self.closed, "the test split is read once, by fit"
        return self.split[i]


@pytest.fixture(scope="module")
def data():
    facts = Facts(mean=(0.5,), std=(0.25,), labels=LABELS)
    return Data(made(60, 0), made(30, 1), Closed(made(30, 2)), facts=facts)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    found = tmp_path_factory.mktemp("page") / "run"
    subcompress.fit(net, data, found, d=10, epochs=1, batch_size=20, threads=1)
    data.test.closed = True
    return found


def rebuilt(folder: Path) -> nn.Module:
    subcompress.pack(folder, folder.parent / "net.safetensors")
    return subcompress.load(folder.parent / "net.safetensors", net())


def test_the_page_counts_the_answers_on_the_validation_split(folder, data):
    with torch.no_grad():
        said, y = rebuilt(folder)(data.validation.x).argmax(1), data.validation.y
    found = examine(folder, net, data)
    expected = [[int(((y == i) & (said == j)).sum()) for j in range(3)] for i in range(3)]
    assert [list(row) for row in found.counts] == expected
    assert found.share == pytest.approx(run.fit_of(folder).validation)
    assert 0 < len(found.wrong) <= 8
    assert 0 < len(found.right) <= 8
    assert all(e.truth == e.answer for e in found.right)
    assert [e.sure for e in found.wrong] == sorted((e.sure for e in found.wrong), reverse=True)
    page = subcompress.report(folder, model=net(), data=data).read_text()
    assert page.count('src="data:image/png;base64,') == len(found.right) + len(found.wrong)
    assert 'table class="matrix"' in page
    assert "<b>square" not in page
    assert "&lt;b&gt;square" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)  # nothing to fetch


def test_a_page_without_network_or_data_says_so(folder, data):
    page = subcompress.report(folder).read_text()
    assert "Not shown: the run does not name its network and its data" in page
    other = Data(data.train, made(30, 9), made(30, 2), facts=data.facts)
    page = subcompress.report(folder, model=net, data=lambda: other).read_text()
    assert "Not shown: these are not the data of the run" in page
    page = subcompress.report(folder, model=nn.Linear(2, 2), data=data).read_text()
    assert "Not shown: " in page
    assert "the model" in page


def test_the_module_that_is_given_stays_as_it_was(folder, data):
    module = net().train()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    subcompress.report(folder, model=module, data=data)
    assert module.training
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_the_command_loads_what_the_run_names(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(
        "import torch\nfrom torch import nn\nfrom torch.utils.data import TensorDataset\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
        "def data():\n    x = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))\n"
        "    return (TensorDataset(x, torch.arange(30) % 3),) * 3\n"
    )
    options = f"--model {code}:net --data {code}:data --d 6 --epochs 1 --batch-size 10 --threads 1"
    assert cli("fit", *options.split(), "-o", tmp_path / "run").exit_code == 0
    page = tmp_path / "run" / "report.html"
    for more, held in (((), True), (("--no-examples",), False)):
        done = cli("report", tmp_path / "run", *more)
        assert done.exit_code == 0, done.stderr
        assert ('table class="matrix"' in page.read_text()) is held
    summary = json.loads((tmp_path / "run" / run.SUMMARY).read_text())
    summary["origin"]["data"] = f"{tmp_path}/gone.py:data"
    (tmp_path / "run" / run.SUMMARY).write_text(json.dumps(summary))
    assert cli("report", tmp_path / "run").exit_code == 0
    assert re.search(r"Not shown: --data: no such file: .*gone\.py", page.read_text())


def test_the_page_shows_itself_in_a_notebook(folder):
    page = subcompress.report(folder)
    assert page == folder / "report.html"
    assert isinstance(page, Path)
    assert hash(page) == hash(folder / "report.html")
    assert "&lt;!doctype html&gt;" in page._repr_html_()
    assert page._repr_html_().startswith("<iframe srcdoc=")
    assert page.parent._repr_html_() is None


def test_texts_are_cut_to_a_line():
    rows = [torch.tensor([i, 7, 8]) for i in range(1, 7)]
    split = Ragged({"input_ids": rows}, torch.arange(6) % 2, words=lambda ids: f"<text>\n{ids[0]} " + "long " * 90)
    data = Data(split, split, split)
    found = _examined(data, torch.eye(2)[[0, 1, 1, 1, 0, 1]] * 5, split.y)
    assert [len(found.right), len(found.wrong)] == [5, 1]
    assert found.wrong[0].text.startswith("<text> 3 long long")
    assert len(found.wrong[0].text) <= 160
    assert found.wrong[0].sure == pytest.approx(1 / (1 + torch.tensor(-5.0).exp()))
    silent = Ragged({"input_ids": rows}, split.y)
    assert _examined(Data(silent, silent, silent), torch.eye(2)[[0, 1, 1, 1, 0, 1]], split.y).wrong == ()


def test_a_data_set_may_say_how_its_tokens_read():
    class Tokens(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return {"input_ids": torch.tensor([i + 1, 2])}, i % 2

        def words(self, ids):
            return " ".join(map(str, ids.tolist()))

    data = Data(Tokens(), Tokens(), Tokens())
    assert data.validation.words(data.validation.tokens(2)) == "3 2"


def test_many_classes_have_no_matrix_and_values_no_section():
    split = made(30, 0)
    many = torch.zeros(30, MOST_CLASSES + 1)
    assert not _examined(Data(split, split, split), many, split.y).has_matrix
    values = Split(split.x, torch.randn(30, 1))
    assert _answers(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), Data(values, values, values)) is None


def test_pixels_are_as_they_were():
    pixel = torch.randint(0, 256, (3, 5, 4), generator=torch.Generator().manual_seed(0)).float()
    facts = Facts(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (facts.mean, facts.std))
    assert torch.equal(pixels((pixel / 255 - mean) / std, facts), pixel.to(torch.uint8))
    assert torch.equal(pixels(pixel, Facts()), pixel.to(torch.uint8))
    assert pixels(pixel - 300, Facts()).max() == 255


@pytest.mark.parametrize(("shape", "size"), [((1, 28, 28), (112, 112)), ((3, 400, 200), (96, 192))])
def test_pictures_have_a_size_that_can_be_read(shape, size):
    with Image.open(io.BytesIO(_png(torch.zeros(shape, dtype=torch.uint8)))) as image:
        assert image.size == size


def texts_of(chart) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg())


def test_one_or_two_files_make_a_table(folder):
    assert not has_frontier_chart(a_fit(probes=a_fit().probes[:2]))
    assert has_frontier_chart(a_fit())
    page = subcompress.report(folder).read_text()
    assert page.count("<svg") == 1
    assert "<td>the file</td>" in page


def test_lines_and_points_of_the_frontier_have_names():
    chart = frontier_chart(a_fit(within=150))
    found = texts_of(chart)
    for text in (
        "target 0.75",
        "trained directly",
        "0.9500",
        "d = 10",
        "d = 40",
        "the file: 120 bytes",
        "150 bytes allowed",
    ):
        assert text in found, text
    assert chart.axes.get_legend() is None


def test_names_of_points_cover_no_other():
    probes = tuple(replace(a_fit().probes[0], d=d, value=0.5 + d / 100, bytes=100 + d) for d in range(1, 6))
    chart = frontier_chart(a_fit(probes=probes, frontier=probes, bytes=103, validation=0.53, d=3))
    chart.svg()
    boxes = [
        t.get_window_extent(chart.canvas.get_renderer()) for t in chart.axes.texts if t.get_text().startswith("d =")
    ]
    assert len(boxes) == 4
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_curves_are_named_at_their_ends_where_there_are_few():
    assert {"d = 10", "d = 20", "d = 40", "target 0.75"} <= set(texts_of(curves_chart(a_fit())))
    probe = a_fit().probes[0]
    many = a_fit(probes=tuple(replace(probe, d=d) for d in range(1, FEW + 2)))
    assert curves_chart(many).axes.get_legend() is not None
    short = curves_chart(a_fit(probes=(replace(probe, curve=(0.1, 0.5, 0.6)),)))
    assert all(float(tick).is_integer() for tick in short.axes.get_xticks())


def test_few_methods_are_named_at_their_points_and_many_numbered():
    rows = [Row(f"way {i}", 100 * (i + 1), 0.5 + i / 50, 1.0) for i in range(FEW + 1)]
    assert {"way 0", "way 5"} <= set(texts_of(comparison_chart(rows[:FEW], "accuracy")))
    found = texts_of(comparison_chart(rows, "accuracy"))
    assert "7" in found
    assert "way 0" not in found


def test_names_beside_the_plot_move_apart():
    at = apart([0.5, 0.5, 0.99], [0.1, 0.1, 0.1])
    assert at == sorted(at)
    assert all(b - a >= 0.0999 for a, b in pairwise(at))
    assert at[-1] <= 0.95


def test_lines_of_a_dimension_have_names():
    found = texts_of(dimension_chart(a_dimension()))
    assert "all D weights: 0.9500" in found
    assert any(text.startswith("0.8 absolute") for text in found)


def test_long_commands_wrap(folder):
    assert re.search(
        r"pre \{[^}]*white-space: pre-wrap[^}]*overflow-wrap: anywhere", subcompress.report(folder).read_text()
    )
