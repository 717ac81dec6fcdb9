"""Metrics are of the whole split: called once or accumulated, also those of torchmetrics; one line where not."""

import math
import warnings

import numpy as np
import pytest
import torch
from metric_cases import Counting, N, Sizes, correlation, named, outputs_of
from torch import nn
from torch.nn import functional

import subcompress
from subcompress import Data, Split, SubcompressError
from subcompress.data.ragged import Ragged
from subcompress.data.reading import OnDemand
from subcompress.search.goal import checked
from subcompress.training import metrics
from subcompress.training.options import Goal
from subcompress.training.preflight import check_first_batch
from subcompress.training.tasks import LOSSES, NEXT, PER_TOKEN, Task, evaluate


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


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss not in (NEXT, PER_TOKEN)])
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
    with pytest.raises(
        SubcompressError, match=r"^f is called once [^\n]* cannot be joined [^\n]* update\(outputs, y\)"
    ):
        evaluate(Growing(), regression, Task.of("mse", named(lambda outputs, y: 0.0)))
    counted = Sizes()
    assert evaluate(Growing(), regression, Task.of("mse", counted)) == 3


def test_outputs_of_more_than_the_bound_name_the_remedy(regression, line, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_BYTES", N * 8 - 1)
    seen = []
    line.register_forward_hook(lambda module, x, y: seen.append(len(y)))
    with pytest.raises(SubcompressError, match=r"at most .* GiB; those of 2500 take [^\n]*give a metric that accumu"):
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
        assert checked(Goal(min_accuracy=0.9), Task.of(metric=metric)).value == 0.9
    with pytest.raises(SubcompressError, match=r"at most 1; got 2 with [^\n]*$"):
        checked(Goal(min_accuracy=2), Task.of(metric=name))
    for metric in ("torchmetrics:AUROC,task=binary", "torchmetrics:R2Score"):
        with pytest.raises(SubcompressError, match=r"^--min-accuracy [^\n]*give --target$"):
            checked(Goal(min_accuracy=0.9), Task.of(metric=metric))
    with pytest.raises(SubcompressError, match=r"^--min-accuracy [^\n]*give --target$"):
        checked(Goal(min_accuracy=0.9), Task.of(metric=name, minimise=True))
    data = Data(*[Split(*classes[:300])] * 3)
    options = {"min_accuracy": 0.5, "seeds": 1, "epochs": 5, "batch_size": 32, "baseline": 0.8, "threads": 1}
    found = subcompress.fit(nn.Linear(4, 3), data, tmp_path / "run", metric=name, lr=0.1, **options)
    assert found.validation >= 0.5


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (
            lambda outputs, y: torch.zeros(3),
            r"a metric must be one number; f gave an array of shape \(3,\): take its mean",
        ),
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


class Counted(nn.Module):
    """Counts the examples that pass through."""

    def __init__(self, most=math.inf):
        super().__init__()
        self.line, self.seen, self.most = nn.Linear(4, 3), [], most

    def forward(self, x):
        if len(x) > self.most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        self.seen.append(len(x))
        return self.line(x)


@pytest.mark.parametrize("metric", [None, "loss"])
def test_few_examples_pass_through_the_network_before_training(classes, metric):
    first_look(net := Counted(), classes, Task.of("cross-entropy", metric))
    assert set(net.seen) == {8}
    assert len(net.seen) <= 6
    y = classes.y.clone()
    y[-1] = 3  # of no example that passes through
    with pytest.raises(SubcompressError, match=r"labels must be between 0 and 2, .* the train split has 3"):
        first_look(net, Split(classes.x, y), Task.of("cross-entropy", metric))


class Slope(nn.Module):
    """Differentiates in its forward pass."""

    def __init__(self):
        super().__init__()
        self.line, self.graphs = nn.Linear(4, 3), []

    def forward(self, x):
        self.graphs.append(torch.is_grad_enabled())
        outputs = self.line(x.requires_grad_())
        return outputs + torch.autograd.grad(outputs.sum(), x, create_graph=True)[0][:, :3]


@pytest.mark.parametrize("metric", [None, "loss"])
def test_an_evaluation_holds_no_activations_unless_it_needs_them(classes, metric):
    graphs = []
    net = nn.Sequential(nn.Linear(4, 3))
    net[0].register_forward_hook(lambda layer, x, found: graphs.append(found.requires_grad))
    value = evaluate(net, classes, Task.of("cross-entropy", metric))
    assert set(graphs) == {False}
    own = Task.of(lambda module, batch: LOSSES["cross-entropy"][0](module, batch))
    if metric == "loss":
        assert evaluate(net, classes, own) == pytest.approx(value)
        assert graphs[-1]
    evaluate(slope := Slope(), classes, Task.of("cross-entropy", metric))
    assert slope.graphs[:2] == [False, True]


def test_an_evaluation_that_memory_runs_out_in_takes_fewer_examples_at_a_time(classes):
    task = Task.of()
    net = Counted(300)
    value = evaluate(net, classes, task)
    assert max(net.seen) == 250
    net.most = math.inf
    assert value == evaluate(net, classes, task)
    net.most = 0
    with pytest.raises(RuntimeError, match="not enough memory"):
        evaluate(net, classes, task)


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
