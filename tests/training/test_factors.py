"""Fine-tunes through factors of linear layers: what moves, in training and in files, and what is refused."""

from __future__ import annotations

import copy
import json
import re

import networks
import numpy as np
import onnxruntime
import pytest
import torch
from commands import cli
from torch import Tensor, nn
from torch.func import jacfwd, jacrev
from trained import refusal

import subcompress
from subcompress import Subspace, format, measure_moves
from subcompress.format.facts import Facts
from subcompress.format.record import check_rank
from subcompress.operators.factors import add_product, add_product_of_tensors
from subcompress.operators.sketch import directions
from subcompress.rebuild.backends import available
from subcompress.rebuild.expand import expand
from subcompress.subspace.acting import acting_of
from subcompress.tensors.layout import DTYPES, TensorSpec, array_of
from subcompress.tensors.rounding import rounded


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has them."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Net(nn.Module):
    """Linear layers of both kinds, one of them tied to a table, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.first = nn.Linear(2, 8)
        self.norm = nn.LayerNorm(8)
        self.turned = Conv1D(6, 8)
        self.back = nn.Linear(6, 8)
        self.tied = nn.Linear(8, 9, bias=False)
        self.head = nn.Linear(9, 3)
        self.tied.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.tied(self.back(self.turned(x).relu())))


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


BASE = {name: t.clone() for name, t in network().state_dict().items()}


LAYERS = {"first.weight", "turned.weight", "back.weight"}


def spread(act_on: str, bits: int = 4, module: nn.Module | None = None, base=BASE, d: int = 12) -> Subspace:
    sub = Subspace.of(module or network(), d, base=base, act_on=act_on)
    nn.init.normal_(sub.z, generator=torch.Generator().manual_seed(1))
    if bits:
        sub.round(bits)
    return sub


def moved(sub: Subspace) -> set[str]:
    return {name for name, w in expand(sub.record()).items() if not torch.equal(w, BASE[name])}


@pytest.mark.parametrize(
    ("act_on", "names"),
    [
        ("lora:2", {"first.weight", "turned.weight", "back.weight"}),
        ("norms, lora:1", {"norm.weight", "norm.bias", "first.weight", "turned.weight", "back.weight"}),
        ("lora,ba*", {"back.weight"}),
        ("lora:1,turned.weight,lora:2,back", {"turned.weight", "back.weight"}),
        ("lora:2,tied", {"table.weight", "tied.weight"}),
        ("first.weight,lora:1", {"first.weight", "turned.weight", "back.weight"}),
        ("lora:3,head,norms", {"head.weight", "norm.weight", "norm.bias"}),
        ("sketch:2", {"first.weight", "turned.weight", "back.weight"}),
        ("biases,lora:1,back,sketch:2", {n for n in BASE if "bias" in n and n[:4] not in ("norm", "head")} | LAYERS),
    ],
)
def test_what_moves_is_what_was_named(act_on, names):
    assert moved(spread(act_on)) == names


@pytest.mark.parametrize(
    ("act_on", "words"),
    [
        ("lora,norm", "'norm' names none .*the model's linear layers are first, turned, back, tied and 1 more"),
        (
            "lora:7,back",
            "the rank 7 is larger than the smaller side of back.weight, 8 x 6: give a lower one, or name other layers",
        ),
        ("lora:0", "a rank of 1 to 256 after a colon, such as lora:4; got 'lora:0'"),
        ("lora:x", "got 'lora:x'"),
        ("lora:257", "got 'lora:257'"),
        ("all,lora", "there is no such layer: the model's linear layers are"),
        ("matrices,lora:1,back", "names back.weight for lora:1 and also in another way"),
        ("lora:1,back,lora:2,b*", "names back.weight for lora:2 and also in another way"),
        ("lroa", "lora, sketch and patterns.*did you mean lora"),
        ("lora:1,sketch", "--act-on sketch takes the linear layers that no other word names"),
        ("sketch,norm", "'norm' names none"),
        ("sketch:9,tied", "the rank 9 is larger than the smaller side of tied.weight, 9 x 8"),
    ],
)
def test_what_cannot_move_so_is_refused(act_on, words):
    assert re.search(words, refusal(spread, act_on)), refusal(spread, act_on)


@pytest.mark.parametrize(
    ("rank", "shape", "sketched", "words"),
    [
        (64, (1 << 18, 1 << 18), False, None),
        (65, (1 << 18, 1 << 18), False, "a factor may have at most 16777216 values"),
        (1, ((1 << 18) + 1, 9), True, "at most 262144 rows and columns"),
        (257, (300, 300), False, "a rank must be between 1 and 256; got 257"),
    ],
)
def test_sizes_are_bounded(rank, shape, sketched, words):
    spec = TensorSpec("w", "F32", shape)
    assert words is None or words in refusal(check_rank, rank, spec, sketched)
    if words is None:
        check_rank(rank, spec, sketched)


def test_a_layer_that_the_base_lacks_has_no_factors():
    module = network()
    module.head = nn.Linear(9, 5)
    assert "names head.weight for lora:1 and also in another way" in refusal(spread, "lora:1,head", 4, module)
    assert "head.weight" in acting_of(module, "lora:1", frozenset({"head.weight"})).whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("act_on", ["biases,lora:2", "biases,sketch:2"])
def test_weights_in_training_are_the_packed_ones(act_on, dtype):
    module = network().to(dtype)
    base = {name: t.clone() for name, t in module.state_dict().items()}
    sub = spread(act_on, module=module, base=base)
    record, found = sub.record(), sub.weights()
    assert found["turned.weight"].dtype == dtype
    for backend in available():
        state = expand(record, backend)
        assert all(torch.equal(w.cpu(), state[name].cpu()) for name, w in found.items())


@pytest.mark.parametrize("act_on", ["lora:2", "sketch:2"])
def test_a_fresh_subspace_is_the_base(act_on):
    sub = Subspace.of(network(), 12, base=BASE, act_on=act_on)
    sub = Subspace.of(network(), sub.plan.D, base=BASE, act_on=act_on)  # without frozen slots
    assert all(torch.equal(w, BASE[name]) for name, w in sub.weights().items())


@pytest.mark.parametrize(("act_on", "far"), [("lora:2", 1), ("sketch:2", 10)])
def test_gradients_are_those_of_the_factors(act_on, far):
    sub, x = spread(act_on, bits=0, d=12), torch.randn(5, 2)
    sub(x).square().sum().backward()
    size = float(sub.z.grad.norm())
    losses = []
    with torch.no_grad():
        for step in (far, -far):
            z, sub.z.data = sub.z.data, sub.z + step * sub.z.grad / size
            losses.append(float(sub(x).double().square().sum()))
            sub.z.data = z
    assert size == pytest.approx((losses[0] - losses[1]) / (2 * far), rel=0.05)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_derivatives_forward_backward_and_compiled():
    torch._dynamo.reset()
    sub, x = spread("lora:1,back,sketch:2", bits=0, d=12), torch.randn(5, 2)

    def outputs(z: Tensor) -> Tensor:
        return torch.func.functional_call(sub, {"z": z}, (x,))

    z = sub.z.detach()
    assert torch.allclose(jacfwd(outputs)(z), jacrev(outputs)(z), atol=1e-5)
    with torch.no_grad():
        found = torch.compile(sub.weights, backend="eager", fullgraph=True)()
    assert all(torch.equal(w, found[name]) for name, w in sub.weights().items())


def test_moves_of_factors_are_measured():
    x = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
    batches = [(part, (part[:, 0] > 0).long()) for part in x.split(32)]

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    moves = measure_moves(network(), batches, loss, steps=20, base=BASE, act_on="norms,lora:2")
    assert {name: len(sizes) for name, sizes in moves.sizes.items()} == {
        "norm.weight": 1, "norm.bias": 1, "first.weight": 2, "turned.weight": 2, "back.weight": 2,
    }  # fmt: skip
    assert all(size > 0 for sizes in moves.sizes.values() for size in sizes)
    sub = Subspace.of(network(), 20, base=BASE, act_on="norms,lora:2", moves=moves)
    assert sub.plan.D == 16 + 2 * (2 + 8 + 8 + 6 + 6 + 8)


def test_a_fit_packs_verifies_and_says_what_moves(tmp_path):
    module, data = networks.CASES["mlp"].make(), networks.blobs()
    base = {name: t.clone() for name, t in module.state_dict().items()}
    torch.save(base, tmp_path / "base.pt")
    options = {"d": 20, "epochs": 1, "batch_size": 32, "threads": 1}
    subcompress.fit(module, data, tmp_path / "run", base=tmp_path / "base.pt", act_on="lora:2", **options)
    file = tmp_path / "net.safetensors"
    subcompress.pack(tmp_path / "run", file)
    assert subcompress.verify(file, base=base).ok
    told = json.loads(cli("info", file, "--json").stdout)
    assert told["format_version"] == 2 and told["factors"][0]["kind"] == "lora" and told["factors"][0]["rank"] == 2
    assert f"lora of rank 2 on {told['factors'][0]['tensors']} matrices of the base" in cli("info", file).stdout
    loaded = subcompress.load(file, networks.CASES["mlp"].make(), base=base).state_dict()
    variants = subcompress.Variants(networks.CASES["mlp"].make(), base)
    variants.add("one", file)
    assert all(torch.equal(t, loaded[name]) for name, t in variants.use("one").state_dict().items())
    line = refusal(
        subcompress.unpack, file, tmp_path / "u.onnx", networks.CASES["mlp"].make(), base=base, self_unfolding=True
    )
    assert "leave --self-unfolding out" in line


@pytest.mark.slow
@pytest.mark.parametrize("act_on", ["lora:2", "sketch:2"])
def test_a_graph_has_the_weights(tmp_path, act_on):
    module = networks.CASES["mlp"].make()
    sub = Subspace.of(module, 4, base=module, act_on=act_on)
    nn.init.normal_(sub.z, generator=torch.Generator().manual_seed(1))
    sub.round(4)
    file, base = tmp_path / "net.safetensors", copy.deepcopy(module)
    facts = Facts(input_shape=(1, 12, 12))
    format.save(sub.record(facts), file)
    subcompress.unpack(file, tmp_path / "net.onnx", copy.deepcopy(module), base=base)
    x = torch.randn(1, 1, 12, 12)
    (found,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": x.numpy()})
    assert np.allclose(found, subcompress.load(file, module, base=base)(x).detach().numpy(), atol=1e-5)


def test_directions_are_about_the_first_singular_vectors():
    rng = np.random.default_rng(0)
    matrix = (rng.normal(0, 1, (90, 40)) * 0.8 ** np.arange(40)).astype(np.float32)
    u, v = directions(matrix, 6)
    s = np.linalg.svd(matrix, compute_uv=False)
    assert np.linalg.norm(u.T @ matrix @ v.T) > 0.99 * np.linalg.norm(s[:6])
    assert np.abs(u.T @ u - np.eye(6)).max() < 1e-4 and np.abs(v @ v.T - np.eye(6)).max() < 1e-4
    blocks = directions(np.asfortranarray(matrix), 6)
    assert all(np.array_equal(a, b) for a, b in zip((u, v), blocks, strict=True))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_a_range_of_values_is_that_of_the_whole(dtype):
    rng = np.random.default_rng(0)
    left, right = (rng.normal(0, 1, s).astype(np.float32) for s in [(700, 3), (3, 90)])
    base = rounded(rng.normal(0, 1, 63_000), DTYPES[dtype])
    base[:3] = rounded(np.array([0.0, -0.0, 1e-40]), DTYPES[dtype])
    left[0], whole = 0, np.empty_like(base)
    add_product(whole, base, left, right, 0)
    for lo, n in [(0, 1), (89, 2), (100, 40_000), (62_999, 1), (45, 62_955)]:
        first, last = lo // 90, -(-(lo + n) // 90)
        for add in (add_product, add_product_of_tensors):
            out = base[lo : lo + n].copy()
            given = (out, out.copy(), left[first:last], right)
            if add is add_product_of_tensors:
                place = (
                    torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
                    if dtype == "BF16"
                    else torch.from_numpy(out)
                )
                given = (place, place.clone(), torch.from_numpy(left[first:last]), torch.from_numpy(right))
            add(*given, lo - first * 90)
            found = given[0] if isinstance(given[0], np.ndarray) else array_of(given[0])
            assert np.array_equal(found.view(np.uint8), whole[lo : lo + n].view(np.uint8))
