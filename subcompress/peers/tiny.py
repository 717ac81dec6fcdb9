"""A tiny network of equal bytes, trained directly: the comparison that a subspace has to face.

Its width is the largest whose weights, eight bits each with a scale a tensor and nothing else in the file, fit the
bytes of ours; among the shapes below the validation split chooses.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from subcompress.data.splits import Split, call
from subcompress.peers.bench import Bench, Row, SkippedError, best, joined
from subcompress.subspace.seeds import seed_everything

WIDEST = 1 << 12


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
        shapes = [Convolutions, Pooled, Hidden]
    found: list[tuple[nn.Module, int, float, str]] = []
    for make in shapes:
        width = _width(make, shape, outputs, bench.size)
        if width == 0:
            continue
        seed_everything(bench.recipe.seed, 0)
        module = make(shape, outputs, width)
        name = f"{make.__name__.lower()}, width {width}"
        try:
            seconds = bench.trained(module, f"tiny network: {name}", lr=1e-2)
        except SkippedError as e:
            bench.listener.note(f"tiny network: {name}: {e}")
            continue
        size = bench.write(f"tiny-{make.__name__.lower()}.bin", rounded(module))
        weights = sum(p.numel() for p in module.parameters())
        found.append((module, size, seconds, f"{name}, {weights} weights"))
    if not found:
        raise SkippedError(f"no tiny network fits {bench.size} bytes and learns")
    chosen = best([bench.validation(module) for module, *_ in found], bench.task)
    module, size, _, name = found[chosen]
    value, note = bench.value(module)
    return [Row("tiny network, 8 bits", size, value, sum(f[2] for f in found), joined(name, note))]


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
    """The largest that fits, 0 where none does; a byte a weight and four a tensor, before anything is deflated."""
    low, high = 0, WIDEST
    while low < high:
        middle = (low + high + 1) // 2
        with torch.device("meta"):
            parameters = list(make(shape, outputs, middle).parameters())
        fits = sum(p.numel() + 4 for p in parameters) <= size
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def rounded(module: nn.Module) -> bytes:
    """Round a module's weights to 8 bits, in place, and the bytes that say them: a scale and integers a tensor,
    deflated where that is shorter."""
    parts = []
    with torch.no_grad():
        for p in module.parameters():
            scale = float(p.abs().max()) / 127 or 1.0
            q = (p / scale).round()
            p.copy_(q * scale)
            parts.append(np.float32(scale).tobytes() + q.to(torch.int8).numpy().tobytes())
    raw = b"".join(parts)
    return min(raw, zlib.compress(raw, 9), key=len)
