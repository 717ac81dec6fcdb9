"""The network of a packed file, from which graphs are traced."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts
from subcompress.format.record import Record
from subcompress.onnx import weightless
from subcompress.onnx.weightless import WeightlessGraph
from subcompress.subspace.unwrapping import fitting
from subcompress.tensors.layout import Layout


class UnlikeError(SubcompressError):
    """Raised if a network has other tensors than the file."""


@dataclass(frozen=True, eq=False)
class Network:
    """A module with the same tensors as a packed file.

    Attributes:
        name: The name as --model takes it, or the name of the module's class.
        module: The module, without wrappers of torch.
        layout: The names, shapes and dtypes of its tensors, in the order of the file.
    """

    name: str
    module: nn.Module
    layout: Layout

    @classmethod
    def of(cls, module: nn.Module, layout: Layout, name: str = "") -> Network:
        """Take wrappers off a module and check its tensors. Raises UnlikeError if it has others than `layout`."""
        what = f"the network {name}" if name else "the model"
        try:
            return cls(name or type(module).__name__, fitting(module, layout, what), layout)
        except SubcompressError as e:
            raise UnlikeError(str(e)) from e

    def weightless(self, state: dict[str, Tensor], facts: Facts, inputs: Collection[str] = ()) -> WeightlessGraph:
        """Trace the graph without the weights in `state`. inputs: names of tensors that become inputs of the graph."""
        with weightless.loaded_weights(self.module, state):
            return weightless.trace_weightless(self.module, facts, inputs)

    def compared(self, record: Record, inputs: Collection[str] = ()) -> WeightlessGraph:
        """Trace the graph without weights, and compare it with torch, on the record's weights and on others.

        Raises SubcompressError if the module cannot be exported, or if ONNX Runtime computes something else.
        """
        return weightless.weightless_graph_of(record, self.module, inputs)


__all__ = ["Network", "UnlikeError"]
