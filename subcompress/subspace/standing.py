"""A network on its base, and copies of it that share what none of them changes: a fit holds that once."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from subcompress.base import OnBase
from subcompress.format.record import Record, Tied, Unchanged
from subcompress.rebuild.expand import expand, expand_changed
from subcompress.subspace.copying import copied
from subcompress.subspace.starts import Start
from subcompress.tensors.layout import Layout


def standing(module: nn.Module, base: OnBase) -> nn.Module:
    """A copy of a network on the CPU, with the values of a base. Parameters of the network that have these values
    already are not copied: the two have one memory for them, as long as the copy is in use."""
    same = {n for n, p in _parameters(module) if n in base and p.device.type == "cpu" and base.holds(n, p)}
    return base.loaded(copied(module, "cpu", shared=same), same)


def kept(module: nn.Module, layout: Layout, starts: Mapping[str, Start], kinds: Collection[str]) -> frozenset[str]:
    """The parameters that start in one of these ways under all of their names."""

    def kind(name: str) -> str:
        start = starts.get(name)
        return "" if start is None else kind(layout.tensors[start.index].name) if start.kind == "tied" else start.kind

    names: dict[int, list[str]] = {}
    for name, p in _parameters(module):
        names.setdefault(id(p), []).append(name)
    return frozenset(n for own in names.values() if all(kind(n) in kinds for n in own) for n in own)


class Copies:
    """Copies of a network that is trained, on one device. On a base, they share the parameters that have its values.

    still: the names of the tensors that do not train; held: the names of these, and of those whose values in training
    come from coordinates, so that nothing is written to them. Both are empty without a base, where nothing tells
    whether the network has changed a parameter itself.
    """

    def __init__(
        self, model: nn.Module, layout: Layout, starts: Mapping[str, Start], base: OnBase | None, device: str
    ) -> None:
        self.model, self.base, self.device = model, base, device
        self.still = kept(model, layout, starts, ("kept",)) if base is not None else frozenset()
        self.held = kept(model, layout, starts, ("kept", "base")) if base is not None else frozenset()
        self._there: nn.Module | None = None

    @property
    def placed(self) -> nn.Module:
        """The network on the device, which is not to be changed."""
        if all(t.device == torch.device(self.device) for t in (*self.model.parameters(), *self.model.buffers())):
            return self.model
        if not self.held:  # a copy of it would share nothing
            return copied(self.model, self.device)
        if self._there is None:
            self._there = copied(self.model, self.device)
        return self._there

    def to_look_at(self) -> nn.Module:
        """A copy to run, or to make a subspace of, which trains none of its parameters."""
        return copied(self.placed, self.device, shared=self.held)

    def to_train(self) -> nn.Module:
        """A copy that shares nothing."""
        return copied(self.model, self.device)

    def rebuilt(self, record: Record) -> nn.Module:
        """A copy with the weights of a record."""
        entries = {spec.name: entry for spec, entry in zip(record.layout, record.entries, strict=True)}
        same = frozenset(n for n in self.still if isinstance(entries.get(n), (Unchanged, Tied)))
        module = copied(self.placed if same else self.model, self.device, shared=same)
        if not same:
            module.load_state_dict(expand(record))
            return module
        changed = [s for s in record.layout if s.name not in same and not isinstance(entries[s.name], Unchanged)]
        state = {spec.name: torch.empty(spec.shape, dtype=spec.torch_dtype, device="cpu") for spec in changed}
        expand_changed(record, state)
        module.load_state_dict(state, strict=False)
        return module

    def restored(self) -> list[str]:
        """Give parameters that the network has changed itself the base's values again, and share them no longer; their
        names."""
        if self.base is None or not self.held:
            return []
        base, found = self.base, list[str]()
        for module in {id(m): m for m in (self.model, self.placed)}.values():
            changed = [n for n, p in _parameters(module) if n in self.held and n in base and not base.holds(n, p)]
            base.loaded(module, {spec.name for spec in base.layout} - set(changed))
            found += changed
        self.still, self.held = self.still - set(found), self.held - set(found)
        return list(dict.fromkeys(found))


def _parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.named_parameters(remove_duplicate=False))


__all__ = ["Copies", "kept", "standing"]
