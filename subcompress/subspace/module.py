"""A module whose only parameter is z: theta = start + scale * (frozen + P z), for our loop or the user's own.

moves = subcompress.measure_moves(make_net, loader, loss)   # how far each tensor moves: guessed without
sub = subcompress.Subspace.of(make_net, d=300, moves=moves)
optimiser = torch.optim.Adam(sub.parameters(), lr=sub.plan.lr)
...                                   # sub(x) in place of net(x); sub.materialised() for methods of net
sub.round(bits=4)                     # half-way
...
subcompress.pack(sub, "net.safetensors")
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from subcompress.errors import SubcompressError
from subcompress.format import codec
from subcompress.format.facts import Facts
from subcompress.format.record import Coded, Entry, Fixed, Group, Mixed, Record, Stored, Tied, Unchanged, bfloat16
from subcompress.operators import EXACT, ExactOperator, HadamardBlocks
from subcompress.rebuild.streaming import stream
from subcompress.subspace import traced
from subcompress.subspace.buffers import coded_buffers
from subcompress.subspace.changing import extra_states, restore
from subcompress.subspace.copying import copied
from subcompress.subspace.moves import Moves
from subcompress.subspace.plan import SPREAD, Assembly, Part, Plan, check_options, make_plan
from subcompress.subspace.preparing import prepared
from subcompress.subspace.starts import Start
from subcompress.support.names import AUTO
from subcompress.support.names import DEFAULT_ROLES as DEFAULT
from subcompress.tensors.layout import CODED_DTYPES, is_storable, raw_bytes

MAX_A = 1 << 10

ONCE = 32
"""Bytes from which equal stored tensors are stored once."""


class Subspace(nn.Module):
    """A module whose only parameter is z, of shape (d,): its weights are start + scale * (P z).

    It wraps a copy of a network, for a training loop of your own. Call it as the network is called; `materialised`
    gives the network itself. Buffers and modes stay the network's own. `z` starts at zero, where the weights are at
    their starts, or at random values if d = D. If layers are checkpointed (torch.utils.checkpoint), call `backward` on
    what the subspace returned, or inside the block of `materialised`.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.module = copied(module)
        device = next(module.parameters()).device
        self.z = nn.Parameter(torch.zeros(plan.d, dtype=torch.float32, device=device))
        self.splits = [p.operator.d for p in plan.parts]
        drawn = torch.Generator().manual_seed(plan.seed & ((1 << 63) - 1))
        with torch.no_grad():
            for z, part in zip(self.z.split(self.splits), plan.parts, strict=True):
                if part.spreads:
                    spreads = torch.tensor(part.spreads).repeat_interleave(torch.tensor(part.sizes))
                    z.copy_(spreads * torch.randn(len(z), generator=drawn))
        # Bits, dead and each part's step: a tensor, which a compiled graph reads; numbers would be compiled in.
        self._state = torch.tensor([0.0, 0.5] + [0.0] * len(plan.parts), dtype=torch.float64, device="cpu")
        self._wide = _wide_starts(plan)
        self._nodes = [
            traced.Node(
                part, tuple(0.0 if s.name in self._wide else b for s, b in zip(part.specs, part.starts, strict=True))
            )
            for part in plan.parts
        ]
        # torch.compile follows no look-up of a dtype by its name.
        self._dtypes = {spec.name: spec.torch_dtype for part in plan.parts for spec in part.specs}
        frozen = {
            n for n, s in plan.starts.items() if s.kind in ("stored", "kept", "dropped")
        }  # forward may change them
        self._buffer_names = [name for name, b in self.module.named_buffers() if is_storable(b)]
        self._buffer_names += [n for n, p in self.module.named_parameters() if n in frozen and is_storable(p)]
        self.former = dict(self.module.named_parameters())
        self._places = _forget_parameters(self.module)
        self._again: Any = None
        self._untrained = {name: b.clone() for name, b in self._buffers_now().items()}
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
            for child in self.module.modules():
                if isinstance(child, nn.modules.batchnorm._NormBase) and child.running_mean is not None:
                    child.eval()
        return self

    def round(self, bits: int = 4) -> None:
        """Round the weights from here on to those that will be packed.

        z is rounded to integers of so many bits; gradients pass straight through (Bengio, Leonard, Courville 2013,
        arXiv:1308.3432). Call it about half-way through the training.

        Args:
            bits: Bits of a coordinate, 2 to 8.
        """
        check_options(bits, 0, "hadamard")
        steps = []
        for z, part in zip(self.z.detach().split(self.splits), self.plan.parts, strict=True):
            step = SPREAD[bits] * float(z.square().mean().sqrt())
            if isinstance(part.operator, HadamardBlocks) and part.operator.K:
                # The frozen constant is an integer A of steps.
                step = 1 / min(max(1, round(1 / step)), MAX_A) if step > 0 else 1.0
            steps.append(step or 1.0)
        self.bits, self.steps = bits, steps

    @property
    def bits(self) -> int:
        """Of a coordinate; zero before `round`."""
        return int(self._state[0])

    @bits.setter
    def bits(self, bits: int) -> None:
        self._state[0] = bits

    @property
    def dead(self) -> float:
        """Coordinates of up to so many steps are rounded to zero."""
        return float(self._state[1])

    @dead.setter
    def dead(self, dead: float) -> None:
        self._state[1] = dead

    @property
    def steps(self) -> list[float]:
        """What each part's coordinates are rounded to multiples of."""
        found: list[float] = self._state[2:].tolist()
        return found

    @steps.setter
    def steps(self, steps: Sequence[float]) -> None:
        self._state[2:] = torch.tensor(steps, dtype=torch.float64, device="cpu")

    @property
    def top(self) -> int:
        """The largest coordinate of a rounded subspace."""
        return (1 << (self.bits - 1)) - 1

    def coordinates(self) -> list[Tensor]:
        """Each part's z as integers in units of its step, (d_i,) int64. Needs `round` first."""
        parts, bits, dead = self.z.detach().split(self.splits), self.bits, self.dead
        return [traced.integers(z, bits, dead, s).long() for z, s in zip(parts, self.steps, strict=True)]

    def shorten(self, limit: int) -> None:
        """Let coordinates round to zero, the smallest first, as few as bring `coded_bytes` to at most `limit` (all of
        them where none do). Needs `round` first."""
        parts = zip(self.z.detach().split(self.splits), self.steps, strict=True)
        sizes = torch.cat([(z / s).abs() for z, s in parts]).sort().values
        self.dead, low, high = 0.5, 0, len(sizes)
        if self.coded_bytes() <= limit:
            return
        while low < high:
            middle = (low + high) // 2
            self.dead = float(sizes[middle])
            low, high = (low, middle) if self.coded_bytes() <= limit else (middle + 1, high)
        self.dead = float(sizes[min(low, len(sizes) - 1)])

    def coded_bits(self) -> Tensor | None:
        """Bits of all coordinates under their own frequencies, (), read off between the integers, so that it is
        differentiable in z: what the adaptive coder comes near to. None before `round`."""
        if not self.bits:
            return None
        top, total = self.top, self.z.new_zeros(())
        for z, step in zip(self.z.split(self.splits), self.steps, strict=True):
            at = (z / step).nan_to_num().clamp(-top, top) + top
            with torch.no_grad():
                counts = torch.bincount(at.round().long(), minlength=2 * top + 1) + 0.5
                length = -torch.log2(counts / counts.sum())
                low = at.floor().clamp(max=2 * top - 1).long()
            total = total + (length[low] + (at - low) * (length[low + 1] - length[low])).sum()
        return total

    def coded_bytes(self) -> int:
        """What the coordinates take in a file, running statistics not counted."""
        return len(codec.encode((c.cpu().numpy().astype(np.int32), self.bits) for c in self.coordinates()))

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor for every trained entry of the state dict, tied ones too, differentiable in z. From `round` on
        they are those that `record` packs, bit for bit."""
        found: dict[str, Tensor] = {}
        for node, cut in zip(self._nodes, self._cuts(), strict=True):
            for spec, w in zip(node.part.specs, cut, strict=True):
                if spec.dtype == "C64":  # no view: rows may begin at an odd place
                    w = torch.complex(*w.view(*spec.shape, 2).unbind(-1))
                dtype = self._dtypes[spec.name]
                found[spec.name] = w if w.dtype == dtype else w.to(dtype)
        for name, start in self._wide.items():
            found[name] = found[name] + start.to(found[name].device)
        for name, assembly in self.plan.assemblies.items():
            found[name] = self._assembled(assembly, found)
        tied = {
            name: found[other]
            for name, s in self.plan.starts.items()
            if s.kind == "tied" and (other := self.plan.layout.tensors[s.index].name) in found
        }
        return found | tied

    def _assembled(self, assembly: Assembly, found: dict[str, Tensor]) -> Tensor:
        """A tensor of several pieces; those of it that coordinates act on are taken out of `found`."""
        device, spec = self.z.device, assembly.spec
        pieces = [found.pop(s) if isinstance(s, str) else s.to(device) for s in assembly.sources]
        whole = pieces[0] if len(pieces) == 1 else torch.cat([p.to(pieces[0].dtype) for p in pieces])
        whole = whole if len(pieces) == 1 else whole[assembly.order.to(device)]
        if spec.dtype == "C64":
            return torch.view_as_complex(whole.view(*spec.shape, 2))
        return whole.view(spec.shape).to(spec.torch_dtype)

    def _cuts(self) -> Iterator[tuple[Tensor, ...]]:
        """Each part's tensors."""
        parts = zip(self.z.split(self.splits), self._nodes, strict=True)
        if torch.compiler.is_compiling():
            for i, (z, node) in enumerate(parts):
                yield _cut(node.part, traced.weights(z, self._state, node.key, i, node.part.operator.D))
        else:
            bits, dead, *steps = self._state.tolist()
            for (z, node), step in zip(parts, steps, strict=True):
                yield _Weights.apply(z, node, int(bits), dead, step)

    @contextmanager
    def materialised(self) -> Iterator[nn.Module]:
        """The user's own module, of its own class, with the weights of z as its parameters while the block lasts: for
        losses that use more of it than `forward`. Call `backward` inside or outside; inside, where layers are
        checkpointed. Raises SubcompressError where the block gives the module other parameters."""
        with self.holding(self.weights()) as module:
            yield module

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
                f"a forward pass reads parameters and keeps them; {replaced[0]} is given another one, which would not "
                "train: compute what is needed from it, or use torch.nn.utils.parametrize"
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
        statistics quantised, with the digest of the weights it rebuilds.

        Raises SubcompressError before `round`, and for an operator that is not exact.
        """
        if not self.plan.exact:
            name = type(self.plan.parts[0].operator).__name__
            raise SubcompressError(
                f"{name} is a reference, not exact on every device: fit with --operator {' or '.join(EXACT)}"
            )
        if self.plan.base is not None:
            self.plan.base.base.check_unchanged()
        if not self.bits:
            raise SubcompressError("coordinates are packed as integers: call round(bits) half-way through the training")
        groups: list[Group] = []
        coded: dict[str, Coded] = {}
        for part, step, c in zip(self.plan.parts, self.steps, self.coordinates(), strict=True):
            operator = part.operator
            assert isinstance(operator, ExactOperator)
            if isinstance(operator, HadamardBlocks) and operator.K:
                operator = replace(operator, A=round(1 / step))
            for spec, scale, form in zip(part.specs, part.scales, part.forms, strict=True):
                based = form is None
                coded[spec.name] = Coded(bfloat16(scale * step), len(groups), 0.0 if form is None else form, based)
            groups.append(Group(operator, self.bits, c.cpu().numpy().astype(np.int32)))
        state, plan = self.module.state_dict(), self.plan
        moved = {
            name: state[name]
            for name, b in self._untrained.items()
            if name in plan.starts and plan.starts[name].kind in ("buffer", "kept") and not torch.equal(b, state[name])
        }
        more, values = coded_buffers(self.plan.layout, moved, self.plan.seed, len(groups))
        entries, stored = self._entries(coded | values, state, moved.keys())
        record = Record(
            self.plan.seed,
            self.plan.layout,
            (*groups, *more),
            entries,
            stored,
            facts or Facts(),
            test_accuracy,
            base=self.plan.base,
        )
        record.check()
        return replace(record, digest=stream(record))

    def _entries(
        self, coded: dict[str, Coded], state: dict[str, Tensor], moved: Set[str]
    ) -> tuple[tuple[Entry, ...], bytes]:
        """An entry a tensor, and the bytes of the stored ones. moved: the buffers that training has changed."""
        entries: list[Entry] = []
        stored: list[bytes] = []
        first: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        for i, spec in enumerate(self.plan.layout):
            start = self.plan.starts[spec.name]
            if start.kind == "tied":
                entries.append(Tied(start.index))
            elif start.kind == "dropped":
                entries.append(Fixed() if spec.dtype in CODED_DTYPES else Stored())
                stored += [bytes(spec.nbytes)] if spec.dtype not in CODED_DTYPES else []
            elif spec.name in coded:
                entries.append(coded[spec.name])
            elif start.kind == "coded":
                entries.append(_entry_of(spec.name, start, coded))
            elif start.kind == "kept" and spec.name not in moved:
                entries.append(Unchanged())
            else:
                raw = raw_bytes(state[spec.name])
                same = first.setdefault((spec.dtype, spec.shape, hashlib.sha256(raw).digest()), i)
                entries.append(Stored(same if same < i and len(raw) >= ONCE else None))
                stored += [bytes(raw)] if entries[-1] == Stored() else []
        return tuple(entries), b"".join(stored)

    def settings(self) -> dict[str, Any]:
        """What `moving` does not hold of a training: whether and how z is rounded."""
        return {"bits": self.bits, "steps": self.steps, "dead": self.dead}

    def restore(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Go on from what `moving` and `settings` gave. Raises SubcompressError for settings of another subspace."""
        self._check_settings(settings)
        restore(self.module, self.moving(), tensors)
        self.bits, self.steps, self.dead = settings["bits"], settings["steps"], settings["dead"]

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        bits, steps, dead = settings["bits"], settings["steps"], settings["dead"]
        if bits not in (0, *SPREAD) or isinstance(bits, float):
            raise SubcompressError(f"coordinates have {', '.join(map(str, SPREAD))} bits; a checkpoint says {bits}")
        numbers = isinstance(steps, (list, tuple)) and len(steps) == len(self.steps)
        if not numbers or not all(math.isfinite(s) and (s > 0 or not bits) for s in steps):
            raise SubcompressError(f"a step for each of {len(self.steps)} parts is positive; a checkpoint says {steps}")
        if not isinstance(dead, (int, float)) or not 0.5 <= dead < math.inf:
            raise SubcompressError(f"a dead zone is of 0.5 steps at least; a checkpoint says {dead}")

    def get_extra_state(self) -> Tensor:
        """`settings` as a tensor, in the state dict: a trainer that keeps and loads it, as torch's and transformers'
        do, goes on with what was rounded."""
        return self._state.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from what `get_extra_state` gave."""
        self._state.copy_(state)

    def moving(self) -> dict[str, Tensor]:
        """What training changes: z, and the buffers and the extra state of the network; for checkpoints."""
        return {"z": self.z.detach()} | self._buffers_now() | extra_states(self.module)

    def _buffers_now(self) -> dict[str, Tensor]:
        buffers = dict(self.module.named_buffers())
        return {name: buffers[name] for name in self._buffer_names}


class _Weights(torch.autograd.Function):
    """z -> every tensor of a part, rounded where that has begun, scaled and cut in one pass over the weights, forwards
    and backwards: with small networks such passes cost nearly as much as the transform. Gradients pass straight through
    the rounding."""

    @staticmethod
    def forward(z: Tensor, node: traced.Node, bits: int, dead: float, step: float) -> tuple[Tensor, ...]:
        # .data: each with a version of its own, so that a module may change one in place under no_grad.
        return tuple(w.data for w in _cut(node.part, node.write(z, bits, dead, step)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.node = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _adjoint(ctx.node, grads), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, z: Tensor, *_: None) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _Linear.apply(z, ctx.node)
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _each(_Weights, info, in_dims, args)


class _Linear(torch.autograd.Function):
    """z -> what every tensor of a part changes by, to first order."""

    @staticmethod
    def forward(z: Tensor, node: traced.Node) -> tuple[Tensor, ...]:
        return _shaped(node.part, node.linear(z))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.node = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _adjoint(ctx.node, grads), None

    @staticmethod
    def jvp(ctx: Any, z: Tensor, _: None) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _Linear.apply(z, ctx.node)
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _each(_Linear, info, in_dims, args)


class _Adjoint(torch.autograd.Function):
    """Gradients of every tensor of a part -> that of z."""

    @staticmethod
    def forward(node: traced.Node, *grads: Tensor) -> Tensor:
        return node.adjoint([g.reshape(-1) for g in grads])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.node = inputs[0]

    @staticmethod
    def backward(ctx: Any, z: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_Linear.apply(z, ctx.node))

    @staticmethod
    def jvp(ctx: Any, _: None, *grads: Tensor) -> Tensor:
        found: Tensor = _Adjoint.apply(ctx.node, *grads)
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        found, _ = _each(_Adjoint, info, in_dims, args)
        return found[0], 0


def _adjoint(node: traced.Node, grads: Sequence[Tensor]) -> Tensor:
    """The gradient in z; with one of its own where it will be differentiated, or is one of many."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        found: Tensor = _Adjoint.apply(node, *grads)
        return found
    return node.adjoint([(g if g.layout == torch.strided else g.to_dense()).reshape(-1) for g in grads])


