"""A network trained directly, without coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from subcompress.subspace.changing import extra_states, restore
from subcompress.tensors.layout import is_storable


class Direct:
    """A network trained in all of its weights: the baseline."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @contextmanager
    def materialized(self) -> Iterator[nn.Module]:
        """The network itself."""
        yield self.module

    def coded_bits(self) -> Tensor | None:
        """Nothing is coded."""
        return None

    def moving(self) -> dict[str, Tensor]:
        """All weights, buffers and extra state."""
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {name: t.detach() for name, t in named if is_storable(t)} | extra_states(self.module)

    def settings(self) -> dict[str, Any]:
        """Nothing else."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Go on from what `moving` gave."""
        restore(self.module, self.moving(), tensors)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those that are not frozen."""
        return (p for p in self.module.parameters() if p.requires_grad)

    def train(self) -> Any:
        """Training mode."""
        return self.module.train()

    def eval(self) -> Any:
        """Evaluation mode."""
        return self.module.eval()


__all__ = ["Direct"]
