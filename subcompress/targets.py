"""What people call labels, as losses and metrics take them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from subcompress.data.held import Held
from subcompress.data.splits import Data


def as_classes(outputs: Any, y: Any) -> Any:
    """Integer labels as cross-entropy takes them: int64, of the outputs' shape without its second axis, where they
    differ from it by axes of one only. Anything else, class probabilities too, comes back as it is."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor) or not counts(y) or outputs.ndim < 2:
        return y
    wanted = (outputs.shape[0], *outputs.shape[2:])
    y = y.long()
    same_length = len(y) == wanted[0] if y.ndim else False
    return y.reshape(wanted) if same_length and _wide(y.shape) == _wide(wanted) else y


def as_values(outputs: Any, y: Any) -> Any:
    """y of the outputs' shape, see `shaped`; integers and truth values as numbers of the outputs' dtype. Anything else
    comes back as it is."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor):
        return y
    y = shaped(outputs, y)
    return y.to(outputs.dtype) if counts(y) and outputs.is_floating_point() else y


def shaped(outputs: Tensor, y: Tensor) -> Tensor:
    """y of the outputs' shape, where the one is (N,) and the other (N, 1)."""
    same_values = {outputs.ndim, y.ndim} == {1, 2} and len(outputs) == len(y) and outputs.numel() == y.numel()
    return y.reshape(outputs.shape) if same_values else y


def counts(y: Tensor) -> bool:
    """Whether y holds integers or truth values."""
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
    if not isinstance(split, Held) or not isinstance(split.y, Tensor) or not counts(split.y):
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
    """The axes that are longer than one."""
    return [n for n in shape if n != 1]
