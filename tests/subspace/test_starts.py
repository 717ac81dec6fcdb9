"""What a network starts from is observed: chosen values start exactly there, random ones from the seed, alike."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from starting import _sinusoids, holding, instance, observed, start_of
from torch import nn

from subcompress import Subspace, format
from subcompress.format.describing import describe
from subcompress.operators.forms import Pattern, Ramp, Seeded, Table, chosen_values
from subcompress.rebuild.expand import expand
from subcompress.subspace.observing import CENTER_BUILDS, built
from subcompress.subspace.plan import make_plan
from subcompress.subspace.spread import Moments, grouped, one_group
from subcompress.subspace.starts import MAX_STORED, buffer_note, frozen_note, recognize

INITIALIZERS = [
    (lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), 1 / math.sqrt(3 * 300)),
    (nn.init.kaiming_normal_, math.sqrt(2 / 300)),
    (nn.init.xavier_uniform_, math.sqrt(2 / 500)),
    (nn.init.normal_, 1.0),
    (lambda w: nn.init.normal_(w, std=0.02), 0.02),
    (lambda w: nn.init.normal_(w, std=0.0377), 0.0377),
]


@pytest.mark.parametrize(("init", "std"), INITIALIZERS)
@pytest.mark.parametrize("factory", [True, False])
def test_random_starts_keep_their_deviation(init, std, factory):
    torch.manual_seed(0)
    found = start_of(lambda: init(torch.empty(200, 300))) if factory else instance(init(torch.empty(200, 300)))
    (piece,) = found.pieces
    assert isinstance(piece.form, Seeded)
    assert piece.form.center == 0
    assert piece.form.scale * math.sqrt(63) == pytest.approx(std, rel=0.02)
    assert piece.reach == pytest.approx(std, rel=1e-9 if std != 0.0377 else 0.01)


def test_a_random_start_may_have_a_mean():
    (piece,) = start_of(lambda: torch.rand(50, 40)).pieces
    assert piece.form.center == pytest.approx(0.5, abs=0.02)
    assert piece.reach == pytest.approx(12**-0.5, rel=0.05)


CHOSEN = {
    "constant": torch.full((7,), -0.25),
    "one value": torch.tensor([2.5]),
    "scalar": torch.tensor(9.81),
    "three constants": torch.tensor([9.81, 0.1, 1.0]),
    "slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625]).view(4, 1, 1),
    "quaternion": torch.tensor([1.0, 0.0, 0.0, 0.0]),
    "linspace": torch.linspace(-1, 1, 12),
    "long linspace": torch.linspace(-3, 7, 1000),
    "arange": torch.arange(100.0),
    "identity": torch.eye(30),
    "rectangular identity": torch.eye(20, 33),
    "diagonal": torch.diag(torch.linspace(0.5, 1, 20)),
    "table": _sinusoids(50, 32),
    "repeated rows": torch.arange(8.0).mul(math.pi).repeat(16, 1),
    "zero block": torch.cat([torch.zeros(8, 8), torch.ones(8, 8)]),
    "complex": torch.complex(torch.full((16, 8), -0.5), math.pi * torch.arange(8.0).repeat(16, 1)),
    "complex table": torch.polar(torch.ones(24), torch.arange(24.0)),
    "float64": torch.linspace(0, 1, 9, dtype=torch.float64) / 3,
    "half": torch.linspace(-1, 1, 33).half(),
    "bfloat16": torch.eye(5).bfloat16(),
    "negative zero": torch.tensor([-0.0, 0.0, -0.0, 1.0]),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_chosen_values_start_exactly_there_in_training_and_in_the_file(name):
    chosen = CHOSEN[name]

    def build():
        module = nn.Module()
        module.p = nn.Parameter(chosen.clone())
        module.head = nn.Linear(4, 3)
        return module

    subspace = Subspace.of(build, 5)
    assert torch.equal(subspace.weights()["p"].detach(), chosen)
    subspace.round(4)  # z is zero
    rebuilt = expand(subspace.record())
    assert torch.equal(rebuilt["p"], chosen)
    with torch.no_grad():
        subspace.z[:] = torch.randn(5, generator=torch.Generator().manual_seed(1))
    subspace.round(4)
    moved = expand(subspace.record())["p"]
    assert torch.equal(moved, subspace.weights()["p"].detach())
    assert not torch.equal(moved, chosen)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("identity", 40),
        ("repeated rows", 40),
        ("zero block", 40),
        ("long linspace", 90),
        ("arange", 40),
        ("complex", 50),
    ],
)
def test_chosen_values_are_said_in_few_bytes(name, most):
    values = CHOSEN[name]
    module, build = built(holding(lambda: values.clone()), 0)
    starts = recognize(module, build=build)
    subspace = Subspace(module, make_plan(starts, 1))
    subspace.round(4)

    ledger = format.parse(format.to_bytes(subspace.record())).ledger
    assert ledger["tensors"] + ledger.get("stored", 0) <= most


def test_equal_tables_and_buffers_are_stored_once():
    table = torch.randn(64, generator=torch.Generator().manual_seed(0))

    def build(copies):
        module = nn.Module()
        for i in range(copies):
            setattr(module, f"p{i}", nn.Parameter(table.clone()))
            module.register_buffer(f"b{i}", table.flip(0).clone())
        return module

    sizes = []
    for copies in (1, 4):
        subspace = Subspace.of(lambda copies=copies: build(copies), 3)
        subspace.round(4)
        record = subspace.record()
        data = format.to_bytes(record)
        sizes.append(format.parse(data).ledger["stored"])
        again = expand(format.from_bytes(data)[0])
        for i in range(copies):
            assert torch.equal(again[f"p{i}"], table)
            assert torch.equal(again[f"b{i}"], table.flip(0))
    assert sizes[0] == sizes[1]


def test_chosen_and_random_values_of_one_tensor_are_told_apart():
    def bias():  # a forget gate
        b = torch.rand(40) - 0.5
        b[10:20] = 1.0
        return b

    found = start_of(bias)
    assert found.runs == ((0, 10), (1, 10), (0, 20))
    assert [type(p.form) for p in found.pieces] == [Seeded, float]
    assert found.pieces[1].form == 1.0
    subspace = Subspace.of(holding(bias), 3)
    start = subspace.weights()["p"].detach()
    assert (start[10:20] == 1).all()
    assert len(start.unique()) > 5


def test_real_and_imaginary_parts_start_apart():
    found = start_of(lambda: torch.complex(torch.randn(40, 30), 0.1 * torch.randn(40, 30) + 2))
    real, imaginary = found.pieces
    assert found.runs == ((0, 1), (1, 1))
    assert real.reach == pytest.approx(1, rel=0.05)
    assert imaginary.reach == pytest.approx(0.1, rel=0.05)
    assert imaginary.form.center == pytest.approx(2, abs=0.01)
    one = start_of(lambda: 0.01 * torch.rand(12, 12, 9, dtype=torch.cfloat))
    assert len(one.pieces) == 1
    assert one.pieces[0].form.center == pytest.approx(0.005, rel=0.05)


def test_random_values_around_centers_of_their_own():
    found = start_of(lambda: torch.eye(24) + 0.01 * torch.randn(24, 24))
    assert all(isinstance(p.form, Seeded) for p in found.pieces)
    start = Subspace.of(holding(lambda: torch.eye(24) + 0.01 * torch.randn(24, 24)), 5).weights()["p"].detach()
    assert (start - torch.eye(24)).abs().max() < 0.06
    assert (start - torch.eye(24)).std() == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize("shape", [(6, 1, 5, 5), (10,), (64,), (16, 16), (200, 3), (1,), (2, 2), (3000, 100)])
def test_random_tensors_are_random_and_have_no_centers(shape):
    for draw in (torch.randn, torch.rand, lambda s: torch.empty(s).exponential_(), lambda s: torch.randn(s) ** 3):
        found = start_of(lambda draw=draw: draw(shape))
        assert [type(p.form) for p in found.pieces] == [Seeded]
        assert isinstance(found.pieces[0].form.center, float)


def parts(n, width):
    """A draw of a tensor of two deviations, 1e-3 in the first n rows."""
    return torch.cat([1e-3 * torch.randn(n, width), torch.randn(20, width)])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("factory", [False, True])
def test_slices_of_other_deviations_are_pieces(turned, factory):
    torch.manual_seed(0)

    def make():
        return parts(100, 50).T.contiguous() if turned else parts(100, 50)

    found = start_of(make) if factory else instance(make())
    assert [p.reach for p in found.pieces] == pytest.approx([1e-3, 1.0], rel=0.03)
    assert [p.reals for p in found.pieces] == [5000, 1000]
    assert found.runs == (((0, 100), (1, 20)) if turned else ((0, 5000), (1, 1000)))


def test_many_deviations_make_a_handful_of_pieces():
    found = start_of(lambda: torch.randn(200, 50) * torch.logspace(-3, 0, 200)[:, None])
    assert 3 <= len(found.pieces) <= 6
    start = Subspace.of(holding(lambda: torch.randn(200, 50) * torch.logspace(-3, 0, 200)[:, None]), 3)
    rows = start.weights()["p"].detach().std(1) / torch.logspace(-3, 0, 200)
    assert rows.min() > 0.2
    assert rows.max() < 5


DISTRIBUTIONS = {
    "normal": torch.randn,
    "uniform": torch.rand,
    "exponential": lambda s: torch.empty(s).exponential_(),
    "cubes": lambda s: torch.randn(s) ** 3,
    "log-uniform": lambda s: torch.exp(7 * torch.rand(s) - 7),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_tensors_of_one_distribution_are_one_piece(name):
    draw = DISTRIBUTIONS[name]
    for seed in range(60):
        torch.manual_seed(seed)
        shape = [(64, 16), (9, 100), (4, 3, 3, 3)][seed % 3]
        tensors = [draw(shape).view(-1).numpy() for _ in range(CENTER_BUILDS)]
        mean, variance = np.mean(tensors, 0), np.var(tensors, 0, ddof=1)
        _, drawn = grouped(Moments(mean, variance, CENTER_BUILDS), np.ones(mean.shape, bool), shape)
        assert len(drawn) == 1
        assert isinstance(drawn[0].center, float)


def test_single_random_values_have_no_center_by_chance():
    for seed in range(400):
        torch.manual_seed(seed)
        values = torch.rand(3).numpy() - 0.5
        found = one_group(Moments(values.mean(keepdims=True), values.var(keepdims=True, ddof=1), 3))
        assert found.center == 0
    (piece,) = start_of(lambda: 2.65 + 1e-4 * torch.randn(1)).pieces
    assert piece.form.center == pytest.approx(2.65, abs=1e-3)


def test_chosen_values_of_an_instance_are_kept_between_random_ones():
    torch.manual_seed(0)
    bag = nn.Embedding(20, 16, padding_idx=0)
    start = Subspace.of(bag, 5).weights()["weight"].detach()
    assert not start[0].any()
    assert (start[1:] != 0).all()
    lstm = nn.LSTM(20, 20)
    with torch.no_grad():
        lstm.bias_ih_l0[20:40] = 1
    starts = recognize(lstm).of()
    assert starts["bias_ih_l0"].runs == ((0, 20), (1, 20), (0, 40))
    assert starts["bias_ih_l0"].pieces[1].form == 1.0
    gates = instance(torch.cat([torch.rand(60) - 0.5, torch.ones(4)]))
    assert [p.reals for p in gates.pieces] == [60, 4]


def test_an_instance_of_an_unusual_distribution_is_kept_where_it_is_small():
    torch.manual_seed(0)
    near = torch.eye(16) + 1e-3 * torch.randn(16, 16)
    assert isinstance(instance(near).pieces[0].form, Table)
    module = holding(lambda: torch.empty(100, 100).exponential_())()
    starts = recognize(module)
    assert isinstance(starts.of()["p"].pieces[0].form, Seeded)
    assert any("p: no usual initializer draws these values" in n and "give a factory" in n for n in starts.notes)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_instances_of_half_precision_are_random(dtype):
    torch.manual_seed(0)
    for x in (0.02 * torch.randn(100, 100), torch.rand(100, 100) - 0.5, torch.randn(16, 8)):
        assert [type(p.form) for p in instance(x.to(dtype)).pieces] == [Seeded]


def masked(rows, columns):
    mask = (torch.rand(rows, columns, generator=torch.Generator().manual_seed(77)) < 0.5).float()
    return lambda: nn.Linear(columns, rows).weight.detach() * mask


def test_a_fixed_sparse_pattern_is_kept_in_many_runs():
    make = masked(256, 600)
    subspace = Subspace.of(holding(make), 20)
    start = subspace.weights()["p"].detach()
    assert torch.equal(start == 0, make() == 0)
    subspace.round(4)
    data = format.to_bytes(subspace.record())
    assert len(data) < MAX_STORED
    assert torch.equal(expand(format.from_bytes(data)[0])["p"], start)


@pytest.mark.slow
def test_a_pattern_too_large_for_a_file_becomes_random_with_a_note():
    starts = observed(masked(1200, 600))
    (piece,) = starts.of()["p"].pieces
    assert piece.reach == pytest.approx((1 / 1800 / 2) ** 0.5, rel=0.01)
    assert any("p: fixed values lie between random ones" in note for note in starts.notes)


def test_padding_of_a_large_embedding_is_kept():
    found = start_of(lambda: nn.Embedding(30_000, 8, padding_idx=3).weight.detach())
    assert found.runs == ((0, 24), (1, 8), (0, 239_968))


def test_lines_name_four_tensors_at_most():
    net = nn.Linear(3, 3)
    for i in range(6):
        net.register_buffer(f"b{i}", torch.randn(1000))
    note = buffer_note(net.state_dict(), recognize(net).of())
    assert note.count(" bytes)") == 4
    assert "and 2 more" in note


def test_costs_of_large_frozen_weights_are_estimated():
    net = nn.Linear(1000, 1000)
    net.weight.requires_grad_(False)
    start = recognize(net).of()["weight"]
    assert start.cost == pytest.approx(len(zlib.compress(net.weight.detach().numpy().tobytes(), 1)), rel=0.02)
    assert f"about {start.cost} bytes" in start.why
    assert f"about {start.cost} bytes" in frozen_note(net, recognize(net).of())


def test_what_is_known_of_random_weights_takes_no_memory():
    values = observed(lambda: torch.randn(300, 200)).values["p"]
    assert not any(values.group.strides)
    assert len(values.first) == 0
    assert values.random.all()
    assert len(values.random) == 60_000


def test_discrete_random_values_are_not_taken_for_chosen_ones():
    found = start_of(lambda: torch.randint(0, 2, (500,)).float() * 2 - 1)
    assert [type(p.form) for p in found.pieces] == [Seeded]
    assert found.pieces[0].reach == pytest.approx(1, rel=0.1)


# Forms


@pytest.mark.parametrize("name", CHOSEN)
def test_descriptions_give_the_values_back(name):
    chosen = CHOSEN[name]
    reals = torch.view_as_real(chosen) if chosen.is_complex() else chosen
    if reals.dtype == torch.bfloat16:
        values, dtype = reals.view(torch.int16).numpy().view(np.uint16).reshape(-1), "BF16"
    else:
        values = reals.reshape(-1).numpy()
        dtype = {"float32": "F32", "float64": "F64", "float16": "F16"}[values.dtype.name]
    forms, runs = describe(values, tuple(reals.shape), dtype)
    pattern = Pattern(runs or ((0, len(values)),), len(values))
    out = np.empty_like(values)
    for item, first, places in pattern.places(0, len(values)):
        out[places] = chosen_values(forms[item], first, len(out[places]), dtype)
    assert (out == values).all()


def test_parts_of_a_ramp_are_those_of_the_whole():
    ramp = Ramp(-1.0, 0.1, 7)
    whole = ramp.values(0, 100)
    assert all((ramp.values(lo, n) == whole[lo : lo + n]).all() for lo, n in [(0, 3), (5, 20), (93, 7)])
