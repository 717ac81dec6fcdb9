"""How a metric comes from the batches of a split: a mean over the examples, one call on everything, or a metric that
accumulates. Metrics of torchmetrics by name."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from subcompress.data.in_memory import Tree, tensors_in, to_device
from subcompress.data.targets import as_classes, counts, main_tensor, shaped
from subcompress.errors import SubcompressError, explaining, one_line
from subcompress.support.suggestions import close_matches

MOST_BYTES = 2 << 30
"""The most bytes of outputs and y that a metric of the whole split may keep."""

REMEDY = "give a metric that accumulates, an object with update(outputs, y), compute() and reset()"

TORCHMETRICS = "torchmetrics:"
"""The beginning of names of metrics of torchmetrics: `torchmetrics:AUROC,task=binary`."""


class Accumulating(Protocol):
    """torchmetrics' protocol."""

    def update(self, outputs: Any, y: Any) -> Any: ...
    def compute(self) -> Any: ...
    def reset(self) -> Any: ...


def accumulates(metric: Any) -> TypeGuard[Accumulating]:
    """Whether a metric has the three methods."""
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


def identity(metric: Any) -> str:
    """What tells a metric that accumulates from another one of its name: its settings, and the code of the user's."""
    if not accumulates(metric):
        return ""
    kind: Any = type(metric)
    settings = {k: v for k, v in vars(metric).items() if k[0] != "_" and isinstance(v, (str, int, float, type(None)))}
    try:
        code = "" if kind.__module__.startswith("torchmetrics.") else inspect.getsource(kind)
    except (OSError, TypeError):
        code = ""
    return f"{kind.__qualname__}{sorted(settings.items())}{code}"


class NotOneNumberError(SubcompressError):
    """A metric gave something else: more examples do not fix that."""


class Meter(Protocol):
    """Sees the batches of one evaluation, n examples each, and gives the metric."""

    def see(self, outputs: Any, y: Tree, n: int) -> None: ...
    def result(self) -> float: ...


class Mean:
    """The mean over the examples of a metric that is one. weight: f(y, n), what a batch counts for; shares: the metric
    is a share of the examples, so that its sum is a whole number; after: a function of the mean."""

    def __init__(
        self,
        f: Callable[[Any, Any], Any],
        name: str,
        weight: Callable[[Any, int], float] = lambda y, n: n,
        shares: bool = False,
        after: Callable[[float], float] = float,
    ) -> None:
        self.f, self.name, self.weight, self.shares, self.after = f, name, weight, shares, after
        self.sums: list[float] = []
        self.weights: list[float] = []

    def see(self, outputs: Any, y: Tree, n: int) -> None:
        """One batch."""
        if (weight := self.weight(y, n)) > 0:
            self.sums.append(_number(_called(self.name, self.f, outputs, y), self.name) * weight)
            self.weights.append(weight)

    def result(self) -> float:
        """The mean."""
        total, weights = math.fsum(self.sums), math.fsum(self.weights)
        if self.shares and math.isfinite(total) and abs(total - round(total)) < 1e-6 * max(1.0, total):
            total = round(total)
        return self.after(total / weights) if weights else math.nan


