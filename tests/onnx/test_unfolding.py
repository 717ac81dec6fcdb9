"""Self-unfolding graphs: the file's weights bit for bit, from standard operators, in few bytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from click.testing import CliRunner
from graphs import LEVELS, bare, run, unfolded
from hypothesis import given, settings
from hypothesis import strategies as st
from oddities import GIVES, Odd
from onnx import helper, numpy_helper
from places import GOLDEN
from records import golden_bases, lenet_record, record_of, single_record, with_digest
from staged import staged_record
from torch import nn

import subcompress
from subcompress import SubcompressError, format
from subcompress.format.facts import Facts
from subcompress.format.record import Coded, Group, Record
from subcompress.onnx import exporting, tracing, tracing_once, unfolding
from subcompress.onnx.checking import weights_only
from subcompress.operators import EXACT, HadamardBlocks, ScatteredBlocks
from subcompress.rebuild.expand import expand
from subcompress.tensors.layout import Layout, TensorSpec, raw_bytes
from subcompress_cli import main
from subcompress_models import MODELS


def same(record: Record, level: str = "ORT_ENABLE_ALL") -> bool:
    """Whether a graph gives what `expand` gives, of the tensors that are float32 or hold it exactly."""
    found, state = unfolded(record, level), expand(record)
    assert found
    return all(
        values.tobytes() == raw_bytes(state[name].to(torch.from_numpy(values).dtype))
        for name, values in found.items()
        if state[name].dtype in (torch.float32, torch.float64)
    )


@st.composite
def records(draw):
    """One group of any sizes that the format allows and a test can afford."""
    D = draw(st.integers(1, 3_000))
    log2_m = draw(st.integers(0, 11))
    m = 1 << log2_m
    K = draw(st.integers(0, min(m - 1, 20)))
    A = draw(st.sampled_from([0, 1, 7, 127, 128, 300]))
    blocks = -(-D // m)
    d = draw(st.integers(1, min(D, blocks * (m - K))))
    bits = draw(st.integers(2, 12))
    seed = draw(st.sampled_from([0, 1, (1 << 64) - 1, 0x0123456789ABCDEF]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    z = rng.integers(-(1 << bits - 1), 1 << bits - 1, d)
    z[rng.random(d) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
    op = draw(st.sampled_from(list(EXACT.values())))(D, d, seed, log2_m, K, A)
    while op.peak(z) >= 1 << 16:
        z = z // 2
    layout = Layout((TensorSpec("w", "F32", (D,)),))
    return Record(seed, layout, (Group(op, bits, z.astype(np.int32)),), (Coded(1.5 * 2.0**-9),))


@settings(deadline=None, max_examples=30)
@given(records(), st.sampled_from(LEVELS), st.booleans())
def test_any_group_unfolds_to_what_expand_gives(record, level, large):
    with pytest.MonkeyPatch.context() as patch:
        if large:  # the spelling of groups of a million weights and more
            patch.setattr(unfolding, "LARGE", 0)
        assert same(record, level)


@pytest.mark.parametrize(
    "name", sorted(json.loads((GOLDEN / "golden.json").read_text("utf-8")).keys() - golden_bases().keys())
)
@pytest.mark.parametrize("level", LEVELS)
def test_golden_files_unfold(name, level):
    assert same(format.read(GOLDEN / f"{name}.safetensors")[0], level)


def test_another_implementation_of_onnx_computes_the_same():
    """onnx's own reference, which is NumPy."""
    record = lenet_record(d=300)
    model, names = bare(record)
    found = onnx.reference.ReferenceEvaluator(model).run(None, {})
    for name, values in zip(names, found, strict=True):
        assert values.tobytes() == raw_bytes(expand(record)[name])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", EXACT.values())
