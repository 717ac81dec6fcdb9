"""How far tensors move is measured: what must move far gets a large scale, what nothing moves gets no coordinate."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

import subcompress
from subcompress import SubcompressError, Subspace, measure_moves
from subcompress.rebuild.expand import expand
from subcompress.subspace.moves import Moves
from subcompress.subspace.preparing import prepared
from subcompress.subspace.starts import recognize
from subcompress.training.loop import Listener
from subcompress.training.run import load


def cross_entropy(module, batch):
    return functional.cross_entropy(module(batch[0]), batch[1])


def batches(n=20, size=32, width=8):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n * size, width, generator=g)
    y = x[:, :3].argmax(1)
    return list(zip(x.split(size), y.split(size), strict=True))


def splits(width=8):
    x, y = (torch.cat(part) for part in zip(*batches(12, width=width), strict=True))
    return tuple(TensorDataset(x[i], y[i]) for i in (slice(0, 256), slice(256, 320), slice(320, None)))


class Scaled(nn.Module):
    """A residual branch times a scale that starts at 1e-6."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.gamma = nn.Parameter(1e-6 * torch.ones(16))

    def forward(self, x):
        return self.b(self.gamma * self.a(x))


def test_scales_follow_the_moves_and_not_the_starts():
    moves = measure_moves(Scaled, batches(), cross_entropy, steps=60)
    starts = prepared(Scaled).starts
    scales = moves.scales(starts, 20)
    assert scales["gamma"][0] > 0.2 * scales["a.weight"][0]
    guessed = Subspace.of(Scaled, 20).plan.parts[0]
    measured = Subspace.of(Scaled, 20, moves=moves).plan.parts[0]
    at = [s.name for s in measured.specs].index("gamma")
    assert measured.scales[at] > 1e3 * guessed.scales[at]
    # A file says each as the largest one halved.
    assert all(max(measured.scales) / s in {2.0**k for k in range(16)} for s in measured.scales)
    more = [moves.scales(starts, d)["gamma"][0] for d in (1, 256)]
    assert more[0] == pytest.approx(2 * more[1])


def test_scales_of_coordinates_that_stay_floats_grow_up_to_what_was_measured(monkeypatch):
    """A network of many weights per coordinate takes no step that makes it diverge."""
    moves, starts = Moves({"weight": (0.5,)}, smoothness=1.0), recognize(nn.Linear(40, 50, bias=False))
    monkeypatch.setattr("subcompress.subspace.moves.MOST_FLOAT", 500.0)
    scale = {d: moves.scales(starts, d, rounded=False)["weight"][0] for d in (1, 2, 4, 16)}
    assert scale[1] == scale[2] == scale[4] > scale[16]
    assert scale[16] == pytest.approx(0.5 * (2000 / 16 / 30) ** 0.5)


def test_moves_are_the_same_again_and_leave_generators_alone():
    def net():
        return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))

    loader = torch.utils.data.DataLoader(splits()[0], 32, shuffle=True)
    before = torch.get_rng_state()
    first = measure_moves(net, loader, cross_entropy, steps=20)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    assert measure_moves(net, loader, cross_entropy, steps=20).sizes == first.sizes
    held = Moves.from_json(json.loads(json.dumps(first.to_json())))
    assert held.sizes == first.sizes
    assert held.rate == first.rate


def test_moves_of_another_network_are_refused():
    moves = measure_moves(Scaled, batches(), cross_entropy, steps=3)
    with pytest.raises(SubcompressError, match="on another network"):
        Subspace.of(Padded(), 5, moves=moves)


