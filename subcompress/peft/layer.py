"""The adapters of a model, and what their weights take the place of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from subcompress.format.record import Record
from subcompress.subspace.coordinates import Coordinates
from subcompress.subspace.plan import Plan


class Adapter(Coordinates):
    """The coordinates of one adapter. bits: those that its file will have."""

    def __init__(self, plan: Plan, bits: int, device: torch.device | str) -> None:
        super().__init__(plan, device)
        self.file_bits = bits
        self._read: tuple[Tensor, Tensor] | None = None

    def was_read(self, z: Tensor, bits: int, step: float) -> None:
        """Note the coordinates, (d,), that were read from a file, and their step: as long as they stay so, they are
        rounded as they were."""
        state = self.rounding.state.new_tensor([bits, 0.5, step])
        self._read = z.detach().cpu().clone(), state

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Coordinates are rounded as a file holds them, while the block lasts: as training rounds them where it does,
        as the file has them that they came from, or by how they are spread now."""
        before = self.rounding.state
        try:
            if not self.bits:
                self.rounding.state = before.clone()
                if self._read is not None and torch.equal(self._read[0], self.z.detach().cpu()):
                    self.rounding.state = self._read[1].clone()
                else:
                    self.rounding.begin(self.file_bits, self.parts())
            yield
        finally:
            self.rounding.state = before

    def saved_weights(self) -> dict[str, Tensor]:
        """`weights`, as a file holds them."""
        with self.as_saved():
            return self.weights()

    def packed(self, state: Mapping[str, Tensor]) -> Record:
        """What a file holds. state: the state dict of the model."""
        with self.as_saved():
            return self.recorded(state, {})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        """Move to a device; coordinates stay float32, whatever the model becomes."""
        return super()._apply(lambda t: fn(t) if fn(t).dtype == t.dtype else t.to(fn(t).device), recurse)


class SubspaceLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc, unused-ignore]
    """All adapters of a model, by name: what PEFT asks for its states."""

    adapter_layer_names = ("adapters",)

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._active_adapter: list[str] = []
        self._disable_adapters = False

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """What PEFT calls after it has loaded an adapter onto a device that it chose."""
        if device is not None:
            self.adapters[adapter_name].to(device)

    @property
    def acting(self) -> str | None:
        """The adapter with whose weights the model computes, if any."""
        names = self.active_adapters
        return names[0] if names and not self.disable_adapters and not self.merged_adapters else None


class Swap:
    """Weights in the place of a model's own parameters for a while. places: name -> the module and its name there."""

    def __init__(self, model: nn.Module) -> None:
        self.places: dict[str, tuple[nn.Module, str]] = {}
        for name, _ in model.named_parameters(remove_duplicate=False):
            prefix, _, leaf = name.rpartition(".")
            self.places[name] = model.get_submodule(prefix), leaf
        self._before: list[tuple[nn.Module, str, Any]] = []

    @property
    def held(self) -> bool:
        """Whether other weights are in place."""
        return bool(self._before)

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights in place, in that of the model's own parameters."""
        for name, w in weights.items():
            owner, leaf = self.places[name]
            self._before.append((owner, leaf, owner._parameters[leaf]))
            owner._parameters[leaf] = w  # type: ignore[assignment]

    def give_back(self) -> None:
        """Put the model's own parameters back."""
        while self._before:
            owner, leaf, parameter = self._before.pop()
            owner._parameters[leaf] = parameter


__all__ = ["Adapter", "SubspaceLayer", "Swap"]
