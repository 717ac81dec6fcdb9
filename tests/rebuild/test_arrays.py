"""The core without torch: what imports it, and that its arrays are the bits of torch's tensors."""

from __future__ import annotations

import gc
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from drawn import based_records
from golden_files import BASES, TRUTH
from hypothesis import given, settings
from hypothesis import strategies as st
from places import GOLDEN
from records import based_record, lenet_record, plain_base, tied_record

import subcompress
from subcompress import SubcompressError, format
from subcompress.base import OnBase, open_base
from subcompress.format import codec
from subcompress.format.record import Stored, Unchanged
from subcompress.operators import kernels
from subcompress.rebuild.arrays import changed_names, rebuild
from subcompress.rebuild.expand import expand, expand_into
from subcompress.support import threads
from subcompress.tensors.layout import DTYPES, Layout, array_of, raw_bytes, tensor_of


def read(name: str):
    return format.read(GOLDEN / f"{name}.safetensors", BASES.get(name))[0]


def same(arrays: dict[str, np.ndarray], state: dict[str, torch.Tensor]) -> bool:
    """The same names, shapes and bits, each array of NumPy's dtype for the tensor's."""
    dtypes = {spec.name: DTYPES[spec.dtype] for spec in Layout.of(state)}
    return list(arrays) == list(state) and all(
        a.shape == tuple(state[n].shape) and a.dtype == dtypes[n] and raw_bytes(a) == raw_bytes(state[n])
        for n, a in arrays.items()
    )


# --- the same bits as torch's tensors ---


@pytest.fixture(params=[True, False], ids=["native", "numpy"])
def kernel(request, monkeypatch):
    """With the compiled part, and without."""
    if not request.param:
        monkeypatch.setattr(kernels, "library", lambda: None)
        monkeypatch.setattr(codec, "library", lambda: None)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", TRUTH)
def test_arrays_are_the_tensors_of_expand(name):
    record = read(name)
    state = expand(record)
    for check in (True, False):
        assert same(rebuild(record, check=check), state)
        for chosen in (list(state)[::2], list(state)[-1:], []):
            assert same(rebuild(record, chosen, check=check), {n: state[n] for n in chosen})
    moved = changed_names(record)
    assert same(rebuild(record, moved), {n: state[n] for n in moved})


@settings(max_examples=60, deadline=None)
@given(based_records(), st.data())
def test_any_file_on_a_base(record, data):
    state = expand(record)
    assert same(rebuild(record), state)
    chosen = [name for name in state if data.draw(st.booleans())]
    assert same(rebuild(record, chosen, check=data.draw(st.booleans())), {n: state[n] for n in chosen})


@pytest.mark.parametrize("name", DTYPES)
def test_a_tensor_and_its_array_are_one_memory(name):
    tensor = plain_base([("w", name, (2, 3))])["w"]
    array = array_of(tensor)
    assert array.dtype == DTYPES[name]
    assert tensor_of(array).dtype == tensor.dtype
    assert array.ctypes.data == tensor.data_ptr() == tensor_of(array).data_ptr()
    assert raw_bytes(array_of(tensor.T)) == raw_bytes(tensor.T.contiguous())
    array.flags.writeable = False
    assert raw_bytes(tensor_of(array)) == raw_bytes(tensor)


def test_tied_tensors_are_one_array():
    state = rebuild(tied_record(), ["decoder.weight", "embed.weight", "mode_again"])
    assert state["decoder.weight"] is state["embed.weight"]
    assert list(state) == ["decoder.weight", "embed.weight", "mode_again"]


def test_what_a_base_keeps_is_neither_copied_nor_hashed_again(monkeypatch):
    record = based_record()
    kept = [s.name for s, e in zip(record.layout, record.entries, strict=True) if isinstance(e, Unchanged) and s.size]
    assert kept
    assert not set(kept) & set(changed_names(record))
    hashed: list[int] = []
    digest_of = subcompress.tensors.digest.chunk_digest
    _ = record.base.base.digest_by_chunk
    monkeypatch.setattr(
        "subcompress.tensors.digest.chunk_digest", lambda data: hashed.append(len(data)) or digest_of(data)
    )
    state = rebuild(record)
    assert len(hashed) == sum(s.size > 0 for s in record.layout) - len(kept) - 1  # and one is tied
    for name in kept:
        held = record.base.base.arrays[f"m.{name.removeprefix('net.')}"]
        assert np.shares_memory(state[name], held)
        assert not state[name].flags.writeable
        assert np.shares_memory(record.base.array(name), held)


def test_a_base_in_another_dtype_is_rounded_once_for_all_who_hold_it():
    first, second = read("rounded"), read("rounded")
    second = replace(second, base=OnBase(second.base.reference, first.base.base))
    kept = "m.wide.w"
    assert isinstance(first.entries[[s.name for s in first.layout].index(kept)], Unchanged)
    held = rebuild(first)[kept]
    assert held.dtype == DTYPES["BF16"] != first.base.base.arrays[kept].dtype
    assert np.shares_memory(rebuild(second)[kept], held)
    del held
    gc.collect()
    assert not first.base.base._rounded


