"""One Hub for all tests of it, and a client."""

from __future__ import annotations

import re

import pytest
import safetensors.torch
import torch
from hub_client import Client
from on_hub import FIRST
from stand_in_hub import StandInHub

import subcompress
from subcompress_models import MODELS


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """One Hub for all tests, each of which takes a repository of its own."""
    hub = StandInHub(tmp_path_factory.mktemp("xet"))
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def process(hub, shared, small_file, tmp_path_factory):
    """A process of a client. What it publishes with a graph is traced in this one, in which torch's exporter is at hand
    anyway: a process that has to import it needs seconds before it traces anything."""
    for file, network in ((FIRST, "conv3-4-6-8"), (small_file, "lenet")):
        subcompress.unpack(file, tmp_path_factory.mktemp("traced") / "net.onnx", MODELS[network]())
    client = Client(hub.url, tmp_path_factory.mktemp("home"), shared / "traces")
    yield client
    client.close()


@pytest.fixture
def client(hub, process, tmp_path):
    """A user with write access and an empty cache; every fault that was asked for has to be met."""
    process.token, process.offline, process.xet, process.cache = "hf_writer", False, False, tmp_path / "cache"
    hub.faults.clear()
    yield process
    assert [f for f in hub.faults if f.times > 0] == []


@pytest.fixture
def name(request):
    """A repository for this test."""
    return "me/" + re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:60].strip("-")


# Bases that lie on the Hub


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Two states of a base's weights, as files, and the code of a network on it, with a head of its own."""
    folder = tmp_path_factory.mktemp("bases")
    for seed in (0, 1):
        torch.manual_seed(seed)
        safetensors.torch.save_file(torch.nn.Sequential(torch.nn.Linear(8, 6)).state_dict(), folder / f"{seed}")
    (folder / "own.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))\n"
    )
    return folder
