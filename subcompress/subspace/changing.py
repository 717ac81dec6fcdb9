"""What training changes in a network in addition to its weights: buffers, and extra state that is a tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from subcompress.tensors.layout import is_storable


def extra_states(module: nn.Module) -> dict[str, Tensor]:
    """Name in the state dict -> the extra state of a module that has one which is a tensor."""
    found = {name: child.get_extra_state() for name, child in _with_extra(module).items()}
    return {name: state for name, state in found.items() if isinstance(state, Tensor) and is_storable(state)}


def restore(module: nn.Module, now: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Give tensors of a module the values that they had: what is its own is written to, extra state is set. now: what
    it has, by name; tensors: what it had, of a checkpoint of before without extra state."""
    extra = _with_extra(module)
    for name, tensor in now.items():
        if name not in extra:
            tensor.copy_(tensors[name])
        elif name in tensors:
            extra[name].set_extra_state(tensors[name].to(tensor.device).clone())


def _with_extra(module: nn.Module) -> dict[str, nn.Module]:
    own = {prefix: child for prefix, child in module.named_modules() if _has_extra(child)}
    return {f"{prefix}._extra_state" if prefix else "_extra_state": child for prefix, child in own.items()}


def _has_extra(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state
