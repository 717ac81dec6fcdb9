"""What a training runs on: the device and the threads, checked and given back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from subcompress.errors import SubcompressError
from subcompress.support.devices import choose_device


@contextmanager
def machine(device: str, threads: int | None, seed: int) -> Iterator[None]:
    """The device checked, the threads set and given back, the caller's random states untouched."""
    device = choose_device(device).name
    if threads is not None and not 1 <= threads <= 1024:
        raise SubcompressError(f"--threads must be between 1 and 1024; got {threads}")
    before, states = torch.get_num_threads(), (random.getstate(), np.random.get_state())
    try:
        torch.set_num_threads(threads or before)
        # What the caller has switched on or off must not change the file.
        off = torch.autocast(device.partition(":")[0], enabled=False)
        with torch.random.fork_rng(), torch.enable_grad(), off:
            torch.manual_seed(seed & ((1 << 63) - 1))
            yield
    finally:
        torch.set_num_threads(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
