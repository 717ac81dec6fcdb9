"""Sessions: what torch computes, on the device that was asked for and on no other; and what `doctor` says."""

from __future__ import annotations

from pathlib import Path

import networks
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from graphs import weights_only
from oddities import GIVES, Odd
from places import PACKED
from records import record_of

import subcompress
from subcompress import SubcompressError, format
from subcompress.data.in_memory import tensors_in
from subcompress.data.splits import batches, call
from subcompress.format.facts import Facts
from subcompress.rebuild.expand import expand
from subcompress.tensors.layout import raw_bytes
from subcompress_cli import main
from subcompress_models import MODELS

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """A packed file as a dense graph and as one that unfolds itself."""
    folder, packed = tmp_path_factory.mktemp("graphs"), PACKED / "mnist-98.safetensors"
    make = MODELS["conv3-4-6-8"]
    return (
        subcompress.unpack(packed, folder / "dense.onnx", make()),
        subcompress.unpack(packed, folder / "unfolding.onnx", make(), self_unfolding=True),
    )


def test_packed_dense_and_unfolding_files_run(graphs, device):
    x = torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = subcompress.load(PACKED / "mnist-98.safetensors", MODELS["conv3-4-6-8"]())(x)
    packed = subcompress.Session(PACKED / "mnist-98.safetensors", MODELS["conv3-4-6-8"](), device=device, check=True)
    for session in (packed, *(subcompress.Session(path, device=device) for path in graphs)):
        found = session(x)
        assert found.device.type == device
        assert torch.allclose(found.cpu(), expected, atol=1e-4)
        assert torch.equal(session(input=x.numpy()), found)


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("gru", "transformer", "complex")]


@pytest.mark.parametrize("name", ["batch norm", "graph", *LONG])
def test_any_network_runs(fitted, name, device):
    _, file, _ = fitted(name)
    case = networks.CASES[name]
    x, _ = next(batches(case.data().test, 16))
    loaded = subcompress.load(file, case.make())
    with torch.no_grad():
        expected = list(tensors_in(call(loaded, x)))
    given = x if isinstance(x, tuple) else (x,)
    found = subcompress.Session(file, case.make(), device=device)(*given)
    for a, b in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert torch.allclose(a.cpu().float(), b.float(), atol=1e-3)


def test_weights_unfold_to_the_same_bits_on_the_device(graphs, device):
    """With graph optimization they are folded on the CPU; without, computed there: TF32 must be off."""
    state = expand(format.read(PACKED / "mnist-98.safetensors")[0])
    model = weights_only(graphs[1].read_bytes(), {name: t.dtype for name, t in state.items()})
    provider = {"cpu": "CPUExecutionProvider", "cuda": ("CUDAExecutionProvider", {"use_tf32": 0})}[device]
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        found = onnxruntime.InferenceSession(model, options, providers=[provider]).run(None, {})
        for values, tensor in zip(found, state.values(), strict=True):
            assert values.tobytes() == raw_bytes(tensor)


