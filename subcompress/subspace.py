"""A module whose only parameter is z: theta = theta_0 + scale * P z, for the loop of subcompress or the user's own."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from subcompress.operators.base import Operator, rmatvec


class Subspace(nn.Module):
    """Wraps a copy of `module`: its parameters become functions of `z`, (d,), its buffers and modes stay its own.

    scales: parameter name -> the factor of its rows of P z, in the order of the parameters. `z` starts at zero, where
    the weights are `scale * operator.start()`.
    """

    def __init__(self, module: nn.Module, operator: Operator, scales: Mapping[str, float]) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self.operator = operator
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        device = next(module.parameters()).device
        self.z = nn.Parameter(torch.zeros(operator.d, dtype=torch.float32, device=device))
        self.scales = [scales[name] for name in self.shapes]
        self.step, self.lowest, self.highest = 0.0, -math.inf, math.inf
        _forget_parameters(self.module)

    def quantise(self, step: float, lowest: int, highest: int) -> None:
        """From here on the weights are those of z rounded to multiples of `step` within [lowest, highest] of them."""
        self.step, self.lowest, self.highest = step, lowest, highest

    def coordinates(self) -> Tensor:
        """z as integers in units of the step, (d,) int64. Needs `quantise` first."""
        return (self.z.detach() / self.step).round().clamp(self.lowest, self.highest).long()

    def weights(self) -> dict[str, Tensor]:
        """Parameter name -> tensor, differentiable in z; rounding passes gradients straight through
        (Bengio, Leonard, Courville 2013, arXiv:1308.3432)."""
        z: Tensor = self.z
        if self.step:
            rounded = (z.detach() / self.step).round().clamp(self.lowest, self.highest) * self.step
            z = z + (rounded - z.detach())
        return dict(zip(self.shapes, _Weights.apply(z, self), strict=True))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward under the weights of z."""
        return functional_call(self.module, self.weights(), args, kwargs)


class _Weights(torch.autograd.Function):
    """z -> every tensor, scaled and cut in one pass over the weights, forwards and backwards: with small networks such
    passes cost nearly as much as the transform."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, s: Subspace) -> tuple[Tensor, ...]:
        ctx.subspace = s
        parts = zip(s.operator.affine(z).split(s.sizes), s.scales, s.shapes.values(), strict=True)
        return tuple(w.mul_(scale).view(shape) for w, scale, shape in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        s: Subspace = ctx.subspace
        flat = [(g.reshape(-1), scale) for g, scale in zip(grads, s.scales, strict=True)]
        if torch.is_grad_enabled():  # differentiated once more
            return rmatvec(torch.cat([g * scale for g, scale in flat]), s.operator), None
        whole = grads[0].new_empty(s.operator.padded)
        whole[s.operator.D :] = 0
        for (g, scale), part in zip(flat, whole[: s.operator.D].split(s.sizes), strict=True):
            torch.mul(g, scale, out=part)
        return s.operator.rmatvec(whole), None


def _forget_parameters(module: nn.Module) -> None:
    """Turn parameters into buffers of the same names, so that only z is trained and `eval()` still reaches all."""
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                del child._parameters[name]
                child.register_buffer(name, parameter.detach())
