"""Batches in parts, checkpointed layers, and weights of 16 bits: less memory, the same steps."""

from __future__ import annotations

import json
import tomllib

import pytest
import tiny_llama
import torch
from torch import Tensor, nn
from torch.nn import functional
from trained import Notes

import subcompress
from subcompress import Split, SubcompressError, Subspace
from subcompress.data import parts
from subcompress.data.in_memory import IGNORED
from subcompress.training.checkpointing import checkpointed
from subcompress.training.direct import Direct
from subcompress.training.loop import TrainOptions, check_recipe, train
from subcompress.training.tasks import Task


class Net(nn.Module):
    """Notes how many examples pass through it in training."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, outputs)
        self.passed: list[int] = []

    def __deepcopy__(self, memo):
        found = Net(self.last.out_features)
        found.load_state_dict(self.state_dict())
        found.passed = self.passed
        return found.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        self.passed += [len(x)] if self.training else []
        return self.last(self.norm(self.first(x).tanh()))


def net(outputs: int = 3) -> Net:
    torch.manual_seed(0)
    return Net(outputs)


def data(tokens: int = 0) -> subcompress.Data:
    """Classes, one an example, or one a token with many that are not learned."""
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(64, *((tokens,) if tokens else ()), 6, generator=drawn)
    y = x[..., :3].argmax(-1)
    if tokens:
        y[torch.rand(y.shape, generator=drawn) < torch.linspace(0, 0.9, 64)[:, None]] = IGNORED
    split = Split(x, y)
    return subcompress.Data(split, split, split)


@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_batch_in_parts_takes_the_same_steps(tokens, shards):
    found, task = [], Task.of("per-token" if tokens else "cross-entropy")
    for accumulate in (1, 2, 4):
        sub = Subspace.of(net(), 20)
        recipe = TrainOptions(2, 0.05, 16, shards=shards, accumulate=accumulate)
        value = train(sub, data(tokens), task, recipe).value
        found.append((sub.z.detach(), value))
        assert set(sub.module.passed) == {16 // shards // accumulate}
    for z, value in found[1:]:
        assert torch.allclose(z, found[0][0], atol=1e-4)
        assert value == pytest.approx(found[0][1], abs=0.02)


def test_a_part_counts_for_its_labels():
    task = Task.of("next-token")
    y = torch.tensor([[7, 1, IGNORED, 2], [7, IGNORED, IGNORED, 1]])
    assert [task.weight(({}, row[None])) for row in y] == [2, 1]
    assert Task.of("mse").weight(({}, torch.zeros(5, 2))) == 5
    whole = parts.shared([(None, row[None]) for row in y], task.weight)
    assert [share for share, _ in whole.each] == pytest.approx([2 / 3, 1 / 3])
    assert len(parts.shared([1, 2, 3], lambda part: part % 2).each) == 2
    nothing = parts.shared([1, 2], lambda part: 0)
    assert [share for share, _ in nothing.each] == [0.5, 0.5]


def test_a_fit_passes_no_more_at_once_and_says_so(tmp_path):
    given = net()
    options = {"d": 12, "epochs": 2, "batch_size": 16, "accumulate": 4, "threads": 1}
    found = subcompress.fit(given, data(), tmp_path / "run", **options)
    assert set(given.passed) == {4}
    assert found.bytes > 0
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["recipe"]
    assert (recipe["accumulate"], recipe["checkpointing"]) == (4, False)
    assert json.loads((tmp_path / "run" / "command.json").read_text())["recipe"]["accumulate"] == 4
    heard = Notes()
    subcompress.fit(given, data(), tmp_path / "run", listener=heard, **options)
    assert any("already holds this run" in note for note in heard.notes)


@pytest.mark.parametrize(
    ("shards", "accumulate", "words"),
    [
        (1, 0, "--accumulate must be at least 1; got 0"),
        (1, 3, "--accumulate must divide --batch-size, here 16, to cut it into equal parts; got 3"),
        (2, 16, "--accumulate must divide the examples of a shard, here 8, to cut it into equal parts; got 16"),
    ],
)
def test_parts_are_equal(shards, accumulate, words):
    with pytest.raises(SubcompressError, match=words):
        check_recipe(TrainOptions(1, 0.1, 16, shards=shards, accumulate=accumulate), 64)


# --- checkpointed layers ---


def gradient(module: nn.Module, sub: Subspace) -> Tensor:
    ids = torch.arange(12).view(2, 6)
    sub.zero_grad()
    with torch.no_grad():
        sub.z.fill_(0.01)
    with sub.materialized() as held:
        Task.of("next-token").loss_of(held, ({"input_ids": ids}, ids)).backward()
    return sub.z.grad.clone()


def test_checkpointed_layers_run_again_and_give_the_same_gradients():
    pytest.importorskip("transformers")
    given = tiny_llama.network()
    plain = Subspace.of(given, 30)
    again = Subspace(checkpointed(given), plain.plan, own=True)
    calls = []
    for sub in (plain.train(), again.train()):
        count = []
        sub.module.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        calls.append((gradient(given, sub), count))
    assert [len(count) for _, count in calls] == [1, 2]
    assert torch.equal(calls[0][0], calls[1][0])
    assert float(calls[0][0].abs().sum()) > 0
    assert not given.model.layers[0].gradient_checkpointing
    assert given.config.use_cache


def test_one_line_for_a_network_without_checkpointing(tmp_path):
    with pytest.raises(SubcompressError, match=r"^--checkpointing needs a transformers model; Net has no .*leave"):
        subcompress.fit(net(), data(), tmp_path / "run", d=12, checkpointing=True)
    pytest.importorskip("transformers")
    odd = tiny_llama.network()
    odd.supports_gradient_checkpointing = False
    with pytest.raises(SubcompressError, match=r"^LlamaForCausalLM refuses --checkpointing \("):
        checkpointed(odd)


# --- weights of 16 bits ---


class Scaled(nn.Module):
    """A norm around one, where neighbors of bfloat16 are 2^-7 apart, and matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16, bias=False), nn.RMSNorm(16), nn.Linear(16, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x.to(self.first.weight.dtype)))).float()


