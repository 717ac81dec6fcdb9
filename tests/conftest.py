"""Runs and files that many tests share; nothing here trains for more than a few seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

import subcompress
from subcompress_models import MODELS


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
