"""The base of a model that gets an adapter: the files that it was loaded from, or its own tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from subcompress.base import OnBase, attach_base, open_base, tied_names
from subcompress.base.base import HUB, BaseTensors
from subcompress.base.nesting import left_out_of
from subcompress.base.opening import WEIGHTS
from subcompress.errors import SubcompressError
from subcompress.format.payload import Parsed
from subcompress.tensors.layout import array_of, is_storable


class Bases:
    """The bases that a model may stand on, the first of them as a rule. new: tensors that start from the seed."""

    def __init__(self, model: nn.Module, new: tuple[str, ...]) -> None:
        self._rest = _bases(model, new)
        self._found: list[OnBase] = []

    def __iter__(self) -> Iterator[OnBase]:
        yield from self._found
        for found in self._rest:
            self._found.append(found)
            yield found

    def of(self, parsed: Parsed) -> OnBase:
        """The base that a file was made on. Raises SubcompressError, with both digests, where it is another one."""
        if (reference := parsed.base) is None:
            raise SubcompressError("the file has no base, so that it is not an adapter: load it with subcompress.load")
        for found in self:
            if found.base.matching(reference) is not None:
                return found
        has = self._found[0].base
        raise SubcompressError(
            f"the adapter was made on {reference.where}, with the digest {reference.digest.hex()}, but the "
            f"model, {has.name}, has the digest {has.digest.hex()}: load the model that the adapter was made on"
        )


def _bases(model: nn.Module, new: tuple[str, ...]) -> Iterator[OnBase]:
    """What the model was loaded from, if it has those values still, and its own tensors."""
    with suppress(SubcompressError):  # files of another kind are no fault: the model has its tensors
        if (saved := _saved(model)) is not None and _agrees(found := attach_base(saved, model, new), model):
            yield found
    yield attach_base(_own(model), model, new)


def _saved(model: nn.Module) -> BaseTensors | None:
    """The files that a model of transformers was loaded from: a folder, or the cache of the Hub."""
    name = str(getattr(model, "name_or_path", "") or "")
    if os.path.isdir(name):
        return open_base(name)
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    if not name or not commit:
        return None
    for file in WEIGHTS:
        if isinstance(path := try_to_load_from_cache(name, file, revision=commit), str):
            return open_base(Path(path).parent, f"{HUB}{name}@{commit}")
    return None


def _own(model: nn.Module) -> BaseTensors:
    """The model's tensors, in its own memory where that is the CPU's; one name of tied ones, as files have it."""
    others = {name for names in tied_names(model) for name in names[1:]}
    state = {n: t for n, t in model.state_dict().items() if n not in others}
    tensors = {n: t for n, t in state.items() if isinstance(t, Tensor) and is_storable(t)}
    return BaseTensors(tensors, type(model).__name__, left_out=left_out_of(state))


def _agrees(standing: OnBase, model: nn.Module) -> bool:
    """Whether the model has the base's values, bit for bit."""
    state = model.state_dict()
    return all(_equal(array_of(state[s.name]), standing.values(s.name)) for s in standing.layout)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    whole = f"u{min(a.itemsize, 8)}"
    return np.array_equal(a.reshape(-1).view(whole), np.ascontiguousarray(b).reshape(-1).view(whole))


__all__ = ["Bases"]
