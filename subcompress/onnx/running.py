"""A module that runs a graph in ONNX Runtime, so that code that evaluates modules evaluates graphs too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from subcompress.format.facts import Facts
from subcompress.onnx.session import Session


class InRuntime(nn.Module):
    """Runs the graph at `path` like the network that it was traced from. Outputs are on the CPU, without gradients.

    It has no parameters. facts: the facts with which the graph was traced. like: the output of the network for some
    input; outputs get the same structure. device: cpu or cuda. Raises SubcompressError as `Session` does.
    """

    def __init__(self, path: Path, facts: Facts, like: Any, device: str = "cpu") -> None:
        super().__init__()
        self._session, self._several, self._like = Session(path, device=device), bool(facts.inputs), like

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The most examples of a batch."""
        given = named or {f"input_{i}" if self._several else "input": x for i, x in enumerate(inputs)}
        taken = self._session.inputs  # the exporter drops inputs that nothing depends on
        found = self._session(**{name: x for name, x in given.items() if name in taken})
        rest = iter(found if isinstance(found, tuple) else (found,))
        return tree_map_only(Tensor, lambda like: _as(like, next(rest).cpu()), self._like)


def _as(like: Tensor, found: Tensor) -> Tensor:
    """Turn pairs of real numbers, which a graph has for complex numbers, back into those."""
    return torch.view_as_complex(found.contiguous()) if like.is_complex() else found
