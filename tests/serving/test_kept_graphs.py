"""A server that starts again: the graphs that were traced before are used, and no process with torch starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from records import record_of
from serving import packed

from subcompress.format.facts import Facts
from subcompress.onnx.graph_cache import GraphCache, Traced
from subcompress.serving.networks import Job
from subcompress_cli import tracing

OWN = """
import json, pathlib, torch

def net():
    size = json.loads((pathlib.Path(__file__).parent / "size.json").read_text())
    return torch.nn.Sequential(torch.nn.Linear(size, 2), torch.nn.{last}())
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The user's code."""
    (tmp_path / "size.json").write_text("3")
    path = tmp_path / "own.py"
    path.write_text(OWN.format(last="ReLU"))
    return path


@pytest.fixture
def job(own: Path) -> Job:
    """A file of the network that own.py makes."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    path = packed(own.parent, "net", record_of(net, Facts(input_shape=(3,))))
    return Job("net", path.read_bytes())


@pytest.fixture
def said() -> list[str]:
    """What servers logged."""
    return []


@pytest.fixture
def traced(own: Path, said: list[str]) -> Callable[[Sequence[Job]], list[Traced | str]]:
    """Traces as a server does that has just started."""

    def by_a_new_server(jobs: Sequence[Job]) -> list[Traced | str]:
        cache = GraphCache(own.parent / "graphs")
        return tracing.subprocess_tracer([f"{own}:net"], said.append, cache)(jobs)

    return by_a_new_server


def require_traced_once_until_changed(
    traced: Callable[[Sequence[Job]], list[Traced | str]], job: Job, own: Path, said: list[str]
) -> None:
    """Fail unless a second server takes the graph that the first one kept, and a third one sees the changed code."""
    (first,) = traced([job])
    assert isinstance(first, Traced) and first.general and "traced" in said[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing.SubprocessTracer, "_start", lambda self: pytest.fail("a child starts"))
        assert traced([job, job]) == [first, first]
        assert said[-1] == f"2 graphs from {own.parent / 'graphs'}"
    own.write_text(OWN.format(last="Tanh"))
    (second,) = traced([job])
    assert isinstance(second, Traced) and second.graph != first.graph


def test_a_network_is_traced_again_only_if_its_code_changed(
    traced: Callable[[Sequence[Job]], list[Traced | str]], child: None, job: Job, own: Path, said: list[str]
) -> None:
    require_traced_once_until_changed(traced, job, own, said)


@pytest.mark.slow
def test_a_process_that_traces_reports_the_code_that_it_read(
    traced: Callable[[Sequence[Job]], list[Traced | str]], job: Job, own: Path, said: list[str]
) -> None:
    require_traced_once_until_changed(traced, job, own, said)


def test_a_graph_is_not_taken_for_other_questions(
    traced: Callable[[Sequence[Job]], list[Traced | str]], child: None, job: Job, said: list[str]
) -> None:
    """Another base or other inputs of the graph need a graph of their own."""
    assert traced([job]) == traced([job])
    for other in (Job("net", job.data, "hub:a/base"), Job("net", job.data, inputs=("0.weight",))):
        traced([other])
        assert "traced net for net" in said[-1]
