"""What moves z. A new one is one class and one line.

Adam is the default. `eigen` is Adam in the eigenbasis of the gradients' second moment, E[g g^T]: SOAP (Vyas et al.
2024, arXiv:2409.11321) where one matrix holds all of it, which d makes affordable. It needs fewer coordinates where
they are few: with scales guessed from the starts, d_int90 on MNIST falls from 364 to 252 for the MLP, from 161 to 138
for LeNet (benchmarks/dimension.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from subcompress.support.stepping import Adam, Uncompiled

BLOCK = 1024
"""Coordinates that share a basis: its cost grows with their cube."""

EVERY = 50
"""Steps between two bases."""


class Eigen(Uncompiled):
    """For one vector z, (d,), in blocks of at most BLOCK coordinates."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.99), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self._direction(p, group).view_as(p), alpha=group["lr"])

    def _direction(self, p: nn.Parameter, group: dict[str, Any]) -> Tensor:
        state, d = self.state[p], p.numel()
        blocks = -(-d // BLOCK)
        n = -(-d // blocks)
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["moment"] = p.new_zeros(blocks, n, n)
            state["basis"] = torch.eye(n, device=p.device, dtype=p.dtype).repeat(blocks, 1, 1)
            state["m"], state["v"] = p.new_zeros(blocks, n, 1), p.new_zeros(blocks, n, 1)
        assert p.grad is not None
        g = torch.nn.functional.pad(p.grad.reshape(-1), (0, blocks * n - d)).view(blocks, n, 1)
        beta1, beta2 = group["betas"]
        state["moment"].baddbmm_(g, g.mT, beta=beta2, alpha=1 - beta2)
        # The first basis waits until there are gradients enough to tell directions apart.
        due = int(state["step"]) % EVERY == EVERY // 2
        if due and bool(state["moment"].isfinite().all()):  # else the run is dead, which its judge will say
            # Row-major, as a checkpoint gives it back: sums in the other order would differ in their last bits.
            fresh = torch.linalg.eigh(state["moment"])[1].contiguous()
            state["m"] = fresh.mT @ (state["basis"] @ state["m"])
            state["v"] = (fresh * (state["moment"] @ fresh)).sum(1).clamp_min(0).unsqueeze(-1)
            state["basis"] = fresh
        state["step"] += 1
        turned = state["basis"].mT @ g
        state["m"].lerp_(turned, 1 - beta1)
        state["v"].lerp_(turned.square(), 1 - beta2)
        t = float(state["step"])
        m, v = state["m"] / (1 - beta1**t), state["v"] / (1 - beta2**t)
        direction: Tensor = (state["basis"] @ (m / (v.sqrt() + group["eps"]))).reshape(-1)[:d]
        return direction


def adam(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """PyTorch's, fused where it can be."""
    return Adam(parameters, lr=lr, fused=all(p.dtype == torch.float32 for p in parameters))


OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {"adam": adam, "eigen": Eigen}


def state_like(name: str, p: Tensor) -> dict[str, Tensor]:
    """What an optimizer of that name keeps of a parameter once it has had a gradient: tensors of the same dtypes and
    shapes, their values aside."""
    like = nn.Parameter(torch.zeros_like(p, requires_grad=False))
    optimiser = OPTIMIZERS[name]([like], 1e-3)
    like.grad = torch.zeros_like(like)
    optimiser.step()
    return {key: value for key, value in optimiser.state[like].items() if isinstance(value, Tensor)}


def scheduled(schedule: Any) -> float:
    """The step size of a schedule at its `last_epoch`; also sets the momentum of its optimizer there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # outside of step() it is what torch would advise against
        return float(schedule.get_lr()[0])


__all__ = ["OPTIMIZERS", "scheduled", "state_like"]
