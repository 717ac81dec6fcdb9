"""A small convolutional network for gray images of 28x28 that begins with what needs no training and no bytes: a digit
is made upright by its moments (LeCun et al. 1998, "Gradient-based learning applied to document recognition",
deslanting), and seen as edges in eight directions (as first features of digits: Liu et al. 2003, "Handwritten digit
recognition: benchmarking of state-of-the-art techniques"), averaged over 2x2 places. Two convolutions and one linear
layer learn the rest. Each sees values that are normalized over the example (Ba et al. 2016, arXiv:1607.06450, without
gains): it learns in few epochs, and most of its weights may be zero. In evaluation it looks at an image in nine places
and averages what it sees."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, grid_sample, group_norm, max_pool2d, pad

MOST = 1.0
"""The most columns by which a row is moved, for each row of distance from the middle."""


def upright(x: Tensor) -> Tensor:
    """Shear images (N, 1, H, W) so that what is brighter than their darkest value does not lean; that value becomes
    0."""
    n, _, height, width = x.shape
    x = x - x.amin((2, 3), keepdim=True)
    rows = torch.linspace(-1, 1, height, device=x.device).view(1, 1, height, 1)
    columns = torch.linspace(-1, 1, width, device=x.device).view(1, 1, 1, width)
    share = x / x.sum((2, 3), keepdim=True).clamp(min=1e-6)
    by_row = share.sum(3, keepdim=True)
    down = rows - (by_row * rows).sum((2, 3), keepdim=True)
    lean = (share * columns).sum(3, keepdim=True).mul(down).sum((2, 3), keepdim=True)
    slope = (lean / ((by_row * down.square()).sum((2, 3), keepdim=True) + 1e-4)).clamp(-MOST, MOST)
    places = torch.stack(((columns + slope * down).squeeze(1), rows.expand(n, 1, height, width).squeeze(1)), -1)
    return grid_sample(x, places, align_corners=True)


def edges(x: Tensor) -> Tensor:
    """(N, 1, H, W) -> (N, 8, H, W), at least zero: how much brighter it gets towards 0, 45, 90, ... degrees."""
    x = pad(x, (1, 1, 1, 1))
    wide, high = x[..., 2:] - x[..., :-2], x[..., 2:, :] - x[..., :-2, :]
    across = (wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]) / 4
    down = (high[..., :-2] + 2 * high[..., 1:-1] + high[..., 2:]) / 4
    half = 0.5**0.5
    found = torch.cat((across, half * (across + down), down, half * (down - across)), 1)
    return torch.cat((found, -found), 1).relu()


def shifted(x: Tensor) -> Tensor:
    """(N, 1, H, W) -> (9 N, 1, H, W): each image moved by -1, 0 or 1 pixel in y and in x."""
    height, width = x.shape[2:]
    wide = pad(x, (1, 1, 1, 1))
    return torch.cat([wide[..., i : i + height, j : j + width] for i in range(3) for j in range(3)])


class Oriented(nn.Module):
    """(N, 1, 28, 28) -> (N, 10) logits; `widths`: kernels of the two layers."""

    def __init__(self, widths: tuple[int, int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((8, *widths)))
        self.fc = nn.Linear(9 * widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = upright(x)
        return self._look(x) if self.training else self._look(shifted(x)).view(9, -1, 10).mean(0)

    def _look(self, x: Tensor) -> Tensor:
        x = group_norm(avg_pool2d(edges(x), 2), 1)  # (N, 8, 14, 14)
        for conv in self.convs:
            x = max_pool2d(group_norm(conv(x), 1).relu(), 2)  # to 7 x 7, then to 3 x 3
        return self.fc(x.flatten(1))
