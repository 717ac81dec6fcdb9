"""How each tensor of a network starts: recognised from its values, so that the seed can start it alike.

A tensor is *constant* (kept), *random* at some standard deviation (started from the seed at that deviation),
*stored* (its values travel in the file: structured, frozen or integer ones, and buffers) or *tied* to an earlier one.
On a base it may also start there (*base*), or be the base's (*kept*).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from subcompress import roles
from subcompress.base import OnBase, ties_of
from subcompress.errors import SubcompressError
from subcompress.layout import CODED_DTYPES, Layout, TensorSpec, raw_bytes

MAX_STORED = 1 << 16
"""Bytes of tensors that may be stored without being asked for, deflated: a file of ours has hundreds."""

_SURE = 3.0
"""Standard errors within which a measured deviation is taken for a usual one."""


@dataclass(frozen=True)
class Start:
    """kind: constant, random, stored, tied, buffer, base or kept; value: the constant, or the mean of a random start;
    std: its standard deviation, or for a constant and on a base how far its values are expected to move; index: what it
    is tied to; why: for a person to read."""

    kind: str
    why: str
    value: float = 0.0
    std: float = 0.0
    index: int = 0


def recognise(
    module: nn.Module, structured: str = "store", base: OnBase | None = None, act_on: str = roles.DEFAULT
) -> dict[str, Start]:
    """Name -> how it starts, for every entry of the state dict, in its order; on a base in that of a file on it.

    base: what the module stands on; act_on: see `roles.acted_on`. structured: `store` keeps the values of tables,
    orthogonal and sparse tensors (they are not trained), `random` starts them from the seed at their deviation. Raises
    SubcompressError for what cannot be fitted, and where stored tensors take more than MAX_STORED bytes.
    """
    if structured not in ("store", "random"):
        raise SubcompressError(f"--structured is store or random; given {structured}")
    state = _tensors(module)
    if base is not None:
        state = {spec.name: state[spec.name] for spec in base.layout} | {
            n: t for n, t in state.items() if n not in base
        }
        new = frozenset(names[0] for names in ties_of(module) if not any(n in base for n in names))
        acting, role = roles.acted_on(module, act_on, new), roles.roles_of(module)
    layout = Layout.of(state)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found: dict[str, Start] = {}
    seen: dict[tuple[object, ...], int] = {}
    for i, (spec, tensor) in enumerate(zip(layout, state.values(), strict=True)):
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            index = seen[place]
            found[spec.name] = Start("tied", f"tied to {layout.tensors[index].name}", index=index)
            continue
        seen[place] = i
        if base is not None and spec.name in base:
            moving = spec.name in acting and spec.name in parameters and tensor.requires_grad
            found[spec.name] = _of_base(spec, tensor, role[spec.name]) if moving else Start("kept", "the base's")
        elif spec.name not in parameters:
            found[spec.name] = Start("buffer", "a buffer: its values travel in the file")
        elif not tensor.requires_grad:
            kind = "frozen" if tensor.is_floating_point() or tensor.is_complex() else "of integers"
            found[spec.name] = Start("stored", f"{kind}: its values travel in the file, {cost(tensor)} bytes")
        else:
            start = _weight(spec.name, spec.dtype, tensor.detach(), found, structured)
            if base is not None and start.kind == "constant":  # it shares coordinates with what moves from the base
                moves = roles.MOVES[role[spec.name]]
                start = replace(start, std=moves, why=f"constant {start.value:.6g}, moves by about {moves:.3g}")
            found[spec.name] = start
    _refuse_large(state, found)
    return found


def _of_base(spec: TensorSpec, tensor: Tensor, role: str) -> Start:
    """The start of a tensor that moves from the base. Raises SubcompressError for one that cannot be coded."""
    if spec.dtype not in CODED_DTYPES or not bool(tensor.isfinite().all()):
        raise SubcompressError(f"coordinates act on finite real numbers; {spec} is none: leave it out of --act-on")
    moves = roles.MOVES[role]
    return Start("base", f"the base's, moves by about {moves:.3g} ({role})", std=moves)


def cost(*tensors: Tensor) -> int:
    """Bytes that the values of tensors take in a file."""
    raw = b"".join(raw_bytes(t) for t in tensors)
    return len(zlib.compress(raw, 9)) if raw else 0


def frozen_note(module: nn.Module, starts: dict[str, Start]) -> str | None:
    """A warning that gives the cost of frozen weights, None where there are none."""
    frozen = [p for n, p in module.named_parameters() if starts[n].why.startswith("frozen")]
    if not frozen:
        return None
    return (
        f"{len(frozen)} frozen tensors (requires_grad=False) travel in the file as they are: about {cost(*frozen)} "
        f"bytes; "
        "unfreeze them to code them with the rest"
    )


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
        raise SubcompressError(f"weights have values; {meta[0]} is on the meta device: materialise it first")
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise SubcompressError(f"a state dict of tensors is needed; {other[0]} is none: leave extra state out")
    if sparse := [name for name, value in state.items() if value.layout != torch.strided]:
        raise SubcompressError(f"dense tensors are needed; {sparse[0]} is not: call .to_dense() first")
    missing = [name for name, _ in module.named_parameters(remove_duplicate=False) if name not in state]
    if missing:
        raise SubcompressError(f"every weight is in the state dict; {missing[0]} is not: leave state_dict hooks out")
    return state


def _refuse_large(state: dict[str, Tensor], found: dict[str, Start]) -> None:
    stored = {name: t for name, t in state.items() if found[name].kind == "stored"}
    if (total := cost(*stored.values())) <= MAX_STORED or all(found[n].why.startswith("frozen") for n in stored):
        return
    name = max((n for n in stored if not found[n].why.startswith("frozen")), key=lambda n: cost(stored[n]))
    raise SubcompressError(
        f"tensors whose start no seed can give are stored up to {MAX_STORED} bytes in all; these take {total}, most of "
        f"it {name} ({found[name].why}): give --structured random to start them at random, or compute them in forward"
    )


def _weight(name: str, dtype: str, p: Tensor, found: dict[str, Start], structured: str) -> Start:
    """The start of a trained tensor. Raises SubcompressError for one that cannot be coded."""
    if dtype not in CODED_DTYPES:
        raise SubcompressError(
            f"fit trains {', '.join(CODED_DTYPES)} weights; {name} is {dtype}: convert it, or freeze it "
            f"(requires_grad=False)"
        )
    reals = (torch.view_as_real(p) if p.is_complex() else p).double().cpu()
    if not reals.isfinite().all():
        raise SubcompressError(f"weights start at finite values; {name} holds nan or inf: initialise it")
    flat = reals.reshape(-1)
    n = flat.numel()
    if n == 0:
        return Start("constant", "empty", std=1.0)
    prefix = name.rpartition(".")[0]
    siblings = {k: s for k, s in found.items() if k.rpartition(".")[0] == prefix and s.kind == "random"}
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        if abs(low) < 2.0**-126:
            std = next((s.std for s in siblings.values()), 1 / math.sqrt(3 * p.shape[-1] if p.ndim else 3))
            return Start("constant", f"constant 0, moves by about {std:.3g}", 0.0, std)
        value = float(torch.tensor(low, dtype=torch.float32))
        return Start("constant", f"constant {low:.6g}", value, max(abs(value) / 4, 2.0**-40))
    if (shape := _structure(reals if not p.is_complex() else p.cpu())) and structured == "store":
        return Start("stored", f"{shape}: not trained, its values travel in the file, {cost(p)} bytes")
    mean, std = float(flat.mean()), float(flat.std(unbiased=n > 1))
    centre = mean if abs(mean) > 5 * std / math.sqrt(n) and n >= 8 else 0.0
    if centre == 0.0:
        std = float(flat.square().mean().sqrt())
    for usual, words in _usual(p, siblings):
        if abs(math.log(std / usual)) < _SURE * math.sqrt(0.5 / n) + 0.002:
            return Start("random", f"random, std {usual:.4g} ({words})", _float32(centre), usual)
    words = f"random, std {std:.4g} (measured)" + (f" around {centre:.4g}" if centre else "")
    return Start("random", words, _float32(centre), std)


def _float32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


def _usual(p: Tensor, siblings: dict[str, Start]) -> Iterator[tuple[float, str]]:
    """Standard deviations that initialisers give (He et al. 2015, arXiv:1502.01852; Glorot, Bengio 2010), most likely
    first: measured ones differ from run to run of an unseeded factory, and equal scales cost nothing in a file."""
    if p.ndim < 2:
        for name, s in siblings.items():
            yield s.std, f"as {name}"
    else:
        fan_in, fan_out = math.prod(p.shape[1:]), math.prod(p.shape) // max(1, p.shape[1])
        yield 1 / math.sqrt(3 * fan_in), "1/sqrt(3 fan_in)"
        yield math.sqrt(2 / fan_in), "sqrt(2/fan_in)"
        yield math.sqrt(2 / (fan_in + fan_out)), "sqrt(2/(fan_in + fan_out))"
        yield 1 / math.sqrt(fan_in), "1/sqrt(fan_in)"
    for usual in (1.0, 0.02, 0.01):
        yield usual, "usual"
    for name, sibling in siblings.items():
        yield sibling.std, f"as {name}"


def _structure(x: Tensor) -> str:
    """What a seed cannot start alike, empty for independent values. Thresholds are many standard errors from chance."""
    n = x.numel()
    reals = torch.view_as_real(x) if x.is_complex() else x
    flat = reals.reshape(-1).double()
    flat = flat[: 1 << 20]
    most = int((flat == flat.mode().values).sum())
    if most > len(flat) / 2 and n >= 4:
        return f"sparse ({100 * most // len(flat)} % equal)"
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
    """Correlation between neighbours along an axis."""
    x = x - x.mean()
    near = x.narrow(axis, 0, x.shape[axis] - 1) * x.narrow(axis, 1, x.shape[axis] - 1)
    return float(near.mean() / x.square().mean())
