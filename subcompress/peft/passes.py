"""The weights of the acting adapter in place while a model runs, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from subcompress.peft.layer import Swap

Weights = Mapping[str, Tensor]


class Passes:
    """Hooks on the modules that hold what adapters act on, directly or deeper.

    The outermost of them that is called puts the weights in place, and gives them back when it returns. They are put
    there once more while a backward pass lasts, in which checkpointed layers run again. weights: asked for at each
    pass; None to leave the model as it is.
    """

    def __init__(self, swap: Swap, weights: Callable[[], Weights | None]) -> None:
        self.swap, self.weights = swap, weights
        self._depth, self._in_backward = 0, False
        self._acting: Weights = {}
        self._hooked: dict[str, list[Any]] = {}

    def watch(self, model: nn.Module, names: Iterable[str]) -> None:
        """Hook the modules on the way to the tensors of these names."""
        for name in names:
            prefix = name.rpartition(".")[0]
            while prefix not in self._hooked:
                module = model.get_submodule(prefix)
                self._hooked[prefix] = [
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave, always_call=True),
                ]
                prefix = prefix.rpartition(".")[0]

    def remove(self) -> None:
        """Take all hooks off."""
        for handles in self._hooked.values():
            for handle in handles:
                handle.remove()
        self._hooked.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._in_backward and torch._C._current_graph_task_id() == -1:
            self._let_go()  # a backward pass that raised has left them
        self._depth += 1
        if self._depth == 1 and (weights := self.weights()) is not None:
            self._acting = weights
            self.swap.put(weights)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        weights, self._acting = self._acting, {}
        if weights:
            self.swap.give_back()
        if not any(w.requires_grad for w in weights.values()):
            return
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(partial(self._hold_again, weights))

    def _hold_again(self, weights: Weights, _: Tensor) -> None:
        """Put the weights of a pass in place until its backward pass ends."""
        if self._depth == 0 and not self.swap.held:
            self._depth, self._in_backward = 1, True
            self.swap.put(weights)
            torch.autograd.Variable._execution_engine.queue_callback(self._let_go)

    def _let_go(self) -> None:
        if self._in_backward:
            self._depth, self._in_backward = 0, False
            self.swap.give_back()


def watched(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(isinstance(getattr(hook, "__self__", None), Passes) for hook in model._forward_pre_hooks.values())


__all__ = ["Passes", "watched"]
