"""Servers that many tests ask."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from onnx import helper
from records import lenet_record
from served import LENET, STAND_IN, graph
from serving import Client, packed, serving

import subcompress
from subcompress import format
from subcompress_cli import tracing
from subcompress_models import MODELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of LeNet."""
    made = tmp_path_factory.mktemp("models")
    for i, name in enumerate(("one", "two")):
        packed(made, name, lenet_record(300, i))
    return made


@pytest.fixture(scope="module")
def client(folder: Path) -> Any:
    """A server of both."""
    with serving(folder, trace=LENET) as found:
        yield found


@pytest.fixture(scope="module")
def real(client: Client) -> Any:
    """The client that Triton's users have."""
    with triton.InferenceServerClient(f"{client.host}:{client.port}", concurrency=4) as found:
        yield found


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of graphs that others write."""
    made = tmp_path_factory.mktemp("odd")
    rows, node = {"x": ["n", 2], "y": ["n", 2]}, helper.make_node
    graph(made / "sum.onnx", [node("CumSum", ["x", "axis"], ["y"])], rows, {"axis": 0})  # the first axis is time
    mean = node("ReduceMean", ["x"], ["m"], axes=[0])
    graph(made / "centered.onnx", [mean, node("Sub", ["x", "m"], ["y"])], rows)
    graph(made / "same.onnx", [node("Identity", ["x"], ["y"])], rows)
    graph(made / "scalar.onnx", [node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": ["n", 2], "y": []})
    graph(made / "none.onnx", [node("Identity", ["c"], ["y"])], {"y": [2]}, {"c": np.ones(2, np.float32)})
    with serving(made, trace=LENET, most=4) as found:
        yield found


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Python, which traces."""
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setattr(tracing, "sys", SimpleNamespace(executable=str(path)))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with net.safetensors, of LeNet, and net.onnx, its self-unfolding graph."""
    folder = tmp_path_factory.mktemp("made")
    format.save(lenet_record(), folder / "net.safetensors")
    subcompress.unpack(folder / "net.safetensors", folder / "net.onnx", MODELS["lenet"](), self_unfolding=True)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, with those files."""
    monkeypatch.chdir(tmp_path)
    for path in made.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path
