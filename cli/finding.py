"""Finding the network of a packed file: the one that --model names, else the known one with the file's tensors.

For all commands that trace a graph. NumPy and torch are imported on first use.
"""

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
"""Networks that were built for other files, by name and layout."""


def network_for(file: Path, model: str | None, base: str | None = None, built: Built | None = None) -> nn.Module:
    """Return the network for the weights of a file. base: the base of a file that has one.

    model: the argument of --model, which must have the file's tensors; None for the known network that has them. Raises
    SubcompressError if there is none.
    """
    from subcompress import format

    layout = format.read(file, base)[0].layout
    name = _require_known(layout, file.name) if model is None else model
    built = {} if built is None else built
    if (name, layout) not in built:
        built[name, layout] = _build_fitting(name, layout, "the model")
    return built[name, layout]


def network_if_known(file: Path, model: str | None, base: str | None = None) -> nn.Module | None:
    """Return the network like `network_for`, or None without --model if no known network fits."""
    from subcompress import format

    if model is None and known_name(format.read(file, base)[0].layout) is None:
        return None
    return network_for(file, model, base)


def networks_of(layout: Layout, models: Sequence[str], file: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and network of each that has the tensors of `layout`: those in `models` in order, then the known one.

    Each is built when it is reached. file: its name for messages. Raises SubcompressError if there is none. A name that
    cannot be used is reported if it is not needed.
    """
    why, failures, found = "", [], []
    for name_given in dict.fromkeys(models):
        try:
            module = _build_fitting(name_given, layout, f"the network {name_given}")
        except _UnlikeError as e:
            why = str(e)
            continue
        except SubcompressError as e:
            failures.append(str(e))
            continue
        found.append(name_given)
        yield name_given, module
    known = known_name(layout)
    if known in found or (found and known is None):
        return
    if known is None and failures:
        raise SubcompressError(failures[-1])
    name = _require_known(layout, file, why)
    for text in failures if not found else ():
        say(f"--model is not needed for {file}, and cannot be used: {text}")
    yield name, _build_fitting(name, layout, "the model")


def known_name(layout: Layout) -> str | None:
    """Return the known network that has these tensors in any order; None if there is none."""
    from subcompress.format import tables
    from subcompress.support.names import MODELS

    name = tables.network_of(layout)
    return name if name in MODELS else None


def _require_known(layout: Layout, file: str, why: str = "") -> str:
    if (name := known_name(layout)) is None:
        why = why or "its layout is not that of a network known by name"
        raise SubcompressError(f"{file} needs its network, to trace a graph: give it with --model ({why})")
    return name


class _UnlikeError(SubcompressError):
    """A network has other tensors than the file."""


def _build_fitting(name: str, layout: Layout, what: str) -> nn.Module:
    """Build the named network. Raises SubcompressError if that fails or it has other tensors than `layout`."""
    from subcompress.subspace.unwrapping import unwrapped_for
    from subcompress.tensors.layout import Layout as Found
    from subcompress_cli.loading import model_of

    module = unwrapped_for(model_of(name, layout=layout), layout)
    try:
        layout.require(Found.of(module.state_dict()), what)
    except SubcompressError as e:
        raise _UnlikeError(str(e)) from e
    return module
