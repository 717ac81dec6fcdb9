"""What a base may be given as, and what is refused before anything of it is executed."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from forged_bases import HELD, PARTS, forged, module_of, number, refusal
from torch import nn

from subcompress import SubcompressError, format
from subcompress.base import BaseReference, BaseTensors, attach_base, open_base, opening
from subcompress.format import container
from subcompress.rebuild.expand import expand_checked
from subcompress.remote import Fetched
from subcompress.tensors.layout import Layout


def test_a_base_is_asked_for_and_only_where_there_is_one():
    line = refusal(format.from_bytes, forged())
    assert "--base" in line
    assert PARTS["digest"].hex() in line
    assert "has no base" in refusal(format.from_bytes, _plain(), HELD)


def _plain() -> bytes:
    from records import single_record

    return format.to_bytes(single_record(300, 1, 6, 16, 1, np.array([-8])))


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def saved(path: Path, value: object, **options: object) -> Path:
    torch.save(value, path, **options)
    return path


def test_every_kind_of_base_has_one_digest(tmp_path):
    folder, other = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    other.mkdir()
    safetensors.torch.save_file(HELD, folder / "model.safetensors")
    torch.save({"state_dict": {**HELD, "epoch": 3}, "epoch": 3}, other / "pytorch_model.bin")
    module = module_of(Layout.of(HELD))
    module.load_state_dict(HELD)
    turned = HELD["m.a"].t().contiguous().t()  # not contiguous
    sources = [
        HELD,
        dict(reversed(HELD.items())),
        {**HELD, "m.a": turned},
        {"model": HELD},
        module,
        BaseTensors(HELD, "x"),
        folder,
        str(folder / "model.safetensors"),
        other,
        saved(tmp_path / "zip.pt", HELD),
        saved(tmp_path / "legacy.pt", HELD, _use_new_zipfile_serialization=False),
        saved(tmp_path / "nested.pt", {"model_state_dict": module.state_dict()}),
        {**HELD, "more": HELD["m.a"].to_sparse(), "eight": torch.zeros(2, dtype=torch.float8_e4m3fn)},
    ]
    for source in sources:
        base = open_base(source)
        assert base.digest == PARTS["digest"], source
        assert expand_checked(format.from_bytes(forged(), source)[0])["b"].tolist() == HELD["m.b"].tolist()
    assert open_base(str(folder)).name == "model.safetensors" or open_base(str(folder)).name == "a"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_base_is_never_executed(tmp_path, legacy):
    path = saved(tmp_path / "evil.pt", {"w": HELD["m.a"], "e": Evil()}, _use_new_zipfile_serialization=not legacy)
    assert "weights_only=True" in refusal(open_base, path)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil()))
    assert "weights_only=True" in refusal(open_base, tmp_path / "plain.pkl")


def test_damaged_bases_are_refused_in_a_line(tmp_path):
    buffers = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        f = io.BytesIO()
        torch.save(HELD, f, **options)
        buffers.append(f.getvalue())
    buffers.append(safetensors.torch.save(HELD))
    rng, path = np.random.default_rng(0), tmp_path / "damaged"
    for data in buffers:
        for _ in range(60):
            broken = bytearray(data[: int(rng.integers(2, len(data)))] if rng.random() < 0.3 else data)
            for at in rng.integers(0, len(broken), 4):
                broken[at] = rng.integers(256)
            path.write_bytes(broken)
            try:
                open_base(path)
            except SubcompressError as e:
                assert "\n" not in str(e)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "holds no dense tensors"),
        ({"w": 3}, "holds no dense tensors"),
        ({3: torch.zeros(1)}, "tensors by name"),
        ({"a\nb": torch.zeros(1)}, "a tensor's name"),
        ({"\ud800": torch.zeros(1)}, "a tensor's name"),
        ({"a" * 1025: torch.zeros(1)}, "a tensor's name"),
        ({"w": torch.zeros(1, device="meta")}, "meta device"),
        ("missing.safetensors", "--base: no such file or folder: missing.safetensors"),
        ("org/name", "write hub:org/name"),
    ],
)
def test_what_is_no_base_is_refused(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(open_base, source)


def test_files_and_folders_that_are_no_base(tmp_path):
    assert "holds neither" in refusal(open_base, tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello")
    for name in ("empty", "text"):
        assert "is neither" in refusal(open_base, tmp_path / name)
    (tmp_path / "ours").write_bytes(_plain())
    assert "unpack it first" in refusal(open_base, tmp_path / "ours")
    assert "holds a list" in refusal(open_base, saved(tmp_path / "list.pt", [torch.zeros(2)]))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("size", [1 << 30, 1 << 42, 1 << 62])
def test_a_torch_file_that_repeats_one_value_is_refused_before_it_is_made(tmp_path, monkeypatch, size, zipped):
    """A thousand bytes, whether they lie here or on the Hub: nothing of that size is asked of the memory."""
    many = torch.zeros(1).as_strided((size,), (0,))
    path = tmp_path / "base.pt"
    torch.save({"w": many, "b": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 2_000
    assert f"take {4 * size + 12}, most of them w" in refusal(open_base, path)
    fetched = Fetched("org/name", "0" * 40, path, False)
    monkeypatch.setattr(opening, "weights_of", lambda *args, **options: fetched)
    reference = BaseReference("hub:org/name", "0" * 40, bytes(16), 2)
    assert "most of them w" in refusal(opening.find_base, reference, 4 * size)


def test_a_base_of_the_hub_takes_no_more_than_the_file_that_names_it_says(tmp_path, monkeypatch):
    path = tmp_path / "base.pt"
    torch.save({"w": torch.zeros(1).expand(1 << 20)}, path)
    monkeypatch.setattr(opening, "AND_MORE", 1 << 20)
    monkeypatch.setattr(opening, "weights_of", lambda *args, **options: Fetched("org/name", "0" * 40, path, False))
    reference = BaseReference("hub:org/name", "0" * 40, bytes(16), 1)
    assert "take 4194304" in refusal(opening.find_base, reference, 100)


@pytest.mark.parametrize("name", ["", "a\nb", "n" * 1025, "a@main", "hub:a/b@123"])
def test_names_that_no_file_can_hold_are_refused_before_anything(name):
    refusal(open_base, HELD, name)


def test_a_base_is_named():
    commit = "0123456789abcdef" * 2 + "01234567"
    base = open_base(HELD, f"hub:org/name@{commit}")
    assert (base.name, base.revision) == ("hub:org/name", commit)
    assert (open_base(HELD, "hub:org/name").revision) == ""


def test_bombs_are_not_inflated():
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packer.compress(bytes(1 << 26)) + packer.flush()
    parts = dict(PARTS)
    for claimed, words in ((1 << 26, "at most 16777216"), (100, "does not inflate to")):
        parts["entries"] = number(claimed) + number(len(stream)) + stream
        body = b"".join(parts.values())
        assert words in refusal(format.parse, container.wrap(body + zlib.crc32(body).to_bytes(4, "little")))
    changes = {"dense": number(1 << 36), "entries": b"\1\0\0\0\0\0", "groups": b"\0", "sizes": b""}
    line = refusal(format.parse, forged(**changes, stored=number((1 << 30) + 1) + number(len(stream)) + stream))
    assert "at most 1073741824" in line


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_safetensors_file_whose_length_looks_like_another_kind(tmp_path, length):
    text = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path = tmp_path / "base"
    path.write_bytes(length.to_bytes(8, "little") + text + struct.pack("<f", 2.0))
    assert open_base(path).tensors["w"].tolist() == [2.0]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux says what is resident")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_read_of_a_mapped_base_is_let_go(tmp_path, dtype):
    """Else a base takes its bytes again beside the network that stands on it."""
    path = tmp_path / "base.safetensors"
    net = nn.Linear(1024, 2048, bias=False)
    safetensors.torch.save_file({"weight": net.weight.detach().to(dtype)}, path)

    def resident() -> int:
        """Kilobytes of the file in memory."""
        parts = re.split(r"^[\da-f]+-[\da-f]+ ", Path("/proc/self/smaps").read_text(), flags=re.M)
        return sum(int(re.search(r"Rss:\s+(\d+)", part)[1]) for part in parts if str(path) in part)

    base = open_base(path)
    found = attach_base(base, net)
    assert base.digest
    assert resident() < 300
    assert found.holds("weight", net.weight) == (dtype == torch.float32)
    assert resident() < 300
    assert found.holds("weight", found.loaded(net).weight)
    base.check_unchanged()
    assert resident() < 300
