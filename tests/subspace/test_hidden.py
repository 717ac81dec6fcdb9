"""What a file cannot hold is refused before anything is trained: state outside the state dict, shared memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import subcompress
from subcompress import SubcompressError
from subcompress.subspace.copying import copied, crowded, own_memory
from subcompress.subspace.hidden import check_sharing


def splits():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(200, 16, generator=g)
    y = x[:, :4].argmax(1)
    return tuple(TensorDataset(x[i], y[i]) for i in (slice(0, 128), slice(128, 160), slice(160, None)))


def refusal(factory, folder, **options):
    with pytest.raises(SubcompressError) as found:
        subcompress.fit(factory, splits(), folder / "run", d=20, epochs=2, batch_size=32, threads=1, **options)
    assert "\n" not in str(found.value)
    assert not (folder / "run").exists()
    return str(found.value)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.B, self.n = torch.randn(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.n((x @ self.B).sin())


class Buffer(Plain):
    def __init__(self):
        super().__init__()
        del self.B
        self.register_buffer("B", torch.randn(16, 8), persistent=False)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.n = [nn.Linear(16, 16)], nn.Linear(16, 4)

    def forward(self, x):
        return self.n(self.layers[0](x).relu())


class Fixed(nn.Module):
    """A table that is not in the state dict, the same in every build."""

    def __init__(self):
        super().__init__()
        self.B, self.n = torch.linspace(-1, 1, 128).view(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.n((x @ self.B).sin())


@pytest.mark.parametrize(("factory", "name"), [(Plain, "B"), (Buffer, "B"), (Listed, "layers")])
def test_what_differs_between_builds_and_is_not_in_the_state_dict_is_named(factory, name, tmp_path):
    assert f": {name} differs from one build to the next" in refusal(factory, tmp_path)


def test_fixed_numbers_outside_the_state_dict_and_random_forward_passes_are_fine(tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.n, self.g = nn.Linear(16, 4), torch.Generator().manual_seed(0)

        def forward(self, x):
            return self.n(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(torch.seed() % 1000)))

    for i, factory in enumerate((Fixed, Noisy)):
        subcompress.fit(factory, splits(), tmp_path / str(i), d=10, epochs=1, batch_size=32, threads=1)


def test_a_layer_in_a_list_of_an_instance_is_refused_and_one_in_the_loss_told(tmp_path):
    words = r"layers.0.weight, layers.0.bias is trained but not in the state dict"
    with pytest.raises(SubcompressError, match=words):
        subcompress.fit(Listed(), splits(), tmp_path / "run", d=20, epochs=1, batch_size=32, threads=1)
    projection = nn.Linear(4, 4)
    found = subcompress.fit(
        lambda: nn.Linear(16, 4),
        splits(),
        tmp_path / "loss",
        d=20,
        epochs=1,
        batch_size=32,
        threads=1,
        loss=lambda m, b: functional.cross_entropy(projection(m(b[0])), b[1]),
    )
    assert any("2 parameters that are not the model's" in w and "(4, 4)" in w for w in found.warnings)


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 16)
        self.b.weight = nn.Parameter(self.a.weight.data.t())
        self.c = nn.Linear(16, 4)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(16, 4)
        self.v = self.b.weight.detach()

    def forward(self, x):
        return self.b(x) + x @ self.v.T


class Overlapping(nn.Module):
    def __init__(self):
        super().__init__()
        flat = torch.randn(100)
        self.p, self.q = nn.Parameter(flat[:64].view(16, 4)), nn.Parameter(flat[60:64])

    def forward(self, x):
        return x @ self.p + self.q


@pytest.mark.parametrize(
    ("factory", "names"), [(Transposed, "a.weight and b.weight"), (Detached, "v"), (Overlapping, "p and q")]
)
def test_memory_that_is_shared_is_refused(factory, names, tmp_path):
    said = refusal(factory, tmp_path)
    assert names in said
    assert "overlap" in said


class Slices(nn.Module):
    """Two buffers, the one a part of the other."""

    def __init__(self):
        super().__init__()
        self.n = nn.Linear(16, 4)
        self.register_buffer("whole", torch.zeros(16))
        self.register_buffer("part", self.whole[:4])

    def forward(self, x):
        if self.training:
            self.whole.add_(x.detach().mean(0))
        return self.n(x - self.whole) + self.part


class Aliased(nn.Module):
    """A buffer that is a trained weight: training gives the weight another place."""

    def __init__(self):
        super().__init__()
        self.n = nn.Linear(16, 4)
        self.register_buffer("copy", self.n.weight.data)

    def forward(self, x):
        return self.n(x) + x @ self.copy.T


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Slices, "(whole and part|part and whole)"),
        (Aliased, "n.weight and copy"),
        (lambda: Transposed().requires_grad_(False), "a.weight and b.weight"),
    ],
)
def test_shared_memory_of_what_is_not_trained_is_refused_too(make, names):
    torch.manual_seed(0)
    with pytest.raises(SubcompressError, match=names):
        check_sharing(make())


@pytest.mark.parametrize("options", [{}, {"base": Transposed().state_dict()}])
def test_every_way_to_a_subspace_looks_at_the_memory(options):
    """Also on a base, whose values go into a copy that shares nothing any more."""
    with pytest.raises(SubcompressError, match=r"a\.weight and b\.weight overlap"):
        subcompress.Subspace.of(Transposed, 8, **options)


def test_a_module_that_does_not_hold_what_was_loaded_is_refused(tmp_path):
    class Apart(Transposed):
        def __init__(self):
            super().__init__()
            self.b.weight = nn.Parameter(self.b.weight.detach().clone())

    class Changing(Apart):
        def __init__(self):
            super().__init__()
            self.register_load_state_dict_post_hook(self.after)

        def after(self, *_):
            self.c.bias.data.add_(1)

    space = subcompress.Subspace.of(Apart, 8)
    with torch.no_grad():
        space.z.fill_(1)
    space.round(4)
    subcompress.pack(space, tmp_path / "net.safetensors")
    for make, words in ((Transposed, "a.weight and b.weight overlap"), (Changing, "c.bias of the module .* .it ties")):
        module = make()
        before = {n: t.clone() for n, t in module.state_dict().items()}
        with pytest.raises(SubcompressError, match=words):
            subcompress.load(tmp_path / "net.safetensors", module)
        if make is Transposed:
            assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_ties_and_neighbors_in_memory_are_fine():
    columns, matrix = nn.Module(), torch.randn(10, 6)
    columns.p, columns.q = nn.Parameter(matrix[:, :2]), nn.Parameter(matrix[:, 2:])
    check_sharing(columns)
    once = nn.Module()
    once.register_buffer("table", torch.randn(8))
    once.register_buffer("same", once.table)
    once.register_buffer("part", once.table[:4], persistent=False)
    check_sharing(once)
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    flat = torch.randn(100)
    beside = nn.Module()
    beside.p, beside.q = nn.Parameter(flat[:60]), nn.Parameter(flat[60:])
    for net in (tied, beside, nn.LSTM(4, 8), nn.MultiheadAttention(8, 2), nn.BatchNorm1d(3)):
        check_sharing(net)


def test_a_trained_network_without_a_base_is_told(tmp_path):
    data = splits()
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    x, y = data[0].tensors
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    found = subcompress.fit(net, data, tmp_path / "run", d=20, epochs=1, batch_size=32, threads=1)
    assert any("looks trained" in w and "--base" in w for w in found.warnings)
    found = subcompress.fit(lambda: nn.Linear(16, 4), data, tmp_path / "new", d=20, epochs=1, batch_size=32, threads=1)
    assert not any("looks trained" in w for w in found.warnings)


# --- several values in one place ---


def net():
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def expanded():
    """A parameter, buffers that are kept and one that is not, several of whose values lie in one place."""
    module = net()
    module[0].weight = nn.Parameter(torch.randn(8, 1).expand(8, 16))
    module[2].bias = nn.Parameter(torch.zeros(1).expand(4), requires_grad=False)
    module.register_buffer("positions", torch.arange(5).expand(3, 5))
    module.register_buffer("windows", torch.arange(7.0).as_strided((5, 3), (1, 1)))
    module.register_buffer("mask", torch.ones(1, dtype=torch.bool).expand(4, 4), persistent=False)
    return module


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.ones(3).expand(2, 3), True),
        (torch.ones(1).expand(6), True),
        (torch.ones(7).as_strided((5, 3), (1, 1)), True),
        (torch.ones(9).as_strided((2, 3), (4, 2)), True),
        (torch.ones(9).as_strided((2, 2), (3, 2)), False),
        (torch.arange(512).expand(1, -1), False),  # as position_ids of transformers
        (torch.ones(4, 6)[:, ::2].t(), False),
        (torch.ones(2, 3, 4).permute(2, 0, 1), False),
        (torch.ones(1).expand(0, 5), False),
        (torch.ones(()), False),
        (torch.empty(3, device="meta").expand(2, 3), False),
        (torch.eye(3).to_sparse(), False),
    ],
)
def test_values_in_one_place_are_found(tensor, found):
    assert crowded(tensor) is found


def test_values_in_one_place_get_memory_of_their_own():
    module = expanded()
    module.tied = nn.Linear(16, 8)
    module.tied.weight = nn.Parameter(module[0].weight.detach())  # another object in the same place
    before = {name: t.clone() for name, t in module.state_dict().items()}
    check_sharing(module)
    copy = copied(module)
    assert module[0].weight.stride() == (1, 0)
    assert not any(crowded(t) for t in (*copy.parameters(), *copy.buffers()))
    assert all(torch.equal(t, before[name]) for name, t in copy.state_dict().items())
    place = own_memory(module).tied.weight.data_ptr()
    assert (module[0].weight.data_ptr(), module[0].weight.stride()) == (place, (16, 1))


@pytest.mark.parametrize("given", [expanded, expanded()])
def test_a_network_with_several_values_in_one_place_is_fitted_and_loaded(given, tmp_path):
    torch.manual_seed(0)
    subcompress.fit(given, splits(), tmp_path / "run", d=4, epochs=1, batch_size=64, threads=1)
    file = tmp_path / "net.safetensors"
    subcompress.pack(tmp_path / "run", file)
    module = subcompress.load(file, expanded())
    assert torch.equal(module.windows, expanded().windows)
    truth = subcompress.format.read(file)[0].layout
    assert {t.name: t.shape for t in truth}["positions"] == (3, 5)
    assert bool((module[0].weight[:, :1] != module[0].weight).any())  # each value trains by itself


def test_windows_of_one_memory_that_is_anothers_are_refused(tmp_path):
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n = nn.Linear(16, 8), nn.Linear(8, 4)
            self.register_buffer("w", self.a.weight.data.view(-1).as_strided((5, 3), (1, 1)))

        def forward(self, x):
            return self.n(self.a(x))

    for make in (Windows, Windows()):
        assert "overlap" in refusal(make, tmp_path)
