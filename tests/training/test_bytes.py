"""What makes files shorter: the price of a bit, coordinates that become zero, a coordinate a weight, augmentation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import subcompress
from subcompress import SubcompressError, Subspace
from subcompress.data import AUGMENTS, augment_of
from subcompress.data.augment import flip_shift, shift
from subcompress.format import codec
from subcompress.operators import HadamardBlocks
from subcompress.training.cutting import cut
from subcompress.training.optimizers import OPTIMIZERS
from subcompress.training.pressure import Pressure

OPTIONS = {"epochs": 6, "batch_size": 32, "threads": 1}


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def spaced(d: int, bits: int, seed: int) -> Subspace:
    """A rounded subspace with normal coordinates."""
    space = Subspace.of(nn.Linear(100, 50), d)
    with torch.no_grad():
        space.z.copy_(torch.randn(d, generator=torch.Generator().manual_seed(seed)))
    space.round(bits)
    return space


def coded(space: Subspace) -> int:
    return len(codec.encode((c.numpy().astype(np.int32), space.bits) for c in space.coordinates()))


@given(st.integers(50, 2000), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_price_is_what_the_coder_writes(d, bits, seed):
    space = spaced(d, bits, seed)
    with torch.no_grad():
        space.z.copy_(torch.cat([c * s for c, s in zip(space.coordinates(), space.rounding.steps, strict=True)]))
    assert space.coded_bits().item() / 8 == pytest.approx(coded(space), rel=0.05, abs=4 << bits - 2)


def test_the_price_falls_towards_zero():
    space = spaced(4000, 4, 0)
    (gradient,) = torch.autograd.grad(space.coded_bits(), space.z)
    outer = space.z.detach().abs() > 1.5 * space.rounding.steps[0]
    assert ((gradient * space.z.detach())[outer] > 0).float().mean() > 0.9
    assert Subspace.of(nn.Linear(9, 9), 5).coded_bits() is None


@given(st.integers(2, 6), st.integers(0, 99), st.floats(0.1, 1.5))
@settings(max_examples=8, deadline=None)
def test_steps_are_longer_where_the_coordinates_have_little_room(bits, seed, share):
    space = spaced(200, bits, seed)
    usual, whole = space.rounding.steps[0], coded(space)
    room = int(share * whole)
    space.round(bits, room)
    if room >= whole:
        assert space.rounding.steps[0] == usual
    else:
        assert coded(space) <= room or space.rounding.steps[0] == pytest.approx(8 * usual)
        assert coded(space) >= 0.9 * room - 4  # and no longer than they must be


@pytest.mark.slow
def test_so_many_coordinates_within_so_many_bytes(few_digits, tmp_path):
    options = OPTIONS | {"d": 1554, "bits": 2, "bytes": 400, "seeds": 2, "epochs": 2}
    found = subcompress.fit(small, few_digits, tmp_path / "run", **options)
    assert {p.d for p in found.probes} == {1554}
    assert [p.seed for p in found.probes] == [0, 1]
    assert 300 <= subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors") <= 400


def test_other_goals_do_not_go_together(few_digits, tmp_path):
    with pytest.raises(SubcompressError, match=r"fit takes one of --d, .* or --d with --bytes; got --d and --target"):
        subcompress.fit(small, few_digits, tmp_path / "run", d=9, target=0.5)


@given(st.integers(20, 400), st.integers(2, 6), st.integers(0, 99), st.floats(0.0, 1.0))
@settings(max_examples=25, deadline=None)
def test_shortened_coordinates_fit_and_no_more_become_zero_than_must(d, bits, seed, share):
    space = spaced(d, bits, seed)
    before, whole = torch.cat(space.coordinates()), coded(space)
    limit = int(share * whole)
    space.shorten(limit)
    after = torch.cat(space.coordinates())
    assert coded(space) <= limit or not after.any()
    kept = after != 0
    assert torch.equal(after[kept], before[kept])
    if limit >= whole:
        assert torch.equal(after, before)
    elif coded(space) < 0.9 * limit - 4:  # equal sizes go together; these are all different
        pytest.fail(f"{coded(space)} bytes of {limit}")
    x, dropped = space.z.detach().abs(), ~kept & (before != 0)
    if kept.any() and dropped.any():
        assert x[kept].min() >= x[dropped].max()


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("bytes_too_many", [0, 1, 4, 60])
def test_the_last_bytes_are_cut_with_less_change_than_zeros_make(bits, bytes_too_many):
    changes = {}
    for how in (cut, lambda space, limit: space.shorten(limit)):
        space = spaced(300, bits, 0)
        exact, whole = space.z.detach() / space.rounding.steps[0], coded(space)
        before = torch.cat(space.coordinates())
        told = how(space, whole - bytes_too_many)
        after = torch.cat(space.coordinates())
        assert coded(space) <= whole - bytes_too_many
        assert told in (None, int((before != after).sum()))
        assert (after.abs() <= before.abs()).all()
        changes[how] = float((exact - after).square().sum() - (exact - before).square().sum())
    ours, zeros = changes.values()
    assert ours == zeros == 0 if bytes_too_many == 0 else ours <= zeros


def test_what_a_file_has_no_room_for_is_priced():
    space = spaced(300, 4, 0)
    loss, whole = torch.tensor(2.0), coded(space)
    for room, priced in ((whole + 20, False), (whole - 20, True)):
        pressure = Pressure(space, room)
        pressure.look()
        (gradient,) = torch.autograd.grad(pressure.of(loss), space.z)
        assert bool(gradient.any()) == priced
    assert Pressure(Subspace.of(nn.Linear(9, 9), 5), 10).of(loss) is None


def test_a_price_makes_files_smaller(few_digits, tmp_path):
    sizes = []
    for rate in (0.0, 1e-3):
        found = subcompress.fit(small(), few_digits, tmp_path / f"{rate}", d=800, rate=rate, **OPTIONS)
        sizes.append(found.bytes)
        assert found.bytes == subcompress.pack(tmp_path / f"{rate}", tmp_path / "net.safetensors")
        assert subcompress.verify(tmp_path / "net.safetensors").ok
    assert sizes[0] > sizes[1]
    with pytest.raises(SubcompressError, match="--rate must be at least 0; got -1"):
        subcompress.fit(small(), few_digits, tmp_path / "bad", d=800, rate=-1.0, **OPTIONS)


def test_a_coordinate_a_weight(digits, tmp_path):
    """With d = D nothing is shared: blocks of one row, which start at random and learn."""
    net = small()
    D = sum(p.numel() for p in net.parameters())
    found = subcompress.fit(small, digits, tmp_path / "run", d=D, bits=3, **OPTIONS)
    assert found.validation > 0.6
    (group,) = subcompress.training.run.load(tmp_path / "run").groups
    operator = group.operator
    assert isinstance(operator, HadamardBlocks)
    assert (operator.m, operator.K, operator.d) == (1, 0, D)
    subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors")
    assert subcompress.verify(tmp_path / "net.safetensors").ok
    begun = Subspace.of(small, D).weights()
    for name, w in net.state_dict().items():
        assert begun[name].std().item() == pytest.approx(1 / np.sqrt(3 * w[0].numel()), rel=0.5) or w.ndim == 1
    other = Subspace.of(small, D, seed=1).weights()
    assert not torch.equal(other["0.weight"], begun["0.weight"])


def test_a_price_and_a_limit_hold_together(few_digits, tmp_path):
    """Rounding with a price of a bit ends within the bytes too, so that nothing is left to cut."""
    D = sum(p.numel() for p in small().parameters())
    given = {"d": D, "bits": 3, "rate": 1e-6, "bytes": 300, "seeds": 1}
    found = subcompress.fit(small, few_digits, tmp_path / "run", **given, **OPTIONS | {"epochs": 10})
    assert found.bytes <= 300
    assert [training["cut"] for training in found.to_json()["trainings"]] == [0]


@pytest.mark.parametrize("d", [pytest.param(100, marks=pytest.mark.slow), None])
def test_scattered_columns_train_and_pack(few_digits, tmp_path, d):
    """From the fit to the file; with a coordinate a weight (None) too, where blocks are of one row."""
    D = sum(p.numel() for p in small().parameters())
    found = subcompress.fit(small, few_digits, tmp_path / "run", d=d or D, operator="scattered", **OPTIONS)
    assert found.validation > 0.4
    assert found.bytes == subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors")
    assert {g.operator.name for g in subcompress.training.run.load(tmp_path / "run").groups} == {"scattered"}
    assert subcompress.info(tmp_path / "net.safetensors")["operator"] == "scattered"
    assert subcompress.verify(tmp_path / "net.safetensors").ok
    subcompress.unpack(tmp_path / "net.safetensors", tmp_path / "net.onnx", small(), self_unfolding=True)


def test_a_fine_tune_refuses_operators_that_do_not_pack(tmp_path):
    net = small()
    with pytest.raises(SubcompressError, match="must be one that can be packed, hadamard or scattered; got dense"):
        Subspace.of(net, 20, operator="dense", base=net.state_dict(), base_name="org/name")


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentations_move_what_is_there(name):
    x = torch.zeros(64, 3, 12, 12)
    x[:, 0, 5, 6], x[:, 1, 6, 5] = 1.0, 2.0
    f = AUGMENTS[name]
    a, b, c = (f(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == x.shape
    assert torch.equal(a.amax((2, 3)), x.amax((2, 3)))
    places = {tuple(place) for place in (a[:, 0] == 1).nonzero()[:, 1:].tolist()}
    assert len(places) > (1 if name == "flip" else 15)
    assert {(y, x) for y, x in places} <= {(y, x) for y in range(1, 10) for x in range(1, 11)}


@pytest.mark.slow
def test_augmentation_is_of_the_training_alone(few_digits, tmp_path):
    seen = []

    def mine(x, generator):
        seen.append(len(x))
        return shift(x, generator)

    data = replace(few_digits, augment=mine)
    found = subcompress.fit(small(), data, tmp_path / "run", d=100, epochs=2, batch_size=32, threads=1)
    assert seen == [32] * (2 * (len(few_digits.train) // 32))
    plain = subcompress.fit(small(), few_digits, tmp_path / "plain", d=100, epochs=2, batch_size=32, threads=1)
    assert found.bytes and plain.bytes
    records = [(tmp_path / name / "record.safetensors").read_bytes() for name in ("run", "plain")]
    assert records[0] != records[1]
    with pytest.raises(SubcompressError, match="--augment must be one of shift, flip, flip-shift"):
        augment_of("blur")

    def broken(x, generator):
        raise ValueError("no")

    with pytest.raises(SubcompressError, match=r"an augmentation must take a batch .* broken raises ValueError: no"):
        subcompress.fit(small(), replace(few_digits, augment=broken), tmp_path / "broken", d=100, **OPTIONS)


def test_mirrored_images():
    x = torch.arange(12.0).repeat(2000, 1, 12, 1)
    rising = (flip_shift(x, torch.Generator().manual_seed(0)).diff(dim=3).sum((1, 2, 3)) > 0).float().mean()
    assert 0.45 < rising < 0.55


@pytest.mark.parametrize("d", [40, pytest.param(1500, marks=pytest.mark.slow)])
def test_the_eigenbasis_descends_where_directions_differ(d):
    """A quadratic bowl, long in directions that are not the axes: the same steps lead further down. And in blocks."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
    bowl = basis @ torch.diag(torch.logspace(-4, 0, d)) @ basis.T
    begin, losses = torch.randn(d, generator=g), {}
    for name, make in OPTIMIZERS.items():
        z = nn.Parameter(begin.clone())
        optimiser = make([z], 0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 150)
        for _ in range(150):
            optimiser.zero_grad()
            (z @ bowl @ z / 2).backward()
            optimiser.step()
            schedule.step()
        losses[name] = float(z.detach() @ bowl @ z.detach() / 2)
    assert losses["eigen"] < (losses["adam"] if d == 40 else 0.5 * float(begin @ bowl @ begin / 2))


