"""What tests of training share."""

from pathlib import Path

import pytest
import torch
from metric_cases import N, generator
from run_folders import Stopping, fit
from torch import nn

from subcompress import Split


@pytest.fixture
def regression():
    """Batches whose y lie around different means: what makes a mean of correlations wrong."""
    x = torch.randn(N, 3, generator=generator())
    x[:, 0] += torch.arange(N) / 500
    return Split(x, x[:, :1] + torch.randn(N, 1, generator=generator()))


@pytest.fixture
def classes():
    x = torch.randn(N, 4, generator=generator())
    return Split(x, (x[:, :3] + torch.randn(N, 3, generator=generator())).argmax(1))


@pytest.fixture
def line():
    torch.manual_seed(0)
    line = nn.Linear(3, 1)
    line.weight.data[0, 0] = 1
    return line


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run with a journal and a checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("subcompress.training.loop.SAVE_EVERY", -1.0)
        fit(folder, listener=Stopping())
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(folder, epochs=1)
    return folder
