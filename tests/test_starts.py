"""How tensors start is recognised from their values, and nothing that is random is taken for anything else."""

from __future__ import annotations

import math

import pytest
import torch
from networks import Transformer, Vae, batch_norm
from torch import nn

from subcompress import SubcompressError
from subcompress.plan import make_plan
from subcompress.starts import MAX_STORED, frozen_note, recognise


def start_of(tensor: torch.Tensor, structured: str = "store"):
    module = nn.Module()
    module.p = nn.Parameter(tensor)
    return recognise(module, structured)["p"]


@pytest.mark.parametrize(
    ("init", "std"),
    [
        (lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), 1 / math.sqrt(3 * 300)),
        (nn.init.kaiming_normal_, math.sqrt(2 / 300)),
        (nn.init.xavier_uniform_, math.sqrt(2 / 500)),
        (nn.init.xavier_normal_, math.sqrt(2 / 500)),
        (nn.init.normal_, 1.0),
        (lambda w: nn.init.normal_(w, std=0.02), 0.02),
        (lambda w: nn.init.normal_(w, std=0.0377), 0.0377),
    ],
)
def test_usual_starts(init, std):
    torch.manual_seed(0)
    w = torch.empty(200, 300)
    init(w)
    found = start_of(w)
    assert found.kind == "random"
    assert found.value == 0
    assert found.std == pytest.approx(std, rel=1e-9 if std != 0.0377 else 0.01)
    assert f"{found.std:.4g}" in found.why


def test_a_random_start_may_have_a_mean():
    torch.manual_seed(0)
    found = start_of(torch.rand(50, 40))
    assert found.kind == "random"
    assert found.value == pytest.approx(0.5, abs=0.02)
    assert found.std == pytest.approx(12**-0.5, rel=0.05)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.25])
def test_constants_are_kept(value):
    found = start_of(torch.full((7,), value))
    assert (found.kind, found.value) == ("constant", value)
    assert found.std > 0


def _sinusoids(n: int, width: int) -> torch.Tensor:
    angle = torch.arange(n)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angle.sin(), angle.cos()], 1)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (_sinusoids(50, 32), "table"),
        (_sinusoids(128, 64), "table"),
        (torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1)))[0], "orthogonal"),
        (2 * torch.linalg.qr(torch.randn(30, 12, generator=torch.Generator().manual_seed(1)))[0].T, "orthogonal"),
        (torch.eye(12), "sparse"),
        (torch.randn(8, 40, generator=torch.Generator().manual_seed(2)).where(torch.arange(40) % 10 == 0, 0), "sparse"),
        (torch.log(torch.arange(1.0, 17.0)), "a ramp"),
    ],
)
def test_structure_is_stored_with_its_cost(tensor, words):
    found = start_of(tensor)
    assert found.kind == "stored"
    assert words in found.why
    assert "bytes" in found.why
    assert start_of(tensor, "random").kind == "random"


def test_random_tensors_are_never_taken_for_structure():
    for seed in range(300):
        g = torch.Generator().manual_seed(seed)
        shape = [(6, 1, 5, 5), (10,), (64,), (16, 16), (4, 9), (200, 3), (3, 200), (5,)][seed % 8]
        w = torch.rand(shape, generator=g) - 0.5 if seed % 2 else torch.randn(shape, generator=g)
        found = start_of(w)
        assert found.kind == "random", (seed, shape, found)


def test_ties_frozen_weights_and_buffers():
    net = Transformer()
    net.encoder.layers[0].linear1.weight.requires_grad_(False)
    starts = recognise(net)
    names = list(net.state_dict())
    assert starts["decoder.weight"].kind == "tied"
    assert names[starts["decoder.weight"].index] == "embed.weight"
    assert starts["table"].kind == "buffer"
    assert starts["norm.weight"].kind == "constant"
    frozen = starts["encoder.layers.0.linear1.weight"]
    assert frozen.kind == "stored"
    assert "frozen" in frozen.why
    assert "1 frozen tensors" in frozen_note(net, starts)
    assert frozen_note(Vae(), recognise(Vae())) is None


def test_norms_have_coordinates_of_their_own_and_start_exactly_where_they_were():
    plan = make_plan(batch_norm(), 80)
    random, constant = plan.parts
    assert {s.name for s in constant.specs} == {"1.weight", "1.bias", "5.weight", "5.bias"}
    assert constant.operator.K == 0
    assert random.operator.d + constant.operator.d == 80
    assert constant.starts == (1.0, 0.0, 1.0, 0.0)


def test_every_d_has_a_plan():
    net = batch_norm()
    D = make_plan(net, 2).D
    for d in [2, 3, 9, 50, 300, D - 40, D - 1, D]:
        assert make_plan(net, d).d == d
    for d in (0, 1, D + 1):
        with pytest.raises(SubcompressError, match=f"between 2 and the model's D = {D} weights; given {d}"):
            make_plan(net, d)


def test_large_structure_is_refused_with_its_cost():
    with pytest.raises(SubcompressError, match=f"up to {MAX_STORED} bytes in all; these take .* --structured random"):
        start_of(torch.linalg.qr(torch.randn(200, 200))[0])


def test_odd_state_is_refused_in_one_line():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"x": 1}

    for module, words in [
        (Extra(2, 2), "_extra_state is none"),
        (nn.LazyLinear(3), "run the model once first"),
    ]:
        with pytest.raises(SubcompressError, match=words):
            recognise(module)
