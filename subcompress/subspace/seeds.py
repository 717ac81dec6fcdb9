"""One seed for all that user code may draw from."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_everything(seed: int, epoch: int) -> torch.Generator:
    """Dropout, augmentation and the like, by seed and epoch: a run that goes on draws what it would have drawn. Returns
    a generator of the same seed."""
    mixed = (seed * 1_000_003 + epoch) & ((1 << 63) - 1)
    torch.manual_seed(mixed)
    return _seeded(mixed)


def seed_shard(seed: int, step: int, shard: int) -> torch.Generator:
    """As `seed_everything`, for one part of the batch of one step: whoever runs it draws the same."""
    text = f"{seed} {step} {shard}".encode()
    mixed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    # Not torch.manual_seed: where CUDA has not begun, it would note each call, with its traceback, for when it does.
    torch.default_generator.manual_seed(mixed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(mixed)
    return _seeded(mixed)


def _seeded(mixed: int) -> torch.Generator:
    """Seed the generators that are not torch's own with a number below 2^63; a new one of torch, of the same seed."""
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)
    return torch.Generator().manual_seed(mixed)
