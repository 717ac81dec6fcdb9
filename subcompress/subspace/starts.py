"""Decides how each tensor of a network starts, and which of its values coordinates act on.

A value is random or chosen (a constant of the network's code). If the network can be built again, building it under
several seeds tells the two apart (`subcompress.subspace.observing`). If only an instance is given, every value that is
not clearly random counts as chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from subcompress.base import OnBase, tied_names
from subcompress.errors import SubcompressError
from subcompress.format.describing import EXACT, Runs, deflated_size, describe, form_cost, runs_cost, runs_of
from subcompress.format.record import bfloat16
from subcompress.operators.forms import FANS, Chosen, Form, Seeded, Table, fans, seeded_scale
from subcompress.subspace import roles
from subcompress.subspace.acting import LowRank, acting_of
from subcompress.subspace.observing import Build, Observed, Seen, observe, reals
from subcompress.subspace.spread import Drawn, Moments, alike, close, grouped, grouped_parts, one_group
from subcompress.subspace.start_notes import MIXED, ODD, buffer_note, frozen_note, same_note, start_notes
from subcompress.subspace.structure import (
    SMOOTH,
    STORABLE,
    atoms,
    distinct_enough,
    drawn_structure,
    structure,
    usual_shape,
    without,
)
from subcompress.support import names
from subcompress.tensors.layout import CODED_DTYPES, Layout, TensorSpec, array_of, raw_bytes

MAX_STORED = 1 << 16
"""The most bytes of chosen and structured values that a file may hold. (A packed file usually has hundreds of
bytes.)"""

MAX_ODD = 1 << 12
"""The most bytes of a tensor that is stored because its values are not distributed like those of an initializer. It
applies if only an instance of the network is given."""

STRUCTURED = ("random", "store", "guess")
"""What to do with random orthogonal and sparse starts: replace them with seeded random numbers of the same standard
deviation, store their values, or `guess`, which looks only at the values, as if the network could not be built
again."""

CLEARLY = 8
"""In a tensor of an instance with fewer values, none is clearly random."""

MANY = 64
"""A tensor of an instance with at least this many values shows by its distribution alone whether they are random."""


@dataclass(frozen=True)
class PieceStart:
    """Values of a tensor that have the same kind of start.

    form: their start. reach: how far they are expected to move, used until that is measured. reals: their number.
    fixed: whether no coordinate acts on them.
    """

    form: Form
    reach: float
    reals: int
    fixed: bool = False


@dataclass(frozen=True)
class Start:
    """How one tensor starts.

    kind: coded, base (it moves from the base's value), factored (a product of factors is added to the base), kept,
    stored, buffer, dropped (left out of the file, rebuilt as zeros) or tied. why: a text for the user. pieces: the
    pieces of a coded tensor; for a factored tensor, the right and the left factor, or the one matrix between directions
    of the base. runs: where the pieces lie, if there are several. reach: how far a tensor is expected to move from the
    base. index: the tensor that this one is tied to. cost: bytes of the values that the file holds as they are. rank:
    the rank of the factors. directions: see `directions_of`.
    """

    kind: str
    why: str
    pieces: tuple[PieceStart, ...] = ()
    runs: Runs = ()
    reach: float = 0.0
    index: int = 0
    cost: int = 0
    rank: int = 0
    directions: tuple[Tensor, Tensor] | None = field(default=None, compare=False, repr=False)

    @property
    def moves(self) -> bool:
        """Whether coordinates act on any of its values."""
        return self.kind == "base" or any(not piece.fixed for piece in self.pieces)


@dataclass(frozen=True)
class Values:
    """The start of a trained tensor, value by value.

    first: the (n,) real numbers of one build; empty if they are not needed. group: (n,) uint8, 0 for chosen values and
    1 + i for random values of group i. drawn: these groups, with the usual standard deviations if they are close to
    them. near: how far values that start at zero are expected to move. built: whether several builds were compared.
    structured: why the values cannot come from a seed, or what they were before a seeded start replaced them.
    """

    spec: TensorSpec
    first: np.ndarray
    group: np.ndarray
    drawn: tuple[Drawn, ...] = ()
    near: float = 1.0
    built: bool = False
    structured: str = ""

    @property
    def random(self) -> np.ndarray:
        """Which values are random, (n,)."""
        one = not any(self.group.strides)
        return alike(len(self.group) > 0 and self.group[0] > 0, len(self.group)) if one else self.group > 0


@dataclass(frozen=True)
class Starts:
    """How a network starts. `of` gives the start of each tensor.

    values: the values of the trained tensors, by name. other: the starts of all other tensors. notes: lines for the
    user.
    """

    layout: Layout
    values: Mapping[str, Values]
    other: Mapping[str, Start]
    notes: tuple[str, ...] = ()
    _made: dict[tuple[str, bytes], Start] = field(default_factory=dict)

    def of(self, still: Mapping[str, np.ndarray] | None = None) -> dict[str, Start]:
        """Return the start of each tensor by name, in the order of the layout.

        still: for each tensor, a mask (n,) of the values that no coordinate acts on.
        """
        still = still or {}
        known = {spec.name: spec.reals for spec in self.layout}
        for name, mask in still.items():
            if known.get(name) != len(mask):
                raise SubcompressError(
                    f"the moves were measured on another network, which has {name}: measure them again on this one"
                )
        return {spec.name: self._of(spec.name, still.get(spec.name)) for spec in self.layout}

    def items(self, name: str, still: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """The index of the piece of each real number, (n,), for a tensor with several pieces."""
        return _items(self.of(still)[name].runs, self.values[name].spec.reals)

    def _of(self, name: str, still: np.ndarray | None) -> Start:
        if name not in self.values:
            unread = self.other[name].kind in ("base", "factored") and still is not None and still.all()
            return Start("kept", "the base's: the forward pass does not read it") if unread else self.other[name]
        key = name, b"" if still is None or not still.any() else np.packbits(still).tobytes()
        if key not in self._made:
            self._made[key] = _coded(self.values[name], still if key[1] else None)
        return self._made[key]


def moving_weights(layout: Layout, starts: Mapping[str, Start]) -> int:
    """D: the number of real numbers that coordinates act on."""
    return sum(
        spec.reals
        if starts[spec.name].kind == "base"
        else sum(p.reals for p in starts[spec.name].pieces if not p.fixed)
        for spec in layout
    )


def recognize(
    module: nn.Module,
    structured: str = "random",
    base: OnBase | None = None,
    act_on: str = names.DEFAULT_ROLES,
    *,
    build: Build | None = None,
    seed: int = 0,
    drop: tuple[str, ...] = (),
) -> Starts:
    """Find out how every entry of the state dict starts, in its order. On a base, tensors of the base come first.

    build: builds the network under a given seed; `module` is the network under `seed`. None if the network cannot be
    built again. base: the base that the module is fine-tuned from. act_on: see `acting.acting_of`. structured: one of
    STRUCTURED. drop: patterns of tensors that the file does not hold. Raises SubcompressError if the network cannot be
    fitted, or chosen values take more than MAX_STORED bytes.
    """
    if structured not in STRUCTURED:
        raise SubcompressError(f"--structured must be {', '.join(STRUCTURED)}; got {structured}")
    state = _tensors(module)
    if base is not None:  # its tensors come first
        state = {t.name: state[t.name] for t in base.layout} | {n: t for n, t in state.items() if n not in base}
    layout = Layout.of(state)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    other = _based(module, base, act_on, state)
    other |= {n: Start("dropped", "dropped: zeros in the file") for n in _dropped(drop, state, parameters)}
    other |= _tied(layout, state)
    other |= {
        n: _untrained(t, n in parameters)
        for n, t in state.items()
        if n not in other and not (n in parameters and t.requires_grad)
    }
    trained = {spec.name: spec for spec in layout if spec.name not in other}
    for name, spec in trained.items():
        _check_codable(spec, parameters[name])
    observed = Observed({})
    if build is not None and structured != "guess" and trained:
        observed = observe(module, build, seed, set(trained))
    values = _Known(parameters, observed.tensors, structured).all_of(trained)
    found = Starts(layout, values, other)
    notes = start_notes(values) + _checked_cost(found, bool(observed.tensors))
    return replace(found, notes=(*observed.notes, *notes))


def _based(module: nn.Module, base: OnBase | None, act_on: str, state: Mapping[str, Tensor]) -> dict[str, Start]:
    """The starts of the base's tensors by name, without those that are tied to another tensor."""
    if base is None:
        return {}
    new = frozenset(names[0] for names in tied_names(module) if not any(n in base for n in names))
    acting, role = acting_of(module, act_on, new), roles.roles_of(module)
    parameters = {n for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    found, ties = {}, _tied(base.layout, state)
    for spec in base.layout:
        if spec.name in ties:
            continue
        found[spec.name] = Start("kept", "the base's")
        if spec.name not in parameters:
            continue
        if spec.name in acting.whole:
            found[spec.name] = _of_base(spec, state[spec.name], role[spec.name])
        elif spec.name in acting.low_rank:
            found[spec.name] = _with_factors(base, spec, state[spec.name], acting.low_rank[spec.name])
    return found


def _tied(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Start]:
    """The starts of tied tensors by name: those that share their memory with an earlier tensor."""
    found: dict[str, Start] = {}
    places: dict[tuple[object, ...], int] = {}
    for i, name in enumerate(spec.name for spec in layout):
        tensor = state[name]
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in places:
            index = places[place]
            found[name] = Start("tied", f"tied to {layout.tensors[index].name}", index=index)
        else:
            places[place] = i
    return found


def _untrained(tensor: Tensor, parameter: bool) -> Start:
    """The start of a tensor whose values are stored in the file."""
    if not parameter:
        return Start("buffer", "a buffer: its values are stored in the file", cost=cost(tensor))
    kind = "frozen" if tensor.is_floating_point() or tensor.is_complex() else "of integers"
    bytes_, about = cost(tensor), "about " if tensor.nbytes > EXACT else ""
    return Start("stored", f"{kind}: its values are stored in the file, {about}{bytes_} bytes", cost=bytes_)


def _dropped(drop: tuple[str, ...], state: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> set[str]:
    """The tensors that match the patterns.

    Raises SubcompressError if a pattern matches no tensor, or one that is trained.
    """
    found: set[str] = set()
    for pattern in drop:
        named = {n for n in state if fnmatchcase(n, pattern)}
        trained = sorted(n for n in named if n in parameters and parameters[n].requires_grad)
        if not named or trained:
            odd = f"{trained[0]}, which is trained" if trained else f"none: the first tensor is {next(iter(state), '')}"
            raise SubcompressError(
                f"--drop takes buffers and frozen tensors that inference does not need; {pattern} matches {odd}"
            )
        found |= named
    return found


def _of_base(spec: TensorSpec, tensor: Tensor, role: str) -> Start:
    """The start of a tensor that moves from the base. Raises SubcompressError for one that cannot be coded."""
    _check_base(spec, tensor)
    return Start("base", f"the base's ({role})", reach=roles.MOVES[role])


def _check_base(spec: TensorSpec, tensor: Tensor) -> None:
    if spec.dtype not in CODED_DTYPES or not bool(tensor.isfinite().all()):
        raise SubcompressError(
            f"{spec} holds integers, nan or inf, on which coordinates cannot act: leave it out of --act-on"
        )


def _with_factors(base: OnBase, spec: TensorSpec, tensor: Tensor, how: LowRank) -> Start:
    """The start of a matrix to which a product of factors is added.

    With two factors, the one that reads the layer's input starts at random, and the other one at zero. A matrix between
    directions of the base starts at zero.
    """
    _check_base(spec, tensor)
    rows, columns = spec.shape
    why = f"the base's, with factors of rank {how.rank} ({how.kind})"
    if how.kind == "sketch":
        reach = roles.SKETCHED * math.sqrt(rows * columns) / how.rank
        piece = PieceStart(0.0, reach, how.rank**2)
        return Start("factored", why, (piece,), rank=how.rank, directions=directions_of(base, spec.name, how.rank))
    read = rows if how.transposed else columns
    random = PieceStart(Seeded(bfloat16(seeded_scale(1 / read))), roles.FACTORS[0], how.rank * read)
    zero = PieceStart(0.0, roles.FACTORS[1], how.rank * (columns if how.transposed else rows))
    return Start("factored", why, (zero, random) if how.transposed else (random, zero), rank=how.rank)


def directions_of(base: OnBase, name: str, rank: int) -> tuple[Tensor, Tensor]:
    """Singular directions of a matrix of the base: U (rows, rank) and V (rank, columns)."""
    u, v = base.directions(name, rank)
    return torch.from_numpy(u), torch.from_numpy(v)


def cost(tensor: Tensor) -> int:
    """Bytes that the values of a tensor take in a file; an estimate if there are many."""
    return deflated_size(raw_bytes(tensor))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with its parameters themselves. Raises SubcompressError if it cannot be fitted."""
    if lazy := [n for n, p in module.named_parameters() if nn.parameter.is_lazy(p)]:
        raise SubcompressError(f"{lazy[0]} has no shape yet: run the model once first")
    if isinstance(module, torch.jit.ScriptModule):
        raise SubcompressError("fit cannot train a TorchScript module: give the Python class that it was made from")
    state = module.state_dict(keep_vars=True)
    if meta := [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]:
        raise SubcompressError(f"{meta[0]} has no values, because it is on the meta device: materialize it first")
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise SubcompressError(f"{other[0]} in the state dict is not a tensor: leave extra state out")
    if sparse := [name for name, value in state.items() if value.layout != torch.strided]:
        raise SubcompressError(f"{sparse[0]} is not a dense tensor: call .to_dense() first")
    missing = [name for name, _ in module.named_parameters(remove_duplicate=False) if name not in state]
    if missing:
        raise SubcompressError(f"{missing[0]} is not in the state dict: remove the state_dict hooks")
    return state


def _check_codable(spec: TensorSpec, p: Tensor) -> None:
    """Raise SubcompressError for a trained tensor that cannot be coded."""
    if spec.dtype not in CODED_DTYPES:
        raise SubcompressError(
            f"fit trains {', '.join(CODED_DTYPES)} weights; {spec.name} is {spec.dtype}: convert it, or freeze it "
            f"(requires_grad=False)"
        )
    reals_ = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
    if not math.isfinite(float(reals_.sum())) and not bool(reals_.isfinite().all()):  # the sum takes a tenth
        raise SubcompressError(f"{spec.name} holds nan or inf: initialize it")


# Which values are random


class _Known:
    """Decides for trained tensors, one after the other, which values are random.

    seen: what comparing builds showed, by name. structured: one of STRUCTURED.
    """

    def __init__(self, parameters: Mapping[str, Tensor], seen: Mapping[str, Seen], structured: str) -> None:
        self.parameters, self.seen, self.structured = parameters, seen, structured
        self.siblings: dict[str, list[tuple[str, float]]] = {}
        self.odd = self.runs = 0  # bytes that odd tensors and runs take so far

    def all_of(self, trained: Mapping[str, TensorSpec]) -> dict[str, Values]:
        """The values of each tensor by name."""
        return {name: self._one(spec) for name, spec in trained.items()}

    def _one(self, spec: TensorSpec) -> Values:
        p = self.parameters[spec.name].detach()
        siblings = self.siblings.setdefault(spec.name.rpartition(".")[0], [])
        nothing = Values(spec, np.zeros(0, np.float32), alike(np.uint8(0), spec.reals), near=_near(spec, siblings))
        found = self._seen(nothing, p) if spec.name in self.seen else self._guessed(nothing, p)
        found = self._said_in_few_runs(found, p)
        shown = [d if isinstance(d.center, np.ndarray) else self._usual(spec, d) for d in found.drawn]
        siblings += [(spec.name, d.std) for d in shown]
        first = _exact(p) if not found.random.all() else found.first
        return replace(found, drawn=tuple(shown), first=first)

    def _seen(self, values: Values, p: Tensor) -> Values:
        """The values of a tensor, by the comparison of builds."""
        seen = self.seen[values.spec.name]
        whole = bool(seen.drawn) and not any(seen.group.strides) and self.structured == "random"
        why = drawn_structure(p) if whole else structure(p) if seen.drawn and self.structured == "store" else ""
        why = why if why in STORABLE else ""
        if why and self.structured == "store":
            return replace(values, structured=why, built=True)
        return replace(values, group=seen.group, drawn=seen.drawn, structured=why, built=True)

    def _guessed(self, values: Values, p: Tensor) -> Values:
        """The values of a tensor, judged by a single build."""
        spec, first = values.spec, reals(p)
        n, few_bits = len(first), spec.dtype in ("F16", "BF16")
        why = structure(p)
        if why == SMOOTH and (often := atoms(first, few_bits)).any() and not structure(without(p, often)):
            why = ""  # blocks of chosen values are smooth, but the values between them are not
        if why in STORABLE and self.structured != "store":
            whole = one_group(Moments.of_one(first))
            return replace(values, group=alike(np.uint8(1), n), drawn=(whole,), structured=why)
        if why or n < CLEARLY:
            return replace(values, structured=why)
        random = ~atoms(first, few_bits)
        rest = first if random.all() else first[random]
        if len(rest) < CLEARLY or not distinct_enough(rest, few_bits):
            return values
        group, drawn = _groups(spec, Moments.of_one(first), random)
        found = replace(values, group=group, drawn=drawn)
        if n < MANY:
            usual = drawn[0].center == 0 and len(drawn) == 1 and bool(self._usual(spec, drawn[0]).words)
            return found if usual else values
        if all(usual_shape(first[group == i]) for i in range(1, len(drawn) + 1)):
            return found
        self.odd += first.nbytes if (small := first.nbytes <= min(MAX_ODD, MAX_STORED // 2 - self.odd)) else 0
        return values if small else replace(found, structured=ODD)

    def _said_in_few_runs(self, values: Values, p: Tensor) -> Values:
        """The values; all of them as random if their groups would take more than MAX_STORED bytes of a file."""
        if not any(values.group.strides):
            return values
        runs = runs_of(values.group)
        if runs is not None and (bytes_ := runs_cost(runs)) <= MAX_STORED - self.runs:
            self.runs += bytes_
            return values
        whole = one_group(Moments.of_one(reals(p)))
        mixed = values.structured if values.group.all() else MIXED
        return replace(values, group=alike(np.uint8(1), len(values.group)), drawn=(whole,), structured=mixed)

    def _usual(self, spec: TensorSpec, drawn: Drawn) -> Drawn:
        """The group, with a usual standard deviation if it is close to one: equal scales cost nothing in a file."""
        for usual, words in _deviations(spec, self.siblings[spec.name.rpartition(".")[0]]):
            if close(drawn.std, usual, drawn.shown):
                return replace(drawn, std=usual, words=words)
        return drawn


def _groups(spec: TensorSpec, moments: Moments, random: np.ndarray) -> tuple[np.ndarray, tuple[Drawn, ...]]:
    if spec.dtype == "C64":
        return grouped_parts(moments, random, (*spec.shape, 2))
    return grouped(moments, random, spec.shape)


def _exact(p: Tensor) -> np.ndarray:
    """The real numbers of a tensor as one row in its dtype, but bfloat16 as float32."""
    flat = (torch.view_as_real(p) if p.is_complex() else p).reshape(-1).cpu()
    return array_of(flat.float() if flat.dtype == torch.bfloat16 else flat)


def _near(spec: TensorSpec, siblings: list[tuple[str, float]]) -> float:
    """How far a tensor of zeros is expected to move: as far as its random siblings."""
    usual = 1 / math.sqrt(3 * spec.shape[-1] if spec.shape and spec.shape[-1] else 3)
    return siblings[0][1] if siblings else usual


def _deviations(spec: TensorSpec, siblings: list[tuple[str, float]]) -> Iterator[tuple[float, str]]:
    """Standard deviations that initializers give (He et al. 2015, arXiv:1502.01852; Glorot, Bengio 2010), most likely
    first."""
    if len(spec.shape) < 2:
        for name, std in siblings:
            yield std, f"as {name}"
    elif (found := fans(spec.shape)) is not None:
        for number, words in enumerate(FAN_WORDS, 1):
            yield math.sqrt(FANS[number](*found)), words
    for usual in (1.0, 0.02, 0.01):
        yield usual, "usual"
    for name, std in siblings:
        yield std, f"as {name}"


FAN_WORDS = ("1/sqrt(3 fan_in)", "sqrt(2/fan_in)", "sqrt(2/(fan_in + fan_out))", "1/sqrt(fan_in)")


# What they start from


def _coded(values: Values, still: np.ndarray | None) -> Start:
    """The start of a tensor with these values. still: a mask of those that no coordinate acts on, or None."""
    n = values.spec.reals
    if not n:
        return Start("coded", "empty", (PieceStart(0.0, 1.0, 0, True),))
    if still is None and values.drawn and not any(values.group.strides):
        forms, runs, reach, why = _random_forms(values, 0, None)
        if not runs:
            return Start("coded", why, (PieceStart(forms[0], reach, n),))
    pieces: list[PieceStart] = []
    words: list[str] = []
    items = np.zeros(n, np.int64)
    for number, which, fixed in _classes(values, still):
        count = int(which.sum())
        forms, runs, reach, why = _random_forms(values, number - 1, which) if number else _chosen_forms(values, which)
        within = _items(runs, count) if runs else np.zeros(count, np.int64)
        items[which] = len(pieces) + within
        for form, size in zip(forms, np.bincount(within, minlength=len(forms)), strict=True):
            pieces.append(
                PieceStart(form, max(abs(form) / 4, reach) if isinstance(form, float) else reach, int(size), fixed)
            )
        words.append(f"{why}, fixed" if fixed else why)
    if len(pieces) == 1:
        return Start("coded", words[0], tuple(pieces))
    if (found := runs_of(items)) is not None:
        return Start("coded", "; ".join(words), tuple(pieces), found)
    if still is not None:  # too many runs: let coordinates act on all values
        return _coded(values, None)
    raise SubcompressError(
        f"the fixed and random values of {values.spec.name} alternate more than {1 << 20} times, more than a "
        "file can hold: give --structured guess, or split the tensor"
    )


def _items(runs: Runs, n: int) -> np.ndarray:
    """The item of each of n values."""
    period = np.repeat([i for i, _ in runs], [length for _, length in runs])
    return np.resize(period, n)


def _classes(values: Values, still: np.ndarray | None) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Yield the classes of values that start alike: the group (0: chosen), a mask, and whether no coordinate acts on
    them. Real and imaginary parts of chosen values are separate classes."""
    n = len(values.group)
    for number in (*range(1, len(values.drawn) + 1), 0):
        mine = values.group == number
        if number == 0 and values.spec.dtype == "C64":
            real = np.arange(n) % 2 == 0
            parts = [mine & real, mine & ~real]
        else:
            parts = [mine]
        for part in parts:
            for which, fixed in [(part, False)] if still is None else [(part & ~still, False), (part & still, True)]:
                if which.any():
                    yield number, which, fixed


def _random_forms(values: Values, number: int, which: np.ndarray | None) -> tuple[list[Form], Runs, float, str]:
    """Return the seeded starts of random values of a group, their runs, their expected reach, and a text for the user.

    which: a mask (n,) of these values; None for all values of the tensor.
    """
    drawn = values.drawn[number]
    scale = bfloat16(min(max(seeded_scale(drawn.std**2), 2.0**-60), 2.0**30))
    why = f"random, std {drawn.std:.4g} ({drawn.words or 'measured'})"
    if values.structured in STORABLE:
        maker = "the factory makes it" if values.built else "it was"
        why += f"; {maker} {values.structured}, the seeded start is not"
    elif values.structured:
        why += f", in place of {values.structured}"
    if not isinstance(drawn.center, np.ndarray):
        around = f" around {drawn.center:.4g}" if drawn.center else ""
        return [Seeded(scale, drawn.center)], (), drawn.std, why + around
    dtype = values.spec.real_dtype
    center = drawn.center if which is None else drawn.center[which[values.group == number + 1]]
    centers = array_of(torch.from_numpy(center).to(values.spec.torch_dtype if dtype != "F32" else torch.float32))
    forms, runs = describe(centers, (), dtype)
    return [Seeded(scale, form) for form in forms], runs, drawn.std, f"{why} around centers of their own"


def _chosen_forms(values: Values, which: np.ndarray) -> tuple[list[Form], Runs, float, str]:
    """The same as `_random_forms`, for chosen values."""
    dtype = values.spec.real_dtype
    whole = bool(which.all())
    chosen = values.first if whole else values.first[which]
    spread = math.sqrt(float(np.square(chosen.astype(np.float64)).mean()))
    if dtype == "BF16":
        chosen = array_of(torch.from_numpy(chosen.copy()).bfloat16())
    shape = values.spec.shape if whole else ()
    if values.spec.dtype == "C64":  # the mask selects the real or the imaginary part
        shape = values.spec.shape if 2 * which.sum() == len(which) else ()
    forms, runs = describe(chosen, shape, dtype)
    reach = max(spread / 4, 2.0**-40)
    if len(forms) == 1 and isinstance(form := forms[0], float):
        return list(forms), (), values.near if form == 0 else reach, f"chosen: constant {form:.6g}"
    bytes_ = sum(map(form_cost, forms)) + runs_cost(runs)
    if isinstance(forms[0], float):
        return list(forms), runs, reach, f"chosen: few values, {bytes_} bytes"
    kind = "table" if isinstance(forms[0], Table) else "ramp"
    return list(forms), runs, reach, f"chosen: a {kind}, about {bytes_} bytes"


# What chosen values cost


def chosen_cost(start: Start) -> int:
    """Estimate the bytes that the chosen values of a tensor take in a file."""
    centers = [p.form.center if isinstance(p.form, Seeded) else p.form for p in start.pieces]
    tables: list[Chosen] = [c for c in centers if not isinstance(c, float)]
    return sum(map(form_cost, tables)) + runs_cost(start.runs)


def _checked_cost(starts: Starts, built: bool) -> list[str]:
    """Return a note if the factory draws no random values.

    Raises SubcompressError if chosen values take more than MAX_STORED bytes.
    """
    found = starts.of()
    costs = {name: chosen_cost(found[name]) for name in starts.values}
    total = sum(costs.values())
    if total > MAX_STORED:
        raise _too_large(starts.values, costs)
    drawn = any(v.drawn for v in starts.values.values())
    if built and not drawn and sum(v.spec.reals for v in starts.values.values()) > 64:
        return [same_note(total)]
    return []


def _too_large(values: Mapping[str, Values], costs: Mapping[str, int]) -> SubcompressError:
    name = max(costs, key=lambda n: costs[n])
    v = values[name]
    hint = "let the factory draw from the seed that is set before it is called" if v.built else "give a factory"
    why = v.structured or ("equal in every build" if v.built else "not clearly random")
    return SubcompressError(
        f"initial values that are not random are stored in the file and may take at most {MAX_STORED} bytes; those of "
        f"this network take {sum(costs.values())}, most of them for {name} ({why}): {hint}, give --structured "
        "guess to start from the seed what looks random, or give trained weights with --base"
    )


__all__ = ["Start", "Starts", "buffer_note", "frozen_note", "moving_weights", "recognize"]
