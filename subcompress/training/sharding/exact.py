"""Sums of floating-point numbers that are the same in any order: as integers, in units of one power of two.

Numbers of float32 within a factor of 2^30 below the largest one are summed without any rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOWEST = -900
"""Exponent of the smallest unit: so that no power of two in here leaves float64."""

BROKEN = 1 << 20
"""The exponent that marks numbers that are not finite."""


def exponent(values: Tensor) -> int:
    """The smallest e with |values| < 2^e, LOWEST at least; BROKEN where a number is not finite."""
    if not values.numel():
        return LOWEST
    largest = float(values.detach().abs().amax())
    return max(LOWEST, math.frexp(largest)[1]) if math.isfinite(largest) else BROKEN


def room(count: int) -> int:
    """The bits that each of n numbers may have for their sum to fit into 63 bits."""
    return 62 - max(0, count - 1).bit_length()


def integers(values: Tensor, e: int, count: int) -> Tensor:
    """The numbers, all below 2^e, in units of 2^(e - room), int64: the sum of `count` of them does not overflow."""
    return (values.detach().double() * math.ldexp(1.0, room(count) - e)).round().to(torch.int64)


def mean(total: Tensor, e: int, count: int) -> Tensor:
    """The mean, in float64, of `count` tensors from the sum of what `integers` gave for them."""
    return total.double() * math.ldexp(1.0, e - room(count)) / count


def words(tensor: Tensor) -> Tensor:
    """The bytes of a tensor as int64, whatever its dtype."""
    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return torch.nn.functional.pad(plain, (0, -plain.numel() % 8)).view(torch.int64)


def of_words(found: Tensor, like: Tensor) -> Tensor:
    """The tensor that `words` made these of."""
    return found.contiguous().view(torch.uint8)[: like.numel() * like.element_size()].view(like.dtype).view(like.shape)


def reals(tensor: Tensor) -> Tensor:
    """The numbers of a floating-point or complex tensor, flat."""
    plain = tensor.detach()
    return (torch.view_as_real(plain) if plain.is_complex() else plain).reshape(-1)


def of_reals(found: Tensor, like: Tensor) -> Tensor:
    """The tensor whose `reals` these are."""
    if like.is_complex():
        parts = found.to(like.real.dtype).view(*like.shape, 2)
        return torch.view_as_complex(parts.contiguous())
    return found.to(like.dtype).view(like.shape)


def digest(tensor: Tensor) -> int:
    """A number below 2^61 that differs, except by chance, if bits of the tensor differ."""
    held = words(tensor)
    weights = torch.arange(1, 2 * len(held), 2, device=held.device) * 0x9E3779B97F4A7C1
    return int(((held ^ (held >> 29)) * weights).sum()) & ((1 << 61) - 1)


__all__ = [
    "BROKEN",
    "LOWEST",
    "digest",
    "exponent",
    "integers",
    "mean",
    "of_reals",
    "of_words",
    "reals",
    "room",
    "words",
]
