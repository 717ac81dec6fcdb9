"""Self-unfolding graphs of files with rules: every start, fixed and mixed tensors, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from drawn_rules import made, shape
from graphs import LEVELS, bare, run, unfolded
from hypothesis import given, settings
from hypothesis import strategies as st
from records import with_digest
from torch import nn

import subcompress
from subcompress import SubcompressError, format
from subcompress.format.facts import Facts
from subcompress.format.record import Coded, Fixed, Group, Mixed, Record, group_sizes
from subcompress.onnx import unfolding
from subcompress.onnx.checking import weights_only
from subcompress.operators import HadamardBlocks
from subcompress.operators.forms import Ramp, Seeded, Table
from subcompress.rebuild.expand import expand
from subcompress.tensors.layout import CODED_DTYPES, Layout, TensorSpec, raw_bytes


def as_held(values: np.ndarray, tensor: torch.Tensor) -> bytes:
    """Flat values of a graph in the dtype of the tensor."""
    found = torch.from_numpy(values.copy())
    return bytes(raw_bytes(found if tensor.is_complex() else found.to(tensor.dtype)))


def same(record: Record, level: str = "ORT_ENABLE_ALL") -> bool:
    """Whether a graph gives what `expand` gives, of every tensor that is made."""
    state, found = expand(record), unfolded(record, level)
    names = [spec.name for spec, own in zip(record.layout, record.pieces, strict=True) if own]
    assert sorted(found) == sorted(names)
    for name in names:
        assert as_held(found[name], state[name]) == raw_bytes(state[name]), (name, record)
    return True


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(LEVELS), st.booleans())
def test_any_record_unfolds_to_what_expand_gives(seed, level, large):
    rng = np.random.default_rng(seed)
    dtypes = rng.choice([*CODED_DTYPES, "I64"], rng.integers(1, 7)).tolist()
    layout = Layout(tuple(TensorSpec(f"t{i}", str(t), shape(rng)) for i, t in enumerate(dtypes)))
    record = made(rng, int(rng.integers(2**63)), layout, None)
    if not any(record.pieces):
        return
    with pytest.MonkeyPatch.context() as patch:
        if large:  # the spelling of groups of a million weights and more
            patch.setattr(unfolding, "LARGE", 0)
        assert same(record, level)


def mixed_record(runs: tuple[tuple[int, int], ...], size: int, dtype: str = "F32") -> Record:
    """One tensor of three items: seeded and coded, a fixed ramp, and a coded table."""
    layout = Layout((TensorSpec("w", dtype, (size,)),))
    table = Table(np.array([1.5, -0.0, 1e-40, 0.25], "f4").tobytes(), "F32")
    entries = (Mixed((Coded(0.5, 0, Seeded(0.25)), Fixed(Ramp(0.0, 0.125, 100)), Coded(0.125, 0, table)), runs),)
    (D,) = group_sizes(layout, entries, 1)
    group = Group(HadamardBlocks.sized(D, 20, 3), 4, np.arange(20, dtype=np.int32) % 15 - 7)
    return with_digest(Record(3, layout, (group,), entries))


@pytest.mark.parametrize(
    ("runs", "size", "operators"),
    [
        (((0, 700), (1, 5), (2, 300)), 1005, {"Concat"}),  # few runs: side by side
        (((0, 700), (1, 5), (2, 300), (0, 3)), 1009, {"Concat", "Split"}),
        (((0, 1), (1, 1), (2, 1)), 3001, {"Gather"}),  # one period after the other
        (((0, 1), (1, 1), (2, 1), (0, 2)), 3000, {"Gather"}),
        (((0, 100), (1, 50), (2, 75)), 9001, {"Concat"}),
        (tuple((k % 3, 1 + k % 7) for k in range(100)), 600, {"Gather"}),
    ],
)
def test_mixed_tensors_take_few_nodes(runs, size, operators):
    record = mixed_record(runs, size)
    assert same(record)
    graph = bare(record)[0].graph
    last = {node.op_type for node in list(graph.node)[-9:]}
    assert operators <= last
    assert len(graph.node) < 130
    assert len(graph.SerializeToString()) < 6_000


def test_a_million_values_of_each_kind_unfold_in_stages():
    n = 1_100_000
    layout = Layout(tuple(TensorSpec(name, "F32", (n,)) for name in "abc"))
    starts = Seeded(2.0**-5, Ramp(0.0, 0.001, 1001))
    entries = (Coded(2.0**-8, 0, starts), Fixed(Seeded(0.5, 1.0)), Mixed((Fixed(starts), Coded(0.5)), ((0, 3), (1, 1))))
    (D,) = group_sizes(layout, entries, 1)
    group = Group(HadamardBlocks.sized(D, 500, 3), 4, np.arange(500, dtype=np.int32) % 15 - 7)
    record = Record(3, layout, (group,), entries)
    assert len(bare(record)[0].SerializeToString()) < 9_000
    assert same(record)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("first", [0.0, -0.0, 1.0])
@pytest.mark.parametrize("step", [0.0, -0.0, -0.5, -1e-50])
def test_zeros_of_ramps_have_their_signs(first, step, level):
    layout = Layout(tuple(TensorSpec(name, dtype, (90,)) for name, dtype in (("a", "F32"), ("b", "F16"), ("c", "F64"))))
    entries = tuple(Fixed(Ramp(first, step, 64, spec.dtype)) for spec in layout)
    assert same(with_digest(Record(0, layout, (), entries)), level)


class Several(nn.Module):
    """Tensors of each way to be made."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.seeded = nn.Parameter(torch.randn(8, 16, dtype=dtype))
        self.frozen = nn.Parameter(torch.randn(16, 16, dtype=dtype))
        self.mixed = nn.Parameter(torch.randn(16, 12, dtype=dtype))
        self.norm = nn.Parameter(torch.ones(12, dtype=dtype))
        self.register_buffer("ramp", torch.zeros(12, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x @ self.seeded).relu() @ self.frozen @ self.mixed) * self.norm + self.ramp


