"""Folders of runs that somebody changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import networks
import pytest
import torch

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.training import run

OPTIONS = {"d": 40, "epochs": 3, "batch_size": 32, "threads": 1}


CHECKPOINT = f"{run.CHECKPOINTS}/d40-s0.safetensors"
DEEP = "[" * 100_000


class Stopping(Listener):
    """Raises in an epoch: what those before it left lies in the folder."""

    def __init__(self, epoch: int = 2) -> None:
        self.last = epoch

    def epoch(self, progress):
        if progress.epoch == self.last:
            raise KeyboardInterrupt


def fit(folder: Path, **options):
    case = networks.CASES["batch norm"]
    torch.manual_seed(0)
    return subcompress.fit(case.make(), case.data(), folder, **OPTIONS | options)


def one_line(call, *words: str) -> str:
    """The line that a call is refused with."""
    with pytest.raises(SubcompressError) as e:
        call()
    line = str(e.value)
    assert "\n" not in line
    assert len(line) < 700
    for word in words:
        assert word in line, line
    return line


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def put(*path, value):
    """Sets a field of nested objects; an ellipsis for a value takes the field away."""

    def change(held):
        for part in path[:-1]:
            held = held[part]
        if value is ...:
            del held[path[-1]]
        else:
            held[path[-1]] = value

    return change
