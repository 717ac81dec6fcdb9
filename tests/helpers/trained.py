"""Fits on a trained base."""

from __future__ import annotations

from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.tensors.layout import raw_bytes

FIT = {"d": 40, "epochs": 2, "batch_size": 64, "threads": 1}


class Notes(Listener):
    """What was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def net(kind: str = "batch norm", seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return networks.CASES[kind].make()


def same(a: Tensor, b: Tensor) -> bool:
    return raw_bytes(a) == raw_bytes(b) and a.shape == b.shape


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(SubcompressError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def sized(outputs: int) -> nn.Module:
    module = net(seed=11)
    module[8] = nn.Linear(72, outputs)
    return module


def loaded(path: Path, base: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = {"six": 6, "nine": 9}.get(path.name, 4)
    return subcompress.load(path, sized(outputs), base=base).state_dict()


def state() -> dict[str, Tensor]:
    """Of a batch norm network after 40 steps."""
    module, data = net(), networks.blobs()
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(data.train.x), data.train.y).backward()
        optimizer.step()
    return {n: t.detach().clone() for n, t in module.state_dict().items()}
