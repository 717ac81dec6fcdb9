"""A server that starts again: the graphs that were traced before are used, and no process with torch starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from records import record_of
from serving import packed

from subcompress.format.facts import Facts
from subcompress.onnx.graph_cache import GraphCache
from subcompress.serving.networks import Job, Traced
from subcompress_cli import tracing

OWN = """
import json, pathlib, torch

def net():
    size = json.loads((pathlib.Path(__file__).parent / "size.json").read_text())
    return torch.nn.Sequential(torch.nn.Linear(size, 2), torch.nn.{last}())
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A file of a network that own.py makes."""
    (tmp_path / "own.py").write_text(OWN.format(last="ReLU"))
    (tmp_path / "size.json").write_text("3")
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    packed(tmp_path, "net", record_of(net, Facts(input_shape=(3,))))
    return Job("net", (tmp_path / "net.safetensors").read_bytes())


def test_a_network_is_traced_again_only_if_its_code_changed(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def traced(*jobs: Job) -> list[Any]:
        cache = GraphCache(tmp_path / "graphs")
        return tracing.subprocess_tracer([f"{tmp_path}/own.py:net"], said.append, cache)(jobs)

    (first,) = traced(job)
    assert isinstance(first, Traced) and first.general and "traced" in said[-1]
    with monkeypatch.context() as patch:
        patch.setattr(tracing.SubprocessTracer, "_start", lambda self: pytest.fail("a child starts"))
        assert traced(job, job) == [first, first]
        assert said[-1] == f"2 graphs from {tmp_path / 'graphs'}"
    (tmp_path / "own.py").write_text(OWN.format(last="Tanh"))
    (second,) = traced(job)
    assert isinstance(second, Traced) and second.graph != first.graph
