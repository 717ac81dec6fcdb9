"""Finding the network of a packed file: the one that --model names, else one with the file's tensors.

That is one known by name, else the one that the configuration of the file's base makes. For all commands that need a
network. NumPy and torch are imported on first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subcompress.errors import SubcompressError
from subcompress.remote.references import HF
from subcompress_cli.options import say

if TYPE_CHECKING:
    from subcompress.base import BaseReference
    from subcompress.onnx.network import Network
    from subcompress.tensors.layout import Layout

Built = dict[tuple[str, "Layout"], "Network"]
"""Networks that were built for other files, by name and layout."""

Place = tuple[str, str | None]
"""A folder with the configuration of a network, or its id on the Hub and a commit."""


def network_for(file: Path, model: str | None, base: str | None = None, built: Built | None = None) -> Network:
    """Return the network for the weights of a file. base: the base of a file that has one.

    model: the argument of --model, which must have the file's tensors; None for one that is known or made from the
    base's configuration. Raises SubcompressError if there is none.
    """
    from subcompress import format

    layout = format.read(file, base)[0].layout
    name = model or _required_name(layout, place_of_base(file, base), file.name)
    built = {} if built is None else built
    if (name, layout) not in built:
        built[name, layout] = _build(name, layout)
    return built[name, layout]


def network_if_known(file: Path, model: str | None, base: str | None = None) -> Network | None:
    """Return the network like `network_for`, or None without --model if none has the tensors of the file."""
    from subcompress import format

    if model is None:
        name, _ = _name_for(format.read(file, base)[0].layout, place_of_base(file, base))
        if name is None:
            return None
    return network_for(file, model, base)


def networks_of(layout: Layout, models: Sequence[str], file: str, place: Place | None = None) -> Iterator[Network]:
    """Yield each network that has the tensors of `layout`: those in `models` in order, then the one found without.

    Each is built when it is reached. file: its name for messages; place: of the configuration of its base, if it has
    one. Raises SubcompressError if there is none. A name that cannot be used is reported if it is not needed.
    """
    from subcompress.onnx.network import UnlikeError

    why, failures, found = "", [], []
    for name_given in dict.fromkeys(models):
        try:
            network = _build(name_given, layout)
        except UnlikeError as e:
            why = str(e)
            continue
        except SubcompressError as e:
            failures.append(str(e))
            continue
        found.append(name_given)
        yield network
    name = known_name(layout)
    if name in found or (found and name is None):
        return
    if name is None and failures:
        raise SubcompressError(failures[-1])
    name = name or _required_name(layout, place, file, why)
    for text in failures if not found else ():
        say(f"--model is not needed for {file}, and cannot be used: {text}")
    yield _build(name, layout)


def known_name(layout: Layout) -> str | None:
    """Return the known network that has these tensors in any order; None if there is none."""
    from subcompress.format import tables
    from subcompress.support.names import MODELS

    name = tables.network_of(layout)
    return name if name in MODELS else None


def place_of_base(file: Path, base: str | None) -> Place | None:
    """Return the place of the configuration of a file's base; None for a file on no base, or on one without."""
    from subcompress import format

    return place_of(format.contents(file).base, base)


def place_of(reference: BaseReference | None, source: str | None) -> Place | None:
    """Return the place of a base's configuration. source: the argument of --base, if there is one."""
    from subcompress.remote.references import PREFIX, Reference

    if reference is None:
        return None
    name = source or (reference.where if reference.source.startswith(PREFIX) else None)
    if name is None:
        return None
    if name.startswith(PREFIX):
        found = Reference.of(name)
        return found.id, found.revision
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    return (str(folder), None) if (folder / "config.json").is_file() else None


def _name_for(layout: Layout, place: Place | None) -> tuple[str | None, str]:
    """Return the name of a network with these tensors: a known one, else the one that the configuration at `place`
    makes for some task. None if there is none, and why."""
    if (name := known_name(layout)) is not None:
        return name, ""
    if place is None:
        return None, "its layout is not that of a built-in network, and there is no base with a config.json"
    from subcompress.data import pretrained

    where, revision = place
    try:
        task = pretrained.task_of(layout, where, revision=revision)
    except SubcompressError as e:
        return None, str(e)
    if task is None:
        return None, f"no network of its base {where} has its tensors"
    return f"{HF}{where}{f'@{revision}' if revision else ''},task={task}", ""


def _required_name(layout: Layout, place: Place | None, file: str, why: str = "") -> str:
    """Return the name like `_name_for`. why: what is known already. Raises SubcompressError if there is none."""
    name, reason = _name_for(layout, place)
    if name is None:
        raise SubcompressError(f"{file} does not show which network it is: give it with --model ({why or reason})")
    return name


def _build(name: str, layout: Layout) -> Network:
    """Build the named network. Raises UnlikeError if it has other tensors than `layout`, SubcompressError if building
    fails."""
    from subcompress.onnx.network import Network
    from subcompress_cli.loading import model_of

    return Network.of(model_of(name, layout=layout), layout, name)
