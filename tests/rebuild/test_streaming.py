"""Weights leaf by leaf: the same file as the library would write, in bounded memory, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from records import mixed_record, single_record, tied_record
from torch import Tensor, nn

import subcompress
from subcompress import SubcompressError, format
from subcompress.api import unpack as unpacking
from subcompress.format.record import Coded, Group, Record, Same, Stored
from subcompress.operators import HadamardBlocks
from subcompress.rebuild import streaming
from subcompress.rebuild.backends import available
from subcompress.rebuild.dense import write_dense
from subcompress.rebuild.expand import digest_of, expand, expand_into
from subcompress.rebuild.streaming import stream
from subcompress.tensors.digest import CHUNK, leaves_of
from subcompress.tensors.layout import DTYPES, Layout, TensorSpec
from subcompress_cli import main


def wide_record() -> Record:
    """Tensors of every dtype, of more than one leaf, small ones between them, a tied one, two groups."""
    coded = [("a", "F32", 1_300_001), ("b", "F16", 7), ("c", "C64", 600_001), ("d", "F64", 3), ("e", "BF16", 2_200_000)]
    kept = [(f"s{dtype}", dtype, 5) for dtype in DTYPES]
    layout = Layout(
        tuple(TensorSpec(n, t, (size,)) for n, t, size in [*coded, *kept, ("none", "F32", 0), ("z", "F32", 1_300_001)])
    )
    entries = [Coded(2.0**-7, i % 2, float(i)) for i in range(5)] + [Stored()] * (len(kept) + 1) + [Same(0)]
    sizes = [sum(layout.tensors[i].reals for i in range(5) if i % 2 == g) for g in range(2)]
    groups = [
        Group(HadamardBlocks.sized(D, d, 5, group=g), 4, np.arange(d, dtype=np.int32) % 15 - 7)
        for g, (D, d) in enumerate(zip(sizes, (300, 6), strict=True))
    ]
    raw = np.random.default_rng(0).integers(0, 2, sum(layout.tensors[i].nbytes for i in range(5, 17)), np.uint8)
    record = Record(5, layout, tuple(groups), tuple(entries), raw.tobytes())
    record.check()
    return replace(record, digest=digest_of(record, expand(record, "numpy")))


WIDE = wide_record()


def library_bytes(record: Record, folder: Path, dtype: torch.dtype | None = None) -> bytes:
    """The dense file that safetensors itself writes."""
    state = {name: t.clone() for name, t in expand(record, "numpy").items()}
    if dtype is not None:
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    safetensors.torch.save_file(state, folder / "library.safetensors", metadata={"format": "pt"})
    return (folder / "library.safetensors").read_bytes()


@pytest.mark.parametrize("record", [WIDE, mixed_record(), tied_record()], ids=["wide", "mixed", "tied"])
def test_the_file_is_the_one_that_the_library_writes(record, tmp_path):
    out = tmp_path / "dense.safetensors"
    for name, dtype in ((None, None), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        out.write_bytes(b"")
        write_dense(record, out, dtype=name)
        assert out.read_bytes() == library_bytes(record, tmp_path, dtype), name


@pytest.mark.parametrize("backend", available())
def test_every_backend_streams_the_same(backend):
    seen: dict[int, bytes] = {}
    told: list[int] = []

    def sink(leaf, values):
        assert len(seen) < 50
        seen[leaf.number] = values.tobytes()

    assert stream(WIDE, sink, backend=backend, done=told.append) == WIDE.digest
    state = {spec.name: b"" for spec in WIDE.layout}
    for leaf in leaves_of(WIDE.layout):
        assert len(seen[leaf.number]) == leaf.size <= CHUNK
        state[WIDE.layout.tensors[leaf.index].name] += seen[leaf.number]
    for name, tensor in expand(WIDE, "numpy").items():
        flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        assert state[name] == flat.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert sum(told) == WIDE.layout.nbytes


def test_tied_and_scattered_tensors_cost_no_block_each(monkeypatch):
    """Blocks of 2^16 rows, 500 tensors of one value in two groups in turn, 500 more tied to the first."""
    specs = [TensorSpec(f"t{i}", "F32", (1,)) for i in range(1_000)]
    entries = [Coded(1.0, i % 2) for i in range(500)] + [Same(0)] * 500
    z = np.ones(3, np.int32)
    groups = tuple(Group(HadamardBlocks(250, 3, 1, 16, 0, 0, g), 4, z) for g in range(2))
    record = Record(1, Layout(tuple(specs)), groups, tuple(entries))
    record.check()
    calls = []
    rows = HadamardBlocks.rows
    monkeypatch.setattr(HadamardBlocks, "rows", lambda *args: calls.append(args) or rows(*args))
    assert stream(record, backend="numpy") == digest_of(record, expand(record, "numpy"))
    assert len(calls) == 4  # a group each, twice


def test_threads_of_torch_are_not_multiplied(tmp_path):
    format.save(WIDE, tmp_path / "net.safetensors")
    paths = str(tmp_path / "net.safetensors"), str(tmp_path / "d.safetensors")
    code = f"""
