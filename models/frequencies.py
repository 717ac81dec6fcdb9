"""A small convolutional network for 32x32 color images that begins with what needs no training and no bytes: the lowest
frequencies (discrete cosine transform, Ahmed et al. 1974) of overlapping patches of 4x4 pixels, of brightness and of
two differences of colors, which come near to the principal components of natural images. Each frequency is divided by
its own size in the image, as whitening does, and split into its positive and its negative part. Depthwise separable
convolutions (Howard et al. 2017, arXiv:1704.04861), normalized over all of an example's values (Ba et al. 2016,
arXiv:1607.06450, without gains), learn the rest. In evaluation the network averages over an image and its mirror
image."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, max_pool2d, pad

PATCH = 4
"""Pixels on a side of a patch. Patches are half as far apart."""

COLORS = (((1.0, 1.0, 1.0), 3), ((-0.5, -0.5, 1.0), 1), ((1.0, -1.0, 0.0), 1))
"""For each of brightness, blue against yellow and red against green: the weights of the channels, and the largest sum
of the two frequencies that are kept."""

FLOOR = 0.05
"""What is added to the mean square of a frequency, as a share of the mean over all frequencies of the image."""


def cosines() -> Tensor:
    """Patterns of the frequencies, of length 1 each: (16, 3, 4, 4) float32."""
    k = torch.arange(PATCH, dtype=torch.float64)
    waves = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / PATCH)
    waves = waves / waves.norm(dim=1, keepdim=True)
    found = []
    for weights, highest in COLORS:
        color = torch.tensor(weights, dtype=torch.float64)
        color = color / color.norm()
        kept = [(i, j) for i in range(PATCH) for j in range(PATCH) if i + j <= highest]
        found += [torch.einsum("c,y,x->cyx", color, waves[i], waves[j]) for i, j in kept]
    return torch.stack(found).float()


class Frequencies(nn.Module):
    """(N, 3, 32, 32) -> (N, 10) logits; `widths`: channels after the first convolution and after each block."""

    patterns: Tensor

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("patterns", cosines(), persistent=False)
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(2 * len(self.patterns), widths[0], 1)
        self.depthwise = nn.ModuleList(nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False) for a, _ in pairs)
        self.pointwise = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairs)
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self._look(x) if self.training else (self._look(x) + self._look(x.flip(3))) / 2

    def _look(self, x: Tensor) -> Tensor:
        x = group_norm(self.stem(self._waves(x)), 1).relu()  # (N, widths[0], 16, 16)
        for i, (depthwise, pointwise) in enumerate(zip(self.depthwise, self.pointwise, strict=True)):
            y = group_norm(pointwise(depthwise(x)), 1)
            x = (x + y if x.shape == y.shape else y).relu()
            if i < 2:
                x = max_pool2d(x, 2)  # to 8 x 8, then to 4 x 4
        return self.fc(x.mean((2, 3)))

    def _waves(self, x: Tensor) -> Tensor:
        x = conv2d(pad(x, (1, 1, 1, 1), mode="replicate"), self.patterns, stride=PATCH // 2)
        power = x.square().mean((2, 3), keepdim=True)
        x = x / (power + FLOOR * power.mean(1, keepdim=True)).sqrt()
        x = torch.cat((x.relu(), (-x).relu()), 1)
        return x.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
