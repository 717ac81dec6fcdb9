"""A module whose only parameter is z: theta = start + scale * (frozen + P z), for our loop or the user's own.

moves = subcompress.measure_moves(make_net, loader, loss)   # how far each tensor moves: guessed without
sub = subcompress.Subspace.of(make_net, d=300, moves=moves)
optimizer = torch.optim.Adam(sub.parameters(), lr=sub.plan.lr)
...                                   # sub(x) in place of net(x); sub.materialized() for methods of net
sub.round(bits=4)                     # half-way
...
subcompress.pack(sub, "net.safetensors")
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts
from subcompress.format.record import Record
from subcompress.subspace.changing import extra_states, restore
from subcompress.subspace.coordinates import Coordinates, keep_statistics
from subcompress.subspace.copying import copied
from subcompress.subspace.moves import Moves
from subcompress.subspace.plan import Plan, make_plan
from subcompress.subspace.preparing import prepared
from subcompress.support.names import AUTO
from subcompress.support.names import DEFAULT_ROLES as DEFAULT
from subcompress.tensors.layout import is_storable


class Subspace(Coordinates):
    """A module whose only parameter is z, of shape (d,): its weights are start + scale * (P z).

    It wraps a copy of a network, for a training loop of your own. Call it as the network is called; `materialized`
    gives the network itself. Buffers and modes stay the network's own. `z` starts at zero, where the weights are at
    their starts, or at random values if d = D. If layers are checkpointed (torch.utils.checkpoint), call `backward` on
    what the subspace returned, or inside the block of `materialized`.
    """

    def __init__(
        self, module: nn.Module, plan: Plan, *, own: bool = False, still: Collection[str] = frozenset()
    ) -> None:
        """own: take the module itself, which is not used elsewhere, instead of a copy of it; still: parameters that are
        the base's and that no forward pass changes."""
        taken = module if own else copied(module)
        super().__init__(plan, next(module.parameters()).device)
        self.module = taken
        frozen = {
            n for n, s in plan.starts.items() if s.kind in ("stored", "kept", "dropped")
        }  # forward may change them
        self._buffer_names = [name for name, b in self.module.named_buffers() if is_storable(b)]
        named = dict(self.module.named_parameters())
        self._buffer_names += [n for n, p in named.items() if n in frozen and n not in still and is_storable(p)]
        self._still = [n for n in named if n in still]
        self.former = dict(self.module.named_parameters())
        self._places = _forget_parameters(self.module)
        self._again: Any = None
        based = {n for n, s in plan.starts.items() if s.kind == "kept" and plan.base is not None and n in plan.base}
        self._untrained = {name: b.clone() for name, b in self._buffers_now().items() if name not in based}
        self._of_base = [name for name in self._buffer_names if name in based]
        self.train(self.training)

    @classmethod
    def of(
        cls,
        module: nn.Module | Callable[[], nn.Module],
        d: int,
        *,
        bits: int = 4,
        seed: int = 0,
        operator: str = AUTO,
        structured: str = "random",
        base: Any = None,
        base_name: str | None = None,
        act_on: str = DEFAULT,
        new: Sequence[str] = (),
        drop: Sequence[str] = (),
        moves: Moves | None = None,
    ) -> Subspace:
        """Make the subspace of a network, planned with the defaults of `fit`.

        Args:
            module: The network, or a function without arguments that builds it, which tells chosen values from drawn
                ones.
            d: Number of coordinates.
            bits: Bits of a coordinate, as they will be given to `round`.
            seed: Seed of the subspace.
            operator: As for `fit`.
            structured: As for `fit`.
            base: As for `fit`.
            base_name: As for `fit`.
            act_on: As for `fit`.
            new: As for `fit`.
            drop: As for `fit`.
            moves: How far each tensor moves, from `measure_moves` of the same network. By default guessed from the
                starts.

        Returns:
            The subspace. Its learning rate is `plan.lr`.

        Raises:
            SubcompressError: The network or an option cannot be used.
        """
        known = prepared(
            module,
            seed=seed,
            structured=structured,
            base=base,
            base_name=base_name,
            act_on=act_on,
            new=new,
            drop=drop,
        )
        scales, still = (None, None) if moves is None else (moves.scales(known.starts, d), moves.still)
        operator = moves.operator if moves is not None and operator == AUTO else operator
        plan = make_plan(
            known.starts, d, bits=bits, seed=seed, operator=operator, base=known.base, scales=scales, still=still
        )
        return cls(known.module, plan)

    def train(self, mode: bool = True) -> Subspace:
        """As for any module; on a base, layers with running statistics keep to those of the base, in training too."""
        if hasattr(self, "_again"):
            self._let_go()  # a backward pass that raised has left it
        super().train(mode)
        if self.plan.base is not None:
            keep_statistics(self.module)
        return self

    @contextmanager
    def materialized(self) -> Iterator[nn.Module]:
        """Yield the user's own module with the weights of z as its parameters, while the block lasts.

        It is for losses that use more of the module than `forward`. Call `backward` inside or outside the block; if
        layers are checkpointed, call it inside. Raises SubcompressError if the block gives the module other parameters.
        """
        with self.holding(self.weights()) as module:
            yield module

    materialised = materialized
    """The former name."""

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The user's own module with these weights, of those that `weights` gives, as its parameters. Raises
        SubcompressError where the block gives the module other parameters."""
        self._let_go()
        if any(
            leaf not in owner._buffers for owner, leaf in self._places.values()
        ):  # a block around this one holds them
            yield self.module
            return
        before = [(owner, leaf, owner._buffers.pop(leaf)) for owner, leaf in self._places.values()]
        given = [weights.get(name, b) for name, (_, _, b) in zip(self._places, before, strict=True)]
        replaced = []
        try:
            for (owner, leaf, _), w in zip(before, given, strict=True):
                owner._parameters[leaf] = w  # type: ignore[assignment]
            yield self.module
        finally:
            for i, (owner, leaf, tensor) in enumerate(before):
                if owner._parameters.pop(leaf, None) is not given[i]:
                    replaced.append(list(self._places)[i])
                owner._buffers[leaf] = tensor
        if replaced:
            raise SubcompressError(
                f"the forward pass replaces the parameter {replaced[0]} by another one, which would not train: "
                "compute a new tensor from it instead, or use torch.nn.utils.parametrize"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward under the weights of z."""
        weights = self.weights()
        with self.holding(weights) as module:
            outputs = module(*args, **kwargs)
        if not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
            for output in tree_leaves(outputs):
                if isinstance(output, Tensor) and output.requires_grad and not output.is_leaf:
                    output.register_hook(partial(self._hold_again, weights))
        return outputs

    def _hold_again(self, weights: Mapping[str, Tensor], _: Tensor) -> None:
        """Hold the weights while a backward pass lasts: checkpointed layers run once more in there."""
        owner, leaf = next(iter(self._places.values()))
        if leaf in owner._buffers:
            again = self.holding(weights)
            again.__enter__()
            self._again = again
            torch.autograd.Variable._execution_engine.queue_callback(self._let_go)

    def _let_go(self) -> None:
        if self._again is not None:
            again, self._again = self._again, None
            again.__exit__(None, None, None)

    def record(self, facts: Facts | None = None, test_accuracy: float | None = None) -> Record:
        """What was trained, exactly: the scales rounded to bfloat16, the frozen constant an integer, running
        statistics quantized, with the digest of the weights it rebuilds.

        Raises SubcompressError before `round`, and for an operator that is not exact.
        """
        return self.recorded(self.module.state_dict(), self._untrained, facts, test_accuracy, self._of_base)

    def restore(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Go on from what `moving` and `settings` gave. Raises SubcompressError for settings of another subspace."""
        self.rounding.check(settings)
        restore(self.module, self.moving(), tensors)
        self.rounding.restore(settings)

    def moving(self) -> dict[str, Tensor]:
        """What training changes: z, and the buffers and the extra state of the network; for checkpoints."""
        return {"z": self.z.detach()} | self._buffers_now() | extra_states(self.module)

    def unmoved(self) -> dict[str, Tensor]:
        """What no training changes, of the base: checkpoints of former versions hold it."""
        buffers = dict(self.module.named_buffers())
        return {name: buffers[name] for name in self._still}

    def _buffers_now(self) -> dict[str, Tensor]:
        buffers = dict(self.module.named_buffers())
        return {name: buffers[name] for name in self._buffer_names}


def _forget_parameters(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Turn parameters into buffers of the same names, so that only z is trained and `eval()` still reaches all. Returns
    where each of them lives: name in the state dict -> its module, and its name there."""
    found = {}
    for prefix, child in module.named_modules(remove_duplicate=True):
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                del child._parameters[name]
                child.register_buffer(name, parameter.detach())
                found[f"{prefix}.{name}" if prefix else name] = (child, name)
    return found


__all__ = ["Subspace"]