@pytest.mark.parametrize(("D", "log2_m", "K", "A"), [(100, 0, 0, 0), (512, 6, 0, 0), (512, 6, 3, 0), (2000, 8, 0, 0)])
def test_zeros_are_positive(D, log2_m, K, A, kind, level):
    record = single_record(D, min(D, 60), log2_m, K, A, np.zeros(min(D, 60), np.int64), kind=kind)
    found = unfolded(record, level)["w"]
    assert not np.signbit(found).any()
    assert not found.any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("kind", "d"), [(HadamardBlocks, 700), (ScatteredBlocks, 1), (ScatteredBlocks, 700), (ScatteredBlocks, 40_000)]
)
def test_large_groups_unfold_in_stages(kind, d, level):
    record = staged_record(kind, d)
    assert record.groups[0].operator.padded >= unfolding.LARGE
    assert sum(node.op_type == "If" for node in bare(record)[0].graph.node) == 4
    assert same(record, level)


@pytest.mark.parametrize(("D", "d"), [(300, 20), (44_426, 290), (1_100_000, 2_000)])
def test_scattered_columns_take_no_more_bytes(D, d):
    z = np.random.default_rng(1).integers(-8, 8, d).astype(np.int32)
    layout = Layout((TensorSpec("w", "F32", (D,)),))
    records = [Record(3, layout, (Group(kind.sized(D, d, 3), 4, z),), (Coded(0.5),)) for kind in EXACT.values()]
    hadamard, scattered = (bare(record)[0].ByteSize() for record in records)
    assert scattered <= hadamard


def test_an_operator_that_graphs_do_not_spell_is_refused(monkeypatch):
    monkeypatch.setattr(ScatteredBlocks, "name", "other")
    record = single_record(300, 20, 6, 4, 1, np.ones(20), kind=ScatteredBlocks)
    with pytest.raises(
        SubcompressError, match="the operator other of this file cannot be unfolded, only hadamard and scattered can"
    ):
        bare(record)


def test_more_than_an_onnx_runtime_folds_is_refused(monkeypatch):
    monkeypatch.setattr(unfolding, "MOST", 1 << 15)
    with pytest.raises(
        SubcompressError, match="folds at most 1 GiB at once, 32768 weights per group; this file has a group of 44426"
    ):
        bare(lenet_record())


@pytest.fixture(scope="module")
def unfolding_file(small_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "net.onnx"
    return subcompress.unpack(small_file, path, MODELS["lenet"](), self_unfolding=True)


@pytest.mark.parametrize(("d", "zipped"), [(290, 2_000), pytest.param(2000, 2_200, marks=pytest.mark.slow)])
def test_it_is_small(d, zipped, tmp_path):
    """Whole files on disk beside the coordinates as the file codes them."""
    record = lenet_record(d, spread=5.0)
    format.save(record, tmp_path / "net.safetensors")
    coordinates = subcompress.info(tmp_path / "net.safetensors")["ledger"]["coordinates"]
    path = subcompress.unpack(
        tmp_path / "net.safetensors", tmp_path / "net.onnx", MODELS["lenet"](), self_unfolding=True
    )
    assert path.stat().st_size <= coordinates + 6_500
    assert len(gzip.compress(path.read_bytes(), 9)) <= coordinates + zipped


def test_operators_are_standard_ones(unfolding_file):
    model = onnx.load(unfolding_file)
    onnx.checker.check_model(model, full_check=True)
    own = {f.name for f in model.functions}
    used = [n for part in (model.graph, *model.functions) for n in part.node]
    assert all(onnx.defs.has(n.op_type) or n.op_type in own for n in used)
    assert not any(n.op_type.startswith(("Random", "Multinomial")) for n in used)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert max(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer) < 400


def test_its_metadata_say_what_runs_it(unfolding_file):
    found = {p.key: p.value for p in onnx.load(unfolding_file).metadata_props}
    assert found["onnxruntime"] == ">=1.15"
    assert json.loads(found["labels"]) == list("0123456789")
    assert onnx.load(unfolding_file).ir_version == 8


def test_it_computes_what_torch_computes_and_holds_no_weights(unfolding_file, small_file):
    assert unfolding_file.stat().st_size < 6_500 < 50 * small_file.stat().st_size
    names = {i.name for i in onnx.load(unfolding_file).graph.initializer}
    assert not names.intersection(expand(format.read(small_file)[0]))


class Exchanged(nn.Module):
    """Weights that the graph holds as they are not in the state dict: with axes exchanged, shared, or changed."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 4))
        self.v = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.w + x[:, :4] @ self.v @ self.w).relu()


def exchanged_file(folder: Path) -> Path:
    layout = Layout.of(Exchanged().state_dict())
    z = np.random.default_rng(2).integers(-8, 8, 20).astype(np.int32)
    group = Group(HadamardBlocks.sized(48, 20, 1, K=4), 4, z)
    record = Record(1, layout, (group,), (Coded(0.125), Coded(0.25)), facts=Facts(input_shape=(6,)))
    format.save(with_digest(record), folder / "net.safetensors")
    return folder / "net.safetensors"


def edited(change):
    """`graph_of` with a change to the graph it gives, as another exporter might have it."""

    def graph(module, facts):
        model = tracing.graph_of(module, facts)
        change(model.graph)
        return model

    return graph


def test_a_tensor_with_its_axes_exchanged_is_computed_so(monkeypatch, tmp_path):
    def exchange(graph):
        """Every product with v is with its transpose's transpose, held under a name of its own."""
        (v,) = (i for i in graph.initializer if i.name == "v")
        transposed = numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(v).T), "folded")
        graph.initializer.remove(v)
        graph.initializer.append(transposed)
        graph.node.insert(0, helper.make_node("Transpose", ["folded"], ["v"], perm=[1, 0]))

    monkeypatch.setattr(tracing_once, "graph_of", edited(exchange))
    file = exchanged_file(tmp_path)
    path = subcompress.unpack(file, tmp_path / "net.onnx", Exchanged(), self_unfolding=True)
    v = expand(format.read(file)[0])["v"]
    (found,) = run(weights_only(path.read_bytes(), {"folded": torch.float32}))
    assert found.tobytes() == raw_bytes(v.T)