import os, torch, subcompress
torch.set_num_threads(4)
most = 0
def told(n):
    global most
    most = max(most, len(os.listdir("/proc/self/task")))
for dtype in (None, "bf16", "fp16"):
    subcompress.unpack(*{paths!r}, dtype=dtype, done=told)
print(most)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) <= 4 * 3


def test_many_small_tensors_go_together():
    layout = Layout(tuple(TensorSpec(f"t{i}", "F32", (1_000,)) for i in range(3_000)))
    batches = list(streaming._batches(list(leaves_of(layout))))
    assert len(batches) == 3
    assert [leaf.number for batch in batches for leaf in batch] == list(range(3_000))


def test_other_weights_than_were_packed_leave_no_file(tmp_path):
    record = replace(WIDE, digest=bytes(16))
    format.save(record, tmp_path / "net.safetensors")
    out = tmp_path / "dense.safetensors"
    with pytest.raises(SubcompressError, match=r"^the rebuilt weights have digest"):
        subcompress.unpack(tmp_path / "net.safetensors", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.safetensors"]


def test_a_disk_without_room_is_one_line_and_no_file(tmp_path, monkeypatch):
    format.save(WIDE, tmp_path / "net.safetensors")
    out = tmp_path / "dense.safetensors"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000}))
    with pytest.raises(SubcompressError, match=r"has 1000 left: give another place$"):
        subcompress.unpack(tmp_path / "net.safetensors", out)
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(SubcompressError, match=r"No space left on device; give a writable place with room$"):
        subcompress.unpack(tmp_path / "net.safetensors", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.safetensors"]


def test_without_positioned_writes_the_file_is_the_same(tmp_path, monkeypatch):
    monkeypatch.delattr("os.pwrite")
    out = tmp_path / "dense.safetensors"
    out.write_bytes(b"")
    write_dense(WIDE, out)
    assert out.read_bytes() == library_bytes(WIDE, tmp_path)


def test_the_command_rounds_and_says_what_it_cannot(tmp_path):
    format.save(WIDE, tmp_path / "net.safetensors")
    net, out = str(tmp_path / "net.safetensors"), str(tmp_path / "d.safetensors")
    done = CliRunner().invoke(main, ["unpack", net, "-o", out, "--dtype", "bf16", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["output_bytes"] == Path(out).stat().st_size
    assert safetensors.torch.load_file(out)["a"].dtype == torch.bfloat16
    failed = CliRunner().invoke(main, ["unpack", net, "-o", out, "--dtype", "int8"])
    assert failed.exit_code == 2 and "'fp32', 'fp16', 'bf16'" in failed.stderr
    with pytest.raises(SubcompressError, match="weights are written as fp32, fp16, bf16; given int8: give one of them"):
        subcompress.unpack(net, out, dtype="int8")
    failed = CliRunner().invoke(main, ["unpack", net, "-o", str(tmp_path / "n.onnx"), "--dtype", "bf16"])
    assert failed.stderr.startswith("error: a dtype is chosen for .safetensors files; n.onnx has the network's")


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_says_how_long(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr("subcompress_cli.rebuilding.LONG", 1_000)
    if terminal:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("FORCE_COLOR", "1")
    format.save(WIDE, tmp_path / "net.safetensors")
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "net.safetensors")])
    assert done.exit_code == 0
    total = len(available()) * WIDE.layout.nbytes
    assert f"net.safetensors: {total} bytes of weights to rebuild" in done.stderr.replace("\n", "")
    assert ("MB/s" in done.stderr) == terminal
    failed = CliRunner().invoke(main, ["unpack", str(tmp_path / "net.safetensors"), "-o", str(tmp_path / "n.bin")])
    assert failed.stderr.startswith("error: unpack writes .safetensors and .onnx files; n.bin is neither")


def test_an_interruption_is_one_line(tmp_path, monkeypatch):
    format.save(WIDE, tmp_path / "net.safetensors")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("subcompress.api.unpack.write_dense", interrupted)
    out = tmp_path / "d.safetensors"
    done = CliRunner().invoke(main, ["unpack", str(tmp_path / "net.safetensors"), "-o", str(out)])
    assert (done.exit_code, done.stderr) == (130, "interrupted: nothing was written\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.safetensors"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_weights(tmp_path):
    D = 60_000_000
    z = np.random.default_rng(0).integers(-7, 8, 500)
    record = single_record(1_000, 500, 10, 16, 1, z)
    layout = Layout((TensorSpec("w", "F32", (D,)),))
    group = Group(HadamardBlocks.sized(D, 500, 1), 4, record.groups[0].coordinates)
    record = Record(1, layout, (group,), (Coded(0.5),))
    format.save(replace(record, digest=stream(record)), tmp_path / "net.safetensors")
    code = f"""
import re, subcompress
from subcompress import format
from subcompress.rebuild.streaming import stream

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

path = {str(tmp_path / "net.safetensors")!r}
record, _ = format.read(path)
stream(record, backend="torch")  # loads what torch loads at its first product
before = peak()
subcompress.unpack(path, {str(tmp_path / "dense.safetensors")!r})
assert stream(record) == record.digest
assert peak() - before < 40_000, f"240 MB of weights took {{peak() - before}} kB"
"""
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "dense.safetensors").stat().st_size > 4 * D


# --- into a module at hand ---


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 4)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


