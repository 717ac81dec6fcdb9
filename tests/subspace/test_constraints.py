"""Modules that change their weights, compute them, or keep them elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from spaces import Stopped, X, checked, data, net, packed, spread
from torch import nn
from torch.nn.utils import parametrizations, prune

import subcompress
from subcompress import SubcompressError, Subspace
from subcompress.training.loop import TrainOptions, train
from subcompress.training.tasks import Task

# --- constraints in forward ---


class Constrained(nn.Module):
    """Does something to a weight before it reads it."""

    def __init__(self, how) -> None:
        super().__init__()
        self.how = how
        self.first, self.fc, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu()
        self.how(self, self.fc)
        return self.last(self.fc(x))


def clamp_data(_, fc):
    fc.weight.data.clamp_(0)


def clamp(_, fc):
    with torch.no_grad():
        fc.weight.clamp_(0, 1)


def renormalize(_, fc):
    with torch.no_grad():
        fc.weight.copy_(fc.weight / fc.weight.norm(dim=1, keepdim=True))


def assign_data(_, fc):
    fc.weight.data = fc.weight.data / fc.weight.data.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("how", [clamp_data, clamp, renormalize, assign_data])
def test_constraints_in_place_train_and_pack(how, tmp_path):
    torch.manual_seed(0)
    module = Constrained(how)
    checked(module)
    sub = Subspace.of(module, 30)
    outcome = train(
        sub, data(), Task.of(), TrainOptions(40, 0.05, 32), quantize=lambda seen: sub.round(6, curvature=seen)
    )
    assert outcome.curve[-1] > 0.5
    loaded = packed(sub.eval(), tmp_path, module).eval()
    with torch.no_grad():
        assert torch.equal(loaded(X), sub(X))


def test_a_limited_embedding_trains_and_packs(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(16, 8, max_norm=1.0), nn.Flatten(), nn.Linear(24, 3))
    sub, tokens = spread(module, bits=4), torch.randint(0, 16, (9, 3))
    sub(tokens).sum().backward()
    assert sub.z.grad.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(packed(sub, tmp_path, module)(tokens), sub(tokens))


def test_a_constraint_in_training_alone_is_named(tmp_path):
    def how(module, fc):
        if module.training:
            fc.weight.data.clamp_(0)

    with pytest.raises(SubcompressError, match=r"^the forward pass changes fc.weight in place"):
        subcompress.fit(Constrained(how), data(), tmp_path / "run", d=20, epochs=1, batch_size=32)
    assert not (tmp_path / "run").exists()


def test_a_parameter_that_is_replaced_in_forward_is_named():
    def how(_, fc):
        fc.weight = nn.Parameter(fc.weight.detach().clamp(0))

    sub = spread(Constrained(how))
    with pytest.raises(
        SubcompressError, match=r"replaces the parameter fc\.weight by another one, which would not train"
    ):
        sub(X)
    assert [name for name, _ in sub.named_parameters()] == ["z"]


# --- hooks and parametrizations ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda layer: torch.nn.utils.spectral_norm(layer), "use torch.nn.utils.parametrizations.spectral_norm"),
        (
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
            r"call torch.nn.utils.prune.remove\(module, name\)",
        ),
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_weights_that_hooks_compute_are_refused(make, words, used, tmp_path):
    module = net()
    make(module[2])
    if used:
        module(X)
    with pytest.raises(SubcompressError, match=f"the weight of 2 in a hook, but fit trains parameters: {words}"):
        Subspace.of(module, 20)
    with pytest.raises(SubcompressError, match=f"the weight of 2 in a hook, but fit trains parameters: {words}"):
        subcompress.fit(module, data(), tmp_path / "run", d=20, batch_size=32)


def test_the_old_weight_norm_is_refused():
    module = net()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(module[2])
    with pytest.raises(SubcompressError, match=r"use torch\.nn\.utils\.parametrizations\.weight_norm"):
        Subspace.of(module, 20)


def test_pruned_for_good_is_a_network_like_others():
    module = net()
    prune.l1_unstructured(module[2], "bias", 0.25)
    prune.remove(module[2], "bias")
    Subspace.of(module, 20)


@pytest.mark.parametrize(
    "norm", [pytest.param(parametrizations.weight_norm, marks=pytest.mark.slow), parametrizations.spectral_norm]
)
def test_parametrized_networks_fit_pack_and_load(norm, tmp_path):
    torch.manual_seed(0)
    module = net()
    norm(module[2])
    found = subcompress.fit(module, data(), tmp_path / "run", d=40, epochs=30, batch_size=16, bits=6, threads=1)
    assert found.test_accuracy > 0.5
    subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors")
    loaded = subcompress.load(tmp_path / "net.safetensors", copy.deepcopy(module)).eval()
    accuracy = (loaded(data().test.x).argmax(1) == data().test.y).float().mean()
    assert float(accuracy) == pytest.approx(found.test_accuracy)
    subcompress.unpack(tmp_path / "net.safetensors", tmp_path / "dense.safetensors")
    assert load_file(tmp_path / "dense.safetensors").keys() == module.state_dict().keys()


def test_the_vectors_of_spectral_norm_go_along(tmp_path):
    torch.manual_seed(0)
    module = net()
    parametrizations.spectral_norm(module[2])
    sub = spread(module, bits=6).train()
    before = sub.module[2].parametrizations.weight[0]._u.clone()
    for _ in range(20):
        sub(X)
    sub.eval()
    assert not torch.equal(before, sub.module[2].parametrizations.weight[0]._u)
    loaded = packed(sub, tmp_path, module).eval()
    with torch.no_grad():
        assert torch.linalg.matrix_norm(loaded[2].weight, 2) == pytest.approx(1.0, abs=0.05)
        assert torch.allclose(loaded(X), sub(X), atol=0.05)


# --- extra state ---


class Extra(nn.Module):
    """Keeps what is no buffer in its state dict."""

    def __init__(self, tensor: bool = True) -> None:
        super().__init__()
        self.layer, self.kept, self.tensor = nn.Linear(6, 3), torch.tensor([0.1, 0.2, 0.7]), tensor

    def get_extra_state(self):
        return self.kept if self.tensor else {"kept": self.kept}

    def set_extra_state(self, state):
        self.kept = state

    def forward(self, x):
        if self.training:
            self.kept = self.kept + 0.125
        return self.layer(x) * self.kept


def test_extra_state_of_tensors_goes_along(tmp_path):
    torch.manual_seed(0)
    sub = spread(nn.Sequential(Extra()), 9, bits=4)
    sub(X)
    loaded = packed(sub.eval(), tmp_path, nn.Sequential(Extra())).eval()
    assert torch.equal(loaded[0].kept, torch.tensor([0.225, 0.325, 0.825]))
    with torch.no_grad():
        assert torch.equal(loaded(X), sub(X))


def test_extra_state_of_other_things_is_refused():
    with pytest.raises(
        SubcompressError, match=r"0\._extra_state in the state dict is not a tensor: leave extra state out"
    ):
        Subspace.of(nn.Sequential(Extra(tensor=False)), 9)


def test_extra_state_outlives_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.loop.SAVE_EVERY", -1.0)
    digests, options = [], {"d": 9, "epochs": 4, "batch_size": 32, "threads": 1}
    for stops in (False, True):
        torch.manual_seed(0)
        module, folder = nn.Sequential(Extra()), tmp_path / str(stops)
        if stops:
            with pytest.raises(KeyboardInterrupt):
                subcompress.fit(module, data(), folder, **options, listener=Stopped(3))
        subcompress.fit(module, data(), folder, **options)
        digests.append(subcompress.training.run.load(folder).digest)
    assert digests[0] == digests[1]


# --- weights that forward does not look up ---


class Listed(nn.Module):
    """Reads what it has put into a list."""

    def __init__(self, kept) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.kept = kept(self)

    def forward(self, x):
        for weight, bias in self.kept() if callable(self.kept) else self.kept:
            x = torch.tanh(nn.functional.linear(x, weight, bias))
        return x


def in_a_list(module):
    return [(module.a.weight, module.a.bias), (module.b.weight, module.b.bias)]


def in_a_closure(module):
    return lambda: [(module.a.weight, module.a.bias), (module.b.weight, module.b.bias)]


@pytest.mark.parametrize("kept", [in_a_list, in_a_closure])
def test_parameters_kept_elsewhere_are_named(kept, tmp_path):
    words = r"^a.weight, a.bias, b.weight and 1 more would not train"
    with pytest.raises(SubcompressError, match=words):
        subcompress.fit(Listed(kept), data(), tmp_path / "run", d=20, epochs=1, batch_size=32)
    assert not (tmp_path / "run").exists()


class Scaled(nn.Module):
    """Multiplies by a tensor that is no parameter."""

    def __init__(self, kept) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(6, 3), kept

    def forward(self, x):
        return self.layer(x) * (self.kept() if callable(self.kept) else self.kept["scale"])


def test_plain_tensors_that_ask_for_a_gradient_are_named():
    scale = torch.ones(3, requires_grad=True)
    for kept, name in (({"scale": scale}, "0.kept.scale"), (lambda: scale, "0.kept.scale")):
        with pytest.raises(
            SubcompressError, match=f"^{name} is trained but not in the state dict, so that it cannot be packed"
        ):
            checked(nn.Sequential(Scaled(kept)))
    checked(nn.Sequential(Scaled({"scale": torch.ones(3)})))
    checked(nn.Sequential(Scaled(lambda: scale.detach())))