def _each(
    function: type[torch.autograd.Function], info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The function of one after the other of a batch: the products take one vector at a time."""
    outputs = []
    for i in range(info.batch_size):
        one = function.apply(*(x if at is None else x.select(at, i) for x, at in zip(args, in_dims, strict=True)))
        outputs.append((one,) if isinstance(one, Tensor) else one)
    stacked = tuple(torch.stack(tensors) for tensors in zip(*outputs, strict=True))
    return stacked, (0,) * len(stacked)


def _wide_starts(plan: Plan) -> dict[str, Tensor]:
    """Starts of float64 tensors that are tensors too: the format adds these in float64, the base's as they are."""
    found: dict[str, Tensor] = {}
    for part in plan.parts:
        for spec, start in zip(part.specs, part.starts, strict=True):
            if spec.dtype == "F64" and isinstance(start, Tensor):
                found[spec.name] = start.double().reshape(spec.shape)
    return found


def _entry_of(name: str, start: Start, coded: Mapping[str, Coded]) -> Entry:
    """The entry of a tensor of several pieces, or of one that no coordinate acts on."""
    items: list[Coded | Fixed] = []
    for number, piece in enumerate(start.pieces):
        items.append(Fixed(piece.form) if piece.fixed else coded[f"{name}\0{number}"])
    return Mixed(tuple(items), start.runs) if start.runs else items[0]


def _cut(part: Part, flat: Tensor) -> tuple[Tensor, ...]:
    """Each tensor of a part, complex ones as pairs."""
    return _shaped(part, flat.split(part.sizes))


def _shaped(part: Part, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(w.view(s.shape) if s.reals == s.size else w for w, s in zip(rows, part.specs, strict=True))


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
