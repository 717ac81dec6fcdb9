"""What is learned and how it is measured: a loss f(module, batch) and a metric f(outputs, y). A new one is one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from subcompress.data.in_memory import IGNORED, InMemory, Tree, tensors_in, tree_map
from subcompress.data.ragged import Ragged
from subcompress.data.splits import Data, batches, call, size, without_graph
from subcompress.data.targets import (
    as_classes,
    as_values,
    check_classes,
    check_tokens,
    counts,
    one_hot_classes,
    prepare_labels,
    the_labels,
    the_outputs,
)
from subcompress.errors import SubcompressError, explaining, memory_ran_out, one_line
from subcompress.support.suggestions import suggestion
from subcompress.training.metrics import (
    TORCHMETRICS,
    Accumulated,
    Accumulating,
    Mean,
    Meter,
    Whole,
    accumulates,
    is_accuracy_of_torchmetrics,
    of_torchmetrics,
)

Loss = Callable[[nn.Module, tuple[Tree, Tree]], Tensor]
Metric = Callable[[Any, Any], "float | Tensor"] | Accumulating
"""f(outputs, y) of a whole split, or an object with update(outputs, y), compute() and reset()."""


def _named(name: str, f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """f of the one tensor of outputs and that of labels. Raises SubcompressError if there are others."""

    def taking(outputs: Any, y: Any) -> Tensor:
        return f(the_outputs(outputs, name), the_labels(y, name))

    return taking


def _of_outputs(f: Callable[[Any, Any], Tensor]) -> Loss:
    def loss(module: nn.Module, batch: tuple[Tree, Tree]) -> Tensor:
        x, y = batch
        return f(call(module, x), y)

    return loss


def _same_shape(name: str, f: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """f of outputs and y of one shape: torch would stretch (N, 1) and (N,) to (N, N); (N, 1) of the one and (N,) of the
    other mean the same."""

    def checked(outputs: Tensor, y: Tensor) -> Tensor:
        y = as_values(outputs, y)
        if outputs.shape != y.shape:
            raise SubcompressError(
                f"outputs and y must have the same shape; got {tuple(outputs.shape)} and {tuple(y.shape)}: "
                "reshape one of them"
            )
        return f(outputs, y)

    return _named(name, checked)


_mse, _l1 = _same_shape("mse", functional.mse_loss), _same_shape("l1", functional.l1_loss)


def _entropy(outputs: Tensor, y: Tensor) -> Tensor:
    y = as_classes(outputs, y)
    check_classes(outputs, y, "cross-entropy")
    return functional.cross_entropy(outputs, y)


def _share_right(outputs: Tensor, y: Tensor) -> Tensor:
    """The share of labels, or of class probabilities, for which the largest output and the largest of y are at the same
    place. Labels that cross-entropy leaves out do not count."""
    y = as_classes(outputs, y)
    check_classes(outputs, y, "accuracy")
    probabilities = not counts(y)
    classes = y.argmax(1) if probabilities else y
    right = outputs.argmax(1) == classes
    return (right if probabilities else right[classes != IGNORED]).double().mean()


_cross_entropy, _accuracy = _named("cross-entropy", _entropy), _named("accuracy", _share_right)
_binary_accuracy = _same_shape("binary-accuracy", lambda outputs, y: ((outputs > 0) == (y > 0.5)).double().mean())


def _token_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in nats, the mean over the tokens that have a label; only their outputs are looked at."""
    check_tokens(outputs, y)
    chosen = y != IGNORED
    outputs = outputs[chosen]
    return functional.cross_entropy(outputs.float() if outputs.itemsize < 4 else outputs, y[chosen].long())


def _share_of_tokens(outputs: Tensor, y: Tensor) -> Tensor:
    check_tokens(outputs, y)
    return (outputs.argmax(-1) == y)[y != IGNORED].double().mean()


def _share_exact(outputs: Tensor, y: Tensor) -> Tensor:
    check_tokens(outputs, y)
    return ((outputs.argmax(-1) == y) | (y == IGNORED)).all(1).double().mean()


