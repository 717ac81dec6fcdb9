"""One seed for all that user code may draw from."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_everything(seed: int, epoch: int) -> torch.Generator:
    """Dropout, augmentation and the like, by seed and epoch: a run that goes on draws what it would have drawn. Returns
    a generator of the same seed."""
    return _seeded((seed * 1_000_003 + epoch) & ((1 << 63) - 1))


def seed_shard(seed: int, step: int, shard: int) -> torch.Generator:
    """Like `seed_everything`, for one part of the batch of one step: every worker that runs it draws the same."""
    text = f"{seed} {step} {shard}".encode()
    return _seeded(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1)


def _seeded(mixed: int) -> torch.Generator:
    """Seed every global generator with a number below 2^63; return a new generator of torch, of the same seed."""
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)
    # Not torch.manual_seed: for each device that is not in use, it would keep the call, with its traceback, for later.
    torch.default_generator.manual_seed(mixed)
    for device in (torch.cuda, torch.mps, torch.xpu):
        if device.is_available():
            device.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)
