"""A bag of embeddings with a padding row, as classifiers of texts of any length use it (Joulin et al. 2017,
arXiv:1607.01759).

Here because the row of `padding_idx` is zero, gets no gradient and must stay zero: padding changes no output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from families.data import cut
from families.family import Family, Splits, Trained, accuracy


class Bag(nn.Module):
    """Tokens, (N, L), of which 0 is the padding -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(20, 16, padding_idx=0)
        self.fc = nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.emb(tokens).sum(1))


def load() -> Splits:
    """Sentences of 4 to 12 tokens; each class likes four tokens, two of them liked by the next one too."""
    drawn, n = torch.Generator().manual_seed(0), 1800
    y = torch.randint(10, (n,), generator=drawn)
    liked = (2 * y.unsqueeze(1) + torch.randint(4, (n, 12), generator=drawn)) % 19 + 1
    other = torch.randint(1, 20, (n, 12), generator=drawn)
    tokens = torch.where(torch.rand(n, 12, generator=drawn) < 0.7, liked, other)
    lengths = torch.randint(4, 13, (n, 1), generator=drawn)
    return cut(tokens.masked_fill(torch.arange(12) >= lengths, 0), y, 1200, 300)


def check(trained: Trained) -> list[str]:
    """Five tokens of padding change no output of the packed file, loaded into a fresh network."""
    tokens = trained.data[1][0]
    with torch.no_grad():
        apart = trained.rebuilt(tokens) - trained.rebuilt(functional.pad(tokens, (0, 5)))
    most = float(apart.abs().max())
    return [f"padding moves outputs by up to {most:.2g}"] if most > 1e-5 else []


make_net = Bag

FAMILY = Family("bag", make_net, load, d=200, epochs=20, metric=accuracy, check=check)
