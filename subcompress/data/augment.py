"""Augmentations: random changes of training images that preserve their labels. A new one is one function and one
line.

An augmentation is f(x, generator) -> x of one batch, (N, C, H, W); training alone sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from subcompress.errors import SubcompressError
from subcompress.support.suggestions import suggestion

Augment = Callable[[Any, torch.Generator], Any]


def shift(x: Tensor, g: torch.Generator, most: int = 2) -> Tensor:
    """Shift each image by up to `most` pixels in x and in y, repeating its edge."""
    n, _, height, width = x.shape
    padded = functional.pad(x, (most,) * 4, mode="replicate")
    dy, dx = (torch.randint(0, 2 * most + 1, (n, 1), generator=g) for _ in range(2))
    rows = (dy + torch.arange(height)).to(x.device)
    columns = (dx + torch.arange(width)).to(x.device)
    batch = torch.arange(n, device=x.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def flip(x: Tensor, g: torch.Generator) -> Tensor:
    """Mirror half of the images."""
    mirrored = (torch.rand(len(x), generator=g) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def flip_shift(x: Tensor, g: torch.Generator) -> Tensor:
    """Mirror half of the images and shift each by up to 4 pixels, as is usual for large networks on CIFAR-10."""
    return shift(flip(x, g), g, 4)


AUGMENTS: dict[str, Augment] = {"shift": shift, "flip": flip, "flip-shift": flip_shift}


def augment_of(name: str | Augment | None) -> Augment | None:
    """Return the named augmentation, or the caller's own function. Raises SubcompressError for an unknown name."""
    if isinstance(name, str):
        if name not in AUGMENTS:
            raise SubcompressError(
                f"--augment must be one of {', '.join(AUGMENTS)} or file.py:f; got {name!r}"
                + suggestion(name, AUGMENTS)
            )
        return AUGMENTS[name]
    return name


__all__ = ["AUGMENTS", "Augment", "augment_of"]