@pytest.fixture
def packed(tmp_path):
    space = subcompress.Subspace.of(Net(), 60)
    with torch.no_grad():
        space.z.copy_(torch.randn(60))
    space.round(4)
    subcompress.pack(space, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def equal(module, path) -> bool:
    truth = expand(format.read(path)[0], "numpy")
    return all(torch.equal(t, truth[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize("check", [True, False])
def test_loading_writes_into_the_modules_own_memory(packed, monkeypatch, check):
    module = Net()
    parameter, places = module.first.weight, [t.data_ptr() for t in module.state_dict().values()]
    saved, version = parameter.exp().sum(), parameter._version
    monkeypatch.setattr(nn.Module, "load_state_dict", None)
    subcompress.load(packed, module, check=check)
    assert equal(module, packed)
    assert [t.data_ptr() for t in module.state_dict().values()] == places
    assert parameter._version > version
    assert saved.requires_grad
    assert not module.training


@pytest.mark.parametrize("make", [Net, lambda: strided()])
def test_weights_of_another_digest_leave_the_module_as_it_was(packed, make):
    record, _ = format.read(packed)
    format.save(replace(record, digest=bytes(16)), packed)
    module = make()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(SubcompressError, match=r"^the rebuilt weights have digest"):
        subcompress.load(packed, module)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert module.training


def test_a_graph_that_needs_the_old_weights_is_told(packed):
    module = Net()
    loss = module(torch.randn(8, 20)).square().sum()
    subcompress.load(packed, module, check=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Odd(Net):
    """A module that does something of its own when it is loaded."""

    def load_state_dict(self, *args, **kwargs):
        self.told = True
        return super().load_state_dict(*args, **kwargs)


def strided() -> nn.Module:
    module = Net()
    module.first.weight = nn.Parameter(torch.zeros(20, 30).t())
    return module


def shared() -> nn.Module:
    """Two names for one tensor that the file holds apart."""
    module = Net()
    module.norm.bias = module.norm.weight
    return module


def hooked() -> nn.Module:
    module = Net()
    module.last.register_load_state_dict_post_hook(lambda m, keys: setattr(m, "told", True))
    return module


def patched() -> nn.Module:
    module = Net()
    load = module.load_state_dict
    module.load_state_dict = lambda *args, **kwargs: (setattr(module, "told", True), load(*args, **kwargs))[1]
    return module


def overlapping() -> nn.Module:
    """Parameters that share a part of their memory."""
    module, held = Net(), torch.zeros(70)
    module.first.bias, module.norm.weight = nn.Parameter(held[:30]), nn.Parameter(held[15:45])
    return module


def negated() -> nn.Module:
    module = Net()
    module.norm.bias = nn.Parameter(torch.complex(torch.zeros(30), torch.ones(30)).conj().imag)
    assert module.norm.bias.is_neg()
    return module


def test_odd_memory_is_loaded_as_torch_would(packed):
    fast, slow = subcompress.load(packed, negated(), check=False), negated()
    slow.load_state_dict(expand(format.read(packed)[0]))
    assert all(torch.equal(a, b) for a, b in zip(fast.state_dict().values(), slow.state_dict().values(), strict=True))


class Wrapped(Tensor):
    """A tensor that has no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        plain = [a.inner if isinstance(a, Wrapped) else a for a in args]
        out = function(*plain, **(kwargs or {}))
        return args[0] if function is torch.ops.aten.copy_.default else cls(out) if isinstance(out, Tensor) else out


def test_a_tensor_without_memory_of_its_own_is_left_to_torch(tmp_path):
    class One(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.register_buffer("w", w)

    record = single_record(1_000, 20, 8, 16, 1, np.arange(20) % 7)
    format.save(record, tmp_path / "net.safetensors")
    module = One(Wrapped(torch.zeros(1_000)))
    subcompress.load(tmp_path / "net.safetensors", module, check=False)
    assert torch.equal(module.w.inner, expand(record)["w"])


@pytest.mark.parametrize("make", [Odd, strided, hooked, patched])
def test_modules_that_are_loaded_their_own_way(packed, make):
    module = subcompress.load(packed, make(), check=False)
    assert equal(module, packed)
    if make is not strided:
        assert getattr(module, "told", False) or module.last.told


@pytest.mark.parametrize(("make", "why"), [(shared, "norm.weight .it ties"), (overlapping, "first.bias and norm.wei")])
@pytest.mark.parametrize("check", [True, False])
def test_a_module_that_cannot_hold_all_of_a_file_is_refused_and_stays(packed, make, why, check):
    """load_state_dict lets the last one of two tensors in one place stay."""
    module = make()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(SubcompressError, match=why):
        subcompress.load(packed, module, check=check)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_tied_weights_are_written_in_place(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(50, 20), nn.Linear(20, 50, bias=False)
            self.out.weight = self.embed.weight

    space = subcompress.Subspace.of(Tied(), 30)
    space.round(4)
    subcompress.pack(space, tmp_path / "net.safetensors")
    module = Tied()
    place = module.embed.weight.data_ptr()
    record = format.read(tmp_path / "net.safetensors")[0]
    assert unpacking._writable(record, module, module.state_dict())
    subcompress.load(tmp_path / "net.safetensors", module)
    assert module.embed.weight.data_ptr() == place
    assert equal(module, tmp_path / "net.safetensors")


def test_tied_weights_reach_a_module_that_holds_them_apart():
    record = WIDE
    state = {spec.name: torch.empty(spec.shape, dtype=spec.torch_dtype) for spec in record.layout}
    expand_into(record, state)
    assert digest_of(record, state) == record.digest


def test_without_a_device_cuda_is_refused_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    with pytest.raises(SubcompressError, match=r"^weights are rebuilt on a CUDA device only where torch sees one"):
        expand(WIDE, "cuda")
    with pytest.raises(SubcompressError, match=r"torch-cuda cannot run on this machine$"):
        expand(WIDE, "torch-cuda")
    with pytest.raises(SubcompressError, match=re.escape("backends are numpy, torch, native, torch-cuda, triton; ")):
        expand(WIDE, "abacus")