def test_two_copies_of_a_tensor_are_computed_once(monkeypatch, tmp_path):
    def copy(graph):
        (w,) = (i for i in graph.initializer if i.name == "w")
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(w), "twin"))
        last = [node for node in graph.node if "w" in node.input][-1]
        last.input[:] = ["twin" if name == "w" else name for name in last.input]

    monkeypatch.setattr(tracing_once, "graph_of", edited(copy))
    path = subcompress.unpack(exchanged_file(tmp_path), tmp_path / "net.onnx", Exchanged(), self_unfolding=True)
    assert sum("w" in node.input for node in onnx.load(path).graph.node) == 2


def test_a_graph_that_holds_other_weights_is_refused(monkeypatch, tmp_path):
    def spoil(graph):
        (w,) = (i for i in graph.initializer if i.name == "w")
        w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w) + 1, "w"))

    monkeypatch.setattr(tracing_once, "graph_of", edited(spoil))
    with pytest.raises(SubcompressError, match=r"tensor w in another way than exchanging its axes: give the model"):
        subcompress.unpack(exchanged_file(tmp_path), tmp_path / "net.onnx", Exchanged(), self_unfolding=True)
    assert not (tmp_path / "net.onnx").exists()


def test_weights_that_a_graph_computes_wrongly_are_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(unfolding, "SIGNS", -unfolding.SIGNS)
    monkeypatch.setattr(exporting, "compare", lambda *_, **__: None)
    with pytest.raises(SubcompressError, match="computed in the graph differs from the file's"):
        subcompress.unpack(exchanged_file(tmp_path), tmp_path / "net.onnx", Exchanged(), self_unfolding=True)
    assert not (tmp_path / "net.onnx").exists()


def test_the_command_says_what_it_wrote_and_what_is_wrong(small_file, tmp_path, monkeypatch):
    def call(*more):
        return CliRunner().invoke(main, ["unpack", str(small_file), "--self-unfolding", *more])

    done = call("--model", "lenet", "-o", str(tmp_path / "net.onnx"))
    assert done.exit_code == 0
    assert f"{(tmp_path / 'net.onnx').stat().st_size} bytes, rebuilt from {small_file.stat().st_size}" in done.output
    for more, said in (
        (["--model", "lenet", "-o", str(tmp_path / "net.safetensors")], "a self-unfolding graph must be an .onnx file"),
        (["--model", "mlp", "-o", str(tmp_path / "net.onnx")], "which the network mlp lacks"),
    ):
        failed = call(*more)
        assert failed.exit_code != 0
        assert said in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
    monkeypatch.setattr(exporting, "LIMIT", 1000)
    failed = call("--model", "lenet", "-o", str(tmp_path / "net.onnx"))
    assert "an ONNX graph can hold 2 GB; the weights of this file take 177704 bytes" in failed.stderr


