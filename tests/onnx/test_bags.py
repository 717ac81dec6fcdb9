"""Graphs of bags of embeddings, and graphs at which ONNX Runtime dies."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional

from subcompress import SubcompressError
from subcompress.format.facts import Facts
from subcompress.onnx import crash_check, tracing
from subcompress.onnx.bags import plain_bags
from subcompress.onnx.checking import compare
from subcompress.onnx.crash_check import require_no_crash, risky_operators
from subcompress.onnx.tracing import graph_of

FACTS = Facts(input_shape=(6,), input_dtype="I64")


class Bags(nn.Module):
    """Tokens, (N, 6): one bag an example, and one of where the bags begin."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.EmbeddingBag(9, 4, mode="max", padding_idx=0)
        self.two = nn.EmbeddingBag(9, 4, padding_idx=1, include_last_offset=True)

    def forward(self, x):
        begins = torch.arange(0, (x.shape[0] + 1) * 6, 6)
        return self.one(x) + self.two(x.reshape(-1), begins)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["sum", "mean", "max"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any),
    st.sampled_from([None, 0, -2]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_plain_bags_give_what_torch_does(mode, lengths, padding, last, weighted, rows):
    """Bags of any lengths, empty ones too."""
    generator = torch.Generator().manual_seed(sum(lengths))
    table = torch.randn(5, 3, generator=generator)
    if rows:
        x, begins = torch.randint(5, (len(lengths), 4), generator=generator), None
    else:
        x = torch.randint(5, (sum(lengths),), generator=generator)
        begins = torch.tensor([0, *lengths]).cumsum(0)[: None if last else -1]
    factors = torch.randn(x.shape, generator=generator) if weighted and mode == "sum" else None
    options = {"mode": mode, "padding_idx": padding, "per_sample_weights": factors}
    options["include_last_offset"] = last and not rows
    truth = functional.embedding_bag(x, table, begins, **options)
    with plain_bags():
        found = functional.embedding_bag(x, table, begins, **options)
    assert torch.allclose(found, truth, atol=1e-6)
    assert functional.embedding_bag.__module__ == "torch.nn.functional"


def test_a_graph_of_bags_runs():
    module = Bags().eval()
    model = graph_of(module, FACTS)
    assert not risky_operators(model)
    compare(model.SerializeToString(), module, FACTS)


@pytest.mark.slow
def test_a_graph_that_ends_its_process_is_one_line(monkeypatch):
    monkeypatch.setattr(tracing, "plain_bags", nullcontext)
    with pytest.raises(SubcompressError, match=r"dies \(exit code -?\d+\) of this graph, which uses .*Loop"):
        graph_of(nn.EmbeddingBag(9, 4), FACTS)


def looping(count=3):
    """x doubled so many times."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["a", "a"], ["b"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("a", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("b", TensorProto.FLOAT, None)],
    )
    times = helper.make_tensor("times", TensorProto.INT64, [], [count])
    loop = helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)
    ends = [value("x", TensorProto.FLOAT, ["n"])], [value("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([loop], "g", *ends, [times])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_operators_at_risk_are_found():
    assert risky_operators(looping()) == ["Loop"]
    model = looping()
    model.graph.node[0].CopyFrom(helper.make_node("FusedGemm", ["x"], ["y"], domain="com.microsoft"))
    assert risky_operators(model) == ["FusedGemm"]
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "x"], ["y"]))
    assert risky_operators(model) == []


def test_a_graph_at_risk_runs_in_a_process_of_its_own(monkeypatch):
    feeds = [{"x": np.ones(n, np.float32), "file": np.ones(1, np.float32)} for n in (1, 3)]
    said = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **named: said.append(run(*args, **named)) or said[-1])
    require_no_crash(looping(), feeds)
    assert said[0].returncode == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [("import os; os.abort()", "dies (exit code -6) of this graph, which uses Loop"), ("raise OSError", ""), ("", "")],
)
def test_how_a_child_ends_is_told(monkeypatch, code, words):
    monkeypatch.setattr(crash_check, "CHILD", (sys.executable, "-S", "-c", code))
    if not words:
        return require_no_crash(looping(), [])
    with pytest.raises(SubcompressError) as error:
        require_no_crash(looping(), [])
    assert words in str(error.value)


def test_a_child_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(crash_check, "CHILD", (sys.executable, "-S", "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(crash_check, "PATIENCE", 0.05)
    with pytest.raises(SubcompressError, match=r"takes more than 0.05 seconds for this graph"):
        require_no_crash(looping(), [])