@pytest.mark.parametrize("name", ["F32", pytest.param("F16", marks=pytest.mark.slow), "F64"])
def test_files_unfold_to_their_weights(name, tmp_path):
    """The command's way: a traced network, its outputs and its weights compared."""
    dtype = {"F32": torch.float32, "F16": torch.float16, "F64": torch.float64}[name]
    layout = Layout.of(Several(dtype).state_dict())
    held = np.linspace(-0.1, 0.1, 7).astype({"F32": "f4", "F16": "f2", "F64": "f8"}[name])
    table = Table(held.tobytes(), name)
    items = (Coded(2.0**-7, 0, table), Fixed(0.0), Fixed(Seeded(2.0**-6)))
    entries = (
        Coded(2.0**-9, 0, Seeded(2.0**-6)),
        Fixed(Seeded(2.0**-6, Ramp(-0.1, 0.01, 20, name))),
        Mixed(items, ((0, 5), (1, 3), (2, 4))),
        Fixed(1.0),
        Coded(2.0**-9, 0, Ramp(0.0, 1 / 3, 12, name)),
    )
    (D,) = group_sizes(layout, entries, 1)
    group = Group(HadamardBlocks.sized(D, 20, 1), 4, np.arange(20, dtype=np.int32) % 15 - 7)
    facts = Facts(input_shape=(8,), input_dtype=name)
    record = with_digest(Record(1, layout, (group,), entries, facts=facts))
    format.save(record, tmp_path / "net.safetensors")
    path = subcompress.unpack(tmp_path / "net.safetensors", tmp_path / "net.onnx", Several(dtype), self_unfolding=True)
    names = ["seeded", "frozen", "mixed", "ramp"]
    computed = {value for node in onnx.load(path).graph.node for value in node.output}
    assert computed.issuperset(names)
    assert "norm" not in computed  # as nodes it would be longer
    state = expand(record)
    found = run(weights_only(path.read_bytes(), {k: state[k].dtype for k in names}))
    assert [values.tobytes() for values in found] == [bytes(raw_bytes(state[k])) for k in names]


def test_tensors_that_start_at_a_base_are_refused_in_a_line():
    from records import based_record

    with pytest.raises(
        SubcompressError, match="starts at the values of a base, which the graph does not have: leave unfolding out"
    ):
        bare(based_record())