QUICK = ("a weight", "a buffer")
"""Those of GIVES whose graphs are traced in the default run too."""


@pytest.mark.parametrize("gives", [g if g in QUICK else pytest.param(g, marks=pytest.mark.slow) for g in GIVES])
def test_odd_networks_unfold_or_say_why(gives, tmp_path):
    """The graph's outputs are compared with torch's, its weights with the file's, before it is kept."""
    module = Odd(GIVES[gives])
    format.save(record_of(module, Facts(input_shape=(6,))), tmp_path / "net.safetensors")
    for unfolds in (False, True):
        path = subcompress.unpack(
            tmp_path / "net.safetensors", tmp_path / "net.onnx", Odd(GIVES[gives]), self_unfolding=unfolds
        )
        outputs = [o.name for o in onnx.load(path).graph.output]
        assert outputs in (["output"], ["output_0", "output_1"])
        assert [i.name for i in onnx.load(path).graph.input] == ["input"]


def test_unpack_says_where_unfolding_does_not_pay(tmp_path, monkeypatch):
    code = "import torch\n\ndef make():\n    return torch.nn.Linear(6, 4)\n"
    (tmp_path / "tiny.py").write_text(code)
    format.save(record_of(nn.Linear(6, 4), Facts(input_shape=(6,))), tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    call = ["unpack", "net.safetensors", "--model", "tiny.py:make", "-o", "net.onnx"]
    assert "smaller" not in CliRunner().invoke(main, call).output
    done = CliRunner().invoke(main, [*call, "--self-unfolding"])
    assert "the weights themselves take 112 bytes, so that the file is smaller without --self-unfolding" in done.output


class Masked(nn.Module):
    """Attention over 200 steps behind a mask that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.read(x)
        mask = torch.triu(torch.full((h.shape[1], h.shape[1]), float("-inf")), 1)
        return torch.softmax(h @ h.transpose(1, 2) + mask, -1) @ h


def test_what_is_computed_beforehand_makes_no_file_larger(tmp_path):
    format.save(record_of(Masked(), Facts(input_shape=(200, 8))), tmp_path / "net.safetensors")
    path = subcompress.unpack(tmp_path / "net.safetensors", tmp_path / "net.onnx", Masked(), self_unfolding=True)
    assert path.stat().st_size < 4_000  # the mask has 40,000 values


def test_a_tensor_that_is_called_like_an_input_is_refused_in_a_line(tmp_path):
    module = nn.Module()
    module.output = nn.Parameter(torch.randn(6, 4))
    module.forward = lambda x: x @ module.output
    format.save(record_of(module, Facts(input_shape=(6,))), tmp_path / "net.safetensors")
    with pytest.raises(
        SubcompressError, match=r"a tensor called output, .* uses input, output for its inputs and outputs: rename"
    ):
        subcompress.unpack(tmp_path / "net.safetensors", tmp_path / "net.onnx", module)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_other_precisions_unfold(dtype, tmp_path):
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    facts = Facts(input_shape=(6,), input_dtype={torch.float16: "F16", torch.float64: "F64"}[dtype])
    format.save(record_of(module, facts), tmp_path / "net.safetensors")
    path = subcompress.unpack(tmp_path / "net.safetensors", tmp_path / "net.onnx", module, self_unfolding=True)
    state = expand(format.read(tmp_path / "net.safetensors")[0])
    found = run(weights_only(path.read_bytes(), {name: tensor.dtype for name, tensor in state.items()}))
    assert [values.tobytes() for values in found] == [bytes(raw_bytes(tensor)) for tensor in state.values()]
