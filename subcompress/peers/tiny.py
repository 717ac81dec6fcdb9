"""A tiny network of equal bytes, trained directly: the comparison that a subspace has to face.

For the second half of its training its weights are rounded to four bits, and gradients pass straight through (Bengio,
Leonard, Courville 2013, arXiv:1308.3432). The file is a scale a tensor and the integers, under the same coder as ours,
and nothing else. The width is the largest that is expected to fit the bytes of ours; what is too long in the end has
its smallest weights rounded to zero. Among the shapes below the validation split chooses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from subcompress.data.splits import Split, call
from subcompress.format import codec
from subcompress.peers.bench import Bench, Row, SkippedError, best, joined
from subcompress.subspace.plan import CODED_BITS, SPREAD
from subcompress.subspace.seeds import seed_everything
from subcompress.training.direct import Direct

WIDEST = 1 << 12

BITS = 4
"""Bits of a weight."""

TOP = (1 << (BITS - 1)) - 1


def _widths(k: int) -> tuple[int, int, int]:
    """Kernels of the three layers: growing with depth, and with k in steps of few weights."""
    return 1 + k // 4, 1 + k // 3, 1 + k // 2


class Convolutions(nn.Module):
    """(N, C, H, W) -> (N, outputs): three 3x3 convolutions with pooling, then a linear layer over all places."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int) -> None:
        super().__init__()
        channels, height, across = shape
        widths = (channels, *_widths(width))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1] * (height // 8) * (across // 8), outputs)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = functional.max_pool2d(conv(x).relu(), 2)
        return self.head(x.flatten(1))


class Pooled(nn.Module):
    """(N, C, H, W) -> (N, outputs): the same with the places averaged, which leaves more bytes to the kernels."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int) -> None:
        super().__init__()
        widths = (shape[0], *_widths(width))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = conv(x).relu()
            x = functional.max_pool2d(x, 2) if i < 2 else x
        return self.head(x.mean((2, 3)))


class Separable(nn.Module):
    """(N, C, H, W) -> (N, outputs): a convolution that halves the sides, then depthwise separable ones (Howard et al.
    2017, arXiv:1704.04861), and a kernel a channel over all places that are left."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int) -> None:
        super().__init__()
        channels, height, across = shape
        a, b, c = widths = _widths(width)
        self.stem = nn.Conv2d(channels, a, 5, stride=2, padding=2)
        self.depthwise = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1, groups=n, bias=False) for n in (a, b))
        self.pointwise = nn.ModuleList((nn.Conv2d(a, b, 1), nn.Conv2d(b, c, 1)))
        places = ((height + 1) // 2 // 4, (across + 1) // 2 // 4)
        self.places = nn.Conv2d(widths[-1], widths[-1], places, groups=widths[-1], bias=False)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.stem(x), 0.2)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = functional.max_pool2d(functional.leaky_relu(pointwise(depthwise(x)), 0.2), 2)
        return self.head(self.places(x).flatten(1))


