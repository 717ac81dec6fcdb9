"""Converting labels and outputs, in the forms users provide, to those that losses and metrics take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from subcompress.data.in_memory import InMemory
from subcompress.data.splits import Data
from subcompress.errors import SubcompressError

MAIN = "logits"
"""The names of the main one of several outputs."""


def main_tensor(outputs: Any) -> Tensor | None:
    """Return the main tensor of outputs: the tensor itself, or of a dictionary, tuple or object its `logits`, or the
    only one."""
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs.get(MAIN) if isinstance(outputs, Mapping) else getattr(outputs, MAIN, None)
    if isinstance(named, Tensor):
        return named
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, (tuple, list)) else ()
    several = list(values)
    return several[0] if len(several) == 1 and isinstance(several[0], Tensor) else None


def the_outputs(outputs: Any, name: str) -> Tensor:
    """Return the main tensor. Raises SubcompressError, naming the loss or metric, if there is none."""
    if (found := main_tensor(outputs)) is None:
        raise SubcompressError(
            f"{name} takes one tensor of outputs; the model gives {_kind(outputs)}: return one tensor, or call it "
            f"{MAIN!r}, or give a loss and a metric of your own"
        )
    return found


def the_labels(y: Any, name: str) -> Tensor:
    """Return y. Raises SubcompressError, naming the loss or metric, if it is no tensor."""
    if not isinstance(y, Tensor):
        raise SubcompressError(
            f"{name} takes labels or values as one tensor; a batch of the data has {_kind(y)}: give each "
            "example one tensor of numbers"
        )
    return y


def _kind(x: Any) -> str:
    """Describe a value for a message."""
    if isinstance(x, Mapping):
        return f"a {type(x).__name__} of {', '.join(map(str, list(x)[:4])) or 'nothing'}"
    if isinstance(x, (tuple, list)):
        return f"a {type(x).__name__} of {len(x)} ({', '.join(type(v).__name__ for v in list(x)[:3])})"
    return f"a {type(x).__name__}"


def check_classes(outputs: Tensor, y: Tensor, name: str) -> None:
    """Raise SubcompressError if y, as `as_classes` gives it, is neither the classes nor their probabilities for
    outputs (N, C, ...)."""
    if outputs.ndim < 2:
        raise SubcompressError(
            f"{name} takes outputs (N, C), one number per class; the model gives {tuple(outputs.shape)}: widen "
            "its last layer, or take --loss bce for two classes"
        )
    wanted = (outputs.shape[0], *outputs.shape[2:])
    if counts(y) and y.shape != wanted:
        raise SubcompressError(
            f"{name} takes one class for each output, {wanted}, or one-hot rows, {tuple(outputs.shape)}; got labels "
            f"{tuple(y.shape)}: reshape them"
        )
    if not counts(y) and y.shape != outputs.shape:
        raise SubcompressError(
            f"{name} takes classes as integers, {wanted}, or probabilities, {tuple(outputs.shape)}; got {y.dtype} "
            f"{tuple(y.shape)}: convert them with y.long(), or take --loss mse for values"
        )


def check_tokens(outputs: Tensor, y: Tensor) -> None:
    """Raise SubcompressError if y is not one label for each token, (N, L), of outputs (N, L, C)."""
    if outputs.ndim != 3 or y.shape != outputs.shape[:2] or not counts(y):
        raise SubcompressError(
            "labels of tokens must be integers (N, L) for outputs (N, L, C), -100 where nothing is learned; "
            f"got outputs {tuple(outputs.shape)} and {y.dtype} {tuple(y.shape)}: give a label for each token, "
            "or another loss"
        )


def check_one_hot(y: Tensor, name: str) -> None:
    """Raise SubcompressError if rows of integers, (N, C, ...), are not one 1 and else 0."""
    if not bool(((y == 0) | (y == 1)).all() & (y.sum(1) == 1).all()):
        raise SubcompressError(
            f"labels with the shape of the outputs must be one-hot (one 1, otherwise 0); those of the {name} "
            "split are not: give the numbers of the classes, or --loss bce if an example has several"
        )


def check_between(y: Tensor, name: str) -> None:
    """Raise SubcompressError if y of bce is not between 0 and 1."""
    if y.numel() and not (float(y.min()) >= 0 and float(y.max()) <= 1):
        raise SubcompressError(
            f"bce takes labels from 0 to 1, which say for each output whether it is on; those of the {name} "
            f"split are from {float(y.min()):g} to {float(y.max()):g}: take --loss cross-entropy for classes, "
            "or scale the labels"
        )


def one_hot_classes(y: Tensor) -> Tensor:
    """Convert one-hot rows of integers, (N, C), to classes, (N,); return anything else as it is."""
    if y.ndim == 2 and y.shape[1] > 1 and counts(y) and bool(((y == 0) | (y == 1)).all() & (y.sum(1) == 1).all()):
        return y.argmax(1)
    return y


def as_classes(outputs: Any, y: Any) -> Any:
    """Integer labels as cross-entropy takes them: int64, of the outputs' shape without its second axis, where they
    differ from it by axes of one only, or are one-hot, of the outputs' shape. Anything else, class probabilities too,
    comes back as it is."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor) or outputs.ndim < 2:
        return y
    if not counts(y):
        return single(y, outputs)
    wanted = (outputs.shape[0], *outputs.shape[2:])
    if y.shape == outputs.shape and y.shape[1] > 1:
        return y.long().argmax(1)  # `check_one_hot` has seen them
    y = y.long()
    same_length = len(y) == wanted[0] if y.ndim else False
    return y.reshape(wanted) if same_length and _wide(y.shape) == _wide(wanted) else y


