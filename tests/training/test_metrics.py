"""Metrics are of the whole split: called once or accumulated, also those of torchmetrics; one line where not."""

import json
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from commands import cli
from torch import nn
from torch.nn import functional

import subcompress
from subcompress import Data, Split, SubcompressError
from subcompress.data.ragged import Ragged
from subcompress.data.reading import OnDemand
from subcompress.training import constant, metrics
from subcompress.training.goal import Goal
from subcompress.training.preflight import check_first_batch
from subcompress.training.tasks import LOSSES, Task, evaluate
from subcompress_cli.loading import function_of

N = 2_500  # more than one batch of an evaluation


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def regression():
    """Batches whose y lie around different means: what makes a mean of correlations wrong."""
    x = torch.randn(N, 3, generator=generator())
    x[:, 0] += torch.arange(N) / 500
    return Split(x, x[:, :1] + torch.randn(N, 1, generator=generator()))


@pytest.fixture
def classes():
    x = torch.randn(N, 4, generator=generator())
    return Split(x, (x[:, :3] + torch.randn(N, 3, generator=generator())).argmax(1))


@pytest.fixture
def line():
    torch.manual_seed(0)
    line = nn.Linear(3, 1)
    line.weight.data[0, 0] = 1
    return line


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def correlation(outputs, y):
    return np.corrcoef(outputs.numpy().ravel(), y.numpy().ravel())[0, 1]


def outputs_of(module, split):
    with torch.no_grad():
        return module.eval()(split.x)


class Counting:
    """A metric of one's own that accumulates: the largest error; it knows how often it was used."""

    resets = 0

    def __init__(self):
        self.worst, self.updates = 0.0, 0

    def reset(self):
        self.worst, self.updates = 0.0, 0

    def update(self, outputs, y):
        self.updates += 1
        self.worst = max(self.worst, float((outputs - y).abs().max()))

    def compute(self):
        assert self.updates == math.ceil(N / 1000)
        return self.worst


def test_a_metric_is_called_once_with_everything(regression, line):
    truth = correlation(outputs_of(line, regression), regression.y)
    calls = []

    def metric(outputs, y):
        calls.append((outputs.shape, y.shape))
        return correlation(outputs, y)

    assert evaluate(line, regression, Task.of("mse", metric)) == pytest.approx(truth, abs=1e-6)
    assert calls == [((N, 1), (N, 1))]
    parts = [
        correlation(outputs_of(line, part), part.y)
        for part in (Split(*regression[i : i + 500]) for i in range(0, N, 500))
    ]
    assert abs(np.mean(parts) - truth) > 0.01


@pytest.mark.parametrize("loss", list(LOSSES))
def test_named_metrics_and_losses_are_those_of_one_call_on_everything(regression, classes, line, net, loss):
    module, split = (net, classes) if loss == "cross-entropy" else (line, regression)
    if loss == "bce":
        split = Split(split.x, (split.y > 0).float())
    for metric in (None, "loss"):
        task = Task.of(loss, metric)
        whole = evaluate(module, split, task, batch_size=N)
        assert evaluate(module, split, task, batch_size=700) == pytest.approx(whole, rel=1e-6)


def test_a_loss_that_leaves_labels_out_is_the_mean_over_the_others(classes, net):
    y = classes.y.clone()
    y[:900] = -100
    split = Split(classes.x, y)
    truth = float(functional.cross_entropy(outputs_of(net, split), y))
    assert evaluate(net, split, Task.of(metric="loss"), batch_size=600) == pytest.approx(truth, rel=1e-5)
    bytes_ = Split(classes.x, torch.full((N,), 156, dtype=torch.uint8))  # -100 as a byte
    assert Task.of(metric="loss")._weight(bytes_.y, N) == N


class Padded(torch.utils.data.Dataset):
    """Sequences of different lengths, padded batch by batch, with labels that are left out beside the padding."""

    def __len__(self):
        return 30

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        y = torch.randint(5, (1 + i % 7,), generator=g)
        y[torch.rand(len(y), generator=g) < 0.4] = -100
        return torch.randn(len(y), 4, generator=g), y

    def collate(self, items):
        x, y = ([item[k] for item in items] for k in (0, 1))
        return (
            nn.utils.rnn.pad_sequence(x, batch_first=True),
            nn.utils.rnn.pad_sequence(y, batch_first=True, padding_value=-100),
        )


class TokenNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x):
        return self.layer(x).transpose(1, 2)


def test_the_loss_of_padded_sequences_is_that_of_one_call_on_everything():
    torch.manual_seed(0)
    net, split = TokenNet(), Padded()
    x, y = split.collate([split[i] for i in range(len(split))])
    truth = float(functional.cross_entropy(net(x), y).detach())
    for batch_size in (1, 4, 7, 1000):
        assert evaluate(net, split, Task.of(metric="loss"), batch_size) == pytest.approx(truth, rel=1e-5)