class Padded(nn.Module):
    """Sums of embeddings; row 0 is the padding and stays zero."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8, padding_idx=0), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.table(x).sum(1))


def test_a_padding_row_stays_zero_to_the_file(tmp_path):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (384, 5), generator=g)
    y = x.sum(1) % 3
    data = tuple(TensorDataset(x[i], y[i]) for i in (slice(0, 256), slice(256, 320), slice(320, None)))
    found = subcompress.fit(Padded, data, tmp_path / "run", d=60, epochs=6, batch_size=32, threads=1)
    assert found.D == 30 * 8 - 8 + 24 + 3
    subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors")
    net = subcompress.load(tmp_path / "net.safetensors", Padded())
    assert not net.table.weight[0].any()
    assert net.table.weight[1].any()
    longer = functional.pad(x, (0, 4))
    assert torch.allclose(net(x), net(longer), atol=1e-5)


def test_a_unit_that_is_dead_at_the_start_is_not_left_out():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 64), nn.Linear(64, 3)
            nn.init.zeros_(self.a.bias)

        def forward(self, x):
            return self.b((self.a(x) - 2).relu())  # half of the units are dead on most of the few examples

    moves = measure_moves(Dead, batches(4, 8), cross_entropy, steps=20)
    assert not moves.still


def test_masked_weights_of_a_fixed_pattern_are_left_out():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.zeros(16, 8)), nn.Linear(16, 3)
            self.register_buffer("mask", (torch.arange(8) < 4).float().expand(16, 8).clone())

        def forward(self, x):
            return self.head((x @ (self.weight * self.mask).T).tanh())

    moves = measure_moves(Masked, batches(), cross_entropy, steps=20)
    assert moves.still["weight"].reshape(16, 8)[:, 4:].all()
    assert not moves.still["weight"].reshape(16, 8)[:, :4].any()


class Experts(nn.Module):
    """One expert is read by one of many examples, one by none."""

    def __init__(self):
        super().__init__()
        self.all, self.rare, self.never = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        y = self.all(x)
        return y + self.rare(x) if (x[:, 0] > 50).any() else y


def test_what_is_read_once_is_trained_and_what_is_never_read_is_named(tmp_path):
    rows = splits()
    rows[0].tensors[0][200, 0] = 60.0
    notes = []

    class Heard(Listener):
        def note(self, text):
            notes.append(text)

    found = subcompress.fit(Experts, rows, tmp_path / "run", d=20, epochs=4, batch_size=32, threads=1, listener=Heard())
    assert found.D == 2 * 27
    (warning,) = found.warnings
    assert "never.weight, never.bias: 27 weights are left out of D" in warning
    assert f"warning: {warning}" in notes
    assert found.to_json()["warnings"] == (warning,)
    subcompress.report(tmp_path / "run")
    assert "never.weight, never.bias" in (tmp_path / "run" / "report.html").read_text()
    again = expand(load(tmp_path / "run"))
    assert again["never.weight"].std() > 0.05  # at its start
    whole = subcompress.fit(Experts, rows, tmp_path / "all", d=81, epochs=2, batch_size=32, threads=1)
    assert whole.d == 54
    assert any("lowered to D" in w for w in whole.warnings)


def test_a_larger_step_is_tried_where_the_loss_hardly_falls():
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.bias.expand(len(x))

    def mse(module, batch):
        return (module(batch) - 10).square().mean()

    moves = measure_moves(Offset, [torch.zeros(4)], mse, steps=20)
    assert moves.rate > 3e-3
    assert moves.sizes["bias"][0] > 0.5


def test_no_rate_lowers_a_loss_of_noise_and_the_fit_says_so(tmp_path):
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(16))

        def forward(self, x):
            return (self.w.sum() * 1e4).sin() * torch.rand(len(x), 3) + x[:, :3] * 0

    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(384, 8, generator=g), torch.randint(0, 3, (384,), generator=g)
    data = tuple(TensorDataset(x[i], y[i]) for i in (slice(0, 256), slice(256, 320), slice(320, None)))
    try:
        found = subcompress.fit(Noise, data, tmp_path / "run", d=4, epochs=2, batch_size=32, threads=1)
    except SubcompressError as e:
        assert "died" in str(e)
    else:
        assert found.warnings


def test_a_result_that_is_no_better_than_a_constant_says_so(tmp_path):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(384, 8, generator=g), (torch.rand(384, generator=g) < 0.1).long()
    data = tuple(TensorDataset(x[i], y[i]) for i in (slice(0, 256), slice(256, 320), slice(320, None)))
    found = subcompress.fit(lambda: nn.Linear(8, 2), data, tmp_path / "run", d=3, epochs=2, batch_size=32, threads=1)
    assert any("no better than that of a constant answer" in w for w in found.warnings)
    summary = json.loads((tmp_path / "run" / "run.json").read_text())
    assert tuple(summary["fit"]["warnings"]) == found.warnings


class Ema(nn.Module):
    """An average of the weights that forward keeps in a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.online = nn.Linear(8, 3)
        self.target = nn.Linear(8, 3).requires_grad_(False)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.target.weight.mul_(0.9).add_(0.1 * self.online.weight)
        return self.online(x) + 0.1 * self.target(x)


@pytest.mark.parametrize("drop", [(), ("target.*",)])
def test_an_average_of_weights_is_packed_or_dropped_and_resumes(tmp_path, drop):
    def options(folder):
        return {"data": splits(), "run_folder": folder, "d": 10, "epochs": 6, "batch_size": 32, "drop": drop}

    class Stops(Listener):
        def epoch(self, progress):
            if progress.epoch == 3 and "interrupted" in str(tmp_path):
                raise KeyboardInterrupt

    found = subcompress.fit(Ema, threads=1, **options(tmp_path / "run"))
    state = expand(load(tmp_path / "run"))
    assert bool(state["target.weight"].any()) != bool(drop)
    if drop:
        assert any("--drop" in w or "packed weights" in w for w in found.warnings) or found.bytes < 300


def test_checkpointed_networks_and_sparse_gradients_train(tmp_path):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.b(checkpoint(lambda t: self.a(t).tanh(), x, use_reentrant=False))

    assert (
        subcompress.fit(Checkpointed, splits(), tmp_path / "a", d=60, epochs=8, batch_size=32, threads=1).validation
        > 0.6
    )

    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(20, 8, sparse=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.table(x).sum(1))

    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 20, (384, 3), generator=g)
    data = tuple(TensorDataset(x[i], x[i, 0] % 3) for i in (slice(0, 256), slice(256, 320), slice(320, None)))
    assert subcompress.fit(Sparse, data, tmp_path / "b", d=60, epochs=4, batch_size=32, threads=1).validation > 0.3


def test_another_chosen_value_is_another_run(tmp_path):
    def factory(value):
        class Physical(nn.Module):
            def __init__(self):
                super().__init__()
                self.g, self.head = nn.Parameter(torch.tensor([value, 0.1, 1.0])), nn.Linear(8, 3)

            def forward(self, x):
                return self.head(x) * self.g

        return Physical

    options = {"d": 5, "epochs": 1, "batch_size": 32, "threads": 1}
    subcompress.fit(factory(9.81), splits(), tmp_path / "run", **options)
    subcompress.fit(factory(1.62), splits(), tmp_path / "run", **options)
    assert float(expand(load(tmp_path / "run"))["g"][0]) < 3
