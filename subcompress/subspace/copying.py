"""A copy of the user's module to train, or one line that says why there can be none."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from subcompress.errors import SubcompressError, one_line

_HOOKS: tuple[tuple[type, str, str], ...] = (
    (WeightNorm, "torch.nn.utils.weight_norm", "use torch.nn.utils.parametrizations.weight_norm"),
    (SpectralNorm, "torch.nn.utils.spectral_norm", "use torch.nn.utils.parametrizations.spectral_norm"),
    (BasePruningMethod, "torch.nn.utils.prune", "call torch.nn.utils.prune.remove(module, name) first"),
)
"""Hooks that compute a weight outside of the parameters -> what made them, and the remedy."""


_PLAIN = (nn.Parameter,)
"""Classes of parameters that can be shared; others define themselves how they are copied."""


def copied(module: nn.Module, device: str | torch.device | None = None, shared: Collection[str] = ()) -> nn.Module:
    """A deep copy, on the device where one is given, with `own_memory`. shared: the names of parameters that are not to
    be changed, which the copy has in the memory of the module where that is on the device.

    Raises SubcompressError for what cannot be copied, and for weights that a hook computes: a copy would keep the
    values that the hook has left.
    """
    check_hooks(module)
    named = module.named_parameters(remove_duplicate=False) if shared else ()
    memo = {id(p): nn.Parameter(p.detach(), p.requires_grad) for n, p in named if n in shared and type(p) in _PLAIN}
    try:
        found = own_memory(copy.deepcopy(module, memo))
        return found if device is None else found.to(device)
    except Exception as e:
        raise SubcompressError(f"the model cannot be copied, and fit trains a copy of it: {one_line(e)}") from e


def own_memory(module: nn.Module) -> nn.Module:
    """The module, in which each value of a parameter or a buffer has memory of its own from here on: several values in
    one place, as `expand` makes them, can be neither trained nor loaded. Those that are tied stay so."""
    made: dict[tuple[object, ...], Tensor] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if crowded(tensor):
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if place not in made:
                made[place] = tensor.detach().clone(memory_format=torch.contiguous_format)
            tensor.data = made[place]
    return module


def crowded(tensor: Tensor) -> bool:
    """Whether several values of a tensor share a place in memory."""
    if nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_meta or not tensor.numel():
        return False
    room = 1  # places up to the last value along the axes so far, those of the smallest strides first
    for stride, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1 and stride < room:
            return len(places(tensor).unique()) < tensor.numel()
        room += (n - 1) * stride
    return False


def places(tensor: Tensor) -> Tensor:
    """(n,) int64: where each value lies, counted in values from the first."""
    found = torch.zeros((), dtype=torch.int64)
    for stride, n in zip(tensor.stride(), tensor.shape, strict=True):
        found = found[..., None] + stride * torch.arange(n)
    return found.reshape(-1)


def check_hooks(module: nn.Module) -> None:
    for name, hook in _pre_hooks(module):
        for kind, maker, remedy in _HOOKS:
            if isinstance(hook, kind):
                raise SubcompressError(
                    f"{maker} computes the weight of {name} in a hook, but fit trains parameters: {remedy}"
                )


def _pre_hooks(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name, child in module.named_modules():
        for hook in child._forward_pre_hooks.values():
            yield name or type(child).__name__, hook


__all__ = ["copied", "crowded", "own_memory", "places"]
