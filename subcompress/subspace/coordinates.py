"""z and the weights that it gives, without a network: what `Subspace` and the adapters of PEFT have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts
from subcompress.format.record import Record
from subcompress.operators import EXACT
from subcompress.subspace import traced
from subcompress.subspace.curvature import Curvature
from subcompress.subspace.gradients import Weights, cut
from subcompress.subspace.plan import Plan
from subcompress.subspace.recording import recorded
from subcompress.subspace.rounding import Rounding

FITTINGS = 4
"""The most times that coordinates are rounded, each with a longer step, until they fit in their room."""


class Coordinates(nn.Module):
    """The coordinates z of a plan, of shape (d,), and the weights that they give."""

    def __init__(self, plan: Plan, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.z = nn.Parameter(torch.zeros(plan.d, dtype=torch.float32, device=device))
        self.splits = [p.operator.d for p in plan.parts]
        drawn = torch.Generator().manual_seed(plan.seed & ((1 << 63) - 1))
        with torch.no_grad():
            for z, part in zip(self.z.split(self.splits), plan.parts, strict=True):
                if part.spreads:
                    spreads = torch.tensor(part.spreads).repeat_interleave(torch.tensor(part.sizes))
                    z.copy_(spreads * torch.randn(len(z), generator=drawn))
        self.rounding = Rounding(plan.parts)
        self._wide = _wide_starts(plan)
        self._nodes = [
            traced.Node(
                part, tuple(0.0 if s.name in self._wide else b for s, b in zip(part.specs, part.starts, strict=True))
            )
            for part in plan.parts
        ]
        # torch.compile follows no look-up of a dtype by its name.
        self._dtypes = {spec.name: spec.torch_dtype for part in plan.parts for spec in part.specs}

    def round(self, bits: int = 4, room: int | None = None, curvature: Curvature | None = None) -> None:
        """Round the weights from here on to those that will be packed.

        z is rounded to integers of the given bits; gradients pass straight through (Bengio, Leonard, Courville 2013,
        arXiv:1308.3432). Call it about half-way through the training; with a curvature, near its end.

        Args:
            bits: Bits of a coordinate, 2 to 8.
            room: Bytes that the coordinates may take: steps are longer, and more coordinates zero, where they would
                take more.
            curvature: What has seen the gradients of z in the steps before. z is moved to integers whose errors cancel
                out where the loss is steep.
        """
        z, allowed = self.z.detach().clone(), room
        self.rounding.begin(bits, self.parts(), room)
        if curvature is None:
            return
        for _ in range(FITTINGS):
            self._place(z, curvature)
            if room is None or allowed is None or (taken := self.coded_bytes()) <= room:
                return
            allowed = allowed * room // (taken + 1)  # integers that cancel errors are a little larger than the nearest
            self.rounding.begin(bits, z.split(self.splits), allowed)

    @torch.no_grad()
    def _place(self, z: Tensor, curvature: Curvature) -> None:
        """Move the coordinates from z to the integers whose errors cancel out."""
        each = torch.tensor(self.rounding.steps, dtype=torch.float64, device="cpu")
        steps = each.repeat_interleave(torch.tensor(self.splits, device="cpu"))
        self.z.copy_(curvature.integers(z.cpu().double() / steps, steps, self.rounding.top) * steps)

    @property
    def bits(self) -> int:
        """Bits of a coordinate; zero before `round`."""
        return self.rounding.bits

    def coordinates(self) -> list[Tensor]:
        """Each part's z as integers in units of its step, (d_i,) int64. Needs `round` first."""
        return self.rounding.integers(self.parts())

    def parts(self) -> tuple[Tensor, ...]:
        """z cut into the coordinates of each part, without gradients."""
        return self.z.detach().split(self.splits)

    def shorten(self, limit: int) -> None:
        """Let coordinates round to zero, the smallest first, as few as bring `coded_bytes` to at most `limit` (all of
        them where none do). Needs `round` first."""
        self.rounding.shorten(self.parts(), limit)

    def coded_bits(self) -> Tensor | None:
        """Bits of all coordinates under their own frequencies, (), interpolated between the integers, so that it is
        differentiable in z: what the adaptive coder comes near to. None before `round`."""
        return self.rounding.entropy(self.z.split(self.splits)) if self.bits else None

    def coded_bytes(self) -> int:
        """What the coordinates take in a file, running statistics not counted."""
        return self.rounding.coded_bytes(self.parts())

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor for every trained entry of the state dict, tied ones too, differentiable in z. From `round` on
        they are those that `record` packs, bit for bit."""
        found: dict[str, Tensor] = {}
        for node, tensors in zip(self._nodes, self._cuts(), strict=True):
            for spec, w in zip(node.part.specs, tensors, strict=True):
                if spec.dtype == "C64":  # no view: rows may begin at an odd place
                    w = torch.complex(*w.view(*spec.shape, 2).unbind(-1))
                dtype = self._dtypes[spec.name]
                found[spec.name] = w if w.dtype == dtype else w.to(dtype)
        for name, start in self._wide.items():
            found[name] = found[name] + start.to(found[name].device)
        for name, assembly in self.plan.assemblies.items():
            pieces = [found.pop(s) if isinstance(s, str) else s.to(self.z.device) for s in assembly.sources]
            found[name] = assembly.tensor(pieces)
        tied = {
            name: found[other]
            for name, s in self.plan.starts.items()
            if s.kind == "tied" and (other := self.plan.layout.tensors[s.index].name) in found
        }
        return found | tied

    def _cuts(self) -> Iterator[tuple[Tensor, ...]]:
        """Each part's tensors."""
        parts = zip(self.z.split(self.splits), self._nodes, strict=True)
        if torch.compiler.is_compiling():
            for i, (z, node) in enumerate(parts):
                yield cut(node.part, traced.weights(z, self.rounding.state, node.key, i, node.part.operator.D))
        else:
            bits, dead, *steps = self.rounding.state.tolist()
            for (z, node), step in zip(parts, steps, strict=True):
                yield Weights.apply(z, node, int(bits), dead, step)

    def recorded(
        self,
        state: Mapping[str, Tensor],
        untrained: Mapping[str, Tensor],
        facts: Facts | None = None,
        test_accuracy: float | None = None,
        of_base: Collection[str] = (),
    ) -> Record:
        """What was trained, exactly: the scales rounded to bfloat16, the frozen constant an integer, running
        statistics quantised, with the digest of the weights it rebuilds.

        state: the state dict of the network; untrained: its buffers and frozen tensors as they were before; of_base:
        those that were as the base has them. Raises
        SubcompressError before `round`, and for an operator that is not exact.
        """
        if not self.plan.exact:
            name = type(self.plan.parts[0].operator).__name__
            raise SubcompressError(
                f"{name} is an operator for comparisons, which is not exact on every device: fit with "
                f"--operator {' or '.join(EXACT)}"
            )
        if self.plan.base is not None:
            self.plan.base.base.check_unchanged()
        if not self.bits:
            raise SubcompressError(
                "the coordinates were not rounded to integers, so that they cannot be packed: call round(bits) "
                "half-way through the training"
            )
        return recorded(
            self.plan, self.rounding, self.coordinates(), state, untrained, facts or Facts(), test_accuracy, of_base
        )

    def settings(self) -> dict[str, Any]:
        """What `moving` does not hold of a training: whether and how z is rounded."""
        return self.rounding.settings()

    def get_extra_state(self) -> Tensor:
        """`settings` as a tensor, in the state dict: a trainer that keeps and loads it, as torch's and transformers'
        do, goes on with what was rounded."""
        return self.rounding.state.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from what `get_extra_state` gave."""
        self.rounding.state.copy_(state)


def keep_statistics(module: nn.Module) -> None:
    """Let layers with running statistics keep to those they have, in training too: a base has its own."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._NormBase) and child.running_mean is not None:
            child.eval()


def _wide_starts(plan: Plan) -> dict[str, Tensor]:
    """Starts of float64 tensors that are tensors too: the format adds these in float64, the base's as they are."""
    found: dict[str, Tensor] = {}
    for part in plan.parts:
        for spec, start in zip(part.specs, part.starts, strict=True):
            if spec.dtype == "F64" and isinstance(start, Tensor):
                found[spec.name] = start.double().reshape(spec.shape)
    return found


__all__ = ["Coordinates", "keep_statistics"]