class Whole:
    """f(outputs, y), called once, with those of all examples on the CPU, in the order of the split.

    examples: the size of the split; order: the order in which they come, if it differs. Raises SubcompressError if
    outputs cannot be joined, and before they take more than `MOST_BYTES`.
    """

    def __init__(self, f: Callable[[Any, Any], Any], name: str, examples: int, order: Tensor | None = None) -> None:
        self.f, self.name, self.examples = f, name, examples
        self.order = None if order is None or bool((order.diff() == 1).all()) else order
        self.parts: list[tuple[Any, Any]] = []
        self.bytes = self.seen = 0

    def see(self, outputs: Any, y: Tree, n: int) -> None:
        """One batch."""
        self.parts.append((_kept(outputs), _kept(y)))
        self.bytes += sum(t.nbytes for t in tensors_in(self.parts[-1]))
        self.seen += n
        # In an order of its own the longest come first, and tell little of the rest.
        whole = self.bytes if self.order is not None else self.bytes * self.examples // self.seen
        if whole > MOST_BYTES:
            raise SubcompressError(
                f"{self.name} is called once with the outputs of all examples, at most {MOST_BYTES / 2**30:.3g} "
                f"GiB; those of {self.examples} take {whole / 2**30:.3g}: {REMEDY}"
            )

    def result(self) -> float:
        """What the one call gives."""
        parts, self.parts = self.parts, []
        outputs, y = (self._sorted(self._joined(list(column))) for column in zip(*parts, strict=True))
        with torch.no_grad():
            return _number(_called(self.name, self.f, outputs, y), self.name)

    def _joined(self, parts: list[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        rule = (
            f"{self.name} is called once with the outputs of all examples, and the outputs of the batches cannot be "
            "joined"
        )
        with explaining(lambda e: f"{rule} ({one_line(e, 160)}): {REMEDY}"):
            return _zipped(torch.cat, parts)

    def _sorted(self, x: Any) -> Any:
        """Rows as the split has them."""
        rows = [t.shape[0] if t.ndim else 0 for t in tensors_in(x)]
        if self.order is None or any(n != len(self.order) for n in rows):
            return x
        back = self.order.argsort()
        return _zipped(lambda t: t[0][back], [x])


class Accumulated:
    """A metric that accumulates: a copy of it, so that evaluations share nothing."""

    def __init__(self, metric: Accumulating, name: str) -> None:
        try:
            self.metric: Any = copy.deepcopy(metric)
        except Exception:  # it holds what has no copy, such as an open file: it is reset all the same
            self.metric = metric
        self.name, self.theirs = name, type(metric).__module__.startswith("torchmetrics.")
        _called(name, self.metric.reset)

    def see(self, outputs: Any, y: Tree, n: int) -> None:
        """One batch."""
        with torch.no_grad():
            if (first := next(tensors_in(outputs), None)) is not None:
                self.metric = to_device(self.metric, first.device)
            main = main_tensor(outputs) if self.theirs else None
            if main is not None and isinstance(y, Tensor):
                outputs, y = main, self._labels(main, y)
            _called(self.name, self.metric.update, outputs, y)

    def _labels(self, outputs: Tensor, y: Tensor) -> Tensor:
        """y in torchmetrics' form: in the shape of the outputs, and as integers if classes are counted. Truth values,
        which cannot be subtracted or rounded, always become integers."""
        y = shaped(outputs, as_classes(outputs, y))
        classes = type(self.metric).__module__.startswith("torchmetrics.classification")
        whole = counts(y) or (y.is_floating_point() and bool((y == y.round()).all()))
        return y.long() if y.dtype is torch.bool or (classes and whole) else y

    def result(self) -> float:
        """What it computes."""
        with torch.no_grad():
            return _number(_called(self.name, self.metric.compute), self.name)


def _kept(x: Any) -> Any:
    """A copy on the CPU: what is a view would keep all that it is a view of."""
    try:
        return _zipped(lambda t: t[0].detach().to("cpu", copy=True), [x])
    except (TypeError, ValueError):
        return x  # a kind of container that is not made as usual


def _called(name: str, f: Callable[..., Any], *given: Any) -> Any:
    """Call f. Raises SubcompressError if it raises."""
    with explaining(lambda e: f"the metric ({name}) raises {type(e).__name__}: {one_line(e)}"):
        return f(*given)


def _number(value: Any, name: str) -> float:
    """The metric as a float. Raises NotOneNumberError if it is not one number."""
    rule = "a metric must be one number"
    if isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) != 1:
        raise NotOneNumberError(
            f"{rule}; {name} gave an array of shape {tuple(value.shape)}: take its mean, or one of them"
        )
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as e:
        raise NotOneNumberError(f"{rule}; {name} gave a {type(value).__name__}: return a float") from e


def _zipped(f: Callable[[list[Tensor]], Tensor], trees: Sequence[Any]) -> Any:
    """f of the tensors at one place of every tree, in a tree of the first one's kind; lists of plain values are joined.
    Raises ValueError where the trees differ."""
    first = trees[0]
    if isinstance(first, Tensor):
        return f(list(trees))
    if isinstance(first, dict):
        found = {k: _zipped(f, [t[k] for t in trees]) for k in first}
        return found if type(first) is dict else type(first)(**found)
    if isinstance(first, (tuple, list)):
        if not any(isinstance(v, (Tensor, dict, tuple, list)) for v in first):
            return type(first)(v for t in trees for v in t)
        items = [_zipped(f, column) for column in zip(*trees, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    if len(trees) > 1 and not all(t == first for t in trees):
        raise ValueError(f"{type(first).__name__}s are not tensors")
    return first


def is_accuracy_of_torchmetrics(metric: Any) -> bool:
    """Whether a metric is one of torchmetrics' accuracies: between 0 and 1, more is better."""
    kinds = (kind for kind in type(metric).__mro__ if kind.__module__.startswith("torchmetrics."))
    return any(kind.__name__.endswith("Accuracy") for kind in kinds)


def of_torchmetrics(given: str) -> Any:
    """The metric of a name such as `torchmetrics:AUROC,task=binary`. Raises SubcompressError if torchmetrics is not
    there, has none of that name, or refuses the arguments."""
    name, *options = given.removeprefix(TORCHMETRICS).split(",")
    kind = _kind(name.strip())
    if bad := next((o for o in options if not o.partition("=")[2]), None):
        raise SubcompressError(
            f"--metric {TORCHMETRICS}NAME,option=value,...; {bad!r} is not of the form option=value in {given}"
        )
    arguments = {k.strip(): _value(v.strip()) for k, _, v in (o.partition("=") for o in options)}
    try:
        return kind(**arguments)
    except Exception as e:
        raise SubcompressError(f"torchmetrics refuses {given}: {type(e).__name__}: {one_line(e)}") from e


def _kind(name: str) -> Any:
    try:
        module = importlib.import_module("torchmetrics")
    except ImportError as e:
        raise SubcompressError(
            f"--metric {TORCHMETRICS}{name} needs torchmetrics ({one_line(e, 100)}): pip install torchmetrics"
        ) from e
    parts = [module, *(getattr(module, part, None) for part in ("classification", "regression"))]
    known = {
        n: kind
        for part in parts
        for n, kind in vars(part).items()
        if isinstance(kind, type) and issubclass(kind, module.Metric) and not n.startswith("_")
    }
    if name not in known:
        close = ", ".join(close_matches(name, known, cutoff=0.5))
        raise SubcompressError(f"torchmetrics has no metric {name!r}" + (f"; close to it: {close}" if close else ""))
    return known[name]


def _value(text: str) -> int | float | bool | str | None:
    """A number, a truth value or None if the text reads as one, else the text."""
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