@pytest.mark.parametrize("names", [None, ("conv1.bias",)])
def test_another_digest_is_refused_whatever_is_asked_for(names):
    record = replace(lenet_record(), digest=bytes(16))
    with pytest.raises(SubcompressError, match=r"^the rebuilt weights have digest"):
        rebuild(record, names)
    assert rebuild(record, names, check=False)


def test_names_and_sizes_are_checked(monkeypatch):
    record = lenet_record()
    with pytest.raises(SubcompressError, match=r"^'nothing' is none of the 10 tensors"):
        rebuild(record, ["conv1.bias", "nothing"])
    monkeypatch.setattr("subcompress.rebuild.arrays._physical_memory", lambda: 1_000)
    with pytest.raises(SubcompressError, match=r"take 177704 bytes, and this machine has 1000"):
        rebuild(record)


def test_many_threads_rebuild_at_once():
    records = [based_record(), *(lenet_record(seed=seed) for seed in range(4))]
    truth = [rebuild(record) for record in records]

    def again(i: int) -> bool:
        found = rebuild(records[i % 5])
        return all(raw_bytes(found[n]) == raw_bytes(a) for n, a in truth[i % 5].items())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(again, range(80)))


def test_threads_without_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    for said, wanted in (("3", 3), ("", None), ("many", None), ("0", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        threads._default_thread_count.cache_clear()
        assert threads.thread_count() == wanted or (wanted is None and threads.thread_count() >= 1)
    threads._default_thread_count.cache_clear()


# --- a base's file, mapped ---


def test_every_dtype_of_a_file_is_mapped_as_the_library_reads_it(tmp_path):
    held = plain_base([(f"t.{name}", name, shape) for name in DTYPES for shape in [(3, 5)]], 3)
    held |= {"none": torch.empty(0, 4), "one": torch.tensor(1.5), "e8": torch.ones(3).to(torch.float8_e5m2)}
    path = tmp_path / "base.safetensors"
    safetensors.torch.save_file(held, path, {"format": "pt"})
    base = open_base(path)
    path.unlink()  # what is mapped stays
    del held["e8"]
    assert list(base.arrays) == sorted(held)
    assert all(raw_bytes(base.arrays[n]) == raw_bytes(t) and base.arrays[n].shape == t.shape for n, t in held.items())
    assert all(torch.equal(base.tensors[n], t) for n, t in held.items())
    assert base.digest == open_base(held).digest


def packed(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def test_values_that_are_not_aligned_are_copied(tmp_path):
    header = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    )
    (tmp_path / "base").write_bytes(packed(header, b"\1" + struct.pack("<2f", 1.5, -2.0)))
    base = open_base(tmp_path / "base")
    assert base.arrays["w"].flags.aligned
    assert base.tensors["w"].tolist() == [1.5, -2.0]


def test_what_is_written_to_a_mapped_base_does_not_reach_its_file(tmp_path):
    path = tmp_path / "base.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(4)}, path)
    before = path.read_bytes()
    open_base(path).tensors["w"].fill_(1)
    assert path.read_bytes() == before


ENTRY = '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither"),
        (b"{}", "neither"),
        (packed(b"{}", b""), "holds no dense"),
        (packed(ENTRY.encode(), bytes(7)), "neither"),
        (packed(ENTRY.encode(), bytes(9)), "neither"),
        (packed(ENTRY.replace("[2]", "[1152921504606846976,4]").encode(), bytes(8)), "neither"),
        (packed(ENTRY.replace("[0,8]", "[8,0]").encode(), bytes(8)), "neither"),
        (packed(ENTRY.replace("F32", "F31").encode(), bytes(8)), "neither"),
        (packed(ENTRY.replace("[0,8]", "[0,8],\"x\":1").encode(), bytes(8)), None),
        (packed(b"[" * 100_000, b""), "neither"),
    ],
)  # fmt: skip
def test_damaged_bases_are_refused_in_one_line(tmp_path, data, words):
    (tmp_path / "base").write_bytes(data)
    try:
        found = open_base(tmp_path / "base")
    except SubcompressError as e:
        line = str(e)
        assert "\n" not in line
        assert words is None or words in line
    else:
        assert words is None
        assert found.arrays["w"].tolist() == [0, 0]


def test_a_file_that_changes_under_the_library_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "base"
    path.write_bytes(packed(ENTRY.encode(), bytes(4)))
    monkeypatch.setattr("safetensors.safe_open", lambda *_: nullcontext())
    with pytest.raises(SubcompressError, match="is neither"):
        open_base(path)


def test_tensors_that_do_not_lie_in_rows_are_written_where_they_are():
    record = based_record()
    truth = expand(record)
    state = {n: t.clone() for n, t in truth.items()}
    for name, tensor in state.items():
        if isinstance(record.entries[list(state).index(name)], Stored | Unchanged) and tensor.ndim:
            wide = torch.empty(*tensor.shape, 2, dtype=tensor.dtype)
            state[name] = wide[..., 0]
        state[name].zero_()
    expand_into(record, state)
    assert all(raw_bytes(t) == raw_bytes(truth[n]) for n, t in state.items())
