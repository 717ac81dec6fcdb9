"""Runs and files that many tests share; nothing here trains for more than a few seconds."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from traces import remembered
from trained import net

import subcompress
from subcompress.data import Split
from subcompress.onnx import tracing
from subcompress_models import MODELS

os.environ.setdefault("SUBCOMPRESS_DEVICE", "cpu")  # on a GPU too, sums have one order and files the same bytes


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of this run share, and no other run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def few_digits(digits: subcompress.Data) -> subcompress.Data:
    """A third of it."""
    parts = [Split(split.x[::3], split.y[::3]) for split in (digits.train, digits.validation, digits.test)]
    return subcompress.Data(*parts, digits.facts)


@pytest.fixture(scope="session")
def once(shared: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """(name, make) -> a folder that the first process of this run to ask for it has made, and that all read."""

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name.replace(" ", "-")
        with FileLock(f"{folder}.lock"):
            if not folder.with_suffix(".made").exists():
                folder.mkdir()
                make(folder)
                folder.with_suffix(".made").touch()
        return folder

    return get


@pytest.fixture(scope="session", autouse=True)
def traces(shared: Path) -> None:
    """What was traced is not traced again."""
    (folder := shared / "traces").mkdir(exist_ok=True)
    tracing._trace = remembered(folder, tracing._trace)


@pytest.fixture(scope="session")
def digits() -> subcompress.Data:
    """The embedded data set."""
    return subcompress.load_data("digits")


@pytest.fixture(scope="session")
def small_run(once: Callable[[str, Callable[[Path], object]], Path], digits: subcompress.Data) -> Path:
    """A finished run of LeNet on the digits, with its file beside it."""

    def make(folder: Path) -> None:
        subcompress.fit(MODELS["lenet"](), digits, folder / "run", d=200, epochs=6, batch_size=32, threads=1)
        subcompress.pack(folder / "run", folder / "net.safetensors")

    return once("lenet", make) / "run"


@pytest.fixture(scope="session")
def small_file(small_run: Path) -> Path:
    """The file of that run."""
    return small_run.parent / "net.safetensors"


@pytest.fixture(scope="session")
def fitted(
    once: Callable[[str, Callable[[Path], object]], Path],
) -> Callable[[str], tuple[subcompress.Fit, Path, nn.Module]]:
    """Name of a network -> (fit, file, module as it was before), each fitted once."""

    def get(name: str) -> tuple[subcompress.Fit, Path, nn.Module]:
        case = networks.CASES[name]
        torch.manual_seed(3)
        module = case.make()

        def make(folder: Path) -> None:
            options = {"d": 100, "epochs": 8, "batch_size": 32, "threads": 1, **case.options}
            found = subcompress.fit(module, case.data(), folder / "run", **options)
            (folder / "fit").write_bytes(pickle.dumps(found))
            subcompress.pack(folder / "run", folder / "net.safetensors")

        folder = once(name, make)
        return pickle.loads((folder / "fit").read_bytes()), folder / "net.safetensors", module

    return get


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """A batch norm network after 40 steps: the base of these tests."""
    module, data = net(), networks.blobs()
    optimiser = torch.optim.Adam(module.parameters(), 5e-3)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(data.train.x), data.train.y).backward()
        optimiser.step()
    return {n: t.detach().clone() for n, t in module.state_dict().items()}
