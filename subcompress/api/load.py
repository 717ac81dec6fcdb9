"""load: the weights of a file inside a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subcompress import format
from subcompress.errors import SubcompressError
from subcompress.format.record import Record, Tied
from subcompress.rebuild.arrays import check_digest
from subcompress.rebuild.streaming import stream
from subcompress.support.lazy import torch
from subcompress.tensors.layout import Layout, raw_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn


def load(
    path: str | Path,
    module: nn.Module,
    *,
    base: Any = None,
    check: bool = True,
    coordinates: slice | None = None,
) -> nn.Module:
    """Rebuild the weights of a file into a module.

    The weights are computed on the module's device and in its own memory, without a second copy. The module may have
    wrappers of torch (torch.compile, DataParallel, ...) that the packed network did not have. They stay.

    Args:
        path: A packed file.
        module: A module with the tensors that the file holds.
        base: The base that the file was fine-tuned from, if it has one; see `fit`. By default it is fetched from the
            Hub.
        check: Compare the weights with the digest in the file before the module is changed.
        coordinates: Use these of the coordinates alone, and zeros in place of the others: where tasks were learned one
            after another, each in a block of coordinates of its own. `check` is then of the whole file.

    Returns:
        The module, in evaluation mode.

    Raises:
        SubcompressError: The file is damaged, the module has other tensors (the message names the first that differs),
            or it holds other values once they are loaded.
    """
    record, _ = format.read(path, base)
    if coordinates is None:
        return load_record(record, module, check=check)
    if check:
        check_digest(record, stream(record))
    return load_record(_with_only(record, coordinates), module, check=False)


def _with_only(record: Record, chosen: slice) -> Record:
    """The record with zeros in place of all other coordinates of the weights, which are those of its first group."""
    if not record.groups:
        raise SubcompressError("the file has no coordinates: leave coordinates= out")
    first, *others = record.groups
    kept = np.zeros_like(first.coordinates)
    kept[chosen] = first.coordinates[chosen]
    return replace(record, groups=(replace(first, coordinates=kept), *others))


def load_record(record: Record, module: nn.Module, *, check: bool = True) -> nn.Module:
    """`load` for a record at hand."""
    from subcompress.subspace.copying import own_memory  # these import torch, and `unpack` need not
    from subcompress.subspace.unwrapping import unwrapped_for

    _load(record, own_memory(unwrapped_for(module, record.layout)), check)
    return module.eval()


def _load(record: Record, module: nn.Module, check: bool) -> None:
    from subcompress.rebuild.expand import expand, expand_checked, expand_into

    state = module.state_dict()
    record.layout.require(Layout.of(state), "the model")
    devices = {t.device for t in state.values()}
    device = next(iter(devices)) if len(devices) == 1 else torch.device("cpu")
    kind = device.type if device.type in ("cpu", "cuda") else "cpu"
    if kind == device.type and _writable(record, module, state):
        if check:
            check_digest(record, stream(record, backend=kind))
        expand_into(record, state)
        for tensor in state.values():
            torch.autograd.graph.increment_version(tensor)
    else:
        _load_state((expand_checked if check else expand)(record, kind), module)


def _load_state(given: Mapping[str, Tensor], module: nn.Module) -> None:
    """Load a state dict as the module does it. Raises SubcompressError, with the module as it was, where it holds other
    values afterwards: tensors may share memory, and a module may change what it loads."""
    before = {name: t.clone() for name, t in module.state_dict().items()}
    module.load_state_dict(given, strict=True)
    now = module.state_dict()
    odd = next((name for name, t in given.items() if name not in now or not _holds(now[name], t)), None)
    if odd is None:
        return
    module.load_state_dict(before, strict=True)
    from subcompress.subspace.hidden import shared_memory  # which needs torch, and dense weights do not

    shared = shared_memory(module)
    why = "it ties this tensor to another, or changes what it loads"
    why = f"{shared[0]} and {shared[1]} overlap in memory" if shared else why
    raise SubcompressError(
        f"after loading, {odd} of the module has other values than the file ({why}): give the module that was "
        "fitted, with separate memory for each tensor"
    )


def _holds(tensor: Tensor, values: Tensor) -> bool:
    """Whether the bits are the same; a subclass that keeps its values in a way of its own is not asked."""
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter) or raw_bytes(tensor) == raw_bytes(values)


def _writable(record: Record, module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether writing into the tensors of the state dict, no two of which share memory except those that the
    record ties, is all that loading it would do."""
    live = {
        t.data_ptr() for t in (*module.parameters(), *module.buffers()) if type(t) in (torch.Tensor, torch.nn.Parameter)
    }
    places: list[tuple[int, int]] = []
    for spec, entry in zip(record.layout, record.entries, strict=True):
        t = state[spec.name]
        if t.is_conj() or t.is_neg() or t.is_inference() or not t.is_contiguous():
            return False
        if not t.numel():
            continue
        if not t.data_ptr() or t.data_ptr() not in live:
            return False
        tie = isinstance(entry, Tied) and t.data_ptr() == state[record.layout.tensors[entry.index].name].data_ptr()
        if not tie:
            places.append((t.data_ptr(), t.data_ptr() + t.nbytes))
    places.sort()
    apart = all(end <= begin for (_, end), (begin, _) in pairwise(places))
    return apart and not any(_own_loading(m) for m in module.modules())


def _own_loading(m: nn.Module) -> bool:
    """Whether a module does more than copying when a state dict is loaded."""
    if m._load_state_dict_pre_hooks or m._load_state_dict_post_hooks:
        return True
    if "load_state_dict" in vars(m) or type(m).load_state_dict is not torch.nn.Module.load_state_dict:
        return True
    return "_load_from_state_dict" in vars(m) or not type(m)._load_from_state_dict.__module__.startswith("torch.")
