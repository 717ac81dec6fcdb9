"""A Subspace around modules that do what modules may do: checkpoints, transforms, constraints, parametrizations, extra
state, graphs; and what it says of those that it cannot train."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from spaces import Stopped, X, checked, data, net, spread
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import subcompress
from subcompress import Subspace
from subcompress.operators import kernels
from subcompress.rebuild.expand import expand
from subcompress.training.loop import TrainOptions, train
from subcompress.training.preflight import check_trains, estimate_cost
from subcompress.training.tasks import Task

# --- weights are the file's from `round` on ---


class EveryDtype(nn.Module):
    """Weights of each dtype that can be coded."""

    def __init__(self) -> None:
        super().__init__()
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            self.register_module("of_" + str(dtype)[6:], nn.Linear(20, 30, dtype=dtype))
        self.filter = nn.Parameter(torch.randn(8, 17, dtype=torch.complex64) / 17**0.5)
        self.norm = nn.LayerNorm(30)


def same_as_packed(sub: Subspace) -> None:
    truth, found = expand(sub.record()), sub.weights()
    assert len(found) > 1
    assert all(w.dtype == truth[name].dtype and torch.equal(w, truth[name]) for name, w in found.items())


@pytest.mark.parametrize("make", [*[c.make for c in networks.CASES.values()], EveryDtype], ids=[*networks.CASES, "all"])
@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "torch"])
def test_rounded_weights_are_the_packed_ones_bit_for_bit(make, compiled, monkeypatch):
    torch.manual_seed(0)
    sub = spread(make(), 40, bits=4)
    truth = expand(sub.record())
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    found = sub.weights()
    assert all(w.dtype == truth[name].dtype and torch.equal(w, truth[name]) for name, w in found.items())


@pytest.mark.parametrize("bits", [2, 8])
def test_with_other_bits_shortened_and_restored(bits):
    sub = spread(net(), 40, bits=bits)
    same_as_packed(sub)
    sub.shorten(sub.coded_bytes() - 3)
    assert sub.rounding.dead > 0.5
    same_as_packed(sub)
    other = Subspace.of(net(), 40)
    other.restore(sub.moving(), sub.settings())
    same_as_packed(other)
    third = Subspace.of(net(), 40)
    third.load_state_dict(sub.state_dict())
    assert all(torch.equal(w, third.weights()[name]) for name, w in sub.weights().items())
    assert third.settings() == sub.settings()


@pytest.mark.parametrize("act_on", ["all", "norms"])
def test_on_a_base_they_are_the_packed_ones_too(act_on):
    torch.manual_seed(0)
    base = EveryDtype()
    with torch.no_grad():
        for p in base.parameters():
            p.add_(0.01 * torch.randn_like(p))
            p.view(-1)[:3] *= 1e-42 if p.dtype == torch.float32 else 1
        base.of_float64.weight.mul_(1 + 2.0**-40)  # float32 does not hold it
    sub = spread(base, 30, bits=4, base=copy.deepcopy(base), act_on=act_on)
    truth = expand(sub.record())
    assert all(torch.equal(w, truth[name]) for name, w in sub.weights().items())


def test_under_torch_compile_they_are_the_packed_ones():
    torch._dynamo.reset()
    sub = spread(EveryDtype(), 40, bits=4)
    truth, found = expand(sub.record()), torch.compile(sub.weights, backend="eager", fullgraph=True)()
    assert all(torch.equal(w, truth[name]) for name, w in found.items())


def test_gradients_pass_straight_through_the_rounding():
    """P^T (scale g), with the scale before rounding."""
    sub, g = spread(net(), 20), torch.randn(8, 8)
    (before,) = torch.autograd.grad(sub.weights()["2.weight"], sub.z, g)
    sub.round(4)
    (after,) = torch.autograd.grad(sub.weights()["2.weight"], sub.z, g)
    assert torch.equal(before, after)


# --- many of them compiled ---


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@torch._dynamo.config.patch(recompile_limit=4)
def test_many_compiled_subspaces_share_few_graphs(backend):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for i in range(12):
        sub = Subspace.of(net(), 20, seed=i)
        with torch.no_grad():
            sub.z.copy_(torch.randn(20))
        compiled = torch.compile(sub, backend=backend, fullgraph=True)
        for bits in (0, 3 + i % 3):
            if bits:
                sub.round(bits)
            assert torch.allclose(compiled(X), sub(X), atol=1e-5)
            (found,) = torch.autograd.grad(compiled(X).sum(), sub.z)
            assert torch.allclose(found, torch.autograd.grad(sub(X).sum(), sub.z)[0], rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


# --- torch.func ---


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("bits", [0, 4])
def test_transforms_of_torch_func(bits):
    sub = spread(net(), 20, bits)
    z, several = sub.z.detach().clone(), torch.randn(4, 20)

    def loss(z, x):
        return functional_call(sub, {"z": z}, (x,)).square().mean()

    def plain(z, x):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(loss(z, x), z)[0]

    assert torch.allclose(grad(loss)(z, X), plain(z, X), atol=1e-6)
    each = torch.stack([plain(z, x) for x in X])
    assert torch.allclose(vmap(grad(loss), in_dims=(None, 0))(z, X), each, atol=1e-6)
    each = torch.stack([loss(z, X) for z in several])
    assert torch.allclose(vmap(loss, in_dims=(0, None))(several, X), each, atol=1e-6)
    assert torch.allclose(vmap(loss, in_dims=(1, None))(several.T, X), each, atol=1e-6)
    each = torch.stack([plain(z, X) for z in several])
    assert torch.allclose(vmap(grad(loss), in_dims=(0, None))(several, X), each, atol=1e-6)

    def outputs(z):
        return functional_call(sub, {"z": z}, (X,)).flatten()

    truth = torch.autograd.functional.jacobian(outputs, z)
    assert torch.allclose(jacrev(outputs)(z), truth, atol=1e-6)
    assert torch.allclose(jacfwd(outputs)(z), truth, atol=1e-6)
    twice = torch.autograd.functional.hessian(lambda z: loss(z, X), z)
    assert torch.allclose(hessian(lambda z: loss(z, X))(z), twice, atol=1e-6)


def test_a_batch_of_inputs_under_vmap_trains_z():
    sub = spread(net())
    vmap(sub)(X).sum().backward()
    found, sub.z.grad = sub.z.grad, None
    sub(X).sum().backward()
    assert torch.allclose(found, sub.z.grad, atol=1e-5)


def test_gradients_of_gradients():
    sub = Subspace.of(net(), 10)
    z = 0.3 * torch.randn(10)

    def penalty(z):
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(functional_call(sub, {"z": z}, (x,)).sum(), x, create_graph=True)
        return slope.square().sum()

    along = torch.randn(10)
    there, back = (penalty(z + step * along).detach() for step in (1e-2, -1e-2))
    (found,) = torch.autograd.grad(penalty(z.requires_grad_()), z)
    assert float(found @ along) == pytest.approx(float(there - back) / 2e-2, rel=0.02)


# --- activation checkpointing ---


class Checkpointed(nn.Module):
    """Its middle runs once more in the backward pass, unless reentrant is None."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.middle, self.norm, self.last = (
            nn.Linear(6, 8),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )

    def block(self, x):
        return self.norm(torch.tanh(self.middle(x)))

    def forward(self, x):
        x = self.first(x)
        plain = self.reentrant is None or not torch.is_grad_enabled()
        x = self.block(x) if plain else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.last(x)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("bits", [0, 4])
