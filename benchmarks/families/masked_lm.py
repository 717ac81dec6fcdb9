"""A masked language model (Devlin et al. 2019, arXiv:1810.04805) of a simulated language.

Here because its positions are sines and cosines (Vaswani et al. 2017, arXiv:1706.03762) that training goes on from:
a smooth table that is a parameter, beside embeddings of deviation 1 and attention started by Xavier's rule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from families.data import cut
from families.family import Batch, Family, Splits

WORDS, LENGTH, MASK = 10, 16, 10
"""Words of the language, words of a sentence, and the number of the mask."""


def sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines of each place, (length, width)."""
    angle = torch.arange(float(length)).unsqueeze(1) * torch.exp(-math.log(1e4) * torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class MaskedLM(nn.Module):
    """Words, (N, LENGTH) -> logits, (N, LENGTH, WORDS)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS + 1, width)
        self.positions = nn.Parameter(sinusoids(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(words) + self.positions))


def load() -> Splits:
    """Sentences of a Markov chain in which a word mostly has one successor; a seventh of the words are masked."""
    drawn = torch.Generator().manual_seed(0)
    successor, n = torch.randperm(WORDS, generator=drawn), 2600
    words = [torch.randint(WORDS, (n,), generator=drawn)]
    for _ in range(LENGTH - 1):
        other = torch.randint(WORDS, (n,), generator=drawn)
        words.append(torch.where(torch.rand(n, generator=drawn) < 0.9, successor[words[-1]], other))
    y = torch.stack(words, 1)
    masked = torch.rand(y.shape, generator=drawn) < 1 / 7
    return cut(y.masked_fill(masked, MASK), y.masked_fill(~masked, -100), 2000, 300)


def masked_accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """Share of the masked words that are found."""
    return (outputs.argmax(-1) == y)[y >= 0].double().mean()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the masked words."""
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


make_net = MaskedLM

FAMILY = Family("masked_lm", make_net, load, d=960, epochs=14, batch_size=64, loss=loss, metric=masked_accuracy)
