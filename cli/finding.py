"""The network of a packed file: what --model names, else the one of ours that has the file's tensors. For all commands
that trace a graph; NumPy and torch are imported when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subcompress.errors import SubcompressError
from subcompress_cli.options import say

if TYPE_CHECKING:
    from torch import nn

    from subcompress.tensors.layout import Layout

Built = dict[tuple[str, "Layout"], "nn.Module"]
"""Networks that were made for other files, and do for all of the same layout."""


def network_for(file: Path, model: str | None, base: str | None = None, built: Built | None = None) -> nn.Module:
    """The network to hold the weights of a file, which stands on `base` where it stands on one.

    model: what --model names, which must have the file's tensors; None for the one of ours that has them. Raises
    SubcompressError where there is none.
    """
    from subcompress import format

    layout = format.read(file, base)[0].layout
    name = _known(layout, file.name) if model is None else model
    built = {} if built is None else built
    if (name, layout) not in built:
        built[name, layout] = _fitting(name, layout, "the model")
    return built[name, layout]


def network_if_known(file: Path, model: str | None, base: str | None = None) -> nn.Module | None:
    """`network_for`, but None where --model names none and the file is of none of ours."""
    from subcompress import format

    if model is None and known_name(format.read(file, base)[0].layout) is None:
        return None
    return network_for(file, model, base)


def networks_of(layout: Layout, models: Sequence[str], file: str) -> Iterator[tuple[str, nn.Module]]:
    """Name and network of each that has the tensors of `layout`, made when it is asked for: those of `models` in their
    order, then the one of ours.

    file: what they are of, for people. Raises SubcompressError where there is none. A name that cannot be used is said
    where it is not needed.
    """
    why, broken, found = "", [], []
    for given in dict.fromkeys(models):
        try:
            module = _fitting(given, layout, f"the network {given}")
        except _UnlikeError as e:
            why = str(e)
            continue
        except SubcompressError as e:
            broken.append(str(e))
            continue
        found.append(given)
        yield given, module
    known = known_name(layout)
    if known in found or (found and known is None):
        return
    if known is None and broken:
        raise SubcompressError(broken[-1])
    name = _known(layout, file, why)
    for text in broken if not found else ():
        say(f"--model is not needed for {file}, and cannot be used: {text}")
    yield name, _fitting(name, layout, "the model")


def known_name(layout: Layout) -> str | None:
    """The network of ours that has these tensors, in whatever order; None where none has."""
    from subcompress.format import tables
    from subcompress.support.names import MODELS

    name = tables.network_of(layout)
    return name if name in MODELS else None


def _known(layout: Layout, file: str, why: str = "") -> str:
    if (name := known_name(layout)) is None:
        why = why or "its layout is not that of a network known by name"
        raise SubcompressError(f"{file} needs its network, to trace a graph: give it with --model ({why})")
    return name


class _UnlikeError(SubcompressError):
    """A network has other tensors."""


def _fitting(name: str, layout: Layout, what: str) -> nn.Module:
    """The network of that name. Raises SubcompressError where it cannot be built or has other tensors than `layout`."""
    from subcompress.subspace.unwrapping import unwrapped_for
    from subcompress.tensors.layout import Layout as Found
    from subcompress_cli.loading import model_of

    module = unwrapped_for(model_of(name, layout=layout), layout)
    try:
        layout.require(Found.of(module.state_dict()), what)
    except SubcompressError as e:
        raise _UnlikeError(str(e)) from e
    return module
