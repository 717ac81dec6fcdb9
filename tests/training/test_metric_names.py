"""Metrics by name and by object, which direction is better, and the best constant."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from commands import cli
from metric_cases import Counting, N, Sizes, correlation, named, outputs_of
from torch import nn
from torch.nn import functional

import subcompress
from subcompress import Data, Split, SubcompressError
from subcompress.data.reading import OnDemand
from subcompress.training import constant, metrics
from subcompress.training.tasks import Task, evaluate
from subcompress_cli.loading import function_of


def test_torchmetrics_by_name(regression, classes, line, net):
    pytest.importorskip("torchmetrics")
    from sklearn.metrics import f1_score, roc_auc_score

    scores = outputs_of(line, regression)
    y = (regression.y > 0).float()
    task = Task.of("bce", "torchmetrics:AUROC,task=binary")
    assert (task.metric_name, task.minimise) == ("torchmetrics:AUROC,task=binary", False)
    found = evaluate(line, Split(regression.x, y), task)
    assert found == pytest.approx(roc_auc_score(y.numpy().ravel(), scores.numpy().ravel()), abs=1e-5)
    found = evaluate(line, Split(regression.x, y[:, 0]), task)  # (N,) labels, (N, 1) outputs
    assert found == pytest.approx(roc_auc_score(y.numpy().ravel(), scores.numpy().ravel()), abs=1e-5)

    task = Task.of("cross-entropy", "torchmetrics:F1Score,task=multiclass,num_classes=3,average=macro")
    predicted = outputs_of(net, classes).argmax(1)
    assert evaluate(net, classes, task) == pytest.approx(f1_score(classes.y, predicted, average="macro"), abs=1e-5)
    bytes_ = Split(classes.x, classes.y.to(torch.uint8)[:, None])
    assert evaluate(net, bytes_, task) == evaluate(net, classes, task)

    task = Task.of("mse", "torchmetrics:PearsonCorrCoef")
    assert evaluate(line, regression, task) == pytest.approx(correlation(scores, regression.y), abs=1e-5)
    assert Task.of("mse", "torchmetrics:MeanAbsoluteError").minimise
    assert evaluate(line, regression, Task.of("mse", "torchmetrics:MeanAbsoluteError")) == pytest.approx(
        evaluate(line, regression, Task.of("l1")), rel=1e-5
    )


def test_a_torchmetrics_object_decides_what_is_better_and_keeps_nothing(regression, line):
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.MeanSquaredError()
    task = Task.of("mse", metric)
    assert task.minimise
    assert evaluate(line, regression, task) == evaluate(line, regression, task)
    assert int(metric.total) == 0
    assert not Task.of("mse", torchmetrics.R2Score()).minimise
    assert Task.of("mse", torchmetrics.R2Score(), minimise=True).minimise


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchmetrics:AUROCC,task=binary", "torchmetrics has no metric 'AUROCC'; close to it: .*AUROC"),
        ("torchmetrics:auroc", "close to it: .*AUROC"),
        ("torchmetrics:", "torchmetrics has no metric ''"),
        ("torchmetrics:AUROC", "torchmetrics refuses torchmetrics:AUROC: TypeError"),
        ("torchmetrics:AUROC,task=trinary", "torchmetrics refuses .*trinary"),
        ("torchmetrics:AUROC,binary", "'binary' is not of the form option=value"),
        ("torchmetrics:Metric", "torchmetrics refuses|has no metric"),
        ("auc", "accuracy, .*torchmetrics:NAME or file.py:f; got 'auc'"),
    ],
)
def test_names_that_torchmetrics_does_not_know(name, words):
    pytest.importorskip("torchmetrics")
    with pytest.raises(SubcompressError, match=f"^[^\n]*{words}[^\n]*$"):
        Task.of("bce", name)


def test_without_torchmetrics_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(SubcompressError, match=r"^--metric torchmetrics:AUROC needs [^\n]*pip install torchmetrics$"):
        Task.of("bce", "torchmetrics:AUROC,task=binary")


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("True", True), ("none", None), ("macro", "macro")]
)
def test_options_are_numbers_truth_values_or_words(text, value):
    found = metrics._value(text)
    assert (found, type(found)) == (value, type(value))


def test_metrics_of_one_name_and_other_settings_are_told_apart():
    torchmetrics = pytest.importorskip("torchmetrics")
    a, b = (torchmetrics.FBetaScore(task="binary", beta=beta) for beta in (0.5, 2.0))
    assert metrics.identity(a) != metrics.identity(b)
    assert metrics.identity(a) == metrics.identity(torchmetrics.FBetaScore(task="binary", beta=0.5))
    assert metrics.identity(Counting()) != metrics.identity(Sizes())
    assert metrics.identity(correlation) == ""  # its code is known otherwise


def test_a_run_is_known_by_its_metric(regression, tmp_path):
    pytest.importorskip("torchmetrics")
    data = Data(*[Split(*regression[:64])] * 3)
    options = {"d": 3, "epochs": 2, "batch_size": 8, "loss": "mse", "threads": 1}
    name = "torchmetrics:PearsonCorrCoef"
    found = subcompress.fit(nn.Linear(3, 1), data, tmp_path / "run", metric=name, **options)
    assert found.metric == name
    assert -1 <= found.validation <= 1


def test_the_command_line_takes_names_and_objects(tmp_path):
    (tmp_path / "own_metrics.py").write_text(
        "class Mine:\n"
        "    def reset(self): self.n = 0\n"
        "    def update(self, outputs, y): self.n += len(y)\n"
        "    def compute(self): return self.n\n"
        "mine = Mine()\n"
        "def one(outputs): return 1.0\n"
    )
    assert function_of("torchmetrics:AUROC,task=binary", "--metric", {}) == "torchmetrics:AUROC,task=binary"
    split = Split(torch.zeros(5, 2), torch.zeros(5, 2))
    for name in ("mine", "Mine"):
        metric = function_of(f"{tmp_path / 'own_metrics.py'}:{name}", "--metric", {})
        task = Task.of("mse", metric)
        assert (task.metric_name, evaluate(nn.Identity(), split, task)) == ("Mine", 5)
    with pytest.raises(SubcompressError, match="function of two arguments"):
        function_of(f"{tmp_path / 'own_metrics.py'}:one", "--metric", {})


@pytest.mark.parametrize(
    ("flags", "less"), [([], True), pytest.param(["--minimize"], True, marks=pytest.mark.slow), (["--maximize"], False)]
)
def test_the_command_line_says_which_direction_is_better(tmp_path, monkeypatch, flags, less):
    """compare keeps to it."""
    pytest.importorskip("torchmetrics")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_of_lines.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def net(): return torch.nn.Linear(3, 1)\n"
        "def split(x): return TensorDataset(x, x.sum(1, keepdim=True))"
        "\ndef load(): return [split(torch.randn(64, 3)) for _ in range(3)]\n"
    )
    command = ["--model", "net_of_lines.py:net", "--data", "net_of_lines.py:load", "--threads", 1]
    task = ["--loss", "mse", "--metric", "torchmetrics:MeanAbsoluteError", *flags]
    result = cli("fit", *command, *task, "--d", 3, "--epochs", 1, "--batch-size", 8, "-o", "run")
    assert result.exit_code == (not less), result.output  # an error that is maximized is no better for training
    result = cli("compare", "run", "--peers", "ours", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["minimise"] is less


# --- the best constant answer ---


def test_the_best_constant_for_classes(classes):
    train, validation = Split(*classes[:2000]), Split(*classes[2000:])
    p = torch.bincount(train.y) / 2000
    outputs = torch.zeros(5, 3)
    share = float((validation.y == p.argmax()).double().mean())
    assert Task.of().constant_value(train, validation, outputs) == pytest.approx(share)
    assert Task.of().constant_value(train, validation) == pytest.approx(share)
    entropy = -float(p.log()[validation.y].mean())
    assert Task.of(metric="loss").constant_value(train, validation, outputs) == pytest.approx(entropy, rel=1e-5)
    own = Task.of(lambda module, batch: functional.nll_loss(module(batch[0]), batch[1]))
    assert own.constant_value(train, validation, outputs) == pytest.approx(entropy, rel=1e-5)
    soft = [Split(s.x, functional.one_hot(s.y, 3).float()) for s in (train, validation)]
    assert Task.of(metric="loss").constant_value(*soft, outputs) == pytest.approx(entropy, rel=1e-5)


def test_the_best_constant_for_values(regression):
    train, validation = Split(*regression[:1500]), Split(*regression[1500:])
    outputs = torch.zeros(5, 1)
    mean, median = train.y.mean(), train.y.median()
    mse = float((validation.y - mean).square().mean())
    l1 = float((validation.y - median).abs().mean())
    assert Task.of("mse").constant_value(train, validation, outputs) == pytest.approx(mse, rel=1e-5)
    assert Task.of("l1").constant_value(train, validation, outputs) == pytest.approx(l1, rel=1e-5)
    flat = [Split(s.x, s.y[:, 0]) for s in (train, validation)]
    assert Task.of("mse").constant_value(*flat, outputs) == pytest.approx(mse, rel=1e-5)
    binary = [Split(s.x, (s.y > 3).int()) for s in (train, validation)]
    p = float((train.y > 3).double().mean())
    q = float((validation.y > 3).double().mean())
    entropy = -(q * math.log(p) + (1 - q) * math.log(1 - p))
    assert Task.of("bce", "loss").constant_value(*binary, outputs) == pytest.approx(entropy, rel=1e-4)
    pytest.importorskip("torchmetrics")
    assert Task.of("bce", "torchmetrics:AUROC,task=binary").constant_value(*binary, outputs) == 0.5


class Read(torch.utils.data.Dataset):
    """A split that is not in memory, and what is read of it."""

    def __init__(self, split):
        self.split, self.read = split, []

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        self.read.append(i)
        return self.split[i]


def test_the_best_constant_of_data_that_are_not_in_memory(regression, classes, monkeypatch):
    """As far as a part of them tells, read once."""
    train, validation = Read(Split(*regression[:1200])), Read(Split(*regression[1200:]))
    found = Task.of("mse").constant_value(train, validation, torch.zeros(5, 1))
    assert len(train.read) == len(set(train.read)) == 1000
    assert max(train.read) > 1150  # from everywhere
    assert validation.read == list(range(1300))
    mean = train.split.y[train.read].mean()
    assert found == pytest.approx(float((validation.split.y - mean).square().mean()), rel=1e-5)

    monkeypatch.setattr(constant, "ANSWERED", 500)
    ordered = classes.y.argsort()  # as in a folder a class
    split = Read(Split(classes.x[ordered], classes.y[ordered]))
    share = float(torch.bincount(classes.y).max() / N)
    assert Task.of().constant_value(split, split, torch.zeros(5, 3)) == pytest.approx(share, abs=0.005)
    assert len(split.read) == 1000 + 500


def test_labels_for_a_constant_are_read_by_the_workers(classes):
    split = OnDemand(Read(classes), workers=2)
    alone = Task.of().constant_value(OnDemand(Read(classes)), classes)
    assert Task.of().constant_value(split, split) == pytest.approx(alone)
    assert split.examples.read == []  # other processes did


def test_large_labels_are_read_up_to_a_bound(regression, monkeypatch):
    monkeypatch.setattr(constant, "MOST_BYTES", 4 * 250)
    split = Read(regression)
    assert Task.of("mse").constant_value(split, regression, torch.zeros(5, 1)) is not None
    assert len(split.read) == 300


def test_a_constant_that_cannot_be_known(regression, classes):
    class Large(torch.utils.data.Dataset):
        def __len__(self):
            return 10**9

        def __getitem__(self, i):
            raise OSError

    cases = [
        (Task.of("mse"), regression, torch.zeros(5, 2)),  # other shapes
        (Task.of("mse"), regression, {"a": torch.zeros(5, 1), "b": torch.zeros(5, 1)}),
        (Task.of(), classes, torch.zeros(5, 2)),  # fewer outputs than classes
        (Task.of(), Large(), None),
        (Task.of(lambda module, batch: module.encoder(batch[0])), regression, torch.zeros(5, 1)),
        (Task.of("mse", named(correlation)), regression, torch.zeros(5, 1)),  # nan
    ]
    for task, split, outputs in cases:
        with np.errstate(all="ignore"):
            assert task.constant_value(split, split, outputs) is None
