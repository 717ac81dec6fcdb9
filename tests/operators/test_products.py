"""Products of training against float64, and networks that train with and without a kernel."""

from __future__ import annotations

import copy

import pytest
import torch
from kernel_cases import KINDS, OPERATORS, VECTORS, needs_native
from torch import nn
from torch.nn.functional import cross_entropy

import subcompress
from subcompress import SubcompressError, format
from subcompress.native import compiled
from subcompress.operators import HadamardBlocks, OneHot, kernels
from subcompress.operators.kernels import Segment
from subcompress.rebuild.expand import expand
from subcompress.subspace import traced


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", OPERATORS, ids=str)
def test_products_of_training(sizes, kind, vectors, monkeypatch):
    monkeypatch.setenv(compiled.VECTORS, vectors)
    D, d, log2_m, K, A = sizes
    op = kind(D, d, 3, log2_m, K, A)
    g = torch.Generator().manual_seed(1)
    z, lo = torch.randn(d, generator=g), D // 3
    begin = torch.randn(D - lo, generator=g)
    out = torch.full((D,), torch.nan)
    op.write(z, [Segment(0, out[:lo], 0.5, 0.25), Segment(lo, out[lo:], 2.0, begin)])
    truth = op.affine(z.double())
    truth = torch.cat([0.5 * truth[:lo] + 0.25, 2 * truth[lo:] + begin])
    assert torch.allclose(out.double(), truth, atol=1e-5 * float(truth.abs().max()))
    whole = torch.randn(D, generator=g)
    found = op.adjoint([(0, whole[:lo], 0.5), (lo + 1, whole[lo + 1 :], 2.0)])
    weighted = torch.cat([0.5 * whole[:lo], torch.zeros(1), 2 * whole[lo + 1 :]])
    truth = op.rmatvec(weighted.double())
    assert found.shape == (d,)
    assert torch.allclose(found.double(), truth, atol=1e-5 * float(truth.abs().max() + 1))


@pytest.mark.parametrize("operator", [*(kind.sized(5_000, 90, 1) for kind in KINDS), OneHot(5_000, 90, 1)])
@pytest.mark.usefixtures("no_kernel")
def test_products_without_a_kernel(operator):
    z, g, out = torch.randn(90), torch.randn(5_000), torch.empty(5_000)
    operator.write(z, [Segment(0, out[:70], 0.5, 0.25), Segment(70, out[70:], 2.0)])
    truth = operator.affine(z)
    assert torch.allclose(out, torch.cat([0.5 * truth[:70] + 0.25, 2 * truth[70:]]))
    found = operator.adjoint([(0, g[:70], 0.5), (71, g[71:], 2.0)])
    truth = operator.rmatvec(torch.cat([0.5 * g[:70], torch.zeros(1), 2 * g[71:]]))
    assert torch.allclose(found, truth, atol=1e-4)


@needs_native
def test_gradients_do_not_depend_on_threads():
    op, before = HadamardBlocks.sized(3_000_000, 900, 1), torch.get_num_threads()
    g = torch.randn(op.D)
    found = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        found.append(op.adjoint([(0, g, 1.0)]))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(20, 30), nn.Linear(30, 4)

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.fixture
def space():
    torch.manual_seed(0)
    space = subcompress.Subspace.of(Small(), 60)
    with torch.no_grad():
        space.z.copy_(torch.randn(60))
    space.round(4)
    return space


def gradient(space, forward):
    x = torch.randn(16, 20, generator=torch.Generator().manual_seed(1))
    space.z.grad = None
    loss = cross_entropy(forward(x), torch.arange(16) % 4)
    loss.backward()
    return loss.detach(), space.z.grad


def test_a_network_trains_alike_with_and_without_a_kernel(space, monkeypatch):
    loss, truth = gradient(space, space)
    monkeypatch.setattr(kernels, "library", lambda: None)
    again, found = gradient(space, space)
    assert torch.allclose(loss, again, rtol=1e-5)
    assert torch.allclose(found, truth, rtol=1e-4, atol=1e-6)


def test_under_torch_compile_all_is_one_graph_for_every_subspace(space):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    other = subcompress.Subspace.of(Small(), 60, seed=5)
    other.restore(space.moving(), space.settings())
    losses = []
    for subject in (space, copy.deepcopy(space), other):
        loss, truth = gradient(subject, subject)
        compiled_one = torch.compile(subject, backend=backend, fullgraph=True)
        for _ in range(2):
            again, found = gradient(subject, compiled_one)
            assert torch.allclose(loss, again)
            assert torch.allclose(found, truth, rtol=1e-4, atol=1e-6)
        losses.append(float(loss))
    assert losses[0] == losses[1] != losses[2]
    assert len(graphs) == 1
    assert sum(node.target is torch._C._nn.linear for node in graphs[0].graph.nodes) == 2


def test_a_graph_does_not_run_on_another_subspace(space):
    node = space._nodes[0]
    z, state = torch.zeros(60), space.get_extra_state()
    assert len(traced.weights(z, state, node.key, 0, 1)) == node.part.operator.D
    with pytest.raises(SubcompressError, match=r"^this graph belongs to a Subspace of another process"):
        traced.weights(z, state, node.key ^ 1, 0, 1)


def test_gradients_of_negated_views(space):
    """A gradient may be a view that is negated only when it is read."""
    g = torch.complex(torch.zeros(5_000), torch.randn(5_000)).conj().imag
    assert g.is_neg()
    op = HadamardBlocks.sized(5_000, 90, 1)
    assert torch.allclose(op.adjoint([(0, g, 1.0)]), op.rmatvec(g.resolve_neg().double()).float(), atol=1e-3)


def test_the_default_device_plays_no_part(space, small_file):
    weights, truth = space.weights(), gradient(space, space)[1]
    with torch.device("meta"):
        assert all(torch.equal(w, weights[name]) for name, w in space.weights().items())
        assert subcompress.verify(small_file).ok
        state = expand(format.read(small_file)[0])
        operator = HadamardBlocks.sized(5_000, 90, 1)
    assert all(torch.equal(w, state[name]) for name, w in expand(format.read(small_file)[0]).items())
    g = torch.randn(5_000)
    with torch.device("meta"):
        found = operator.adjoint([(0, g, 1.0)])
    assert torch.equal(found, operator.adjoint([(0, g, 1.0)]))
    assert torch.equal(gradient(space, space)[1], truth)


def test_autocast_leaves_the_weights_alone(space):
    truth = space.weights()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(w, truth[name]) for name, w in space.weights().items())
        loss, found = gradient(space, space)
    assert found.dtype == torch.float32
    exact, wanted = gradient(space, space)
    assert torch.allclose(loss.float(), exact, rtol=0.05)
    assert torch.allclose(found, wanted, rtol=0.2, atol=0.05 * float(wanted.abs().max()))
