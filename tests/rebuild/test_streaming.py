"""Weights chunk by chunk: the same file as the library would write, in bounded memory, whole or not at all."""

from __future__ import annotations

import json
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
from wide import WIDE

import subcompress
from subcompress import SubcompressError, format
from subcompress.format.record import Coded, Group, Record, Tied
from subcompress.operators import HadamardBlocks
from subcompress.rebuild import streaming
from subcompress.rebuild.backends import available
from subcompress.rebuild.dense import write_dense
from subcompress.rebuild.expand import digest_of, expand
from subcompress.rebuild.streaming import stream
from subcompress.tensors.digest import CHUNK, chunks_of
from subcompress.tensors.layout import Layout, TensorSpec
from subcompress_cli import main


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

    def sink(chunk, values):
        assert len(seen) < 50
        seen[chunk.number] = values.tobytes()

    assert stream(WIDE, sink, backend=backend, done=told.append) == WIDE.digest
    state = {spec.name: b"" for spec in WIDE.layout}
    for chunk in chunks_of(WIDE.layout):
        assert len(seen[chunk.number]) == chunk.size <= CHUNK
        state[WIDE.layout.tensors[chunk.index].name] += seen[chunk.number]
    for name, tensor in expand(WIDE, "numpy").items():
        flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        assert state[name] == flat.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert sum(told) == WIDE.layout.nbytes


def test_tied_and_scattered_tensors_cost_no_block_each(monkeypatch):
    """Blocks of 2^16 rows, 500 tensors of one value in two groups in turn, 500 more tied to the first."""
    specs = [TensorSpec(f"t{i}", "F32", (1,)) for i in range(1_000)]
    entries = [Coded(1.0, i % 2) for i in range(500)] + [Tied(0)] * 500
    z = np.ones(3, np.int32)
    groups = tuple(Group(HadamardBlocks(250, 3, 1, 16, 0, 0, g), 4, z) for g in range(2))
    record = Record(1, Layout(tuple(specs)), groups, tuple(entries))
    record.check()
    calls = []
    rows = HadamardBlocks.rows
    monkeypatch.setattr(HadamardBlocks, "rows", lambda *args: calls.append(args) or rows(*args))
    assert stream(record, backend="numpy") == digest_of(record, expand(record, "numpy"))
    assert len(calls) == 4  # a group each, twice


@pytest.mark.slow
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
for dtype in (None, "bf16"):
    subcompress.unpack(*{paths!r}, dtype=dtype, done=told)
print(most)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) <= 4 * 3


def test_many_small_tensors_go_together():
    layout = Layout(tuple(TensorSpec(f"t{i}", "F32", (1_000,)) for i in range(3_000)))
    batches = list(streaming._batches(list(chunks_of(layout))))
    assert len(batches) == 3
    assert [chunk.number for batch in batches for chunk in batch] == list(range(3_000))


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
    with pytest.raises(SubcompressError, match=r"has only 1000 left: give another place$"):
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
    with pytest.raises(SubcompressError, match="must be written as fp32, fp16, bf16; got int8: give one of them"):
        subcompress.unpack(net, out, dtype="int8")
    failed = CliRunner().invoke(main, ["unpack", net, "-o", str(tmp_path / "n.onnx"), "--dtype", "bf16"])
    assert failed.stderr.startswith(
        "error: --dtype belongs to the format safetensors or transformers, but n.onnx has the format onnx"
    )


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
    assert failed.stderr.startswith("error: unpack writes .safetensors and .onnx files; got n.bin")


def test_an_interruption_is_one_line(tmp_path, monkeypatch):
    format.save(WIDE, tmp_path / "net.safetensors")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("subcompress.api.formats.dense.write_dense", interrupted)
    out = tmp_path / "d.safetensors"
    done = CliRunner().invoke(main, ["unpack", str(tmp_path / "net.safetensors"), "-o", str(out)])
    assert (done.exit_code, done.stderr) == (130, "interrupted: nothing was written\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.safetensors"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_weights(tmp_path):
    D = 16_000_000
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
assert peak() - before < 40_000, f"64 MB of weights took {{peak() - before}} kB"
"""
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "dense.safetensors").stat().st_size > 4 * D