class Hidden(nn.Module):
    """(N, ...) -> (N, outputs): one hidden layer."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(int(np.prod(shape)), width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x.flatten(1)).relu())


Shape = Callable[[tuple[int, ...], int, int], nn.Module]


def tiny(bench: Bench) -> list[Row]:
    """The best of the shapes, by validation."""
    if bench.record.base is not None:
        raise SkippedError("for networks that start from a seed")
    shape, outputs = _sizes(bench)
    shapes: list[Shape] = [Hidden]
    if len(shape) == 3 and min(shape[1:]) >= 8:
        shapes = [Convolutions, Pooled, Separable, Hidden]
    found: list[tuple[nn.Module, int, float, str]] = []
    for make in shapes:
        width = _width(make, shape, outputs, bench.size)
        if width == 0:
            continue
        seed_everything(bench.recipe.seed, 0)
        module = make(shape, outputs, width)
        name = f"{make.__name__.lower()}, width {width}"
        net = Rounded(module)
        try:
            seconds = bench.rounded(net, f"tiny network: {name}", lr=1e-2)
        except SkippedError as e:
            bench.listener.note(f"tiny network: {name}: {e}")
            continue
        size = bench.write(f"tiny-{make.__name__.lower()}.bin", net.packed(bench.size))
        weights = sum(p.numel() for p in module.parameters())
        found.append((module, size, seconds, f"{name}, {weights} weights"))
    if not found:
        raise SkippedError(f"no tiny network fits {bench.size} bytes and learns")
    chosen = best([bench.validation(module) for module, *_ in found], bench.task)
    module, size, _, name = found[chosen]
    value, note = bench.value(module)
    return [Row(f"tiny network, {BITS} bits", size, value, sum(f[2] for f in found), joined(name, note))]


def _sizes(bench: Bench) -> tuple[tuple[int, ...], int]:
    """Shape of one input, and how many outputs there are."""
    train = bench.data.train
    if not isinstance(train, Split) or not isinstance(train.x, Tensor) or not train.x.is_floating_point():
        raise SkippedError("a tiny network is known for one floating-point input in memory")
    with torch.no_grad():
        outputs = call(bench.model.eval(), train.x[:2])
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise SkippedError("a tiny network is known for outputs of shape (N, k)")
    return tuple(train.x.shape[1:]), outputs.shape[1]


def _width(make: Shape, shape: tuple[int, ...], outputs: int, size: int) -> int:
    """The largest that fits, 0 where none does; the bits that coded weights usually take, and four bytes a tensor."""
    low, high = 0, WIDEST
    while low < high:
        middle = (low + high + 1) // 2
        with torch.device("meta"):
            parameters = list(make(shape, outputs, middle).parameters())
        fits = sum(p.numel() * CODED_BITS[BITS] / 8 + 4 for p in parameters) <= size
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


class Rounded(Direct):
    """A network trained in all of its weights, rounded from `begin` on to BITS bits, with a step a tensor."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.steps: dict[str, float] = {}

    def begin(self) -> None:
        """Choose the step of each tensor by the spread of its weights."""
        for name, p in self.module.named_parameters():
            spread = float(p.detach().square().mean().sqrt())
            self.steps[name] = float(np.float32(SPREAD[BITS] * spread)) or 1.0

    @contextmanager
    def materialized(self) -> Iterator[nn.Module]:
        """The network, from `begin` on with rounded weights, which have the gradients of the exact ones."""
        exact = dict(self.module.named_parameters()) if self.steps else {}
        try:
            for name, p in exact.items():
                self._put(name, p + (self.integers(name, p) * self.steps[name] - p).detach())
            yield self.module
        finally:
            for name, p in exact.items():
                self._put(name, p)

    def integers(self, name: str, p: Tensor) -> Tensor:
        """Weights in units of their step, rounded."""
        return (p.detach() / self.steps[name]).round().clamp(-TOP, TOP)

    def packed(self, size: int) -> bytes:
        """Round the weights in place, and the bytes that say them: the steps, then all integers. The smallest weights
        are rounded to zero where there are more than `size` bytes of them."""
        named = dict(self.module.named_parameters())
        q = torch.cat([self.integers(name, p).flatten() for name, p in named.items()])
        order = torch.cat([(p.detach() / self.steps[n]).abs().flatten() for n, p in named.items()]).argsort()
        low, high = 0, len(q)
        while low < high:
            middle = (low + high) // 2
            fits = 4 * len(named) + len(_coded(q, order[:middle])) <= size
            low, high = (low, middle) if fits else (middle + 1, high)
        q[order[:low]] = 0
        with torch.no_grad():
            for (name, p), own in zip(named.items(), q.split([p.numel() for p in named.values()]), strict=True):
                p.copy_(own.view_as(p) * self.steps[name])
        return np.array(list(self.steps.values()), np.float32).tobytes() + _coded(q, order[:0])

    def _put(self, name: str, value: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        self.module.get_submodule(owner)._parameters[leaf] = value  # type: ignore[assignment]


def _coded(q: Tensor, zeros: Tensor) -> bytes:
    """The integers under our coder, those at `zeros` as zero."""
    values = q.clone().index_fill_(0, zeros, 0)
    return codec.encode([(values.numpy().astype(np.int32), BITS)])
