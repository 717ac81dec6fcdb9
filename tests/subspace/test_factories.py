"""Networks that an instance or a factory gives: what counts as chosen, and factories that are no good."""

from __future__ import annotations

import time

import pytest
import torch
from networks import Transformer, Vae, batch_norm
from starting import _sinusoids, instance, observed, start_of
from torch import nn

from subcompress import SubcompressError, Subspace
from subcompress.operators.forms import Seeded, Table
from subcompress.subspace.plan import make_plan
from subcompress.subspace.starts import MAX_STORED, buffer_note, frozen_note, recognize


def test_orthogonal_starts_become_seeded_ones_unless_asked_for():
    def make():
        return nn.init.orthogonal_(torch.empty(20, 20))

    starts = observed(make)
    (piece,) = starts.of()["p"].pieces
    assert piece.reach == pytest.approx(20**-0.5, rel=0.05)
    assert any("p: random orthogonal or sparse values" in note for note in starts.notes)
    kept = start_of(make, structured="store")
    assert isinstance(kept.pieces[0].form, Table)
    torch.manual_seed(0)
    assert isinstance(instance(make()).pieces[0].form, Seeded)
    assert isinstance(instance(make(), structured="store").pieces[0].form, Table)
    with pytest.raises(SubcompressError, match="random, store, guess"):
        instance(make(), structured="both")


def test_what_is_not_clearly_random_in_an_instance_counts_as_chosen():
    for tensor in (
        torch.tensor([9.81, 0.1, 1.0]),
        torch.tensor([-2.0, -2.5, -3.0, -2.2]),
        torch.randn(7),
        torch.linspace(-1, 1, 12),
        torch.eye(12),
        _sinusoids(50, 32),
        torch.log(torch.arange(1.0, 17.0)),
    ):
        found = instance(tensor)
        assert not any(isinstance(p.form, Seeded) for p in found.pieces), tensor
    torch.manual_seed(0)
    net = nn.Linear(30, 10)
    starts = recognize(net).of()
    assert isinstance(starts["weight"].pieces[0].form, Seeded)
    assert isinstance(starts["bias"].pieces[0].form, Seeded)


def test_ties_frozen_weights_buffers_and_what_is_dropped():
    net = Transformer()
    net.encoder.layers[0].linear1.weight.requires_grad_(False)
    starts = recognize(net).of()
    names = list(net.state_dict())
    assert starts["decoder.weight"].kind == "tied"
    assert names[starts["decoder.weight"].index] == "embed.weight"
    assert starts["table"].kind == "buffer"
    assert starts["encoder.layers.0.linear1.weight"].kind == "stored"
    note = frozen_note(net, starts)
    assert "1 frozen tensors" in note
    assert "encoder.layers.0.linear1.weight" in note
    assert frozen_note(Vae(), recognize(Vae()).of()) is None
    dropped = recognize(net, drop=("table", "encoder.layers.0.linear1.weight")).of()
    assert {n for n, s in dropped.items() if s.kind == "dropped"} == {"table", "encoder.layers.0.linear1.weight"}
    for pattern, words in (("norm.weight", "norm.weight, which is trained"), ("nothing*", "matches none")):
        with pytest.raises(SubcompressError, match=words):
            recognize(net, drop=(pattern,))


def test_large_buffers_are_named_with_their_cost():
    net = nn.Linear(3, 3)
    net.register_buffer("small", torch.randn(10))
    assert buffer_note(net.state_dict(), recognize(net).of()) is None
    net.register_buffer("target", torch.randn(1000))
    assert "target (3" in buffer_note(net.state_dict(), recognize(net).of())
    assert "--drop PATTERN" in buffer_note(net.state_dict(), recognize(net).of())
    assert buffer_note(net.state_dict(), recognize(net, drop=("target",)).of()) is None


def test_all_pieces_share_all_coordinates():
    plan = make_plan(batch_norm(), 80)
    (part,) = plan.parts
    assert {"1.weight", "1.bias", "5.weight", "5.bias"} < {s.name for s in part.specs}
    assert part.operator.d == 80
    assert part.operator.K == 0
    starts = dict(zip((s.name for s in part.specs), part.starts, strict=True))
    assert (starts["1.weight"], starts["1.bias"]) == (1.0, 0.0)


def test_every_d_has_a_plan():
    net = batch_norm()
    D = make_plan(net, 1).D
    for d in [1, 2, 3, 9, 50, 300, D - 40, D - 1, D]:
        assert make_plan(net, d).d == d
    for d in (0, -1, D + 1):
        with pytest.raises(SubcompressError, match=f"between 1 and the model's D = {D} weights; got {d}"):
            make_plan(net, d)


def test_odd_state_is_refused_in_one_line():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"x": 1}

    for module, words in [
        (Extra(2, 2), "_extra_state in the state dict is not a tensor"),
        (nn.LazyLinear(3), "run the model once first"),
    ]:
        with pytest.raises(SubcompressError, match=words):
            recognize(module)


# Factories that are no good


def test_a_factory_that_ignores_the_seed_says_what_that_costs():
    def make():
        torch.manual_seed(5)
        return torch.randn(20, 20)

    starts = observed(make)
    assert isinstance(starts.of()["p"].pieces[0].form, Table)
    assert any("the same weights under every seed" in n and "about 1" in n for n in starts.notes)
    assert any("--structured guess" in n for n in starts.notes)
    assert isinstance(start_of(make, structured="guess").pieces[0].form, Seeded)

    def large():
        torch.manual_seed(5)
        return torch.randn(200, 200)

    with pytest.raises(
        SubcompressError, match=f"may take at most {MAX_STORED} bytes; those .* take .* most of them for p"
    ):
        observed(large)


def test_a_factory_that_reads_the_clock_is_told():
    starts = observed(lambda: torch.full((30,), float(time.perf_counter_ns() % 1_000_003)))
    assert any("different weights under the same seed" in n for n in starts.notes)


def test_a_factory_that_gives_the_same_network_again_is_refused():
    net = nn.Linear(3, 3)

    def again():
        net.reset_parameters()
        return net

    for factory, words in (
        (again, "the same object again"),
        (lambda: nn.Sequential(again()), "0.weight of the previous network"),
    ):
        with pytest.raises(SubcompressError, match=f"must build a new network each time it is called; .* {words}"):
            Subspace.of(factory, 3)


def test_another_build_that_is_not_finite_is_refused():
    count = iter(range(9))
    with pytest.raises(SubcompressError, match="p holds nan or inf in another build"):
        observed(lambda: torch.randn(5) / (0 if next(count) > 1 else 1))


def test_a_factory_whose_shapes_differ_is_refused():
    with pytest.raises(SubcompressError, match=r"p is \[\d+\] in one build and \[\d+\] in another"):
        observed(lambda: torch.zeros(int(torch.randint(1, 1000, ()))))


def test_factories_are_taken_where_modules_are_and_their_mistakes_told():
    def broken():
        raise RuntimeError("no such file")

    with pytest.raises(SubcompressError, match="factory raises RuntimeError: no such file"):
        Subspace.of(broken, 3)
    with pytest.raises(SubcompressError, match="returned int"):
        Subspace.of(lambda: 3, 3)
    with pytest.raises(SubcompressError, match="or a factory of one; got int"):
        Subspace.of(3, 3)
    before = torch.get_rng_state()
    Subspace.of(lambda: nn.Linear(3, 3), 3)
    assert torch.equal(before, torch.get_rng_state())
