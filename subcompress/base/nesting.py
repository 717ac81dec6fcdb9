"""The state dict in what was saved: the mapping that holds tensors, wherever it lies, and what cannot be used of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from subcompress.errors import SubcompressError, one_line
from subcompress.support.lazy import torch
from subcompress.tensors.layout import is_storable

USUAL = ("state_dict", "model_state_dict", "model")
"""Keys that a state dict lies under most often: the first of them that holds tensors is taken, whatever else does."""

DEPTH = 4
"""Mappings within mappings that are looked into."""

_GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed global|[Uu]nsupported (?:class|global)[: ]+(?:GLOBAL )?(\S+)")


def state_in(found: Any, what: str) -> Mapping[str, Any]:
    """The mapping that holds tensors. Raises SubcompressError where several do, naming them, and for what is none."""
    while (inner := _usual(found)) is not None:
        found = inner
        if _weights(found):
            break
    if isinstance(found, Mapping) and not _weights(found):
        others = dict(_nested(found, "", DEPTH))
        if len(others) > 1:
            raise SubcompressError(
                f"a base is one state dict; {what} holds several, {', '.join(list(others)[:4])}: save one of them alone"
            )
        found = next(iter(others.values()), found)
    if not isinstance(found, Mapping) or not all(isinstance(k, str) for k in found):
        raise SubcompressError(f"a base is a state dict, tensors by name; {what} holds a {type(found).__name__}")
    return found


def left_out_of(found: Mapping[str, Any]) -> dict[str, str]:
    """By name what a base cannot use, tensors of other dtypes and layouts and arrays, and what it is."""
    said: dict[str, str] = {}
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            if not is_storable(value):
                plain = value.layout == torch.strided
                said[name] = str(value.dtype if plain else value.layout).removeprefix("torch.")
        elif type(value).__module__.partition(".")[0] == "numpy":
            said[name] = f"a {type(value).__name__} of numpy"
    return said


def reason(e: Exception) -> str:
    """Why torch does not read a file, in a few words."""
    if (match := _GLOBAL.search(str(e))) is None:
        return one_line(e, 160)
    name = (match[1] or match[2]).rstrip(".,:;`'\"")
    return f"it holds {name} beside the tensors: save the state dict alone"


def _usual(found: Any) -> Mapping[str, Any] | None:
    """What lies under a usual key, where that holds tensors."""
    if isinstance(found, Mapping):
        for key in USUAL:
            inner = found.get(key)
            if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
                return inner
    return None


def _weights(found: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds tensors that may be weights: no step counters, no states of random generators."""
    return any(isinstance(v, torch.Tensor) and (v.ndim > 0 and v.dtype != torch.uint8) for v in found.values())


def _nested(found: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Mappings that hold weights, with the keys on the way to them; what an optimizer holds is by number."""
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or depth == 0:
            continue
        if _weights(value) and all(isinstance(k, str) for k in value):
            yield f"{path}{key}", value
        else:
            yield from _nested(value, f"{path}{key}.", depth - 1)
