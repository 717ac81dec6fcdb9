"""Files on a base: the format, both decoders, and what a base may be given as."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import oracle_terms
import pytest
import safetensors.torch
import torch
from drawn import based_records
from forged_bases import HELD, PARTS, forged, module_of, number, raw, refusal, scale
from hypothesis import given, settings
from records import TABLES, based_record, golden_bases, of_bytes, plain_base, rounded_record, with_digest
from torch import Tensor, nn

from subcompress import format
from subcompress.api.load import load_record
from subcompress.base import FLOATS, BaseReference, BaseTensors, OnBase
from subcompress.format.record import Coded, Group, Record, Stored, Tied, Unchanged, group_sizes
from subcompress.operators import HadamardBlocks
from subcompress.rebuild.backends import available
from subcompress.rebuild.dense import write_dense
from subcompress.rebuild.expand import expand_checked
from subcompress.rebuild.streaming import stream
from subcompress.tensors.layout import DTYPES, Layout, array_of, torch_dtype
from subcompress.tensors.rounding import rounded

BASES = golden_bases()


@settings(max_examples=50, deadline=None)
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
    base = BaseTensors(held, "base")
    standing = OnBase(BaseReference("base", "", base.digest, 1_000), base)
    entries = (Coded(0.5, based=True), *[Unchanged()] * 999)
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
    _, truth = oracle_terms.converted(source, raw(x), dtype)
    held, to = array_of(x), DTYPES[dtype]
    assert raw(rounded(held, to)) == truth
    assert b"".join(raw(rounded(held[i : i + 1], to)) for i in range(len(x))) == truth
    assert b"".join(raw(rounded(held[i : i + 1].reshape(()), to)) for i in range(len(x))) == truth


def test_a_file_is_loaded_into_the_base_itself():
    for record, name in ((based_record(), "based"), (rounded_record(), "rounded")):
        truth = {n: raw(t) for n, t in expand_checked(record).items()}
        module = module_of(record.layout)
        state = record.base.loaded(module).state_dict()
        used = golden_bases()[name]
        for held, (at, dtype) in record.base._sources.items():
            if array_of(used[at]).dtype == dtype:
                used[at] = state[held]  # the very memory
        found, _ = format.from_bytes(format.to_bytes(record), used)
        assert {n: raw(t) for n, t in load_record(found, module).state_dict().items()} == truth


def test_a_base_that_is_not_finite_is_kept_and_not_moved():
    for odd in (float("nan"), float("inf")):
        held = {**HELD, "m.c": torch.tensor([1.0, 2.0, odd, 4.0, 5.0])}
        data = forged(held, digest=BaseTensors(held, "base").digest)
        assert "holds nan or inf" in refusal(format.from_bytes, data, held)
        with pytest.raises(oracle.Refused, match="not finite"):
            oracle.decode(data, TABLES, of_bytes(held))
    kept = b"\3\5" + scale(0.5) + b"\4\1" + scale(0.25) + b"\0\1\1\2"
    data = forged(held, digest=BaseTensors(held, "base").digest, entries=kept, sizes=number(15))
    assert torch.equal(expand_checked(format.from_bytes(data, held)[0])["c"], held["m.c"])


def test_a_base_that_overflows_when_it_is_converted_is_not_moved():
    held = plain_base([("m.a", "F64", (3,))])
    held["m.a"][1] = 1e5
    base = BaseTensors(held, "base")
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
    assert BaseTensors(held, "other").digest.hex() in line
    with pytest.raises(oracle.Refused, match=r"another (digest|number)"):
        oracle.decode(forged(), TABLES, of_bytes(held))


def test_a_value_of_no_stride_is_hashed_stored_and_loaded():
    held = {"one": torch.ones(()).expand(1), "same": torch.ones(1).expand(1, 1), "ones": torch.ones(1).expand(2, 3)}
    base = BaseTensors(held, "base")
    assert base.digest == BaseTensors({n: t.clone() for n, t in held.items()}, "base").digest
    standing = OnBase(BaseReference("base", "", base.digest, 3), base)
    record = with_digest(
        Record(0, standing.layout, (), (Stored(), Stored(), Unchanged()), bytes(range(28)), base=standing)
    )
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
    base = BaseTensors(held, "base")
    standing = OnBase(BaseReference("base", "", base.digest, 4, dtype=dtype), base)
    layout = Layout((*standing.layout, replace(standing.layout.tensors[0], name="e")))
    entries = (Unchanged(), Coded(0.5, based=True), Coded(0.25, based=True), Coded(0.25, 1, based=True), Tied(0))
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
