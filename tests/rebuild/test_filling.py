"""Weights written into a module's own memory: all of them or none, whatever memory it is."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from records import single_record
from torch import Tensor, nn
from wide import WIDE

import subcompress
from subcompress import SubcompressError, format
from subcompress.api import load as loading
from subcompress.rebuild.expand import digest_of, expand, expand_into


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


def test_some_of_the_coordinates_alone(packed):
    record = format.read(packed)[0]
    (group, *others) = record.groups
    kept = group.coordinates.copy()
    kept[:20] = kept[40:] = 0
    truth = expand(replace(record, groups=(replace(group, coordinates=kept), *others)), "numpy")
    module = subcompress.load(packed, Net(), coordinates=slice(20, 40))
    assert all(torch.equal(t, truth[name]) for name, t in module.state_dict().items())
    assert not equal(module, packed)
    assert equal(subcompress.load(packed, Net(), coordinates=slice(None)), packed)


def test_some_of_the_coordinates_of_a_file_of_another_digest_are_refused(packed, tmp_path):
    record, module = format.read(packed)[0], Net()
    format.save(replace(record, digest=bytes(16)), tmp_path / "other.safetensors")
    before = [t.clone() for t in module.state_dict().values()]
    with pytest.raises(SubcompressError, match="digest"):
        subcompress.load(tmp_path / "other.safetensors", module, coordinates=slice(10))
    assert all(torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True))
    subcompress.load(tmp_path / "other.safetensors", module, coordinates=slice(10), check=False)


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


@pytest.mark.parametrize(
    ("make", "why"), [(shared, "norm.weight of the module .* .it ties"), (overlapping, "first.bias and norm.wei")]
)
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
    assert loading._writable(record, module, module.state_dict())
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
    with pytest.raises(SubcompressError, match=r"^torch sees no CUDA device to rebuild weights on"):
        expand(WIDE, "cuda")
    with pytest.raises(SubcompressError, match=r"the backend torch-cuda cannot run on this machine; "):
        expand(WIDE, "torch-cuda")
    with pytest.raises(
        SubcompressError, match=re.escape("backend must be one of numpy, torch, torch-cuda, native, triton; ")
    ):
        expand(WIDE, "abacus")