def _next(f: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """f of the outputs at each token and the label of the token after it."""

    def shifted(outputs: Any, y: Any) -> Tensor:
        outputs, y = the_outputs(outputs, NEXT), the_labels(y, NEXT)
        check_tokens(outputs, y)
        return f(outputs[:, :-1], y[:, 1:])

    return shifted


NEXT, PER_TOKEN = "next-token", "per-token"
"""The losses with a label for each token: the next token, and the token's own label."""

_entropy_of_tokens = _named(PER_TOKEN, _token_entropy)
_token_accuracy, _exact_match = _named("token-accuracy", _share_of_tokens), _named("exact-match", _share_exact)
_perplexity = _named("perplexity", _token_entropy)

LOSSES: dict[str, tuple[Loss, str]] = {
    "cross-entropy": (_of_outputs(_cross_entropy), "accuracy"),
    "mse": (_of_outputs(_mse), "mse"),
    "l1": (_of_outputs(_l1), "l1"),
    "bce": (_of_outputs(_same_shape("bce", functional.binary_cross_entropy_with_logits)), "binary-accuracy"),
    NEXT: (_of_outputs(_next(_entropy_of_tokens)), "loss"),
    PER_TOKEN: (_of_outputs(_entropy_of_tokens), "token-accuracy"),
}
"""Name -> f(module, (x, y)) -> scalar, and the metric that goes with it."""

EXAMPLES = 1_000
"""The examples of a batch in an evaluation."""

OUTPUTS = (1 << 27, 1 << 30)
"""Bytes of the outputs of a batch in the evaluation of a language model, on a CPU and elsewhere. Losses make copies of
them."""

METRICS: dict[str, tuple[Callable[[Any, Any], Tensor] | None, bool]] = {
    "accuracy": (_accuracy, False),
    "binary-accuracy": (_binary_accuracy, False),
    "mse": (_mse, True),
    "l1": (_l1, True),
    "loss": (None, True),
    "perplexity": (_perplexity, True),
    "token-accuracy": (_token_accuracy, False),
    "exact-match": (_exact_match, False),
}
"""Name -> f(outputs, y) -> float (None: the loss itself), and whether less is better. Each is a mean over examples, or
over tokens; perplexity is the exponential of one."""

_OF_TOKENS = (_perplexity, _token_accuracy, _exact_match)

_MEANS = [f for f, _ in METRICS.values() if f not in _OF_TOKENS]


@dataclass(frozen=True)
class Task:
    """loss(module, (x, y)) -> scalar; metric(outputs, y) -> float, or one that accumulates, or None for the loss;
    minimise: less is better."""

    loss: Loss
    metric: Metric | None
    loss_name: str
    metric_name: str
    minimise: bool = False

    @classmethod
    def of(
        cls,
        loss: str | Loss = "cross-entropy",
        metric: str | Metric | None = None,
        minimise: bool | None = None,
        *,
        minimize: bool | None = None,
    ) -> Task:
        """A task from names, functions or metrics that accumulate. Without a metric, the one that goes with the loss;
        a loss of the user's own is its own metric.

        minimise, or minimize: whether less is better. By default what the metric says of itself, as those of
        torchmetrics do (`higher_is_better`); else more is better. Raises SubcompressError for unknown names, and where
        more is said to be better of an error or loss of `METRICS`."""
        given = _direction(minimise, minimize)
        if isinstance(loss, str) and loss not in LOSSES:
            raise SubcompressError(
                f"--loss must be one of {', '.join(LOSSES)} or file.py:f; got {loss!r}{suggestion(loss, LOSSES)}"
            )
        f, usual = LOSSES[loss] if isinstance(loss, str) else (loss, "loss")
        name = loss if isinstance(loss, str) else _name(loss)
        if isinstance(metric, str) and metric.startswith(TORCHMETRICS):
            g: Any = of_torchmetrics(metric)
            return cls(f, g, name, metric, _less(g) if given is None else given)
        if metric is None or isinstance(metric, str):
            metric_name = metric or usual
            if metric_name not in METRICS:
                raise SubcompressError(
                    f"--metric must be one of {', '.join(METRICS)}, {TORCHMETRICS}NAME or file.py:f; got "
                    f"{metric!r}{suggestion(metric_name, METRICS)}"
                )
            g, less = METRICS[metric_name]
            if less and given is False:
                raise SubcompressError(f"a smaller {metric_name} is better, because it is a loss: leave out --maximize")
            return cls(f, g, name, metric_name, less if given is None else given)
        g = _made(metric)
        return cls(f, g, name, _name(g), _less(g) if given is None else given)

    @classmethod
    def suiting(
        cls, data: Data, loss: str | Loss | None, metric: str | Metric | None = None, minimise: bool | None = None
    ) -> Task:
        """`of`, with the loss that suits the labels (`Data.loss`) in place of none, or of cross-entropy."""
        loss = "cross-entropy" if loss is None else loss
        return cls.of(data.loss if data.loss and loss == "cross-entropy" else loss, metric, minimise)

    def prepare_labels(self, data: Data) -> Data:
        """The data with labels in memory as this task's loss takes them."""
        return prepare_labels(data, self.loss_name)

    @property
    def is_accuracy(self) -> bool:
        """Whether the metric is the share of examples whose largest output is the label's."""
        return self.metric is _accuracy

    @property
    def has_accuracy_range(self) -> bool:
        """Whether the metric is an accuracy by its name or its class: between 0 and 1, and more is better."""
        shares = self.metric_name.endswith("accuracy") or self.metric is _exact_match
        named = shares or is_accuracy_of_torchmetrics(self.metric)
        return named and not self.minimise

    def better(self, a: float, b: float) -> bool:
        """Whether a is better than b."""
        return a < b if self.minimise else a > b

    def meets(self, value: float, target: float) -> bool:
        """Whether a value is at least as good as the target."""
        return value <= target if self.minimise else value >= target

    def loss_of(self, module: nn.Module, batch: tuple[Tree, Tree]) -> Tensor:
        """The loss of a batch. Raises SubcompressError if the model or the loss raises, or it is no scalar."""
        mode = "training" if module.training else "evaluation"
        raises = f"the model or the loss ({self.loss_name}) raises"
        with explaining(lambda e: f"{raises} {type(e).__name__} in {mode} mode: {one_line(e)}"):
            loss = self.loss(module, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            given = f"{tuple(loss.shape)} tensor" if isinstance(loss, Tensor) else type(loss).__name__
            raise SubcompressError(
                f"a loss must be a real scalar tensor; {self.loss_name} gave a {given}: take its mean or sum"
            )
        return loss

    def outputs_for_metric(self, module: nn.Module, batch: tuple[Tree, Tree]) -> Any:
        """What a meter gets of a batch in addition to y: the outputs, or the loss if that is the metric."""
        see: Callable[[nn.Module, tuple[Tree, Tree]], Any] = self.loss_of if self.metric is None else _call
        if self.metric is not None or self.loss_name in LOSSES:  # a graph would hold all activations
            return without_graph(lambda: see(module, batch))
        with torch.enable_grad():  # a loss of the user's may differentiate without saying so where there is no graph
            return tree_map(Tensor.detach, see(module, batch))

    def meter(self, examples: int, order: Tensor | None = None) -> Meter:
        """The meter for one evaluation of the given number of examples, which come in the given order."""
        if self.metric is None:
            return Mean(lambda loss, y: loss, self.metric_name, self._weight)
        if accumulates(self.metric):
            return Accumulated(self.metric, self.metric_name)
        f = cast("Callable[[Any, Any], Any]", self.metric)
        if f in _OF_TOKENS:
            return self._meter_of_tokens(f)
        if f in _MEANS:
            weight = self._weight if self.is_accuracy else (lambda y, n: n)
            return Mean(f, self.metric_name, weight, shares=self.is_accuracy)
        return Whole(f, self.metric_name, examples, order)

    def _meter_of_tokens(self, f: Callable[[Any, Any], Any]) -> Meter:
        """A mean over the tokens with a label, or for exact matches over the examples."""
        g = _next(f) if self.loss_name == NEXT else f
        if f is _perplexity:
            return Mean(g, self.metric_name, self._labeled, after=_exponential)
        return Mean(g, self.metric_name, (lambda y, n: n) if f is _exact_match else self._labeled, shares=True)

    def _labeled(self, y: Any, n: int) -> int:
        """Tokens with a label."""
        y = the_labels(y, self.metric_name)
        return int(((y[:, 1:] if self.loss_name == NEXT and y.ndim == 2 else y) != IGNORED).sum())

    def weight(self, batch: tuple[Tree, Tree]) -> float:
        """What the loss of a part of a batch counts for in the loss of the batch."""
        y = batch[1]
        n = next((len(t) for t in tensors_in(y) if t.ndim), 1)
        return self._labeled(y, n) if self.loss_name in (NEXT, PER_TOKEN) else self._weight(y, n)

    def _weight(self, y: Any, n: int) -> float:
        """What the loss or the accuracy of a batch of n examples counts for: means over the labels that cross-entropy
        does not leave out, of which an example may have many; batches may be padded to different lengths."""
        if self.loss_name in (NEXT, PER_TOKEN) and isinstance(y, Tensor):
            return self._labeled(y, n)
        if not (self.loss_name == "cross-entropy" or self.is_accuracy) or not isinstance(y, Tensor):
            return n
        if counts(y):
            return int((y.long() != IGNORED).sum())
        return y.numel() / y.shape[1] if y.ndim > 1 and y.shape[1] else n  # probabilities of so many classes

    def measure(self, seen: Any, y: Tree) -> float:
        """The metric of one batch. seen: its `outputs_for_metric`."""
        meter = self.meter(1)
        meter.see(seen, y, 1)
        return meter.result()

    def constant_value(self, train: Dataset[Any], validation: Dataset[Any], outputs: Any = None) -> float | None:
        """The metric on the validation split of the best answer that does not depend on the input; None if that
        cannot be known. Only a part is read of data that are not in memory (`constant`). outputs: those of one batch,
        which give the shape of the answer; without them, y gives it."""
        from subcompress.training.constant import best_constant, value_of_constant

        values = best_constant(self, train, outputs)
        return None if values is None else value_of_constant(self, values, validation)

    def guess(self, split: Dataset[Any]) -> float | None:
        """What the best constant answer costs, where that is known: the entropy of the labels, in nats."""
        if self.loss_name != "cross-entropy" or not isinstance(split, InMemory) or not isinstance(split.y, Tensor):
            return None
        y = one_hot_classes(split.y).reshape(-1)
        if y.is_floating_point() or int(y.min()) < 0:
            return None
        return guessing_loss(y) or None  # one class: nothing to guess


def evaluate(
    module: nn.Module, split: Dataset[Any], task: Task, batch_size: int = EXAMPLES, most: int | None = None
) -> float:
    """The metric of a split, for a module that is put into evaluation mode. most: the most examples that are used,
    evenly spaced.

    Means over examples are added up batch by batch; any other metric is called once, with the outputs and y of the
    whole split, or accumulates. Where memory runs out, it is done again in batches half as large. Raises
    SubcompressError where the metric raises, or is not one number.
    """
    module.eval()
    order, batch_size = split.swept(batch_size) if isinstance(split, InMemory) else (None, batch_size)
    if isinstance(split, Ragged) and (width := _vocabulary(module)) is not None:
        bytes_ = 4 * width * int(split.lengths.max())
        batch_size = max(1, min(batch_size, OUTPUTS[_device(module).type != "cpu"] // bytes_))
    if most is not None and most < size(split):
        order = torch.arange(size(split)) if order is None else order
        order = order[torch.arange(most) * len(order) // most]
    while True:
        try:
            return _evaluated(module, split, task, order, batch_size)
        except (RuntimeError, MemoryError) as e:
            if batch_size < 2 or not memory_ran_out(e):
                raise
        batch_size //= 2


def _evaluated(module: nn.Module, split: Dataset[Any], task: Task, order: Tensor | None, batch_size: int) -> float:
    """`evaluate`, of a module in evaluation mode, in that order."""
    device = _device(module)
    left = size(split) if order is None else len(order)
    if batch_size > 2 and left % batch_size == 1:
        batch_size -= 1  # one example alone has no statistics, where those of the batch are taken
    meter = task.meter(left, order)
    for batch in batches(split, batch_size, device, order, seed=0):
        n = min(batch_size, left)  # of examples: y may have a row for each of their nodes
        left -= n
        meter.see(task.outputs_for_metric(module, batch), batch[1], n)
    return meter.result()


def _device(module: nn.Module) -> torch.device:
    return next(iter(module.parameters()), next(iter(module.buffers()), torch.empty(0))).device


def _vocabulary(module: nn.Module) -> int | None:
    """The outputs of each token, None if the network does not say."""
    head = getattr(module, "get_output_embeddings", None)
    try:
        weight = getattr(head() if callable(head) else None, "weight", None)
    except (AttributeError, NotImplementedError):  # transformers has networks without one
        return None
    return len(weight) if isinstance(weight, Tensor) and weight.ndim else None


def _call(module: nn.Module, batch: tuple[Tree, Tree]) -> Any:
    return call(module, batch[0])


def _exponential(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def accuracy_of(module: nn.Module, split: Dataset[Any]) -> float:
    """Share of the split that the module, in evaluation mode, puts first."""
    return evaluate(module, split, Task.of())


def guessing_loss(y: Tensor) -> float:
    """Entropy of the labels in nats: the cross-entropy of the best constant answer."""
    p = torch.bincount(y).double() / len(y)
    return float(-torch.special.xlogy(p, p).sum())


def _direction(minimise: bool | None, minimize: bool | None) -> bool | None:
    """Either spelling; None if neither is given. Raises SubcompressError if they contradict each other."""
    if minimise is not None and minimize is not None and minimise != minimize:
        raise SubcompressError(
            f"minimise is the former name of minimize; got both, {minimise} and {minimize}: leave one out"
        )
    return minimize if minimise is None else minimise


def _less(metric: Any) -> bool:
    """Whether a metric says that less is better, as those of torchmetrics do."""
    return getattr(metric, "higher_is_better", None) is False


def _made(metric: Any) -> Any:
    """The metric itself, also where its class is given. Raises SubcompressError if that needs arguments."""
    if not (isinstance(metric, type) and accumulates(cast(Any, metric))):
        return metric
    try:
        return metric()
    except Exception as e:
        raise SubcompressError(
            f"a metric that accumulates must be an object; {metric.__name__} is a class that cannot be made "
            f"without arguments: {one_line(e)}"
        ) from e


def _name(f: Any) -> str:
    return getattr(f, "__name__", type(f).__name__)
