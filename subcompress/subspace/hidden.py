"""Does the state dict say all of a network? Found by building it again and loading the state dict of the first build.

What a network draws in __init__ and keeps outside of its state dict (a plain tensor, a buffer that is not persistent, a
layer in a plain list) differs from build to build: a file cannot hold it, and the network that the file is loaded into
gives other outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from subcompress.data.in_memory import tensors_in
from subcompress.data.splits import call, without_graph
from subcompress.errors import SubcompressError
from subcompress.subspace.copying import copied, places
from subcompress.subspace.leaves import attributes
from subcompress.subspace.seeds import seed_everything

if TYPE_CHECKING:
    from subcompress.subspace.observing import Build

_DEPTH = 3
"""The most levels of attributes that are followed."""


def check_state(model: nn.Module, build: Build, seed: int, x: Any) -> None:
    """Raise SubcompressError, naming what differs, where another build with the state dict of `model` gives other
    outputs for the inputs x. A network that draws in its forward pass is not judged."""
    first, other = copied(model).eval(), build(seed + 1).eval()
    try:
        other.load_state_dict(first.state_dict())
        found = [_outputs(m, x) for m in (first, first, other)]
    except SubcompressError:
        raise
    except Exception:  # another check reports why a batch does not pass
        return
    if not _equal(found[0], found[1]) or _equal(found[0], found[2]):
        return
    odd = list(dict.fromkeys(_differing(first, other)))
    named = f"{', '.join(odd[:3])} differs" if odd else "something differs"
    raise SubcompressError(
        f"the network reads values that are not in its state dict, so that a file cannot hold them: {named} "
        "from one build to the next; make it a buffer (register_buffer), a parameter or a submodule "
        "(nn.ModuleList), or compute it from fixed numbers"
    )


def check_sharing(model: nn.Module) -> None:
    """Raise SubcompressError, naming both, where two tensors share some memory and are not tied: a parameter that is
    trained with any other tensor, or two tensors of the state dict. Copies and loaded networks would have other values
    there."""
    if (found := shared_memory(model)) is not None:
        raise SubcompressError(
            f"{found[0]} and {found[1]} overlap in memory, and a copy of the network would have other values "
            "there: tie them (the same Parameter), compute one from the other in forward, or clone one"
        )


def shared_memory(model: nn.Module) -> tuple[str, str] | None:
    """The names of two tensors that `check_sharing` refuses; None if there are none."""
    parameters = list(model.named_parameters(remove_duplicate=False))
    buffers = list(model.named_buffers(remove_duplicate=False))
    known = {id(t) for _, t in (*parameters, *buffers)}
    plain = [(n, t) for n, t in attributes(model) if id(t) not in known]
    tensors = [(n, t) for n, t in (*parameters, *buffers, *plain) if _lies(t)]
    trained = {id(p) for _, p in parameters if p.requires_grad}
    kept = {id(p) for _, p in parameters} | _persistent(model)
    for (name, t), (other, u) in _near(tensors):
        matters = id(t) in trained or id(u) in trained or (id(t) in kept and id(u) in kept)
        if matters and not _tied(t, u, trained, kept) and _overlap(t, u):
            return name, other
    return None


def _persistent(model: nn.Module) -> set[int]:
    """The buffers that are in the state dict."""
    return {
        id(buffer)
        for child in model.modules()
        for name, buffer in child.named_buffers(recurse=False, remove_duplicate=False)
        if name not in child._non_persistent_buffers_set
    }


Named = tuple[str, Tensor]


def _near(tensors: list[Named]) -> Iterator[tuple[Named, Named]]:
    """Pairs whose spans of memory overlap, in the order of their addresses."""
    spans = sorted(((*_span(t), i) for i, (_, t) in enumerate(tensors)))
    open_: list[tuple[int, int]] = []
    for low, high, i in spans:
        open_ = [(end, j) for end, j in open_ if low < end]
        yield from ((tensors[j], tensors[i]) for _, j in open_)
        open_.append((high, i))


def _lies(t: Tensor) -> bool:
    """Whether the tensor's values are in memory at regular strides."""
    if nn.parameter.is_lazy(t) or t.layout != torch.strided or t.is_meta or not t.numel():
        return False
    try:
        return t.data_ptr() != 0
    except RuntimeError:  # a subclass without storage
        return False


def _span(t: Tensor) -> tuple[int, int]:
    """The first address of a tensor's values, and the one after the last."""
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def _tied(a: Tensor, b: Tensor, trained: set[int], kept: set[int]) -> bool:
    """Whether two tensors are one in the state dict and in training, which replaces parameters and leaves buffers."""
    whole = (a.data_ptr(), a.dtype, a.shape, a.stride()) == (b.data_ptr(), b.dtype, b.shape, b.stride())
    alike = isinstance(a, nn.Parameter) == isinstance(b, nn.Parameter) or not {id(a), id(b)} & trained
    return a is b or (whole and alike and id(a) in kept and id(b) in kept)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the two share the place of a value in memory: columns of a matrix may interleave without sharing any."""
    size = a.element_size()
    (low, _), (other, _) = spans = _span(a), _span(b)
    if size != b.element_size() or (low - other) % size:
        return True
    first = min(low, other)
    used = torch.zeros((max(end for _, end in spans) - first) // size, dtype=torch.bool)
    try:
        used.as_strided(a.shape, a.stride(), (low - first) // size).fill_(True)
    except RuntimeError:  # several of its values in one place
        used[places(a) + (low - first) // size] = True
    return bool(used.as_strided(b.shape, b.stride(), (other - first) // size).any())


def _outputs(module: nn.Module, x: Any) -> list[Tensor]:
    def seeded() -> Any:
        seed_everything(0, 0)
        return call(module, x)

    with torch.random.fork_rng():
        return list(tensors_in(without_graph(seeded)))


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether outputs are the same except for the order of additions."""
    if len(a) != len(b):
        return False
    return all(
        s.shape == t.shape and torch.allclose(s.double(), t.double(), rtol=1e-3, atol=1e-5, equal_nan=True)
        if not s.is_complex()
        else torch.allclose(s, t, rtol=1e-3, atol=1e-5, equal_nan=True)
        for s, t in zip(a, b, strict=True)
    )


def _differing(first: nn.Module, other: nn.Module) -> Iterator[str]:
    """Names of what the two keep outside of their state dicts, where the values differ."""
    known = set(first.state_dict())
    for (prefix, mine), (_, theirs) in zip(first.named_modules(), other.named_modules(), strict=False):
        for name, buffer in mine.named_buffers(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if full not in known and not _same(buffer, getattr(theirs, name, None)):
                yield full
        for name, value in vars(mine).items():
            if not name.startswith("_") and not _alike(value, vars(theirs).get(name), _DEPTH):
                yield f"{prefix}.{name}" if prefix else name


def _same(a: Any, b: Any) -> bool:
    return isinstance(b, Tensor) and a.shape == b.shape and bool(torch.equal(a.cpu(), b.cpu()))


def _alike(a: Any, b: Any, depth: int) -> bool:
    """Whether the tensors in two values are equal; anything else counts as equal."""
    if depth < 0:
        return True
    if isinstance(a, Tensor):
        return _same(a, b)
    if isinstance(a, nn.Module) and isinstance(b, nn.Module):
        return all(_same(t, u) for t, u in zip(a.state_dict().values(), b.state_dict().values(), strict=False))
    if isinstance(a, dict) and isinstance(b, dict):
        return all(_alike(v, b.get(k), depth - 1) for k, v in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return all(_alike(v, w, depth - 1) for v, w in zip(a, b, strict=False))
    return True
