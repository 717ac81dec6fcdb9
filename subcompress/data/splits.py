"""The three splits: training teaches, validation chooses, test is read once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from subcompress.facts import Facts


@dataclass(frozen=True)
class Split:
    """x: (N, ...) float32 inputs, preprocessed; y: (N,) int64 labels."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Data:
    """train, validation and test, and what a receiver must know to prepare an input of its own."""

    train: Split
    validation: Split
    test: Split
    facts: Facts = Facts()


def normalised(images: Tensor, labels: Tensor, facts: Facts) -> Split:
    """uint8 images (N, C, H, W) and labels (N,) -> a Split under the facts' preprocessing."""
    mean = torch.tensor(facts.mean).view(1, -1, 1, 1)
    std = torch.tensor(facts.std).view(1, -1, 1, 1)
    return Split((images.float() / 255 - mean) / std, labels.long())
