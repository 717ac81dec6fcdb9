"""What models give and what labels look like: taken, or refused in a line that names both."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

from subcompress import Data, Split, SubcompressError
from subcompress.data.splits import batches
from subcompress.training.preflight import check_first_batch
from subcompress.training.tasks import Task, evaluate

X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
ONE_HOT = nn.functional.one_hot(Y, 3)

Output = namedtuple("Output", ["logits", "hidden"])


class Giving(nn.Module):
    """A linear layer whose outputs are put into something."""

    def __init__(self, put=lambda t: t, n=3):
        super().__init__()
        torch.manual_seed(0)
        self.line, self.put = nn.Linear(5, n), put

    def forward(self, x):
        return self.put(self.line(x))


def tried(module, y, loss="cross-entropy", metric=None):
    """The loss of a batch and the metric of a split, after the look that `fit` takes before it trains."""
    task = Task.of(loss, metric)
    split = y if not isinstance(y, torch.Tensor) else Split(X, y)
    data = task.prepare_labels(Data(split, split, split))
    check_first_batch(module, data, task, 8, "cpu")
    loss = float(task.loss_of(module, next(batches(data.train, 48))).detach())
    return loss, evaluate(module, data.validation, task)


def refusal(*args, **kwargs):
    with pytest.raises(SubcompressError) as found:
        tried(*args, **kwargs)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    "put",
    [
        lambda t: {"logits": t, "hidden": t + 1},
        lambda t: {"anything": t},
        lambda t: (t,),
        lambda t: Output(t, t + 1),
        lambda t: {"logits": t, "parts": {"a": t}},
    ],
)
@pytest.mark.parametrize(("loss", "y"), [("cross-entropy", Y), ("mse", ONE_HOT.float()), ("bce", ONE_HOT)])
def test_the_main_one_of_several_outputs_is_taken(put, loss, y):
    assert tried(Giving(put), y, loss) == tried(Giving(), y, loss)


def test_torchmetrics_get_the_main_output():
    name = "torchmetrics:Accuracy,task=multiclass,num_classes=3"
    assert tried(Giving(lambda t: {"logits": t}), Y, metric=name) == tried(Giving(), Y, metric=name)


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (lambda t: {"scores": t, "hidden": t}, "the model gives a dict of scores, hidden"),
        (lambda t: (t, t + 1), r"the model gives a tuple of 2 (Tensor, Tensor)"),
        (lambda t: None, "the model gives a NoneType"),
        (lambda t: {}, "the model gives a dict of nothing"),
    ],
)
@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "bce"])
def test_outputs_of_which_none_is_the_main_one_are_named(put, words, loss):
    line = refusal(Giving(put), ONE_HOT.float() if loss != "cross-entropy" else Y, loss)
    assert words in line
    assert "call it 'logits'" in line


def test_one_hot_labels_are_classes():
    truth = tried(Giving(), Y)
    for y in (ONE_HOT, ONE_HOT.bool(), ONE_HOT.to(torch.uint8)):
        assert tried(Giving(), y) == pytest.approx(truth)
    assert tried(Giving(), ONE_HOT.float(), "mse", "accuracy")[1] == truth[1]
    assert tried(Giving(), ONE_HOT, "bce", "accuracy")[1] == truth[1]
    task = Task.of()
    assert task.guess(Split(X, ONE_HOT)) == pytest.approx(task.guess(Split(X, Y)))
    value = task.constant_value(Split(X, ONE_HOT), Split(X, ONE_HOT), torch.zeros(2, 3))
    assert value == task.constant_value(Split(X, Y), Split(X, Y), torch.zeros(2, 3))


class Each(torch.utils.data.Dataset):
    """Examples with a label of any kind."""

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 48

    def __getitem__(self, i):
        return X[i], self.label(i)


@pytest.mark.parametrize(
    ("y", "options", "words"),
    [
        (
            Y,
            {"loss": "bce"},
            "the train split are from 0 to 2: take --loss cross-entropy",
        ),
        (ONE_HOT - 1, {"loss": "bce"}, "are from -1 to 0"),
        (1 - ONE_HOT, {}, "one-hot (one 1, otherwise 0); those of the train split are not"),
        (Y.float(), {}, "takes classes as integers, (48,), or probabilities, (48, 3); got torch.float32 (48,)"),
        (
            torch.stack([Y, Y], 1),
            {},
            "one class for each output, (48,), or one-hot rows, (48, 3); got labels (48, 2)",
        ),
        (Y + 1, {}, "the train split has 3"),
        (Each(lambda i: "cat"), {}, "a batch of the data has a list of 48 (str, str, str)"),
        (Each(lambda i: [int(Y[i]), 1]), {}, "a batch of the data has a list of 2 (Tensor, Tensor)"),
        (Each(lambda i: {"class": int(Y[i])}), {}, "a batch of the data has a dict of class"),
        (Each(lambda i: "cat"), {"loss": "mse"}, "mse takes labels or values as one tensor"),
        (Each(lambda i: "cat"), {"loss": "bce"}, "binary-accuracy takes labels or values as one tensor"),
    ],
)
def test_labels_that_are_not_for_the_loss_are_named(y, options, words):
    assert words.replace("a list", "a tuple") in refusal(Giving(), y, **options)


def test_outputs_without_an_axis_of_classes_are_named():
    assert "accuracy takes outputs (N, C), one number per class; the model gives (48,)" in refusal(
        Giving(lambda t: t[:, 0]), Y
    )


def test_a_split_of_lists_is_a_split_of_tensors():
    found = Data(*[Split(X.tolist(), Y.tolist())] * 3)
    assert torch.equal(found.train.y, Y)
    assert torch.equal(found.train.x, X)
    assert torch.equal(Data(*[Split(X.numpy(), Y.numpy())] * 3).train.y, Y)
    with pytest.raises(SubcompressError, match="y of the train split is a list of text"):
        Data(*[Split(X, ["cat"] * 48)] * 3)
