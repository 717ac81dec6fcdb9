"""Attaching a network to a base: which of its tensors the base has, and which are new."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from subcompress.base.base import BaseReference, BaseTensors, OnBase
from subcompress.base.names import FLOATS, Pairing, canonical, is_convertible, prefix_of
from subcompress.errors import SubcompressError
from subcompress.support.lazy import torch
from subcompress.tensors.layout import DTYPES, Layout, raw_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

NEW_LAYERS = 3
"""The most layers at the end of a network that may be new without being named: a head has one, two or three."""


def attach_base(base: BaseTensors, module: nn.Module, new: tuple[str, ...] = ()) -> OnBase:
    """Match the tensors of a module to those of a base.

    Tensors match by equal name and shape, up to a common prefix, parts that wrappers add, and old names
    (`subcompress.base.names`). An embedding with another number of rows is cut or extended.

    Parameters that the base lacks, or has in another shape, start from the seed. They must be the last ones of the
    module, its head, or be named in `new` (names or patterns), which may name others too. Raises SubcompressError,
    naming the first tensor, if others are missing; if the base has different values for tensors that the module ties;
    and if tensors of equal name and shape do not match.
    """
    anew = {n for names in tied_names(module) if any(fnmatchcase(n, p) for n in names for p in new) for n in names}
    state = {n: t for n, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
    base, pairing = _fit_to_module(base, module, state, anew)
    prefix = prefix_of(base.layout, Layout.of(state))
    reference = BaseReference(base.name, base.revision, base.digest, len(base.layout), prefix.strip, prefix.add)
    unused, dtypes = [], set()
    for i, spec in enumerate(base.layout):
        name = reference.renamed(spec.name)
        tensor = None if name is None or name in anew else state.get(name)
        floats = tensor is not None and tensor.is_floating_point() and spec.dtype in FLOATS
        if tensor is None or tuple(tensor.shape) != spec.shape or not (floats or tensor.dtype == spec.torch_dtype):
            unused.append(i)
        elif floats and tensor.dtype != spec.torch_dtype:
            dtypes.add(Layout.of({"": tensor}).tensors[0].dtype)
    if dtypes:
        reference = replace(reference, dtype=min(dtypes))
    found = OnBase(replace(reference, unused=tuple(unused)), base)
    for spec in found.layout:
        if (given := state[spec.name]).dtype != spec.torch_dtype:
            raise SubcompressError(
                f"all floats of the model must have one dtype; {spec.name} is {given.dtype}, others are "
                f"{reference.dtype}: convert the model"
            )
    _check_dropped(found, pairing)
    _check_missing(found, module, state, new)
    _check_ties(found, module)
    return found


def _fit_to_module(
    base: BaseTensors, module: nn.Module, state: Mapping[str, Tensor], anew: Set[str]
) -> tuple[BaseTensors, Pairing]:
    """Return the base, changed if its names or row counts need it, and the pairing of both."""
    tables = [child for child in module.modules() if isinstance(child, (torch.nn.Embedding, torch.nn.EmbeddingBag))]
    rows = {id(child.weight) for child in tables}
    names = {n for n, p in module.named_parameters(remove_duplicate=False) if id(p) in rows}
    pairing = Pairing(base.layout, Layout.of(state), names, anew)
    if not (changes := pairing.changes()):
        return base, pairing
    changed = base.changed(changes)
    return changed, Pairing(changed.layout, pairing.model, names, anew)


def _check_dropped(found: OnBase, pairing: Pairing) -> None:
    """Raise SubcompressError if a tensor would start from the seed although the base has one of that name."""
    lacking = {canonical(s.name): s for s in pairing.lacking}
    for name, why in found.base.left_out.items():
        plain = canonical(name)
        if (target := lacking.get(pairing.prefix.of(plain) or plain)) is not None:
            raise SubcompressError(
                f"the tensor {name} of the base {found.base.name} is {why}; a base may hold "
                f"{', '.join(DTYPES)}: convert it, or give --new '{target.name}' to start it from the seed"
            )
    for source, target in pairing.named_alike():
        if source.shape == target.shape:
            why = "" if is_convertible(source, target) else f" ({source.dtype} there, {target.dtype} here)"
            raise SubcompressError(
                f"the base's {source.name} and the model's {target.name} look alike but do not match{why}: "
                f"rename one, or give --new '{target.name}' to start it from the seed"
            )


def tied_names(module: nn.Module) -> list[list[str]]:
    """Return the names of each parameter in the module's order: two or more for a tied one."""
    found: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return list(found.values())


def _check_ties(found: OnBase, module: nn.Module) -> None:
    for names in tied_names(module):
        first, *others = [n for n in names if n in found] or names[:1]
        for name in others:
            if raw_bytes(found.values(first)) != raw_bytes(found.values(name)):
                raise SubcompressError(
                    f"the model ties {first} and {name}, but the base {found.base.name} has different values "
                    "for them: untie them, or give the base of this network"
                )


def _check_missing(found: OnBase, module: nn.Module, state: Mapping[str, Tensor], new: tuple[str, ...]) -> None:
    shapes = {found.reference.renamed(s.name): s.shape for s in found.base.layout}
    tied = tied_names(module)
    parameters = [names[0] for names in tied]
    present = [i for i, names in enumerate(tied) if any(n in found for n in names)]
    if not present:
        raise SubcompressError(
            f"the base {found.base.name} has none of the model's tensors: it has "
            f"{_first_names(found.base.arrays)}, the model {_first_names(state)}; give the base of this network"
        )
    for pattern in new:
        if not any(fnmatchcase(n, pattern) for n in state):
            raise SubcompressError(
                f"--new must name tensors of the model, or a pattern that matches some; {pattern} matches none: "
                f"{_first_names(state)}"
            )
    end = parameters[present[-1] + 1 :]
    layers = dict.fromkeys(name.rpartition(".")[0] for name in end)
    head = set(end) if len(layers) <= NEW_LAYERS else set()
    known = {n.rpartition(".")[0] for names in tied for n in names if n in found}
    statistics = [  # a layer of the base has those of the base, or none
        name
        for name, b in module.named_buffers()
        if name in state and name not in found and b.is_floating_point() and name.rpartition(".")[0] in known
    ]
    for name in [*(n for i, n in enumerate(parameters) if i not in present), *statistics]:
        if name in head or any(fnmatchcase(name, pattern) for pattern in new):
            continue
        has = f"has it as {list(shapes[name])}" if name in shapes else "lacks it"
        raise SubcompressError(
            f"a base must have every tensor of the model except its head; {found.base.name} {has}: {name} "
            f"{list(state[name].shape)}: give the base of this network, or --new '{name}' to start it from the seed"
        )


def _first_names(names: Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:2]) + (f" and {len(listed) - 2} more" if len(listed) > 2 else "")
