"""The plan of an adapter, made from its settings or from its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from subcompress.base import OnBase
from subcompress.errors import SubcompressError
from subcompress.format.record import Coded, Entry, Factored, Fixed, Mixed, Record, Stored, Tied, Unchanged
from subcompress.operators import HadamardBlocks
from subcompress.subspace.plan import Plan, make_plan
from subcompress.subspace.starts import PieceStart, Start, Starts, directions_of, recognize
from subcompress.tensors.layout import Layout, TensorSpec, raw_bytes

FLOATS = ("F32", "F16", "BF16", "F64")


def starts_of_model(model: nn.Module, standing: OnBase, act_on: str) -> Starts:
    """How the tensors of a model start. Raises SubcompressError for what cannot be trained."""
    with _trainable(model):
        return recognize(model, base=standing, act_on=act_on)


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """All parameters require gradients while the block lasts: PEFT has frozen them, and what acts is said by name."""
    before = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point() or p.is_complex()]
    for p, _ in before:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)


def plan_of_record(record: Record, model: nn.Module, standing: OnBase, largest: float) -> tuple[Plan, float]:
    """The plan of a file, and the step that its integers are multiples of: z then has units in which the largest scale
    is `largest`. Floats are of the model's dtype. Raises SubcompressError for a file of another model."""
    group = record.groups[0]
    if len(record.groups) > 1:
        raise SubcompressError(
            "the file also holds running statistics, which an adapter cannot: load it with subcompress.load"
        )
    scales = {
        spec.name: tuple(p.entry.scale for p in pieces if isinstance(p.entry, Coded))
        for spec, pieces in zip(record.layout, record.pieces, strict=True)
    }
    operator = group.operator
    if isinstance(operator, HadamardBlocks) and operator.K:
        step = 1 / operator.A
    else:
        step = max(max(found, default=0.0) for found in scales.values()) / largest
    layout = _layout(record, model)
    pairs = enumerate(zip(layout, record.entries, strict=True))
    starts = Starts(layout, {}, {spec.name: _start(record, i, spec, entry) for i, (spec, entry) in pairs})
    in_units = {name: tuple(s / step for s in found) for name, found in scales.items() if found}
    plan = make_plan(starts, operator.d, bits=group.bits, seed=record.seed, base=standing, scales=in_units)
    return replace(plan, parts=(replace(plan.parts[0], operator=operator),)), step


def _layout(record: Record, model: nn.Module) -> Layout:
    """The file's layout with the floats of the model. Raises SubcompressError for those of another model, and for
    other values of tensors that the file has as they are."""
    state = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    own = Layout.of(state)
    dtypes = {spec.name: spec.dtype for spec in own if spec.dtype in FLOATS}
    layout = Layout(
        tuple(replace(s, dtype=dtypes.get(s.name, s.dtype)) if s.dtype in FLOATS else s for s in record.layout)
    )
    layout.require(own, "the model")
    for i, (spec, entry) in enumerate(zip(record.layout, record.entries, strict=True)):
        if isinstance(entry, Stored) and dtypes.get(spec.name, spec.dtype) == spec.dtype:
            at = record.stored_at[i]
            if raw_bytes(state[spec.name]) != record.stored[at : at + spec.nbytes]:
                raise SubcompressError(
                    f"the file has values of {spec.name} that differ from the model's, and PEFT keeps the "
                    "model's: load the file with subcompress.load"
                )
    return layout


def _start(record: Record, i: int, spec: TensorSpec, entry: Entry) -> Start:
    if isinstance(entry, Unchanged):
        return Start("kept", "the base's")
    if isinstance(entry, Stored):
        return Start("buffer", "as it is")
    if isinstance(entry, Tied):
        return Start("tied", "tied", index=entry.index)
    if isinstance(entry, Coded) and entry.based:
        return Start("base", "the base's", reach=1.0)
    pieces = tuple(PieceStart(p.entry.start, 1.0, p.reals, isinstance(p.entry, Fixed)) for p in record.pieces[i])
    if isinstance(entry, Factored):
        assert record.base is not None, "factors are added to a base"
        directions = directions_of(record.base, spec.name, entry.rank) if entry.sketched else None
        return Start("factored", "as the file has it", pieces, rank=entry.rank, directions=directions)
    return Start("coded", "as the file has it", pieces, entry.runs if isinstance(entry, Mixed) else ())


def shared(plan: Plan, known: dict[str, Tensor]) -> Plan:
    """The plan with values of the base that other plans have too, so that each is held once. known: those so far, by
    name."""
    parts = []
    for part in plan.parts:
        starts = tuple(
            known.setdefault(spec.name, start) if form is None and isinstance(start, Tensor) else start
            for spec, start, form in zip(part.specs, part.starts, part.forms, strict=True)
        )
        parts.append(replace(part, starts=starts))
    return replace(plan, parts=tuple(parts))


__all__ = ["plan_of_record", "shared", "starts_of_model"]