def narrow() -> Scaled:
    torch.manual_seed(0)
    return Scaled().bfloat16()


def test_moves_of_weights_of_16_bits_are_measured(tmp_path):
    given, split = narrow(), data().train
    moves = subcompress.measure_moves(
        given,
        [split[torch.arange(i, 64, 4)] for i in range(4)],
        lambda module, batch: functional.cross_entropy(module(batch[0]), batch[1]),
        base=given,
        act_on="norms",
        steps=40,
    )
    assert moves.rate > 0
    assert 0 < moves.sizes["norm.weight"][0] < 0.1


def test_a_network_of_16_bits_trained_directly_takes_small_steps():
    direct = Direct(narrow())
    before = direct.module.norm.weight.detach().clone()
    train(direct, data(), Task.of(), TrainOptions(2, 1e-4, 16, accumulate=2))
    held = direct.moving()["norm.weight"]
    assert held.dtype == torch.float32
    assert 0 < float((held - before).abs().max()) < 2**-9
    again = Direct(narrow())
    again.restore(direct.moving(), {})
    assert torch.equal(again.moving()["norm.weight"], held)


# --- one device ---


def test_one_line_for_a_network_on_several_devices(tmp_path):
    given = net()
    given.hf_device_map = {"first": "cpu", "last": "cpu"}
    Subspace.of(given, 12)
    given.first.hf_device_map = {"first": 0, "last": "disk"}
    with pytest.raises(SubcompressError, match=r"^the network is spread over several devices, 0, disk: "):
        subcompress.fit(given, data(), tmp_path / "run", d=12)
