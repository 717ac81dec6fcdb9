"""Runs and files that many tests share; nothing here trains for more than a few seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn
from traces import remembered
from trained import net

import subcompress
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
def small_run(tmp_path_factory: pytest.TempPathFactory, digits: subcompress.Data) -> Path:
    """A finished run of LeNet on the digits."""
    folder = tmp_path_factory.mktemp("fits") / "run"
    subcompress.fit(MODELS["lenet"](), digits, folder, d=200, epochs=12, batch_size=32, threads=1)
    return folder


@pytest.fixture(scope="session")
def small_file(small_run: Path) -> Path:
    """The file of that run."""
    path = small_run.parent / "net.safetensors"
    subcompress.pack(small_run, path)
    return path


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[subcompress.Fit, Path, nn.Module]]:
    """Name of a network -> (fit, file, module), each fitted once."""
    held: dict[str, tuple[subcompress.Fit, Path, nn.Module]] = {}

    def get(name: str) -> tuple[subcompress.Fit, Path, nn.Module]:
        if name not in held:
            case, folder = networks.CASES[name], tmp_path_factory.mktemp("fit")
            torch.manual_seed(3)
            module = case.make()
            options = {"d": 100, "epochs": 20, "batch_size": 32, "threads": 1, **case.options}
            found = subcompress.fit(module, case.data(), folder / "run", **options)
            subcompress.pack(folder / "run", folder / "net.safetensors")
            held[name] = found, folder / "net.safetensors", module
        return held[name]

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
