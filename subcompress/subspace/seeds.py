"""One seed for all that user code may draw from."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int, epoch: int) -> torch.Generator:
    """Dropout, augmentation and the like, by seed and epoch: a run that goes on draws what it would have drawn. Returns
    a generator of the same seed."""
    mixed = (seed * 1_000_003 + epoch) & ((1 << 63) - 1)
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)
    return torch.Generator().manual_seed(mixed)
