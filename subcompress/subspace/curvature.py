"""Rounds coordinates so that their errors cancel out where the loss is steep.

Each coordinate is rounded in turn, and those that are left make up for its error, by a quadratic model of the loss:
optimal brain quantization (Frantar, Alistarh 2022, arXiv:2208.11580), in the order and with the factorization of GPTQ
(Frantar et al. 2022, arXiv:2210.17323). Its Hessian is the second moment of the gradient of z, E[g g^T], which training
has anyway. GPTQ takes each row of a layer for itself; z is short enough for one matrix of all weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2048
"""The most coordinates that make up for each other's errors: the matrix grows with their square."""

MEMORY = 1 << 26
"""The most numbers in all matrices together: blocks are smaller where there are many coordinates."""

DAMPING = 0.03
"""What is added to the diagonal, as a share of its mean: the moment is of fewer gradients than coordinates, often."""

TOGETHER = 16
"""Gradients that are added at once: one at a time would move the whole matrix through memory for each."""


class Curvature:
    """The curvature of the loss in the coordinates, which tells `Subspace.round` how their errors cancel out.

    It is the second moment of the gradients of z that it has seen.

    Args:
        d: Number of coordinates.
        device: Where the gradients are.

    Attributes:
        moment: Sum of g g^T over gradients g, (blocks, n, n) float32; the last block is padded with zeros.
    """

    def __init__(self, d: int, device: torch.device | str = "cpu") -> None:
        self.d = d
        self.blocks = -(-d // max(1, min(BLOCK, MEMORY // d)))
        n = -(-d // self.blocks)
        self.moment = torch.zeros(self.blocks, n, n, dtype=torch.float32, device=device)
        self._waiting: list[Tensor] = []

    def see(self, gradient: Tensor) -> None:
        """Add a gradient, (d,)."""
        self._waiting.append(gradient.detach().float().reshape(-1).clone())
        if len(self._waiting) == TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Add the gradients that still wait to `moment`."""
        if self._waiting:
            g = self._cut(torch.stack(self._waiting))
            self.moment.baddbmm_(g.mT, g)
            self._waiting = []

    def _cut(self, x: Tensor) -> Tensor:
        """(k, d) -> (blocks, k, n)."""
        n = self.moment.shape[1]
        return torch.nn.functional.pad(x, (0, self.blocks * n - self.d)).view(len(x), self.blocks, n).transpose(0, 1)

    def integers(self, x: Tensor, steps: Tensor, top: int) -> Tensor:
        """Round x, (d,) in units of `steps`, (d,), to integers of at most `top`: (d,) float64 on the CPU.

        The nearest integers, if no gradient was seen or one was not finite.
        """
        self.flush()
        n = self.moment.shape[1]
        together = max(1, BLOCK**2 // n**2)  # so many blocks at a time: the factors take several times their memory
        moments, xs, sizes = (t.split(together) for t in (self.moment, self._on_host(x), self._on_host(steps)))
        found = [_rounded(m, own, size, top) for m, own, size in zip(moments, xs, sizes, strict=True)]
        return torch.cat(found).reshape(-1)[: self.d]

    def _on_host(self, x: Tensor) -> Tensor:
        """(d,) -> (blocks, n) float64 on the CPU."""
        return self._cut(x.detach().cpu().double()[None])[:, 0]


def _rounded(moment: Tensor, x: Tensor, steps: Tensor, top: int) -> Tensor:
    """The integers of some blocks: moment (blocks, n, n), x and steps (blocks, n) -> (blocks, n)."""
    hessian = moment.cpu().double() * steps[:, :, None] * steps[:, None]
    if not bool(hessian.isfinite().all()):
        return x.round().clamp(-top, top)
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1)
    mean[mean == 0] = 1.0  # no gradient: the nearest integers
    hessian.diagonal(dim1=1, dim2=2).add_(DAMPING * mean[:, None])
    order = hessian.diagonal(dim1=1, dim2=2).argsort(1, descending=True)  # the steepest first, as in GPTQ
    n = order.shape[1]
    hessian = hessian.gather(1, order[:, :, None].expand(-1, -1, n)).gather(2, order[:, None].expand(-1, n, -1))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    left = x.gather(1, order)
    whole = torch.empty_like(left)
    for i in range(n):
        whole[:, i] = left[:, i].round().clamp(-top, top)
        error = (left[:, i] - whole[:, i]) / factor[:, i, i]
        left[:, i + 1 :] -= error[:, None] * factor[:, i, i + 1 :]
    return torch.empty_like(whole).scatter(1, order, whole)


__all__ = ["Curvature"]
