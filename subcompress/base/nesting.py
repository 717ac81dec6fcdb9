"""Finding the state dict in what torch.save wrote: a mapping of tensors, perhaps nested, and what is left out of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from subcompress.errors import SubcompressError, one_line
from subcompress.support.lazy import torch
from subcompress.tensors.layout import is_storable

USUAL = ("state_dict", "model_state_dict", "model")
"""The usual keys of a state dict. The first that holds tensors is taken, even if other mappings hold some too."""

DEPTH = 4
"""How deep nested mappings are searched."""

_GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed global|[Uu]nsupported (?:class|global)[: ]+(?:GLOBAL )?(\S+)")


def state_in(found: Any, what: str) -> Mapping[str, Any]:
    """Find the mapping that holds tensors. Raises SubcompressError, naming them, if several do, and if none does."""
    while (inner := _usual(found)) is not None:
        found = inner
        if _has_weights(found):
            break
    if isinstance(found, Mapping) and not _has_weights(found):
        others = dict(_nested(found, "", DEPTH))
        if len(others) > 1:
            raise SubcompressError(
                f"{what} holds several state dicts, {', '.join(list(others)[:4])}, and a base is one: save one "
                "of them alone"
            )
        found = next(iter(others.values()), found)
    if not isinstance(found, Mapping) or not all(isinstance(k, str) for k in found):
        raise SubcompressError(f"a base must be a state dict (tensors by name); {what} holds a {type(found).__name__}")
    return found


def left_out_of(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that a base cannot use, by name, with what they are: unsupported dtypes and layouts, NumPy
    arrays."""
    reasons: dict[str, str] = {}
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            if not is_storable(value):
                plain = value.layout == torch.strided
                reasons[name] = str(value.dtype if plain else value.layout).removeprefix("torch.")
        elif type(value).__module__.partition(".")[0] == "numpy":
            reasons[name] = f"a NumPy {type(value).__name__}"
    return reasons


def reason(e: Exception) -> str:
    """Explain in a few words why torch does not load a file."""
    if (match := _GLOBAL.search(str(e))) is None:
        return one_line(e, 160)
    name = (match[1] or match[2]).rstrip(".,:;`'\"")
    return f"it holds {name}, which is not a tensor: save the state dict alone"


def _usual(found: Any) -> Mapping[str, Any] | None:
    """Return the mapping under a usual key if it holds tensors."""
    if isinstance(found, Mapping):
        for key in USUAL:
            inner = found.get(key)
            if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
                return inner
    return None


def _has_weights(found: Mapping[Any, Any]) -> bool:
    """Return whether a mapping holds tensors that may be weights, not only step counters and generator states."""
    return any(isinstance(v, torch.Tensor) and (v.ndim > 0 and v.dtype != torch.uint8) for v in found.values())


def _nested(found: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield nested mappings that hold weights, with their path; an optimizer's are keyed by number and skipped."""
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or depth == 0:
            continue
        if _has_weights(value) and all(isinstance(k, str) for k in value):
            yield f"{path}{key}", value
        else:
            yield from _nested(value, f"{path}{key}.", depth - 1)