def as_values(outputs: Any, y: Any) -> Any:
    """y of the outputs' shape, see `shaped`; integers and truth values as numbers of the outputs' dtype. Anything else
    comes back as it is."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor):
        return y
    y = single(shaped(outputs, y), outputs)
    return y.to(outputs.dtype) if counts(y) and outputs.is_floating_point() else y


def single(y: Tensor, outputs: Tensor) -> Tensor:
    """y, in float32 where it is float64, as Python's numbers become, and the outputs are not: no loss takes both."""
    return y.float() if y.dtype == torch.float64 and outputs.dtype != torch.float64 else y


def shaped(outputs: Tensor, y: Tensor) -> Tensor:
    """y of the outputs' shape, where the one is (N,) and the other (N, 1)."""
    same_values = {outputs.ndim, y.ndim} == {1, 2} and len(outputs) == len(y) and outputs.numel() == y.numel()
    return y.reshape(outputs.shape) if same_values else y


def counts(y: Tensor) -> bool:
    """Return whether y holds integers or booleans."""
    return not y.is_floating_point() and not y.is_complex()


def prepare_labels(data: Data, loss_name: str) -> Data:
    """The data with the labels of what is in memory converted once: for cross-entropy to int64 and from (N, 1) to (N,),
    for bce to float32. Under any other loss they stay as they are."""
    convert = {"cross-entropy": _classes, "bce": _floats}.get(loss_name)
    if convert is None:
        return data
    before = data.train, data.validation, data.test
    train, validation, test = (_converted(split, convert) for split in before)
    if (train, validation, test) == before:
        return data
    return replace(data, train=train, validation=validation, test=test)


def _converted(split: Dataset[Any], convert: Callable[[Tensor], Tensor]) -> Dataset[Any]:
    if not isinstance(split, InMemory) or not isinstance(split.y, Tensor) or not counts(split.y):
        return split
    y = convert(split.y)
    if y is split.y:
        return split
    found = copy.copy(split)
    object.__setattr__(found, "y", y)  # a Split is frozen
    return found


def _classes(y: Tensor) -> Tensor:
    return y.long().reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y.long()


def _floats(y: Tensor) -> Tensor:
    return y.to(torch.float32)


def _wide(shape: Any) -> list[int]:
    """Return the axes longer than one."""
    return [n for n in shape if n != 1]
