"""Files on a base: the format, both decoders, and what a base may be given as."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import safetensors.torch
import torch
from drawn import based_records
from hypothesis import given, settings
from records import TABLES, based_record, golden_bases, of_bytes, plain_base, rounded_record, with_digest
from torch import Tensor, nn

from subcompress import SubcompressError, format
from subcompress.api.unpack import load_record
from subcompress.base import FLOATS, Base, BaseReference, OnBase, open_base, opening
from subcompress.format import container
from subcompress.format.record import Coded, Group, Kept, Record, Same, Stored, group_sizes
from subcompress.format.wire import Writer
from subcompress.operators import HadamardBlocks
from subcompress.rebuild.backends import available
from subcompress.rebuild.dense import write_dense
from subcompress.rebuild.expand import expand_checked
from subcompress.rebuild.streaming import stream
from subcompress.remote import Fetched
from subcompress.tensors.layout import DTYPES, Layout, array_of, raw_bytes, torch_dtype
from subcompress.tensors.rounding import rounded

BASES = golden_bases()


def raw(tensor: Tensor) -> bytes:
    return bytes(raw_bytes(tensor))


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(SubcompressError) as error:
        call(*args, **kwargs)
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 420
    return line


def module_of(layout: Layout) -> nn.Module:
    """A module with such tensors."""
    top = nn.Module()
    for spec in layout:
        owner = top
        *path, leaf = spec.name.split(".")
        for part in path:
            if part not in owner._modules:
                owner._modules[part] = nn.Module()
            owner = owner._modules[part]
        owner._buffers[leaf] = torch.ones(spec.shape).to(spec.torch_dtype)  # `half` is a method of modules, too
    return top


@settings(max_examples=100, deadline=None)
@given(based_records())
def test_both_decoders_and_everything_that_rebuilds_agree(tmp_path_factory, record):
    data = format.to_bytes(record)
    base = record.base.base.tensors
    found, ledger = format.from_bytes(data, base)
    assert sum(ledger.values()) == len(data)
    assert (found.layout, found.entries, found.stored, found.digest) == (
        record.layout, record.entries, record.stored, record.digest,
    )  # fmt: skip
    assert found.base.reference == record.base.reference
    assert [g.operator for g in found.groups] == [g.operator for g in record.groups]
    assert format.to_bytes(found) == data
    decoded = oracle.decode(data, TABLES, of_bytes(base))
    assert list(decoded.tensors) == [spec.name for spec in record.layout]
    truth = {name: values for name, (_, _, values) in decoded.tensors.items()}
    for backend in available():
        assert {n: raw(t) for n, t in expand_checked(found, backend).items()} == truth
        assert stream(found, backend=backend) == record.digest
    module = load_record(found, module_of(record.layout))
    assert {n: raw(t) for n, t in module.state_dict().items()} == truth
    dense = tmp_path_factory.getbasetemp() / "dense.safetensors"
    dense.write_bytes(b"")
    write_dense(found, dense)
    assert {n: raw(t) for n, t in safetensors.torch.load_file(dense).items()} == truth


@pytest.mark.parametrize("record", [based_record(), rounded_record()], ids=["based", "rounded"])
def test_any_flipped_bit_and_any_cut(record):
    data = format.to_bytes(record)
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        refusal(format.parse, bytes(broken))
        refusal(format.parse, data[:at])


def test_what_a_file_keeps_of_a_base_takes_no_room():
    """A thousand tensors, of which one moves."""
    held = plain_base([(f"layers.{i}.weight", "F32", (8, 8)) for i in range(1_000)])
    base = Base(held, "base")
    standing = OnBase(BaseReference("base", "", base.digest, 1_000), base)
    entries = (Coded(0.5, based=True), *[Kept()] * 999)
    group = Group(HadamardBlocks(64, 5, 0, 6, 0, 0), 4, np.arange(5, dtype=np.int32))
    data = format.to_bytes(with_digest(Record(0, standing.layout, (group,), entries, base=standing)))
    assert len(data) < 200


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_a_base_converts_to_the_same_bits_wherever_a_value_lies(source, dtype):
    """Torch rounds float64 to float16 in one step or two, and gives nan other bits, by the place in a tensor."""
    values = [1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11 + 2.0**-40, -0.0, 1e-40, 1e39, float("inf"), 5e-324, 65519.999]
    x = torch.tensor(values, dtype=torch.float64).to(torch_dtype(source)).repeat(9)
    odd = torch.tensor([0x7FF8_1234_0000_0001, -1], dtype=torch.int64).view(torch.float64).to(x.dtype).repeat(20)
    x = torch.cat([x, odd])
    _, truth = oracle.converted(source, raw(x), dtype)
    held, to = array_of(x), DTYPES[dtype]
    assert raw(rounded(held, to)) == truth
    assert b"".join(raw(rounded(held[i : i + 1], to)) for i in range(len(x))) == truth
    assert b"".join(raw(rounded(held[i : i + 1].reshape(()), to)) for i in range(len(x))) == truth


# --- where what is written lies where the base does ---


def test_a_file_is_loaded_into_the_base_itself():
    for record, name in ((based_record(), "based"), (rounded_record(), "rounded")):
        truth = {n: raw(t) for n, t in expand_checked(record).items()}
        module = module_of(record.layout)
        state = record.base.loaded(module).state_dict()
        used = golden_bases()[name]
        for held, (at, dtype) in record.base._places.items():
            if array_of(used[at]).dtype == dtype:
                used[at] = state[held]  # the very memory
        found, _ = format.from_bytes(format.to_bytes(record), used)
        assert {n: raw(t) for n, t in load_record(found, module).state_dict().items()} == truth


# --- forgeries, one rule at a time ---

TENSORS = [("m.a", "F32", (3, 4)), ("m.b", "I64", (2,)), ("m.c", "F32", (5,)), ("x", "F16", (2,))]
"""144 bytes without x."""


HELD = plain_base(TENSORS)


def number(value: int) -> bytes:
    w = Writer()
    w.varint(value)
    return bytes(w.data)


def text(value: bytes) -> bytes:
    return number(len(value)) + value


def deflated(data: bytes) -> bytes:
    w = Writer()
    w.deflated(data)
    return bytes(w.data)


def scale(value: float) -> bytes:
    return struct.pack("<f", value)[2:]


PARTS: dict[str, bytes] = {
    "begin": b"SC\1\1\0",
    "number": b"\7",
    "name": text(b"base"),
    "revision": b"\0",
    "digest": Base(HELD, "base").digest,
    "count": b"\4",
    "strip": text(b"m."),
    "add": text(b""),
    "cast": b"\0",
    "unused": b"\1\3",
    "new": b"\1" + b"\0\1w" + b"\0\1\3",  # w F32 [3]
    "dense": number(96),
    "groups": b"\1\1" + bytes([10, 4, 0, 0]) + b"\4",
    "kind": b"\3",
    # Entries: the base's with coordinates, kept, from zero; tensors a, b, c, w.
    "entries": b"\3" + b"\5" + scale(0.5) + b"\4" + b"\1" + scale(0.25) + b"\0\1\0\2",
    "sizes": number(20),
    "facts": b"\0",
    "accuracy": b"\0",
    "weights": bytes(16),
    "stored": b"",
    "coordinates": b"",
}


def forged(base: dict[str, Tensor] = HELD, **changes: bytes) -> bytes:
    """The file of PARTS, changed, with the digest of its weights where it has any. `entries` are deflated."""
    parts = {**PARTS, **changes}
    parts["entries"] = deflated(parts["entries"])

    def sealed() -> bytes:
        body = b"".join(parts.values())
        return container.wrap(body + zlib.crc32(body).to_bytes(4, "little"))

    try:
        record, _ = format.from_bytes(sealed(), base)
        parts["weights"] = with_digest(record).digest
    except SubcompressError:
        pass
    return sealed()


def test_the_hand_made_file_is_sound():
    record, _ = format.from_bytes(forged(), HELD)
    assert [s.name for s in record.layout] == ["a", "b", "c", "w"]
    truth = oracle.decode(forged(), TABLES, of_bytes(HELD)).tensors
    assert {n: raw(t) for n, t in expand_checked(record).items()} == {n: t[2] for n, t in truth.items()}


LISTED = b"\0" + deflated(b"\1" + b"\0\1w" + b"\0\1\x14")
"""A layout without a base, of w F32 [20]."""


STANDING = ("name", "revision", "digest", "count", "strip", "add", "cast", "unused", "new", "dense", "sizes")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": text(b"")}, "a base has a name"),
        ({"name": text(b"a\nb")}, "no control characters"),
        ({"name": text(b"\xff")}, "is UTF-8"),
        ({"name": text(b"n" * 1025)}, "at most 1024"),
        ({"strip": text(b"m\x00")}, "no control characters"),
        ({"add": text(b"\xc3")}, "is UTF-8"),
        ({"add": text(b"n" * 1025)}, "at most 1024"),
        ({"add": text(b"n" * 1024)}, "which is no name"),
        ({"strip": text(b"m.a"), "add": text(b"__metadata__"), "unused": b"\3\1\0\0", "dense": number(60),
          "entries": b"\2\5" + scale(0.5) + b"\1" + scale(0.25) + b"\0\1", "sizes": number(15)}, "which is no name"),
        ({"revision": b"\2"}, "at most 1"),
        ({"count": b"\5", "unused": b"\2\3\0"}, "whose tensors have digest"),
        ({"count": number(65_537)}, "at most 65536"),
        ({"digest": bytes(16)}, "whose tensors have digest"),
        ({"strip": text(b"x.")}, "does not begin with 'x.' as the file says"),
        ({"strip": text(b"")}, ""),
        ({"cast": b"\5"}, "a dtype of floats is at most 4"),
        ({"cast": b"\2"}, "knows their bytes"),
        ({"unused": b"\5\0\0\0\0\0"}, "at most 4"),
        ({"unused": b"\1\4"}, "are among those of the base"),
        ({"unused": b"\2\3\0"}, "are among those of the base"),
        ({"unused": b"\0"}, "bytes are missing"),
        ({"unused": b"\0", "entries": PARTS["entries"][:-1] + b"\1\2"}, "does not begin with"),
        ({"new": b"\1\0\1w\x0b\1\3"}, "a dtype is at most 10"),
        ({"new": b"\1\0\1a\0\1\3"}, "names each tensor once"),
        ({"new": b"\2\0\1w\0\1\3\1\0\0\1\3"}, "names each tensor once"),
        ({"new": b"\1\0\1\n\0\1\3"}, "no control characters"),
        ({"new": number(65_535)}, "the file is damaged or forged"),
        ({"dense": number(95)}, "knows their bytes"),
        ({"dense": number(97)}, "knows their bytes"),
        ({"dense": number(2**36 + 1)}, "at most 68719476736"),
        ({"groups": b"\1\1" + bytes([21, 4, 0, 0]) + b"\4"}, "take 1 to 20 coordinates"),
        ({"kind": b"\1"}, "is of kind 3"),
        ({"kind": b"\4"}, "at most 5"),
        ({"sizes": number(21)}, "agree; given 20 weights"),
        ({"sizes": number(16), "dense": number(80)}, "knows their bytes"),
        ({"sizes": number(2**36 + 1)}, "the size of a group"),
        ({"entries": b"\5" + b"\4" * 5 + b"\0\0\0\0"}, "the number of entries is at most 4"),
        ({"entries": b"\1\6\0\0\0\0"}, "a tensor's tag is at most 5"),
        ({"entries": b"\1\5" + scale(0.5) + b"\0\1\0\2"}, "the number of an entry is at most 0"),
        ({"entries": b"\0"}, "an entry a tensor"),
        ({"entries": PARTS["entries"] + b"\0"}, "ends with the last"),
        ({"entries": PARTS["entries"][:-1]}, "bytes are missing"),
        ({"entries": b"\3\5" + scale(0.5) + b"\4\1" + scale(0.25) + b"\0\0\0\2", "sizes": number(22)}, "are of F32"),
        ({"entries": b"\2\5" + scale(0.5) + b"\4\0\1\0\0"}, "is in the base"),
        ({"entries": b"\2\5" + scale(0.5) + b"\4\0\1\0\1", "sizes": number(17)}, "is in the base"),
        ({"entries": b"\3\5" + b"\xc0\x7f" + b"\4\1" + scale(0.25) + b"\0\1\0\2"}, "a scale is in"),
        ({"entries": b"\4\5" + scale(0.5) + b"\4\1" + scale(0.25) + b"\5\0\0\0\1\0\2"}, "a scale is in"),
        ({"entries": b"\4\5" + scale(0.5) + b"\4\1" + scale(0.25) + b"\3\4\0\1\0\2"}, "at most 3"),
        ({"entries": b"\3\3\2\4\1" + scale(0.25) + b"\2\1\0\0", "sizes": number(12)}, "an earlier one"),
        ({"entries": b"\3\3\1\4\1" + scale(0.25) + b"\2\1\0\2", "sizes": number(15)}, "one dtype and shape"),
        ({"entries": b"\2\2\0\0\0\0\1", "groups": b"\0", "sizes": b"", "stored": deflated(bytes(11))}, "12 bytes, 11"),
        ({"entries": b"\2\2\0\0\0\0\1", "groups": b"\0", "sizes": b"", "stored": deflated(bytes(97))}, "at most 96"),
        ({"coordinates": b"\1" * 30}, "more than d coordinates"),
        (dict.fromkeys(STANDING, b"") | {"number": LISTED}, "and of no other"),
    ],
)  # fmt: skip
def test_forgeries_are_refused_by_both_decoders(changes, words):
    data = forged(**changes)
    if not words:  # the same tensors under other names
        assert "m.a" in expand_checked(format.from_bytes(data, HELD)[0])
        oracle.decode(data, TABLES, of_bytes(HELD))
        return
    assert re.search(words, refusal(format.from_bytes, data, HELD))
    with pytest.raises(oracle.Refused) as error:
        oracle.decode(data, TABLES, of_bytes(HELD))
    assert "packed" not in str(error.value)


def test_all_tensors_of_a_file_are_counted():
    new = b"".join(b"\0" + text(str(i).zfill(6).encode()) + b"\0\1\0" for i in range(30_000))
    changes = {
        "count": number(40_000),
        "unused": b"\0",
        "new": number(30_000) + new,
        "dense": b"\0",
        "groups": b"\0",
        "entries": b"\2\2\0" + bytes(40_000) + b"\1" * 30_000,
        "sizes": b"",
        "stored": deflated(b""),
    }
    assert "at most 65536 tensors" in refusal(format.parse, forged(**changes))


def test_a_base_that_is_not_finite_is_kept_and_not_moved():
    for odd in (float("nan"), float("inf")):
        held = {**HELD, "m.c": torch.tensor([1.0, 2.0, odd, 4.0, 5.0])}
        data = forged(held, digest=Base(held, "base").digest)
        assert "holds nan or inf" in refusal(format.from_bytes, data, held)
        with pytest.raises(oracle.Refused, match="not finite"):
            oracle.decode(data, TABLES, of_bytes(held))
    kept = b"\3\5" + scale(0.5) + b"\4\1" + scale(0.25) + b"\0\1\1\2"
    data = forged(held, digest=Base(held, "base").digest, entries=kept, sizes=number(15))
    assert torch.equal(expand_checked(format.from_bytes(data, held)[0])["c"], held["m.c"])


def test_a_base_that_overflows_when_it_is_converted_is_not_moved():
    held = plain_base([("m.a", "F64", (3,))])
    held["m.a"][1] = 1e5
    base = Base(held, "base")
    standing = OnBase(BaseReference("base", "", base.digest, 1, dtype="F16"), base)
    group = Group(HadamardBlocks(3, 1, 0, 2, 0, 0), 4, np.ones(1, np.int32))
    record = Record(0, standing.layout, (group,), (Coded(0.5, based=True),), base=standing)
    assert "holds nan or inf" in refusal(record.check)


@pytest.mark.parametrize("change", ["missing", "more", "reshaped", "renamed", "a bit", "dtype"])
def test_another_base_is_refused_with_both_digests(change):
    held = dict(HELD)
    if change == "missing":
        del held["m.b"]
    elif change == "more":
        held["y"] = torch.zeros(1)
    elif change == "renamed":
        held["y"] = held.pop("x")
    elif change == "reshaped":
        held["m.a"] = held["m.a"].view(4, 3)
    elif change == "a bit":
        held["m.c"] = held["m.c"].clone().view(torch.int32).bitwise_xor(1).view(torch.float32)
    else:
        held["m.c"] = held["m.c"].bfloat16()
    line = refusal(format.from_bytes, forged(), held)
    assert PARTS["digest"].hex() in line
    assert Base(held, "other").digest.hex() in line
    with pytest.raises(oracle.Refused, match=r"another (digest|number)"):
        oracle.decode(forged(), TABLES, of_bytes(held))


def test_a_base_is_asked_for_and_only_where_there_is_one():
    line = refusal(format.from_bytes, forged())
    assert "--base" in line
    assert PARTS["digest"].hex() in line
    assert "on no base" in refusal(format.from_bytes, _plain(), HELD)


def _plain() -> bytes:
    from records import single_record

    return format.to_bytes(single_record(300, 1, 6, 16, 1, np.array([-8])))


# --- what a base may be given as ---


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
        Base(HELD, "x"),
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
        ({}, "holds none"),
        ({"w": 3}, "holds none"),
        ({3: torch.zeros(1)}, "tensors by name"),
        ({"a\nb": torch.zeros(1)}, "a tensor's name"),
        ({"\ud800": torch.zeros(1)}, "a tensor's name"),
        ({"a" * 1025: torch.zeros(1)}, "a tensor's name"),
        ({"w": torch.zeros(1, device="meta")}, "meta device"),
        ("missing.safetensors", "is not there"),
        ("org/name", "hub:org/name would be"),
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
    assert f"take {4 * size + 12}, w most of them" in refusal(open_base, path)
    fetched = Fetched("org/name", "0" * 40, path, False)
    monkeypatch.setattr(opening, "weights_of", lambda *args, **options: fetched)
    reference = BaseReference("hub:org/name", "0" * 40, bytes(16), 2)
    assert "w most of them" in refusal(opening.find_base, reference, 4 * size)


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


def test_a_value_of_no_stride_is_hashed_stored_and_loaded():
    held = {"one": torch.ones(()).expand(1), "same": torch.ones(1).expand(1, 1), "ones": torch.ones(1).expand(2, 3)}
    base = Base(held, "base")
    assert base.digest == Base({n: t.clone() for n, t in held.items()}, "base").digest
    standing = OnBase(BaseReference("base", "", base.digest, 3), base)
    record = with_digest(Record(0, standing.layout, (), (Stored(), Stored(), Kept()), bytes(range(28)), base=standing))
    module = nn.Module()
    for name, tensor in held.items():
        module.register_buffer(
            name, tensor.clone() if name == "ones" else tensor.clone().as_strided(tensor.shape, (0,) * tensor.ndim)
        )
    found = load_record(record, module).state_dict()
    assert raw(found["one"]) + raw(found["ones"]) == record.stored


@pytest.mark.parametrize("dtype", ["", "F32"])
def test_tensors_of_many_leaves_stream_as_they_expand(dtype):
    """A leaf's first value is another number in the file's dtype than in the base's."""
    held = plain_base(
        [("a", "F16", (2_200_000,)), ("b", "C64", (600_001,)), ("c", "F64", (530_000,)), ("d", "F16", (3,))]
    )
    base = Base(held, "base")
    standing = OnBase(BaseReference("base", "", base.digest, 4, dtype=dtype), base)
    layout = Layout((*standing.layout, replace(standing.layout.tensors[0], name="e")))
    entries = (Kept(), Coded(0.5, based=True), Coded(0.25, based=True), Coded(0.25, 1, based=True), Same(0))
    sizes = group_sizes(layout, entries, 2)
    z = np.arange(3, dtype=np.int32)
    groups = tuple(Group(HadamardBlocks.sized(D, 3, 1, 0, g), 4, z) for g, D in enumerate(sizes))
    record = with_digest(Record(1, layout, groups, entries, base=standing))
    state = expand_checked(record)
    assert same_values(state["a"], held["a"])
    for backend in available():
        seen: dict[str, dict[int, bytes]] = {s.name: {} for s in layout}

        def sink(leaf, values, seen=seen):
            seen[layout.tensors[leaf.index].name][leaf.at] = raw(values)

        assert stream(record, sink, backend=backend) == stream(record, backend=backend) == record.digest
        for name, tensor in state.items():
            assert b"".join(seen[name][at] for at in sorted(seen[name])) == raw(tensor)


def same_values(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.double(), b.double())


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
