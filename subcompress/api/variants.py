"""Many files on one base, and one module that is any of them: what is idle is a file of hundreds of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subcompress import format
from subcompress.base import open_base
from subcompress.errors import SubcompressError
from subcompress.format.record import Record, Unchanged
from subcompress.format.sections import BasedLayout
from subcompress.rebuild.arrays import check_digest
from subcompress.rebuild.expand import expand_changed
from subcompress.rebuild.streaming import stream
from subcompress.subspace.copying import own_memory
from subcompress.subspace.hidden import check_sharing
from subcompress.subspace.unwrapping import unwrapped
from subcompress.tensors.layout import TensorSpec, raw_bytes


class Variants(Mapping[str, bytes]):
    """Many fine-tunes of one base in one module. `use` gives the module the weights of one of them.

    The module and the base are held once. Each variant takes only as much memory as its file has bytes. Use the object
    from one thread at a time. A module whose tensors share memory is refused.

        variants = Variants(module, "hub:ORG/BASE")
        variants.add("reviews", "reviews.safetensors")
        variants.use("reviews")(x)
    """

    def __init__(self, module: nn.Module, base: Any) -> None:
        self._inside = own_memory(unwrapped(module))
        check_sharing(self._inside)
        self.module, self.base = module.eval(), open_base(base)
        self.name: str | None = None
        self._files: dict[str, bytes] = {}
        self._heads: set[str] = set()  # tensors that some file has anew, and which are of any size therefore
        self._acting: Record | None = None
        _ = self.base.digest  # once, and not at the first switch

    def __getitem__(self, name: str) -> bytes:
        return self._files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def add(self, name: str, path: str | Path) -> None:
        """Hold a file under a name. Raises SubcompressError for one that is damaged or has another base."""
        data = format.file_bytes(path)
        layout = format.parse(data).layout
        if not isinstance(layout, BasedLayout):
            raise SubcompressError(
                f"{path} is not a fine-tune, and variants are fine-tunes of one base: load it with subcompress.load"
            )
        reference = layout.base
        if (found := self.base.matching(reference)) is None or (self._files and found is not self.base):
            self.base.require(reference)
        self.base = found or self.base
        self._files[name] = data
        self._heads |= {spec.name for spec in layout.new}
        if name == self.name:
            self.name = None  # another file than the one in use

    def use(self, name: str) -> nn.Module:
        """The module with the weights of that file, checked against its digest before anything is changed.

        Raises SubcompressError for a name that is not held, and a file that is not of this module.
        """
        if name not in self._files:
            raise SubcompressError(
                f"there is no variant {name!r}; the variants are {', '.join(self._files) or 'none yet'}"
            )
        if name == self.name:
            return self.module
        record, _ = format.from_bytes(self._files[name], self.base)
        places = _places(self._inside, record, self._heads)
        check_digest(record, stream(record))
        before, self.name, self._acting = self._acting, None, None
        for spec in record.layout:
            if places[spec.name].shape != spec.shape:
                _resize(self._inside, spec, places[spec.name])
        self._restore(before, record)
        with torch.no_grad():
            expand_changed(record, {name: t.detach() for name, t in places.items()})
        self.name, self._acting = name, record
        return self.module

    def _restore(self, before: Record | None, record: Record) -> None:
        """Give back to the base what the file in use has changed and the next one will not, all of it at first."""
        standing, state = record.base, self._inside.state_dict()
        assert standing is not None, "add() saw to it"
        changed = None if before is None else _changed(before)
        keeps = _changed(record)
        for spec in standing.layout:
            if (changed is None or spec.name in changed) and spec.name not in keeps:
                value = standing.tensor(spec.name)
                # What is mapped from a file stays so, and is not copied, where nothing has to be written.
                if raw_bytes(state[spec.name]) != raw_bytes(value):
                    state[spec.name].copy_(value)


def _resize(module: nn.Module, spec: TensorSpec, place: torch.Tensor) -> None:
    """Make a head one of another size, its outputs as its layer tells them too."""
    place.data = place.new_empty(spec.shape)
    owner = module.get_submodule(spec.name.rpartition(".")[0])
    if isinstance(owner, nn.Linear):
        owner.out_features = spec.shape[0]


def _changed(record: Record) -> set[str]:
    """The tensors of a file that are not the base's."""
    return {s.name for s, e in zip(record.layout, record.entries, strict=True) if not isinstance(e, Unchanged)}


def _places(module: nn.Module, record: Record, heads: set[str]) -> dict[str, torch.Tensor]:
    """The module's tensors by name. Raises SubcompressError if it has others than the file, heads' sizes aside."""
    state = module.state_dict(keep_vars=True)
    assert record.base is not None, "add() saw to it"
    for spec in record.layout:
        same = spec.name in state and state[spec.name].dtype == spec.torch_dtype
        if not same or (state[spec.name].shape != spec.shape and spec.name not in heads):
            raise SubcompressError(
                f"the file holds {spec}, which the module lacks: give the model that it was made from"
            )
    if more := sorted(state.keys() - {s.name for s in record.layout}):
        raise SubcompressError(f"the module has {more[0]}, which the file lacks: give the model that it was made from")
    return state


__all__ = ["Variants"]
