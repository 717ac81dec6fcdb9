"""The two controls of Li et al. 2018 (arXiv:1804.08838): shuffled pixels and shuffled labels."""

import math
from dataclasses import replace

import numpy as np
import torch

from subcompress.data.splits import Data, Split
from subcompress.errors import SubcompressError
from subcompress.operators.philox import words

_PIXELS = (1 << 32) - 1  # streams far above those of any operator with the same seed
_LABELS = ((1 << 32) - 2, (1 << 32) - 3, (1 << 32) - 4)  # of train, validation and test


def _permutation(seed: int, stream: int, n: int) -> torch.Tensor:
    """Return a random permutation of 0 .. n - 1, (n,) int64, the same on every machine."""
    if not 0 <= seed < 1 << 64:
        raise SubcompressError(f"a seed must be between 0 and 2^64 - 1; got {seed}")
    w = words(seed, stream, np.arange(-(-n // 2), dtype=np.int64)).reshape(-1, 2)
    keys = w[:n, 0] << 32 | w[:n, 1]
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def _in_memory(data: Data) -> tuple[Split, Split, Split]:
    """train, validation and test, where each is one tensor of inputs and one of labels."""
    splits = []
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        if not (isinstance(split, Split) and isinstance(split.x, torch.Tensor) and isinstance(split.y, torch.Tensor)):
            raise SubcompressError(
                f"only a Split of one tensor x and one tensor y can be shuffled; the {name} split is another "
                f"{type(split).__name__}: stack its examples first"
            )
        splits.append(split)
    train, validation, test = splits
    return train, validation, test


def shuffle_pixels(data: Data, seed: int = 0) -> Data:
    """Every example's values (channels too) in another order, one order for all examples of all splits.

    A fully connected network learns as well as before; a convolutional one loses the neighborhoods it lives on. The
    facts stay as they were: a receiver normalizes an input by them first, then orders its values by the same seed.
    """
    splits = _in_memory(data)
    shapes = {tuple(split.x.shape[1:]) for split in splits}
    if len(shapes) > 1:
        raise SubcompressError(
            f"the inputs of all splits must have one shape; they have {sorted(shapes)}: crop or pad them to one"
        )
    order = _permutation(seed, _PIXELS, math.prod(*shapes))
    train, validation, test = (
        Split(split.x.reshape(len(split.x), -1)[:, order].reshape(split.x.shape), split.y) for split in splits
    )
    return replace(data, train=train, validation=validation, test=test)


def shuffle_labels(data: Data, seed: int = 0) -> Data:
    """Every split's labels in another order, drawn once: what is left to learn is each training example by heart.

    The measure is the training accuracy; validation and test labels are shuffled too and tell nothing.
    """
    train, validation, test = (
        Split(split.x, split.y[_permutation(seed, stream, len(split.y))])
        for split, stream in zip(_in_memory(data), _LABELS, strict=True)
    )
    return replace(data, train=train, validation=validation, test=test)
