"""A network trained directly, without coordinates; parameters of 16 bits by masters of 32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from subcompress.subspace.changing import extra_states, restore
from subcompress.subspace.masters import Masters
from subcompress.tensors.layout import is_storable


class Direct:
    """A network trained in all of its weights: the baseline."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.masters = Masters(p for p in module.parameters() if p.requires_grad)

    @contextmanager
    def materialized(self) -> Iterator[nn.Module]:
        """The network itself, with the weights of now; its gradients are the masters' after the block."""
        self.masters.give()
        yield self.module
        self.masters.take()

    def coded_bits(self) -> Tensor | None:
        """Nothing is coded."""
        return None

    def moving(self) -> dict[str, Tensor]:
        """All weights, buffers and extra state."""
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {n: self.masters.of(t).detach() for n, t in named if is_storable(t)} | extra_states(self.module)

    def settings(self) -> dict[str, Any]:
        """Nothing else."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Go on from what `moving` gave."""
        restore(self.module, self.moving(), tensors)
        self.masters.give()

    def parameters(self) -> Iterator[Tensor]:
        """Those that are not frozen, or their masters."""
        return iter(self.masters.wide)

    def train(self) -> Any:
        """Training mode."""
        return self.module.train()

    def eval(self) -> Any:
        """Evaluation mode."""
        return self.module.eval()


__all__ = ["Direct"]
