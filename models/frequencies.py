"""A small convolutional network for 32x32 color images that begins with what needs no training and no bytes: the lowest
frequencies (discrete cosine transform, Ahmed et al. 1974) of overlapping patches of 4x4 pixels, of brightness and of
two differences of colors, which come near to the principal components of natural images. Each frequency is divided by
its own size in the image, as whitening does, and split into its positive and its negative part. The blocks of
`separable.py` learn the rest."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, pad

from subcompress_models.separable import Separable

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


class Frequencies(Separable):
    """(N, 3, 32, 32) -> (N, 10) logits; `widths`: channels after the first convolution and after each block."""

    patterns: Tensor

    def __init__(self, widths: tuple[int, ...]) -> None:
        patterns = cosines()
        super().__init__(widths, nn.Conv2d(2 * len(patterns), widths[0], 1))
        self.register_buffer("patterns", patterns, persistent=False)

    def _first(self, x: Tensor) -> Tensor:
        x = conv2d(pad(x, (1, 1, 1, 1), mode="replicate"), self.patterns, stride=PATCH // 2)
        power = x.square().mean((2, 3), keepdim=True)
        x = x / (power + FLOOR * power.mean(1, keepdim=True)).sqrt()
        x = torch.cat((x.relu(), (-x).relu()), 1).contiguous(memory_format=torch.channels_last)  # faster on a CPU
        return group_norm(self.stem(x), 1).relu()
