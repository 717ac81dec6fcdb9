"""A copy of the user's module to train, or one line that says why there can be none."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from subcompress.errors import SubcompressError, one_line

_HOOKS: tuple[tuple[type, str, str], ...] = (
    (WeightNorm, "torch.nn.utils.weight_norm", "use torch.nn.utils.parametrizations.weight_norm"),
    (SpectralNorm, "torch.nn.utils.spectral_norm", "use torch.nn.utils.parametrizations.spectral_norm"),
    (BasePruningMethod, "torch.nn.utils.prune", "call torch.nn.utils.prune.remove(module, name) first"),
)
"""Hooks that compute a weight outside of the parameters, what made them, and the remedy."""


def copied(module: nn.Module, device: str | torch.device | None = None) -> nn.Module:
    """A deep copy, on the device where one is given.

    Raises SubcompressError for what cannot be copied, and for weights that a hook computes: a copy would keep the
    values that the hook has left.
    """
    _check_hooks(module)
    try:
        found = copy.deepcopy(module)
        return found if device is None else found.to(device)
    except Exception as e:
        raise SubcompressError(f"fit trains a copy of the model, and this one cannot be copied: {one_line(e)}") from e


def _check_hooks(module: nn.Module) -> None:
    for name, hook in _pre_hooks(module):
        for kind, maker, remedy in _HOOKS:
            if isinstance(hook, kind):
                raise SubcompressError(f"weights are parameters; {maker} computes that of {name} in a hook: {remedy}")


def _pre_hooks(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name, child in module.named_modules():
        for hook in child._forward_pre_hooks.values():
            yield name or type(child).__name__, hook


__all__ = ["copied"]
