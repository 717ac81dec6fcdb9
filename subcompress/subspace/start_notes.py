"""What a person should know of how a network starts, a line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from subcompress.subspace.structure import STORABLE

if TYPE_CHECKING:
    from subcompress.subspace.starts import Start, Values

NAMED = 4
"""The most tensors that a line names."""

LARGE_BUFFER = 1 << 10
"""The fewest bytes of a buffer in a file for which it is named."""

MIXED = "a pattern of chosen values"
"""The structure of a tensor whose fixed values are in too many places."""

ODD = "values of another distribution"
"""The structure of values of an instance that no usual initializer draws, but that are too many to keep."""


def some_of(names: Iterable[str]) -> str:
    """The first NAMED names, and how many there are beyond."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def start_notes(values: Mapping[str, Values]) -> list[str]:
    """What the starts of trained tensors change, a line each."""
    found = []
    if names := [n for n, v in values.items() if v.structured in STORABLE and v.drawn]:
        found.append(
            f"{some_of(names)}: random orthogonal or sparse values; each starts from the seed instead, with "
            "independent values of the same standard deviation (--structured store keeps the original ones in "
            "the file)"
        )
    if names := [n for n, v in values.items() if v.structured == MIXED]:
        found.append(
            f"warning: {some_of(names)}: fixed values lie between random ones in too many places to be stored; "
            "all values start from the seed with the same standard deviation instead: multiply by the pattern "
            "in forward"
        )
    if names := [n for n, v in values.items() if v.structured == ODD]:
        found.append(
            f"{some_of(names)}: no usual initializer draws these values; each starts from the seed with its "
            "standard deviation instead: give a factory, or --base if the weights are trained"
        )
    return found


def same_note(bytes_: int) -> str:
    """The warning where a factory draws nothing. bytes_: what the weights take in a file."""
    return (
        "warning: the factory gives the same weights under every seed, so that none of them count as random: "
        f"they take about {bytes_} bytes of the file; let it draw from the seed that is set before it is "
        "called, or give --structured guess"
    )


def frozen_note(module: nn.Module, starts: Mapping[str, Start]) -> str | None:
    """A warning that states the cost of frozen weights; None if there are none."""
    frozen = [n for n, _ in module.named_parameters() if starts[n].why.startswith("frozen")]
    if not frozen:
        return None
    return (
        f"{len(frozen)} frozen tensors (requires_grad=False) are not counted in D and are stored in the file: "
        f"about {sum(starts[n].cost for n in frozen)} bytes; unfreeze them to code them with the rest, or --drop what "
        f"inference does not need: {some_of(frozen)}"
    )


def buffer_note(state: Mapping[str, Tensor], starts: Mapping[str, Start]) -> str | None:
    """A warning that names buffers that cost more than LARGE_BUFFER bytes of the file, None if there are none."""
    large = [(n, starts[n].cost) for n in state if starts[n].kind == "buffer" and starts[n].cost > LARGE_BUFFER]
    if not large:
        return None
    named = some_of(f"{n} ({c} bytes)" for n, c in sorted(large, key=lambda x: -x[1]))
    return f"buffers are stored in the file: {named}; give --drop PATTERN for those that inference does not need"
