"""How each tensor of a network starts, and which of its values coordinates act on.

Where the network can be built again, chosen values and random ones are told apart by building it under several seeds
(`subcompress.observing`). Where only an instance is at hand, what is not clearly random counts as chosen.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from subcompress import roles
from subcompress.base import OnBase, ties_of
from subcompress.describing import Runs, describe, form_cost, runs_cost, runs_of
from subcompress.errors import SubcompressError
from subcompress.forms import FANS, Chosen, Form, Seeded, Table, fans, seeded_scale
from subcompress.layout import CODED_DTYPES, Layout, TensorSpec, array_of, raw_bytes
from subcompress.observing import Build, Seen, center_and_deviation, observe
from subcompress.record import bfloat16

MAX_STORED = 1 << 16
"""Bytes of chosen and structured values that may travel in a file without being asked for: a file of ours has
hundreds."""

STRUCTURED = ("random", "store", "guess")
"""What becomes of orthogonal and sparse random starts: seeded random numbers of their deviation, or their values; and
`guess`, which looks at the values only, as if the network could not be built again."""

_SURE = 3.0
"""Standard errors within which a measured deviation is taken for a usual one."""

CLEARLY = 8
"""Values of an instance below which none is clearly random."""


@dataclass(frozen=True)
class PieceStart:
    """Values of a tensor that start alike. form: their start; reach: how far they are expected to move, before that
    is measured; reals: how many they are; fixed: no coordinate acts on them."""

    form: Form
    reach: float
    reals: int
    fixed: bool = False


@dataclass(frozen=True)
class Start:
    """kind: coded, base (it moves from there), kept, stored, buffer, dropped (zeros in the file) or tied; pieces: of a
    coded tensor, and runs of them where they are several; reach: of a tensor that moves from the base; index: what it
    is tied to; why: for a person to read."""

    kind: str
    why: str
    pieces: tuple[PieceStart, ...] = ()
    runs: Runs = ()
    reach: float = 0.0
    index: int = 0

    @property
    def moves(self) -> bool:
        """Whether coordinates act on any of its values."""
        return self.kind == "base" or any(not piece.fixed for piece in self.pieces)


@dataclass(frozen=True)
class Values:
    """The start of a trained tensor, value by value. first: (n,) real numbers of one build; random: which of them are
    drawn; seen: what builds say, None for an instance; structured: why its values could not come from a seed."""

    spec: TensorSpec
    first: np.ndarray
    random: np.ndarray
    seen: Seen | None = None
    structured: str = ""


@dataclass(frozen=True)
class Starts:
    """How a network starts: `of` gives a start a tensor. values: of the tensors that are trained, by name; other: the
    starts of all others; notes: what a person should know, a line each."""

    layout: Layout
    values: Mapping[str, Values]
    other: Mapping[str, Start]
    notes: tuple[str, ...] = ()
    _made: dict[bytes, dict[str, Start]] = field(default_factory=dict)

    def of(self, still: Mapping[str, np.ndarray] | None = None) -> dict[str, Start]:
        """Name -> how it starts, in the order of the layout. still: by name the (n,) values that no coordinate acts
        on."""
        still = still or {}
        for name, mask in still.items():
            if name not in {spec.name for spec in self.layout} or (
                name in self.values and len(mask) != self.values[name].spec.reals
            ):
                raise SubcompressError(f"moves are measured of the same network; those of {name} are of another one")
        key = b"".join(name.encode() + np.packbits(mask).tobytes() for name, mask in sorted(still.items()))
        if key not in self._made:
            found: dict[str, Start] = {}
            for spec in self.layout:
                if spec.name in self.values:
                    nothing = np.zeros(spec.reals, bool)
                    found[spec.name] = _coded(self.values[spec.name], still.get(spec.name, nothing), found)
                else:
                    found[spec.name] = self.other[spec.name]
                    if found[spec.name].kind == "base" and spec.name in still and still[spec.name].all():
                        found[spec.name] = Start("kept", "the base's: the forward pass does not read it")
            self._made[key] = found
        return self._made[key]

    def items(self, name: str, still: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """The piece of each real number of a tensor of several, (n,)."""
        return _items(self.of(still)[name].runs, len(self.values[name].first))


def moving_weights(layout: Layout, starts: Mapping[str, Start]) -> int:
    """D: real numbers that coordinates act on."""
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
    act_on: str = roles.DEFAULT,
    *,
    build: Build | None = None,
    seed: int = 0,
    drop: tuple[str, ...] = (),
) -> Starts:
    """How every entry of the state dict starts, in its order; on a base in that of a file on it.

    build: the network under a seed, `module` that under `seed`; None where it cannot be built again. base: what the
    module stands on; act_on: see `roles.acted_on`; structured: one of STRUCTURED; drop: patterns of tensors that the
    file does not hold. Raises SubcompressError for what cannot be fitted, and where chosen values take more than
    MAX_STORED bytes.
    """
    if structured not in STRUCTURED:
        raise SubcompressError(f"--structured is {', '.join(STRUCTURED)}; given {structured}")
    state = _tensors(module)
    acting: set[str] = set()
    role: dict[str, str] = {}
    if base is not None:
        state = {spec.name: state[spec.name] for spec in base.layout} | {
            n: t for n, t in state.items() if n not in base
        }
        new = frozenset(names[0] for names in ties_of(module) if not any(n in base for n in names))
        acting, role = roles.acted_on(module, act_on, new), roles.roles_of(module)
    layout = Layout.of(state)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    dropped = _dropped(drop, state, parameters)
    other: dict[str, Start] = {}
    trained: dict[str, TensorSpec] = {}
    seen: dict[tuple[object, ...], int] = {}
    for i, (spec, tensor) in enumerate(zip(layout, state.values(), strict=True)):
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            index = seen[place]
            other[spec.name] = Start("tied", f"tied to {layout.tensors[index].name}", index=index)
            continue
        seen[place] = i
        if spec.name in dropped:
            other[spec.name] = Start("dropped", "dropped: zeros in the file")
        elif base is not None and spec.name in base:
            moving = spec.name in acting and spec.name in parameters and tensor.requires_grad
            other[spec.name] = _of_base(spec, tensor, role[spec.name]) if moving else Start("kept", "the base's")
        elif spec.name not in parameters:
            other[spec.name] = Start("buffer", "a buffer: its values travel in the file")
        elif not tensor.requires_grad:
            kind = "frozen" if tensor.is_floating_point() or tensor.is_complex() else "of integers"
            other[spec.name] = Start("stored", f"{kind}: its values travel in the file, {cost(tensor)} bytes")
        else:
            _check_codable(spec, tensor)
            trained[spec.name] = spec
    if build is not None and structured != "guess" and trained:
        observed = observe(module, build, seed, set(trained))
        notes, tensors = observed.notes, observed.tensors
    else:
        notes, tensors = (), {}
    values: dict[str, Values] = {}
    for name, spec in trained.items():
        values[name] = _values(spec, parameters[name].detach(), tensors.get(name), structured, values)
    found = Starts(layout, values, other, (*notes, *_notes(values, tensors, structured)))
    _refuse_large(found)
    return found


def _dropped(drop: tuple[str, ...], state: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> set[str]:
    """The tensors of the patterns. Raises SubcompressError for a pattern of none, and for one that is trained."""
    found: set[str] = set()
    for pattern in drop:
        named = {n for n in state if fnmatchcase(n, pattern)}
        trained = sorted(n for n in named if n in parameters and parameters[n].requires_grad)
        if not named or trained:
            odd = f"{trained[0]}, which is trained" if trained else f"none: the first tensor is {next(iter(state), '')}"
            raise SubcompressError(
                f"--drop names buffers and frozen tensors that inference does not need; {pattern} names {odd}"
            )
        found |= named
    return found


def _of_base(spec: TensorSpec, tensor: Tensor, role: str) -> Start:
    """The start of a tensor that moves from the base. Raises SubcompressError for one that cannot be coded."""
    if spec.dtype not in CODED_DTYPES or not bool(tensor.isfinite().all()):
        raise SubcompressError(f"coordinates act on finite real numbers; {spec} is none: leave it out of --act-on")
    return Start("base", f"the base's ({role})", reach=roles.MOVES[role])


def cost(*tensors: Tensor) -> int:
    """Bytes that the values of tensors take in a file."""
    raw = b"".join(raw_bytes(t) for t in tensors)
    return len(zlib.compress(raw, 9)) if raw else 0


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with its parameters as they are. Raises SubcompressError for lazy and other odd ones."""
    if lazy := [n for n, p in module.named_parameters() if nn.parameter.is_lazy(p)]:
        raise SubcompressError(
            f"weights have shapes before they are fitted; {lazy[0]} has none: run the model once first"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise SubcompressError("fit takes Python modules; this one is TorchScript: give the class it was made from")
    state = module.state_dict(keep_vars=True)
    if meta := [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]:
        raise SubcompressError(f"weights have values; {meta[0]} is on the meta device: materialize it first")
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise SubcompressError(f"a state dict of tensors is needed; {other[0]} is none: leave extra state out")
    if sparse := [name for name, value in state.items() if value.layout != torch.strided]:
        raise SubcompressError(f"dense tensors are needed; {sparse[0]} is not: call .to_dense() first")
    missing = [name for name, _ in module.named_parameters(remove_duplicate=False) if name not in state]
    if missing:
        raise SubcompressError(f"every weight is in the state dict; {missing[0]} is not: leave state_dict hooks out")
    return state


def _check_codable(spec: TensorSpec, p: Tensor) -> None:
    """Raise SubcompressError for a trained tensor that cannot be coded."""
    if spec.dtype not in CODED_DTYPES:
        raise SubcompressError(
            f"fit trains {', '.join(CODED_DTYPES)} weights; {spec.name} is {spec.dtype}: convert it, or freeze it "
            f"(requires_grad=False)"
        )
    if not bool((torch.view_as_real(p.detach()) if p.is_complex() else p.detach()).isfinite().all()):
        raise SubcompressError(f"weights start at finite values; {spec.name} holds nan or inf: initialize it")


# Which values are random


def _values(spec: TensorSpec, p: Tensor, seen: Seen | None, structured: str, before: Mapping[str, Values]) -> Values:
    """What is known of a trained tensor."""
    first = _reals(p)
    if seen is not None:
        why = _structure(p) if structured == "store" and seen.random.any() else ""
        random = np.zeros(len(first), bool) if why in STORABLE else seen.random
        return Values(spec, first, random, seen, why)
    why = _structure(p)
    if why in STORABLE and structured != "store":
        return Values(spec, first, np.ones(len(first), bool), None, why)
    random = np.full(len(first), not why and _clearly_random(spec, first, before))
    return Values(spec, first, random, None, why)


STORABLE = ("orthogonal", "sparse and random")
"""Structures that initializers draw."""


def _clearly_random(spec: TensorSpec, first: np.ndarray, before: Mapping[str, Values]) -> bool:
    """Whether values without structure are those of an initializer: many that differ, or few of a usual deviation."""
    n = len(first)
    some = first[: 1 << 16]
    if n < CLEARLY or len(np.unique(some)) < 0.9 * len(some):
        return False
    if n >= 64:
        return True
    mean, std = float(first.mean()), float(np.sqrt(np.square(first, dtype=np.float64).mean()))
    usual = any(_close(std, u, n) for u, _ in _usual(spec, before))
    return usual and abs(mean) < 4 * std / math.sqrt(n)


def _reals(p: Tensor) -> np.ndarray:
    """The real numbers of a tensor in a row, in its dtype; those of bfloat16 as float32."""
    flat = (torch.view_as_real(p) if p.is_complex() else p).reshape(-1).cpu()
    return array_of(flat.float() if flat.dtype == torch.bfloat16 else flat)


# What they start from


def _coded(values: Values, still: np.ndarray, before: Mapping[str, Start]) -> Start:
    """The start of a tensor whose values are known. still: those that no coordinate acts on."""
    spec = values.spec
    if not len(values.first):
        return Start("coded", "empty", (PieceStart(0.0, 1.0, 0, True),))
    pieces: list[PieceStart] = []
    words: list[str] = []
    items = np.zeros(len(values.first), np.int64)
    for which, fixed in ((m & f, bool(f is still)) for m in _classes(values) for f in (~still, still)):
        if not which.any():
            continue
        if values.random[which].all():
            forms, runs, reach, why = _random_forms(values, which, before)
        else:
            forms, runs, reach, why = _chosen_forms(values, which, before)
        within = _items(runs, int(which.sum())) if runs else np.zeros(int(which.sum()), np.int64)
        items[which] = len(pieces) + within
        counts = np.bincount(within, minlength=len(forms))
        for form, count in zip(forms, counts, strict=True):
            far = reach if not isinstance(form, float) or isinstance(form, Seeded) else max(abs(form) / 4, reach)
            pieces.append(PieceStart(form, far, int(count), fixed))
        words.append(f"{why}, fixed" if fixed else why)
    if len(pieces) == 1:
        return Start("coded", words[0], tuple(pieces))
    found = runs_of(items)
    if found is None:
        raise SubcompressError(
            f"a tensor's chosen and random values lie in at most {1 << 16} runs; those of {spec.name} are more: "
            "give --structured guess, or split the tensor"
        )
    return Start("coded", "; ".join(words), tuple(pieces), found)


def _items(runs: Runs, n: int) -> np.ndarray:
    """The item of each of n values."""
    period = np.repeat([i for i, _ in runs], [length for _, length in runs])
    return np.resize(period, n)


def _classes(values: Values) -> Iterator[np.ndarray]:
    """Masks of the values that start alike: random ones and chosen ones, real and imaginary parts apart where they
    differ."""
    whole = np.ones(len(values.first), bool)
    parts = [whole]
    if values.spec.dtype == "C64":
        real = np.arange(len(whole)) % 2 == 0
        parts = [real, ~real] if _parts_differ(values, real) else [whole]
    for part in parts:
        yield part & values.random
        yield part & ~values.random


def _parts_differ(values: Values, real: np.ndarray) -> bool:
    """Whether real and imaginary parts start in different ways."""
    if values.random.all():
        (c0, s0), (c1, s1) = (_measured(values, part) for part in (real, ~real))
        if isinstance(c0, np.ndarray) or isinstance(c1, np.ndarray):
            return True
        error = max(s0, s1) / math.sqrt(len(values.first))
        return not _close(s0, s1, len(values.first) // 2) or abs(c0 - c1) > 5 * error
    return True


def _measured(values: Values, which: np.ndarray) -> tuple[float | np.ndarray, float]:
    """Center and deviation of random values."""
    if values.seen is not None:
        return center_and_deviation(values.seen, which)
    x = values.first[which].astype(np.float64)
    n, mean, std = len(x), float(x.mean()), float(x.std(ddof=1 if len(x) > 1 else 0))
    if abs(mean) > 5 * std / math.sqrt(n) and n >= 8:
        return float(np.float32(mean)), std
    return 0.0, math.sqrt(float(np.square(x).mean()))


def _random_forms(
    values: Values, which: np.ndarray, before: Mapping[str, Start]
) -> tuple[list[Form], Runs, float, str]:
    """Seeded starts of random values, the runs of them, how far they are expected to move, and words."""
    center, std = _measured(values, which)
    n, name = int(which.sum()), ""
    if not isinstance(center, np.ndarray):
        shown = n * (values.seen.builds if values.seen else 1)
        for usual, words in _usual(values.spec, before):
            if std > 0 and _close(std, usual, shown):
                std, name = usual, words
                break
    scale = bfloat16(min(max(seeded_scale(std * std), 2.0**-60), 2.0**30))
    why = f"random, std {std:.4g}" + (f" ({name})" if name else " (measured)")
    if values.structured in STORABLE:
        why += f"; it was {values.structured}, a seeded start is not"
    if not isinstance(center, np.ndarray):
        return [Seeded(scale, center)], (), std, why + (f" around {center:.4g}" if center else "")
    dtype = values.spec.real_dtype
    centers = array_of(torch.from_numpy(center).to(values.spec.torch_dtype if dtype != "F32" else torch.float32))
    forms, runs = describe(centers, (), dtype)
    return [Seeded(scale, form) for form in forms], runs, std, f"{why} around centers of their own"


def _chosen_forms(
    values: Values, which: np.ndarray, before: Mapping[str, Start]
) -> tuple[list[Form], Runs, float, str]:
    """The same of chosen values."""
    dtype = values.spec.real_dtype
    chosen = values.first[which]
    if dtype == "BF16":
        chosen = array_of(torch.from_numpy(chosen.copy()).bfloat16())
    whole = bool(which.all())
    shape = values.spec.shape if whole else ()
    if values.spec.dtype == "C64":  # rows of the parts that are meant
        shape = (*values.spec.shape, 2) if whole else values.spec.shape if 2 * which.sum() == len(which) else ()
    forms, runs = describe(chosen, shape, dtype)
    spread = float(np.sqrt(np.square(values.first[which].astype(np.float64)).mean()))
    reach = max(spread / 4, 2.0**-40)
    if len(forms) == 1 and isinstance(form := forms[0], float):
        if form == 0:
            reach = _sibling_reach(values.spec, before)
        return list(forms), (), reach, f"chosen: constant {form:.6g}"
    bytes_ = sum(map(form_cost, forms)) + runs_cost(runs)
    kind = "table" if isinstance(forms[0], Table) else "ramp" if not isinstance(forms[0], float) else "few values"
    why = f"chosen: a {kind}, about {bytes_} bytes" if kind != "few values" else f"chosen: {kind}, {bytes_} bytes"
    return list(forms), runs, reach, why


def _sibling_reach(spec: TensorSpec, before: Mapping[str, Start]) -> float:
    """How far a tensor of zeros is expected to move: as its random siblings."""
    found = (p.reach for _, s in _siblings(spec, before) for p in s.pieces if isinstance(p.form, Seeded))
    return next(found, 1 / math.sqrt(3 * spec.shape[-1] if spec.shape and spec.shape[-1] else 3))


def _siblings(spec: TensorSpec, before: Mapping[str, Start]) -> Iterator[tuple[str, Start]]:
    prefix = spec.name.rpartition(".")[0]
    return ((n, s) for n, s in before.items() if n.rpartition(".")[0] == prefix and s.kind == "coded")


def _close(std: float, usual: float, n: int) -> bool:
    # Few values say little, and their logarithm errs downwards.
    return std > 0 and usual > 0 and abs(math.log(std / usual)) < _SURE * math.sqrt(0.5 / n) + 2 / n + 0.002


def _usual(spec: TensorSpec, before: Mapping[str, Start] | Mapping[str, Values]) -> Iterator[tuple[float, str]]:
    """Standard deviations that initializers give (He et al. 2015, arXiv:1502.01852; Glorot, Bengio 2010), most likely
    first: equal scales cost nothing in a file."""
    siblings = [(n, p.reach) for n, s in _siblings_of(spec, before) for p in s.pieces if isinstance(p.form, Seeded)]
    if len(spec.shape) < 2:
        for name, reach in siblings:
            yield reach, f"as {name}"
    elif (found := fans(spec.shape)) is not None:
        for number, words in enumerate(FAN_WORDS, 1):
            yield math.sqrt(FANS[number](*found)), words
    for usual in (1.0, 0.02, 0.01):
        yield usual, "usual"
    for name, reach in siblings:
        yield reach, f"as {name}"


FAN_WORDS = ("1/sqrt(3 fan_in)", "sqrt(2/fan_in)", "sqrt(2/(fan_in + fan_out))", "1/sqrt(fan_in)")


def _siblings_of(spec: TensorSpec, before: Mapping[str, Start] | Mapping[str, Values]) -> Iterator[tuple[str, Start]]:
    for name, known in before.items():
        if name.rpartition(".")[0] == spec.name.rpartition(".")[0]:
            start = _coded(known, np.zeros(len(known.first), bool), {}) if isinstance(known, Values) else known
            if start.kind == "coded":
                yield name, start


# Structure in the values of an instance


def _structure(x: Tensor) -> str:
    """What a seed cannot start alike, empty for independent values. Thresholds are many standard errors from chance."""
    n = x.numel()
    reals = torch.view_as_real(x) if x.is_complex() else x
    flat = reals.reshape(-1).double().cpu()[: 1 << 20]
    if n == 0 or bool((flat == flat[0]).all()):
        return "constant"
    most = int((flat == flat.mode().values).sum())
    if most > len(flat) / 2 and n >= 4:
        return "sparse and random" if len(flat.unique()) > n / 20 + 4 else "sparse"
    if n >= 8 and x.ndim == 1 and (bool((flat.diff() > 0).all()) or bool((flat.diff() < 0).all())):
        return "a ramp"
    if x.ndim >= 2 and _orthogonal(x.flatten(1)):
        return "orthogonal"
    if n >= 64 and not x.is_complex():
        limit = max(0.4, 8 / math.sqrt(n))
        for axis in range(x.ndim):
            if x.shape[axis] >= 8 and _smooth(x.double(), axis) > limit:
                return "a table, smooth along its axes"
    return ""


def _orthogonal(w: Tensor) -> bool:
    """Whether the shorter side's vectors (256 of them at most) are orthogonal and of one length."""
    w = w if w.shape[0] <= w.shape[1] else w.T
    if w.shape[0] < 4:
        return False
    w = w[:256].to(torch.complex128 if w.is_complex() else torch.float64)
    gram = (w @ w.conj().T).abs()
    diagonal = gram.diagonal()
    off = (gram - torch.diag(diagonal)).abs().max()
    return bool(off < 1e-3 * diagonal.mean() and diagonal.std() < 1e-3 * diagonal.mean())


def _smooth(x: Tensor, axis: int) -> float:
    """Correlation between neighbors along an axis."""
    x = x - x.mean()
    near = x.narrow(axis, 0, x.shape[axis] - 1) * x.narrow(axis, 1, x.shape[axis] - 1)
    return float(near.mean() / x.square().mean())


# What is said of them


def _notes(values: Mapping[str, Values], seen: Mapping[str, Seen], structured: str) -> Iterator[str]:
    changed = [name for name, v in values.items() if v.structured in STORABLE and v.random.any()]
    if seen and structured == "random":
        changed += [n for n, v in values.items() if v.random.all() and _structure_of(v) in STORABLE]
    if changed:
        yield (
            f"{_some(changed)}: orthogonal or sparse, drawn at random; each starts from the seed at the same deviation "
            "instead (--structured store keeps the values, in the file)"
        )
    if seen and not any(v.random.any() for v in values.values()) and sum(v.spec.reals for v in values.values()) > 64:
        bytes_ = sum(chosen_cost(v) for v in values.values())
        yield (
            "warning: the factory gives the same weights under every seed, so that all of them count as chosen: "
            f"they take about {bytes_} bytes of the file; let it draw from the seed that is set before it is called, "
            "or give --structured guess"
        )


def _structure_of(v: Values) -> str:
    x = torch.from_numpy(np.asarray(v.first, np.float32))
    if v.spec.dtype == "C64":
        x = torch.view_as_complex(x.view(-1, 2))
    return _structure(x.view(v.spec.shape))


def chosen_cost(values: Values) -> int:
    """About how many bytes the chosen values of a tensor take in a file."""
    start = _coded(values, np.zeros(len(values.first), bool), {})
    centers = [p.form.center if isinstance(p.form, Seeded) else p.form for p in start.pieces]
    tables: list[Chosen] = [c for c in centers if not isinstance(c, float)]
    return sum(map(form_cost, tables)) + runs_cost(start.runs)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refuse_large(starts: Starts) -> None:
    costs = {name: chosen_cost(v) for name, v in starts.values.items()}
    if (total := sum(costs.values())) <= MAX_STORED:
        return
    name = max(costs, key=lambda n: costs[n])
    v = starts.values[name]
    hint = "let the factory draw from the seed that is set before it is called" if v.seen else "give a factory"
    raise SubcompressError(
        f"chosen values travel in the file, up to {MAX_STORED} bytes in all; these take {total}, most of it {name} "
        f"({v.structured or 'equal in every build' if v.seen else v.structured or 'not clearly random'}): {hint}, give "
        "--structured guess to start what looks random from the seed, or --base for weights that exist"
    )


def frozen_note(module: nn.Module, starts: Mapping[str, Start]) -> str | None:
    """A warning that gives the cost of frozen weights, None where there are none."""
    frozen = [(n, p) for n, p in module.named_parameters() if starts[n].why.startswith("frozen")]
    if not frozen:
        return None
    return (
        f"{len(frozen)} frozen tensors (requires_grad=False) are left out of D and travel in the file as they are: "
        f"about {cost(*(p for _, p in frozen))} bytes; unfreeze them to code them with the rest, or --drop what "
        f"inference does not need: {_some([n for n, _ in frozen])}"
    )


LARGE_BUFFER = 1 << 10
"""Bytes of a buffer in a file from which it is named."""


def buffer_note(state: Mapping[str, Tensor], starts: Mapping[str, Start]) -> str | None:
    """A warning that names buffers that cost more than LARGE_BUFFER bytes of the file, None where there are none."""
    buffers = {n: cost(state[n]) for n, s in starts.items() if s.kind == "buffer"}
    large = {n: c for n, c in buffers.items() if c > LARGE_BUFFER}
    if not large:
        return None
    named = ", ".join(f"{n} ({c} bytes)" for n, c in sorted(large.items(), key=lambda x: -x[1])[:4])
    return f"buffers travel in the file: {named}; give --drop PATTERN for those that inference does not need"
