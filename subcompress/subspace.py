"""A module whose only parameter is z: theta = start + scale * (frozen + P z), for our loop or the user's own.

sub = subcompress.Subspace.of(net, d=300)
optimiser = torch.optim.Adam(sub.parameters(), lr=sub.plan.lr)
...                                   # sub(x) in place of net(x); sub.materialised() for methods of net
sub.round(bits=4)                     # half-way
...
subcompress.pack(sub, "net.safetensors")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress import codec, traced
from subcompress.base import open_base, stand_on
from subcompress.buffers import coded_buffers
from subcompress.errors import SubcompressError
from subcompress.facts import Facts
from subcompress.layout import CODED_DTYPES, holdable, raw_bytes
from subcompress.moves import Moves
from subcompress.observing import built
from subcompress.operators import ExactOperator, HadamardBlocks
from subcompress.operators.gradients import rmatvec
from subcompress.plan import SPREAD, Assembly, Part, Plan, check_options, make_plan
from subcompress.record import Coded, Entry, Fixed, Group, Kept, Mixed, Record, Same, Stored, bfloat16
from subcompress.roles import DEFAULT
from subcompress.starts import Start, recognize
from subcompress.streaming import stream

MAX_A = 1 << 10

ONCE = 32
"""Bytes from which equal stored tensors are stored once."""


class Subspace(nn.Module):
    """Wraps a copy of `module`: what the plan trains becomes functions of `z`, (d,); buffers and modes stay its own.

    `z` starts at zero, where the weights are at their starts; at random where d = D. Submodules are reached by
    `train()` and `eval()`.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.module = _copy(module)
        device = next(module.parameters()).device
        self.z = nn.Parameter(torch.zeros(plan.d, dtype=torch.float32, device=device))
        self.splits = [p.operator.d for p in plan.parts]
        drawn = torch.Generator().manual_seed(plan.seed & ((1 << 63) - 1))
        with torch.no_grad():
            for z, part in zip(self.z.split(self.splits), plan.parts, strict=True):
                if part.spreads:
                    spreads = torch.tensor(part.spreads).repeat_interleave(torch.tensor(part.sizes))
                    z.copy_(spreads * torch.randn(len(z), generator=drawn))
        self.bits = 0
        self.steps = [0.0] * len(plan.parts)
        self.dead = 0.5
        self._nodes = [
            traced.Node(part, tuple(s.to(device) if isinstance(s, Tensor) else float(s) for s in part.starts))
            for part in plan.parts
        ]
        # torch.compile follows no look-up of a dtype by its name.
        self._dtypes = {spec.name: spec.torch_dtype for part in plan.parts for spec in part.specs}
        self._buffer_names = [name for name, b in self.module.named_buffers() if holdable(b)]
        self._places = _forget_parameters(self.module)
        self._untrained = {name: b.clone() for name, b in self.moving().items() if name != "z"}
        self.train(self.training)

    @classmethod
    def of(
        cls,
        module: nn.Module | Callable[[], nn.Module],
        d: int,
        *,
        bits: int = 4,
        seed: int = 0,
        operator: str = "hadamard",
        structured: str = "random",
        base: Any = None,
        base_name: str | None = None,
        act_on: str = DEFAULT,
        new: Sequence[str] = (),
        drop: Sequence[str] = (),
        moves: Moves | None = None,
    ) -> Subspace:
        """The subspace of d coordinates of a network, planned with the defaults of `fit`; base, base_name, act_on, new
        and drop as there.

        module: the network, or a factory of it, which tells chosen values from random ones. moves: how far each tensor
        moves, from `measure_moves` of the same network; guessed from the starts by default. Raises SubcompressError.
        """
        module, build = built(module, seed)
        standing = None
        if base is not None:
            standing = stand_on(open_base(base, base_name), module, tuple(new))
            module = standing.loaded(_copy(module))
        starts = recognize(module, structured, standing, act_on, build=build, seed=seed, drop=tuple(drop))
        known = {} if moves is None else {"scales": moves.scales(starts), "still": moves.still}
        return cls(module, make_plan(starts, d, bits=bits, seed=seed, operator=operator, base=standing, **known))

    def train(self, mode: bool = True) -> Subspace:
        """As for any module; on a base, layers with running statistics keep to those of the base, in training too."""
        super().train(mode)
        if self.plan.base is not None:
            for child in self.module.modules():
                if isinstance(child, nn.modules.batchnorm._NormBase) and child.running_mean is not None:
                    child.eval()
        return self

    def round(self, bits: int = 4) -> None:
        """From here on the weights are those of z rounded to integers of so many bits; gradients pass straight through
        (Bengio, Leonard, Courville 2013, arXiv:1308.3432)."""
        check_options(bits, 0, "hadamard")
        self.bits = bits
        for i, (z, part) in enumerate(zip(self.z.detach().split(self.splits), self.plan.parts, strict=True)):
            step = SPREAD[bits] * float(z.square().mean().sqrt())
            if isinstance(part.operator, HadamardBlocks) and part.operator.K:
                # The frozen constant is an integer A of steps.
                step = 1 / min(max(1, round(1 / step)), MAX_A) if step > 0 else 1.0
            self.steps[i] = step or 1.0

    @property
    def top(self) -> int:
        """The largest coordinate of a rounded subspace."""
        return (1 << (self.bits - 1)) - 1

    def coordinates(self) -> list[Tensor]:
        """Each part's z as integers in units of its step, (d_i,) int64. Needs `round` first."""
        parts = self.z.detach().split(self.splits)
        return [self._integers(z, s).long() for z, s in zip(parts, self.steps, strict=True)]

    def _integers(self, z: Tensor, step: float) -> Tensor:
        q = z / step
        whole = q.round().clamp(-self.top, self.top)
        return whole if self.dead <= 0.5 else torch.where(q.abs() <= self.dead, 0.0, whole)

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
        """Name -> tensor for every trained entry of the state dict, tied ones too, differentiable in z."""
        found: dict[str, Tensor] = {}
        for z, node, step in zip(self.z.split(self.splits), self._nodes, self.steps, strict=True):
            part, rounded = node.part, self._integers(z.detach(), step).mul_(step) if self.bits else z.detach()
            if torch.compiler.is_compiling():
                cut = _cut(part, traced.weights(z, rounded, node.key, part.operator.D))
            else:
                cut = _Weights.apply(z, rounded, node)
            for spec, w in zip(part.specs, cut, strict=True):
                if spec.dtype == "C64":
                    w = torch.view_as_complex(w.view(*spec.shape, 2))
                dtype = self._dtypes[spec.name]
                found[spec.name] = w if w.dtype == dtype else w.to(dtype)
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

    @contextmanager
    def materialised(self) -> Iterator[nn.Module]:
        """The user's own module, of its own class, with the weights of z as its parameters while the block lasts: for
        losses that use more of it than `forward`. Call `backward` inside or outside."""
        with self._holding(self.weights()) as module:
            yield module

    @contextmanager
    def _holding(self, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        before = [(owner, leaf, owner._buffers.pop(leaf)) for owner, leaf in self._places.values()]
        try:
            for (name, (owner, leaf)), (_, _, tensor) in zip(self._places.items(), before, strict=True):
                owner._parameters[leaf] = weights.get(name, tensor)  # type: ignore[assignment]
            yield self.module
        finally:
            for owner, leaf, tensor in before:
                del owner._parameters[leaf]
                owner._buffers[leaf] = tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward under the weights of z."""
        weights = self.weights()
        with self._holding(weights) as module:
            return module(*args, **kwargs)

    def record(self, facts: Facts | None = None, test_accuracy: float | None = None) -> Record:
        """What was trained, exactly: the scales rounded to bfloat16, the frozen constant an integer, running
        statistics quantised, with the digest of the weights it rebuilds.

        Raises SubcompressError before `round`, and for an operator that is not exact.
        """
        if not self.plan.exact:
            name = type(self.plan.parts[0].operator).__name__
            raise SubcompressError(f"{name} is a reference, not exact on every device: fit with --operator hadamard")
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
        stored = b""
        first: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        for i, spec in enumerate(self.plan.layout):
            start = self.plan.starts[spec.name]
            if start.kind == "tied":
                entries.append(Same(start.index))
            elif start.kind == "dropped":
                entries.append(Fixed() if spec.dtype in CODED_DTYPES else Stored())
                stored += bytes(spec.nbytes) if spec.dtype not in CODED_DTYPES else b""
            elif spec.name in coded:
                entries.append(coded[spec.name])
            elif start.kind == "coded":
                entries.append(_entry_of(spec.name, start, coded))
            elif start.kind == "kept" and spec.name not in moved:
                entries.append(Kept())
            else:
                raw = bytes(raw_bytes(state[spec.name]))
                same = first.setdefault((spec.dtype, spec.shape, raw), i)
                entries.append(Stored(same if same < i and len(raw) >= ONCE else None))
                stored += raw if entries[-1] == Stored() else b""
        return tuple(entries), stored

    def settings(self) -> dict[str, Any]:
        """What `moving` does not hold of a training: whether and how z is rounded."""
        return {"bits": self.bits, "steps": self.steps, "dead": self.dead}

    def restore(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Go on from what `moving` and `settings` gave."""
        for name, tensor in self.moving().items():
            tensor.copy_(tensors[name])
        self.bits, self.steps = int(settings["bits"]), [float(s) for s in settings["steps"]]
        self.dead = float(settings["dead"])

    def get_extra_state(self) -> Tensor:
        """`settings` as a tensor, in the state dict: a trainer that keeps and loads it, as torch's and transformers'
        do, goes on with what was rounded."""
        return torch.tensor([self.bits, self.dead, *self.steps], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from what `get_extra_state` gave."""
        bits, self.dead, *self.steps = state.tolist()
        self.bits = int(bits)

    def moving(self) -> dict[str, Tensor]:
        """What training changes: z, and the buffers of the network; for checkpoints."""
        buffers = dict(self.module.named_buffers())
        return {"z": self.z.detach()} | {name: buffers[name] for name in self._buffer_names}


class _Weights(torch.autograd.Function):
    """z -> every tensor of a part, of its rounded values, scaled and cut in one pass over the weights, forwards and
    backwards: with small networks such passes cost nearly as much as the transform. Gradients pass straight through the
    rounding."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, rounded: Tensor, node: traced.Node) -> tuple[Tensor, ...]:
        ctx.node = node
        return _cut(node.part, node.write(rounded))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        node, flat = ctx.node, [g.reshape(-1) for g in grads]
        if torch.is_grad_enabled():  # differentiated once more
            scaled = [g * scale for g, scale in zip(flat, node.part.scales, strict=True)]
            return rmatvec(torch.cat(scaled), node.part.operator), None, None
        return node.adjoint(flat), None, None


def _entry_of(name: str, start: Start, coded: Mapping[str, Coded]) -> Entry:
    """The entry of a tensor of several pieces, or of one that no coordinate acts on."""
    items: list[Coded | Fixed] = []
    for number, piece in enumerate(start.pieces):
        items.append(Fixed(piece.form) if piece.fixed else coded[f"{name}\0{number}"])
    return Mixed(tuple(items), start.runs) if start.runs else items[0]


def _cut(part: Part, flat: Tensor) -> tuple[Tensor, ...]:
    """Each tensor of a part, complex ones as pairs."""
    cut = zip(flat.split(part.sizes), part.specs, strict=True)
    return tuple(w.view(spec.shape) if spec.reals == spec.size else w for w, spec in cut)


def _copy(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise SubcompressError(f"fit trains a copy of the model, and this one cannot be copied: {reason}") from e


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
