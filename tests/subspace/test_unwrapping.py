"""Networks that torch.compile, DataParallel and checkpoint_wrapper wrap: files have the network's own names, and go
back into whatever wraps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx
import pytest
import torch
from records import with_digest
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.data import TensorDataset

import subcompress
from subcompress import Subspace, Variants, format
from subcompress.api.formats import Wanted
from subcompress.format.facts import Facts
from subcompress.onnx.weightless import weightless_graph_of
from subcompress.search.baseline import _plain
from subcompress.subspace.observing import built
from subcompress.subspace.unwrapping import unwrapped, wrapping_note
from subcompress.tensors.layout import Layout


class Net(nn.Module):
    """Two layers, of which one may be wrapped, and is reached twice."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.module = wrap(nn.Linear(6, 5))  # a name like a wrapper's
        self.rest = nn.ModuleList([self.module, nn.Linear(5, 3)])

    def forward(self, x):
        return self.rest[1](self.rest[0](x).relu())


def both() -> nn.Module:
    module = Net(checkpoint_wrapper)
    module.rest[1] = nn.DataParallel(module.rest[1])
    return torch.compile(module, backend="eager")


MAKES = {
    "compiled": lambda: torch.compile(Net(), backend="eager"),
    "in place": lambda: (module := Net()).compile(backend="eager") or module,
    "DataParallel": lambda: nn.DataParallel(Net()),
    "one in the other": lambda: nn.DataParallel(torch.compile(Net(), backend="eager")),
    "a layer": lambda: Net(checkpoint_wrapper),
    "all": both,
}
NAMES = list(Net().state_dict())


def splits():
    x, y = torch.linspace(-1, 1, 360).view(60, 6), torch.arange(60) % 3
    return tuple(TensorDataset(x[i], y[i]) for i in (slice(0, 40), slice(40, 50), slice(50, 60)))


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_network_has_its_own_names_whatever_wraps_it(make):
    module, notes = make(), []
    before = [(name, type(part)) for name, part in module.named_modules()]
    for given in (module, lambda: module):
        found, _ = built(given, 0, notes.append)
        assert list(found.state_dict()) == [n for n, _ in found.named_parameters(remove_duplicate=False)] == NAMES
        assert [p.data_ptr() for p in found.parameters()] == [p.data_ptr() for p in module.parameters()]
        assert torch.equal(found(torch.ones(2, 6)), unwrapped(module)(torch.ones(2, 6)))
    assert [(name, type(part)) for name, part in module.named_modules()] == before
    assert len(notes) == (0 if found is module else 2)
    assert all("taken off: the network inside is trained" in line for line in notes)


def test_a_name_like_that_of_a_wrapper_is_a_name():
    module = Net()
    assert unwrapped(module) is module
    assert wrapping_note(module) == ""
    assert wrapping_note(both()).startswith("torch.compile, checkpoint_wrapper, DataParallel taken off")


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_file_goes_into_a_wrapped_network(make, tmp_path):
    space = Subspace.of(Net(), 4)
    space.round(4)
    record = space.record(Facts())
    format.save(record, tmp_path / "net.safetensors")
    truth = subcompress.load(tmp_path / "net.safetensors", Net())
    module = make()
    assert subcompress.load(tmp_path / "net.safetensors", module) is module
    assert not any(part.training for part in module.modules())
    assert torch.equal(unwrapped(module)(torch.ones(2, 6)), truth(torch.ones(2, 6)))
    subcompress.unpack(tmp_path / "net.safetensors", tmp_path / "dense.safetensors", make())
    # A file of before, which has the wrappers' names, goes into what it was made of.
    old = with_digest(replace(record, layout=Layout.of(make().state_dict())))
    format.save(old, tmp_path / "old.safetensors")
    assert subcompress.load(tmp_path / "old.safetensors", make()).state_dict().keys() == {t.name for t in old.layout}


def test_distributed_networks_have_their_own_names(tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = nn.parallel.DistributedDataParallel(Net())
        assert wrapping_note(module).startswith("DistributedDataParallel taken off")
        assert set(Subspace.of(module, 3).weights()) == set(NAMES)
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a finished run, `run`, of a wrapped network, and its file, `net.safetensors`."""
    folder, notes = tmp_path_factory.mktemp("wrapped"), []
    listener = subcompress.Listener()
    listener.note = notes.append
    options = {"d": 3, "epochs": 1, "batch_size": 20, "threads": 1, "listener": listener}
    subcompress.fit(both, splits(), folder / "run", **options)
    assert any("taken off" in line for line in notes)
    subcompress.pack(folder / "run", folder / "net.safetensors")
    return folder


def test_a_run_of_a_wrapped_network_is_one_of_what_is_inside(run):
    record = format.read(run / "net.safetensors")[0]
    assert [t.name for t in record.layout] == NAMES
    for make in (Net, both):
        assert list(Wanted(make(), None, None).traced(record).state_dict()) == NAMES


@pytest.mark.slow
def test_graph_report_and_comparison(run):
    graph = onnx.load(subcompress.unpack(run / "net.safetensors", run / "net.onnx", both()))
    assert {i.name for i in graph.graph.initializer} <= set(NAMES)
    assert subcompress.report(run / "run").exists()
    subcompress.compare(run / "run", both(), subcompress.Data(*splits()), peers=["ours"], threads=1)


@pytest.mark.slow
def test_sessions_and_what_verifies_trace_what_is_inside(tmp_path):
    space = Subspace.of(Net(), 4)
    space.round(4)
    record, file, x = space.record(Facts(input_shape=(6,))), tmp_path / "net.safetensors", torch.ones(2, 6)
    format.save(record, file)
    truth = subcompress.load(file, Net())(x)
    assert torch.allclose(subcompress.Session(file, both())(x), truth, atol=1e-5)
    data = subcompress.Data(*splits())
    assert subcompress.verify(file, data, both(), device="cpu").engine == "ONNX Runtime"
    assert weightless_graph_of(record, both()).general


def test_subspaces_moves_and_variants(tmp_path):
    def loss(module, batch):
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    batches = [(torch.randn(8, 6), torch.arange(8) % 3)]
    moves = subcompress.measure_moves(both(), batches, loss, steps=2)
    base = {name: t.clone() for name, t in Net().state_dict().items()}
    assert set(Subspace.of(both(), 3, moves=moves).weights()) == set(NAMES)
    space = Subspace.of(both(), 3, base=base)
    assert set(space.weights()) <= set(NAMES)
    space.round(4)
    subcompress.pack(space, tmp_path / "net.safetensors")
    module = both()
    variants = Variants(module, base)
    variants.add("a", tmp_path / "net.safetensors")
    assert variants.use("a") is module
    truth = subcompress.load(tmp_path / "net.safetensors", Net(), base=base).state_dict()
    assert all(torch.equal(t, truth[name]) for name, t in unwrapped(module).state_dict().items())


def test_a_baseline_of_a_wrapped_networks_weights():
    assert _plain(Net().state_dict(), Net()).keys() == set(NAMES)
    given = {name.replace("rest.0", "rest._orig_mod.0"): t for name, t in nn.DataParallel(Net()).state_dict().items()}
    renamed = {"module." * 2 + name: t for name, t in nn.Linear(2, 2).state_dict().items()}
    assert _plain(renamed, nn.Linear(2, 2)).keys() == {"weight", "bias"}
    assert _plain(given, Net()) is given  # a network that has such a name itself