def test_the_loss_of_class_probabilities_counts_by_rows():
    y = torch.rand(6, 3).softmax(1)
    assert Task.of(metric="loss")._weight(y, 2) == 6  # nodes of two graphs
    assert Task.of("mse", "loss")._weight(y, 2) == 2


def test_outputs_are_joined_leaf_by_leaf(regression):
    class Two(nn.Module):
        def forward(self, x):
            return {"a": x[:, :1], "b": (x, None)}

    def metric(outputs, y):
        assert outputs["a"].shape == (N, 1)
        assert outputs["b"][0].shape == (N, 3)
        assert outputs["b"][1] is None
        assert torch.equal(outputs["b"][0], regression.x)
        return 7

    assert evaluate(Two(), regression, Task.of("mse", metric)) == 7


def test_rows_are_in_the_order_of_the_split():
    """An evaluation of texts goes through the longest first."""
    texts = [torch.arange(1, 2 + i % 7) for i in range(50)]
    split = Ragged({"input_ids": texts}, torch.arange(50))

    class Length(nn.Module):
        def forward(self, input_ids, attention_mask):
            return attention_mask.sum(1).float()

    def metric(outputs, y):
        assert y.tolist() == list(range(50))
        return float((outputs == torch.tensor([len(t) for t in texts])).float().mean())

    for batch_size in (8, 1000):
        assert evaluate(Length(), split, Task.of("mse", metric), batch_size) == 1


class Growing(nn.Module):
    """Outputs as long as the sum of the batch says."""

    def forward(self, x):
        return torch.zeros(len(x), 1 + int(x[0, 0] * 0) + len(x) % 7)


def test_outputs_that_do_not_join_name_the_remedy(regression):
    with pytest.raises(SubcompressError, match=r"^f is called once [^\n]* do not join [^\n]* update\(outputs, y\)"):
        evaluate(Growing(), regression, Task.of("mse", named(lambda outputs, y: 0.0)))
    counted = Sizes()
    assert evaluate(Growing(), regression, Task.of("mse", counted)) == 3


def named(f):
    f.__name__ = "f"
    return f


class Sizes(Counting):
    def update(self, outputs, y):
        self.updates += 1
        self.worst += 1


