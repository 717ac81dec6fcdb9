"""Fits that are stopped, and what tells whether two ended alike."""

from __future__ import annotations

import json
from pathlib import Path

import networks
import torch

import subcompress
from subcompress import Listener
from subcompress.training import run

FIT = {"d": 60, "epochs": 4, "batch_size": 32, "threads": 1}


class Stopping(Listener):
    """Raises after so many epochs, whichever trainings they are of."""

    def __init__(self, after: int) -> None:
        self.left, self.seen = after, 0

    def epoch(self, progress):
        self.seen += 1
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def fit(folder: Path, options: dict, listener: Listener | None = None, case: str = "batch norm"):
    c = networks.CASES[case]
    torch.manual_seed(0)
    return subcompress.fit(c.make(), c.data(), folder, **options, **c.options, listener=listener)


def result(folder: Path) -> tuple[bytes, dict]:
    """The record, and the summary without what depends on the clock."""
    summary = json.loads((folder / run.SUMMARY).read_text())["fit"]
    for probe in (*summary["probes"], *summary["trainings"]):
        del probe["seconds"]
    return (folder / run.RECORD).read_bytes(), {k: v for k, v in summary.items() if k not in ("seconds", "run")}
