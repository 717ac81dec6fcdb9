"""Data sets that are small, and fits of them."""

import time

import psutil
import torch
from hub_client import DRIVER as HUB_CLIENT
from torch import nn
from torch.utils.data import (
    Dataset,
    IterableDataset,
)

import subcompress
from subcompress import Data

OPTIONS = {"d": 8, "epochs": 3, "batch_size": 8, "threads": 1}


class Blobs(Dataset):
    """Points (4,), one by one: which of three coordinates is the largest?"""

    def __init__(self, n=48, seed=0):
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.x[i, :3].argmax())


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(4), 0


def net():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def three(make, **options):
    return Data(*[make() for _ in range(3)], **options)


def packed(data, folder, module=None, **options):
    """The file of a fit."""
    subcompress.fit(module or net(), data, folder / "run", **{**OPTIONS, **options})
    subcompress.pack(folder / "run", folder / "net.safetensors")
    return (folder / "net.safetensors").read_bytes()


def no_children():
    """Wait for the processes that read: none stays. The clients of other tests are none of them."""
    for _ in range(50):
        children = psutil.Process().children()
        if not (left := [child for child in children if str(HUB_CLIENT) not in child.cmdline()]):
            return True
        time.sleep(0.1)
    return left