def test_checkpointed_layers_train_alike(reentrant, bits):
    found = []
    for how in (None, reentrant):
        torch.manual_seed(0)
        sub = spread(Checkpointed(how), bits=bits)
        with sub.materialized() as module:
            module(X).square().sum().backward()
        found.append(sub.z.grad)
        sub.z.grad = None
        sub(X).square().sum().backward()  # outside, as a trainer does
        found.append(sub.z.grad)
        assert [name for name, _ in sub.named_parameters()] == ["z"]
        copy.deepcopy(sub)
    assert all(torch.allclose(g, found[0], rtol=1e-4, atol=1e-5) for g in found)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_fits_have_the_same_file(reentrant, tmp_path):
    files = []
    for how in (None, reentrant):
        torch.manual_seed(0)
        folder = tmp_path / f"run-{how}"
        subcompress.fit(Checkpointed(how), data(), folder, d=20, epochs=3, batch_size=32, threads=1)
        files.append(subcompress.training.run.load(folder).digest)
    if not reentrant:  # reentrant ones add the gradients of a layer up in another order
        assert files[0] == files[1]


def test_a_backward_pass_that_fails_leaves_the_subspace_usable():
    class Raising(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise ValueError("no gradient today")

    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.fails = nn.Linear(6, 6), nn.Linear(6, 3), True

        def forward(self, x):
            x = self.first(x)
            return self.last(Raising.apply(x) if self.fails else x)

    sub = spread(Failing())
    with pytest.raises(ValueError, match="no gradient today"):
        sub(X).sum().backward()
    sub.module.fails = False
    sub(X).sum().backward()
    assert [name for name, _ in sub.named_parameters()] == ["z"]


POINTS = torch.randn(5, 6, requires_grad=True)


def slopes(module, batch):
    """As networks of physics have it: derivatives at inputs of the batch, and at points that are always the same."""
    x = batch[0].clone().requires_grad_()
    found = [torch.autograd.grad(module(at).sum(), at, create_graph=True)[0] for at in (x, POINTS)]
    return sum((f.square().mean() for f in found), module(POINTS).mean())


TEACHER = net()


def distilled(module, batch):
    """The teacher's weights are leaves too; nobody trains them."""
    return (module(batch[0]) - TEACHER(batch[0])).square().mean()


class Detached(nn.Module):
    """Its list is read for its values only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.kept = [self.layer.weight]

    def forward(self, x):
        return self.layer(x) / self.kept[0].detach().norm()


@pytest.mark.parametrize("loss", [slopes, distilled])
def test_other_leaves_are_let_pass(loss):
    checked(net(), loss)
    checked(Detached(), lambda module, batch: module(batch[0]).square().mean())


@pytest.mark.parametrize("case", networks.CASES)
def test_networks_of_every_kind_pass(case):
    c = networks.CASES[case]
    torch.manual_seed(0)
    module, state = c.make(), torch.get_rng_state()
    task = Task.of(c.options.get("loss", "cross-entropy"), c.options.get("metric"))
    sub = Subspace.of(module, 40)
    check_trains(sub, module, c.data(), task, TrainOptions(1, 0.01, 32))
    if case != "dict":  # its data set draws
        assert torch.equal(state, torch.get_rng_state())
    assert "per fit" in estimate_cost(sub, c.data(), task, TrainOptions(1, 0.01, 32), 1)


def test_an_estimate_makes_no_copy_of_the_network(monkeypatch):
    c = networks.CASES[next(iter(networks.CASES))]
    given = Subspace.of(c.make(), 40)
    monkeypatch.setattr(nn.Module, "__deepcopy__", lambda *_: pytest.fail("a copy"), raising=False)
    module = c.make()
    sub = Subspace(module, given.plan, own=True)
    assert sub.module is module
    task = Task.of(c.options.get("loss", "cross-entropy"), c.options.get("metric"))
    assert "per fit" in estimate_cost(sub, c.data(), task, TrainOptions(1, 0.01, 32), 1)


# --- coordinates without a gradient ---


class Half(nn.Module):
    """Reads one of its two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.unread = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.read(x)


@pytest.mark.parametrize("optimiser", ["adam", "eigen"])
def test_coordinates_without_a_gradient_are_counted(optimiser):
    torch.manual_seed(0)
    recipe = TrainOptions(3, 0.01, 32, optimiser=optimiser)
    outcome = train(Subspace.of(Half(), 42), data(), Task.of(), recipe)  # a coordinate a weight, half of them read
    assert outcome.silent == 21
    assert train(Subspace.of(net(), 20), data(), Task.of(), recipe).silent == 0


class Memory:
    """A checkpoint in memory."""

    held = None

    def load(self, expected):
        return self.held

    def save(self, tensors, meta):
        self.held = {name: t.clone() for name, t in tensors.items()}, meta


def test_the_count_outlives_an_interruption(monkeypatch):
    monkeypatch.setattr("subcompress.training.loop.SAVE_EVERY", -1.0)
    torch.manual_seed(0)
    module, kept = Half(), Memory()
    options = TrainOptions(3, 0.01, 32)
    whole = train(Subspace.of(module, 42), data(), Task.of(), options)
    with pytest.raises(KeyboardInterrupt):
        train(
            Subspace.of(module, 42), data(), Task.of(), TrainOptions(3, 0.01, 32), listener=Stopped(2), checkpoint=kept
        )
    kept.held[0]["heard"][:] = True  # as if all had one before
    again = train(Subspace.of(module, 42), data(), Task.of(), TrainOptions(3, 0.01, 32), checkpoint=kept)
    assert again.value == whole.value
    assert again.silent == 0


def test_the_former_name_of_materialized_works():
    assert Subspace.materialised is Subspace.materialized