def test_outputs_of_more_than_the_bound_name_the_remedy(regression, line, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_BYTES", N * 8 - 1)
    seen = []
    line.register_forward_hook(lambda module, x, y: seen.append(len(y)))
    with pytest.raises(
        SubcompressError, match=r"of .* GiB at most; those of 2500 take [^\n]*give a metric that accumu"
    ):
        evaluate(line, regression, Task.of("mse", named(lambda outputs, y: 0.0)))
    assert seen == [1000]  # known after the first batch
    monkeypatch.setattr(metrics, "MOST_BYTES", N * 8)
    assert evaluate(line, regression, Task.of("mse", named(lambda outputs, y: 0.0))) == 0


def test_a_metric_that_accumulates_shares_no_state(regression, line):
    metric = Counting()
    truth = float((outputs_of(line, regression) - regression.y).abs().max())
    task = Task.of("mse", metric, minimise=True)
    for _ in range(2):
        assert evaluate(line, regression, task) == pytest.approx(truth)
    assert metric.updates == 0
    assert (task.metric_name, task.minimise) == ("Counting", True)
    assert evaluate(line, regression, Task.of("mse", Counting)) == pytest.approx(truth)  # its class


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


def test_either_direction_can_be_said(regression, line):
    torchmetrics = pytest.importorskip("torchmetrics")
    error = torchmetrics.MeanSquaredError()
    assert not Task.of("mse", error, minimise=False).minimise
    assert not Task.of("mse", error, minimize=False).minimise
    assert not Task.of("mse", "torchmetrics:MeanSquaredError", False).minimise
    assert Task.of("mse", error, None).minimise
    assert Task.of("mse", correlation, minimize=True).minimise
    assert not Task.of("mse", correlation).minimise
    assert Task.of("mse", minimise=True, minimize=True).minimise
    for options in ({"minimise": True, "minimize": False}, {"minimise": False}):
        with pytest.raises(SubcompressError, match=r"^[^\n]*leave (one out|out --maximize)$"):
            Task.of("mse", **options)


@pytest.mark.parametrize("metric", ["Accuracy,task=binary", "AUROC,task=binary", "MeanSquaredError"])
def test_truth_values_are_labels(line, regression, metric):
    """Of data that are not in memory too, with outputs of either shape."""
    pytest.importorskip("torchmetrics")
    y = regression.y > 3
    task = Task.of("bce", f"torchmetrics:{metric}")
    wanted = evaluate(line, Split(regression.x, y.float()), task)
    for module in (line, nn.Sequential(line, nn.Flatten(0))):
        for labels in (y, y[:, 0]):
            split = OnDemand(torch.utils.data.TensorDataset(regression.x, labels))
            assert evaluate(module, split, task) == pytest.approx(wanted)


def test_an_accuracy_is_known_by_its_class(classes, tmp_path):
    torchmetrics = pytest.importorskip("torchmetrics")
    name = "torchmetrics:Accuracy,task=multiclass,num_classes=3"
    for metric in (name, torchmetrics.Accuracy(task="binary"), "accuracy", "binary-accuracy"):
        assert Task.of(metric=metric).has_accuracy_range
        assert Goal.of(Task.of(metric=metric), min_accuracy=0.9).value == 0.9
    with pytest.raises(SubcompressError, match=r"up to 1; given 2 of [^\n]*$"):
        Goal.of(Task.of(metric=name), min_accuracy=2)
    for metric in ("torchmetrics:AUROC,task=binary", "torchmetrics:R2Score"):
        with pytest.raises(SubcompressError, match=r"^--min-accuracy [^\n]*give --target$"):
            Goal.of(Task.of(metric=metric), min_accuracy=0.9)
    with pytest.raises(SubcompressError, match=r"^--min-accuracy [^\n]*give --target$"):
        Goal.of(Task.of(metric=name, minimise=True), min_accuracy=0.9)
    data = Data(*[Split(*classes[:300])] * 3)
    options = {"min_accuracy": 0.5, "seeds": 1, "epochs": 5, "batch_size": 32, "baseline": 0.8, "threads": 1}
    found = subcompress.fit(nn.Linear(4, 3), data, tmp_path / "run", metric=name, lr=0.1, **options)
    assert found.validation >= 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchmetrics:AUROCC,task=binary", "torchmetrics has no metric 'AUROCC'; close to it: .*AUROC"),
        ("torchmetrics:auroc", "close to it: .*AUROC"),
        ("torchmetrics:", "torchmetrics has no metric ''"),
        ("torchmetrics:AUROC", "torchmetrics refuses torchmetrics:AUROC: TypeError"),
        ("torchmetrics:AUROC,task=trinary", "torchmetrics refuses .*trinary"),
        ("torchmetrics:AUROC,binary", "'binary' is no option=value"),
        ("torchmetrics:Metric", "torchmetrics refuses|has no metric"),
        ("auc", "accuracy, .*torchmetrics:NAME or file.py:f; 'auc' is none of them"),
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


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda outputs, y: torch.zeros(3), r"a metric is one number; f gave an array of shape \(3,\): take its mean"),
        (lambda outputs, y: np.zeros((2, 2)), r"f gave an array of shape \(2, 2\)"),
        (lambda outputs, y: {"a": 1}, "f gave a dict: return a float"),
        (lambda outputs, y: nothing, r"the metric \(f\) raises NameError: name 'nothing' is not defined"),  # noqa: F821
    ],
)
def test_what_is_not_one_number_is_refused(regression, line, give, words):
    data = Data(regression, regression, regression)
    for judge in (
        lambda task: evaluate(line, regression, task),
        lambda task: check_first_batch(line, data, task, 32, "cpu"),
    ):
        with pytest.raises(SubcompressError, match=f"^[^\n]*{words}[^\n]*$"):
            judge(Task.of("mse", named(give)))


# --- the first look ---


def first_look(module, split, task):
    check_first_batch(module, Data(split, split, split), task, 8, "cpu")


def test_the_first_look_takes_as_many_examples_as_an_evaluation(classes):
    """Norms without running statistics and AUCs need more than one."""
    pytest.importorskip("torchmetrics")
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    first_look(net, classes, Task.of("cross-entropy", "torchmetrics:AUROC,task=multiclass,num_classes=3"))


def test_a_metric_that_one_batch_is_too_little_for_is_tried_on_the_split(regression, line):
    y = torch.zeros(N, 1)
    y[-100:] = 1  # the first batch is of one class

    def auc(outputs, y):
        from sklearn.metrics import roc_auc_score

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = roc_auc_score(y.numpy().ravel(), outputs.numpy().ravel())
        if math.isnan(found):
            raise ValueError("only one class")
        return found

    first_look(line, Split(regression.x, y), Task.of("bce", auc))
    with pytest.raises(SubcompressError, match=r"the metric \(auc\) raises ValueError: only one class"):
        first_look(line, Split(regression.x, torch.zeros(N, 1)), Task.of("bce", auc))


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
    with pytest.raises(SubcompressError, match="f of two arguments"):
        function_of(f"{tmp_path / 'own_metrics.py'}:one", "--metric", {})


@pytest.mark.parametrize(("flags", "less"), [([], True), (["--minimize"], True), (["--maximize"], False)])
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