def test_the_eigenbasis_goes_on_as_it_would_have():
    """Its state written and read again in the middle, as a checkpoint does, to the last bit."""
    import safetensors.torch

    g = torch.Generator().manual_seed(0)
    gradients = torch.randn(120, 300, generator=g) * torch.logspace(-2, 0, 300)
    ends = []
    for stop in (None, 41, 90):
        z = nn.Parameter(torch.zeros(300))
        optimiser = OPTIMIZERS["eigen"]([z], 0.01)
        for i, gradient in enumerate(gradients):
            if i == stop:
                state = {k: v.clone().contiguous() for k, v in optimiser.state[z].items()}
                held = safetensors.torch.load(safetensors.torch.save(state))
                optimiser = OPTIMIZERS["eigen"]([z], 0.01)
                optimiser.state[z].update(held)
            z.grad = gradient.clone()
            optimiser.step()
        ends.append(z.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    "options",
    [
        {"optimiser": "eigen"},
        pytest.param({"rate": 1e-4}, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_diverges_is_tried_again_and_told(few_digits, tmp_path, options):
    with pytest.raises(SubcompressError, match="the training failed twice"):
        subcompress.fit(small(), few_digits, tmp_path / "run", d=200, lr=1e6, **OPTIONS, **options)


def test_a_refused_command_leaves_a_finished_run_alone(few_digits, tmp_path):
    net = small()
    found = subcompress.fit(net, few_digits, tmp_path / "run", d=50, **OPTIONS)
    for options in ({"within": 60}, {"min_accuracy": 0.5, "baseline": "nowhere.safetensors"}):
        with pytest.raises(SubcompressError):
            subcompress.fit(net, few_digits, tmp_path / "run", **OPTIONS, **options)
    assert subcompress.fit(net, few_digits, tmp_path / "run", d=50, **OPTIONS) == found


def test_time_that_is_up_before_anything_is_searched(digits, tmp_path):
    options = {"max_drop": 0.1, "max_minutes": 1e-6}
    with pytest.raises(SubcompressError, match="used up all of --max-fits or --max-minutes"):
        subcompress.fit(small(), digits, tmp_path / "run", **OPTIONS, **options)


def test_a_factorys_own_augmentation_is_kept(tmp_path):
    """The command line replaces it only where it is told to."""
    from subcompress_cli.networks import data_with

    file = tmp_path / "mine.py"
    file.write_text(
        "import subcompress\nfrom dataclasses import replace\nfrom subcompress.data import augment_of\n"
        "def load():\n    return replace(subcompress.load_data('digits'), augment=augment_of('shift'))\n"
    )
    assert data_with(f"{file}:load", None, None, "lenet").augment is shift
    assert data_with(f"{file}:load", None, "flip-shift", "lenet").augment is flip_shift


def test_an_unknown_optimiser(digits, tmp_path):
    with pytest.raises(SubcompressError, match="--optimizer must be one of adam, eigen; got 'sgd'"):
        subcompress.fit(small(), digits, tmp_path / "run", d=50, optimiser="sgd")