WRONG = {
    "give the module": lambda: subcompress.Session(PACKED / "mnist-98.safetensors"),
    "give the model the file was made from": lambda: subcompress.Session(
        PACKED / "mnist-98.safetensors", MODELS["lenet"]()
    ),
    "device must be one of cpu, cuda; got 'tpu'": lambda: subcompress.Session("net.onnx", device="tpu"),
    "absent.safetensors cannot be read": lambda: subcompress.Session("absent.safetensors"),
    "is not an ONNX file": lambda: subcompress.Session("no.onnx"),
    "absent.onnx cannot be read": lambda: subcompress.Session("absent.onnx"),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_had_is_said_in_a_line(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("no.onnx").write_bytes(b"no graph")
    with pytest.raises(SubcompressError, match=said):
        WRONG[said]()


def test_a_wrong_input_is_said_in_a_line():
    session = subcompress.Session(PACKED / "mnist-98.safetensors", MODELS["conv3-4-6-8"]())
    with pytest.raises(SubcompressError, match="a session takes input; got 0 by position and none by name"):
        session()
    with pytest.raises(SubcompressError, match="got 1 by position and y by name"):
        session(torch.zeros(1, 1, 28, 28), y=torch.zeros(1))
    with pytest.raises(SubcompressError, match="got 1 by position and input by name: give each once"):
        session(torch.zeros(1, 1, 28, 28), input=torch.zeros(1, 1, 28, 28))
    for odd in ("text", None, torch.zeros(1, 1, 28, 28).to_sparse()):
        with pytest.raises(SubcompressError, match="inputs must be dense tensors or arrays of numbers; input is not"):
            session(odd)
    for odd, given in (
        (torch.zeros(1, 3, 28, 28), r"float32 \[1, 3, 28, 28\]"),
        (torch.zeros(28, 28), r"float32 \[28, 28\]"),
        (torch.zeros(1, 1, 28, 28).double(), r"float64 \[1, 1, 28, 28\]"),
    ):
        with pytest.raises(SubcompressError, match=rf"input must be float \[batch, 1, 28, 28\]; got {given}: convert"):
            session(odd)


def test_inputs_come_in_batches_of_one_size(fitted):
    _, file, _ = fitted("graph")
    x, _ = next(batches(networks.CASES["graph"].data().test, 16))
    session = subcompress.Session(file, networks.CASES["graph"].make())
    with pytest.raises(SubcompressError, match="all inputs must have the same batch size; got 3, 16"):
        session(x[0][:3], x[1])


def test_info_knows_a_graph_for_what_it_is(graphs):
    for path in graphs:
        with pytest.raises(SubcompressError, match="this is an ONNX graph that was unpacked from one"):
            subcompress.info(path)


QUICK = ("a weight", "a buffer", "the input", "no weight at all", "truth values")
"""Those of GIVES whose graphs are traced in the default run too."""


@pytest.mark.parametrize("gives", [g if g in QUICK else pytest.param(g, marks=pytest.mark.slow) for g in GIVES])
def test_odd_networks_run_on_the_files_weights(gives, device, tmp_path):
    """Not on those that the module happens to have, wherever in the graph they are."""
    file = tmp_path / "net.safetensors"
    format.save(record_of(Odd(GIVES[gives]), Facts(input_shape=(6,))), file)
    module = Odd(GIVES[gives]).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.rand(3, 6)
    with torch.no_grad():
        expected = list(tensors_in(subcompress.load(file, Odd(GIVES[gives]))(x)))
    found = subcompress.Session(file, module, device=device)(x)
    for a, b in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a.cpu().double(), b.double(), atol=1e-4)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_inputs_may_lie_anywhere_and_outputs_stay():
    session = subcompress.Session(PACKED / "mnist-98.safetensors", MODELS["conv3-4-6-8"]())
    x = torch.rand(4, 1, 28, 28, requires_grad=True)
    first = session(x)
    copy = first.clone()
    assert not torch.equal(session(x.detach().numpy()[::-1]), first)
    assert torch.equal(session(x.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)), first)
    del session
    assert torch.equal(first, copy)


@without_cuda
def test_a_device_that_is_not_there_is_an_error_and_never_another(graphs):
    for path, module in ((PACKED / "mnist-98.safetensors", MODELS["conv3-4-6-8"]()), (graphs[1], None)):
        with pytest.raises(SubcompressError, match=r"device cuda needs a GPU that torch can use; torch .* finds none"):
            subcompress.Session(path, module, device="cuda")
    file = str(PACKED / "mnist-98.safetensors")
    failed = CliRunner().invoke(main, ["verify", file, "--data", "digits", "--device", "cuda"])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: device cuda needs a GPU")


def test_onnx_runtime_that_does_not_take_the_device_is_an_error(graphs, monkeypatch):
    """torch sees a device, ONNX Runtime does not."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"cuda_stream": 0}))
    with pytest.raises(SubcompressError, match=r"ONNX Runtime .* does not (run on cuda here|open)"):
        subcompress.Session(graphs[1], device="cuda")


def test_a_runtime_that_is_too_old_is_named(graphs, tmp_path, monkeypatch):
    model = onnx.load(graphs[1])
    next(p for p in model.metadata_props if p.key == "onnxruntime").value = ">=99.1"
    model.graph.node[0].op_type = "NewOperator"  # what an old runtime does not know
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(SubcompressError, match=rf"needs onnxruntime >=99.1; this is {onnxruntime.__version__}: pip"):
        subcompress.Session(tmp_path / "new.onnx")
    next(p for p in model.metadata_props if p.key == "onnxruntime").value = ">=1.15"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(SubcompressError, match=r"cannot open .*odd.onnx \(.*NewOperator"):
        subcompress.Session(tmp_path / "odd.onnx")
