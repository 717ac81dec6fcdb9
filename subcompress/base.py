"""A public base: the tensors that a file's weights start from, named in the file and never contained in it.

theta = base + scale * integer. A `Reference` is what a file says of its base, a `Base` the tensors at hand, `OnBase`
both: how the tensors of the base become those of the model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from subcompress.digest import leaf_digests, leaves_of, root_digest
from subcompress.errors import SubcompressError, one_line
from subcompress.layout import MAX_NAME, Layout, TensorSpec, holdable, raw_bytes, sound_text

HUB = "hub:"
FLOATS = ("F32", "F16", "BF16", "F64")
"""What the floating-point tensors of a base can be converted to, in the order of the format's numbers less one."""

TINY = 2.0**-126
"""Smaller values become zero, before and after the sum: some machines flush subnormal numbers, some do not."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What is looked for in a folder or a repository, the first that is there."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Reference:
    """name: `hub:ORG/NAME`, or the name of a file for people to read; revision: the commit, 40 hex digits, where it has
    one; digest: 16 bytes, of its tensors sorted by name; count: how many those are.

    Tensor `strip` + n of the base is tensor `add` + n of the model, its floats converted to `dtype` where that is not
    empty; unused: the numbers of those that the model lacks, in the sorted order.
    """

    name: str
    revision: str
    digest: bytes
    count: int
    strip: str = ""
    add: str = ""
    dtype: str = ""
    unused: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """What to give a command to get it."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def renamed(self, name: str) -> str | None:
        """What the model calls the base's tensor, None for one that the prefix leaves out."""
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) else None

    def layout(self, base: Layout) -> Layout:
        """The model's part of the base's layout, in its order. Raises SubcompressError where they do not fit."""
        unused = set(self.unused)
        specs = []
        for i, spec in enumerate(base):
            if i in unused:
                continue
            if (name := self.renamed(spec.name)) is None:
                raise SubcompressError(
                    f"the base's {spec.name} does not begin with {self.strip!r} as the file says: the file is forged"
                )
            dtype = self.dtype if self.dtype and spec.dtype in FLOATS else spec.dtype
            specs.append(TensorSpec(name, dtype, spec.shape))
        return Layout(tuple(specs))


class Base:
    """The tensors of a base, sorted by name, as they lie in its file (a safetensors file is mapped, not read)."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, revision: str = "") -> None:
        if not name or not sound_text(name):
            raise SubcompressError(
                f"a base is named in at most {MAX_NAME} bytes without control characters; given {name[:80]!r}: "
                "rename it, or give --base-name"
            )
        if bad := next((n for n in tensors if not sound_text(n)), None):
            raise SubcompressError(
                f"a tensor's name is text of at most {MAX_NAME} bytes; given {bad[:80]!r}: rename it"
            )
        if meta := next((n for n, t in tensors.items() if t.is_meta), None):
            raise SubcompressError(f"a base has values; its {meta} is on the meta device: materialise it first")
        self.tensors = {n: tensors[n].detach() for n in sorted(tensors, key=str.encode)}
        self.name, self.revision = name, revision
        self.layout = Layout.of(self.tensors)

    @cached_property
    def _leaves(self) -> list[bytes]:
        return leaf_digests(self.layout, {n: raw_bytes(t) for n, t in self.tensors.items()})

    @cached_property
    def digest(self) -> bytes:
        """16 bytes over names, shapes, dtypes and values (docs/FORMAT.md, section 11)."""
        return root_digest(self.layout, self._leaves)

    @cached_property
    def leaves(self) -> dict[tuple[str, int], bytes]:
        """The digest of the leaf that begins at that byte of a tensor: what a file keeps need not be hashed again."""
        return {
            (self.layout.tensors[leaf.index].name, leaf.at): found
            for leaf, found in zip(leaves_of(self.layout), self._leaves, strict=True)
        }

    def require(self, reference: Reference) -> None:
        """Raise SubcompressError, with both digests, unless this is the base that a file was made on."""
        if self.digest != reference.digest or len(self.layout) != reference.count:
            raise SubcompressError(
                f"the file was made on {reference.where}, whose tensors have digest {reference.digest.hex()}; "
                f"{self.name} has {self.digest.hex()}: give that base with --base"
            )


@dataclass(frozen=True, eq=False)
class OnBase:
    """A base at hand, and how a model stands on it."""

    reference: Reference
    base: Base

    @cached_property
    def layout(self) -> Layout:
        """Tensors of the model that the base has, in the order of a file on it: sorted by their names in the base."""
        return self.reference.layout(self.base.layout)

    @cached_property
    def _places(self) -> dict[str, tuple[str, torch.dtype]]:
        """By name in the model: the name in the base, and the model's dtype."""
        unused = set(self.reference.unused)
        names = [n for i, n in enumerate(self.base.tensors) if i not in unused]
        return {spec.name: (n, spec.torch_dtype) for n, spec in zip(names, self.layout, strict=True)}

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def tensor(self, name: str) -> Tensor:
        """The base's values of a tensor of the model, in the model's dtype, on the CPU."""
        held, dtype = self._places[name]
        return converted(self.base.tensors[held], dtype)

    def leaf(self, name: str, at: int) -> bytes | None:
        """The digest of a leaf of a tensor, where it is the base's."""
        held, dtype = self._places[name]
        return self.base.leaves[held, at] if self.base.tensors[held].dtype == dtype else None

    def reals(self, name: str, lo: int = 0, n: int | None = None) -> Tensor:
        """The same as real numbers in a row, two a complex value: n of them from number `lo` on."""
        held, dtype = self._places[name]
        t = self.base.tensors[held]
        flat = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).reshape(-1)[lo:]
        return converted(flat if n is None else flat[:n], dtype if not dtype.is_complex else torch.float32)

    def loaded(self, module: nn.Module) -> nn.Module:
        """The module, with the base's values in every tensor that the base has."""
        state = module.state_dict()
        with torch.no_grad():
            for spec in self.layout:
                state[spec.name].copy_(self.tensor(spec.name))
        return module


def converted(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to nearest even, the same bits in every library and at every place of a tensor: float64 by way of
    float32, nan to one of its bit patterns."""
    if t.dtype == dtype:
        return t
    if t.dtype == torch.float64:
        return t.float().to(dtype).masked_fill_(t.isnan(), torch.nan)
    return t.to(dtype).masked_fill_(t.isnan(), torch.nan)


def add_base(values: Tensor, base: Tensor) -> None:
    """base + values, into `values`, both (n,): one rounding of the sum, in float64 for float64 and in float32 else.

    values: scale * integer, exact; base: in the model's dtype. Float32 values below 2^-126 are zero, before and after.
    """
    if values.dtype == torch.float64:
        values.add_(base)
        return
    base = base.float()
    values.add_(base.where(base.abs() >= TINY, 0.0))
    values.masked_fill_(values.abs() < TINY, 0.0)


Source = "Base | Mapping[str, Tensor] | nn.Module | str | Path"
"""What a base is given as: see `open_base`."""


def open_base(source: Any, name: str | None = None) -> Base:
    """A base from a safetensors file, a torch state dict (read with weights_only=True), a folder with either,
    `hub:ORG/NAME[@REV]`, a module, or tensors by name. name: what files call it, `hub:ORG/NAME[@COMMIT]` for instance,
    where another can be had under that name.

    Raises SubcompressError for what is none of these, and for tensors that no state dict of a network holds.
    """
    if isinstance(source, Base):
        found = source
    elif isinstance(source, nn.Module):
        found = Base(_tensors(source.state_dict(), "the module"), type(source).__name__)
    elif isinstance(source, Mapping):
        found = Base(_tensors(source, "the mapping"), "a state dict")
    elif str(source).startswith(HUB):
        from subcompress.hub import weights_of  # huggingface_hub is loaded only where it is needed

        fetched = weights_of(str(source), WEIGHTS)
        found = Base(_read(fetched.path), f"{HUB}{fetched.id}", fetched.commit)
    else:
        path = _file(Path(source))
        found = Base(_read(path), Path(source).resolve().name)
    if name is None:
        return found
    plain, _, revision = name.partition("@")
    if revision and not _COMMIT.fullmatch(revision):
        raise SubcompressError(f"a base is named with its commit, 40 hex digits, or with none; given {name}")
    return Base(found.tensors, plain, revision)


def find_base(reference: Reference, source: Any = None) -> Base:
    """The base that a file was made on, `source` or, without one, fetched from the Hub.

    Raises SubcompressError where it is another one, naming both digests, or cannot be had.
    """
    if source is None and not reference.name.startswith(HUB):
        raise SubcompressError(
            f"the file holds what was added to a base, {reference.name} (digest {reference.digest.hex()}): "
            "give that one with --base"
        )
    found = open_base(reference.where if source is None else source)
    found.require(reference)
    return found


def _file(path: Path) -> Path:
    """The weights in a folder, or the file itself. Raises SubcompressError where there is none."""
    if os.path.isdir(path):
        for name in WEIGHTS:
            if (path / name).is_file():
                return path / name
        parts = list(path.glob("*.index.json"))
        has = f"has its weights in several files ({parts[0].name}): make one of them" if parts else "holds neither"
        raise SubcompressError(f"a base folder holds {' or '.join(WEIGHTS)}; {path} {has}, and name that file")
    if not os.path.isfile(path):
        hint = (
            f"; {HUB}{path} would be a repository of the Hub"
            if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", str(path))
            else ""
        )
        raise SubcompressError(f"a base is a file, a folder or {HUB}ORG/NAME; {path} is not there{hint}")
    return path


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a torch state dict. Raises SubcompressError for anything else."""
    try:
        with path.open("rb") as f:
            begin, size = f.read(9), f.seek(0, os.SEEK_END)
    except OSError as e:
        raise SubcompressError(f"{path} cannot be read: {e.strerror or e}; check the path") from e
    # A safetensors file begins with a length, which may look like what a zip archive or a pickle begins with.
    table = begin[8:] == b"{" and int.from_bytes(begin[:8], "little") < size
    if not table and (begin[:2] == b"PK" or begin[:1] == b"\x80"):
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=begin[:2] == b"PK")
        except Exception as e:  # what a damaged pickle raises has no common base
            raise SubcompressError(
                f"a base is read with weights_only=True, tensors and nothing else; {path} is refused: "
                f"{one_line(e, 160)}"
            ) from e
        return _tensors(found, str(path))
    try:
        with safetensors.safe_open(path, "pt") as f:
            held = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError) as e:
        raise SubcompressError(
            f"a base is a safetensors file or a torch state dict; {path} is neither: {one_line(e, 160)}"
        ) from e
    if list(held) == ["z"]:
        raise SubcompressError(f"a base holds weights; {path} is a subcompress file: unpack it first")
    return _tensors(held, str(path))


def _tensors(found: Any, what: str) -> dict[str, Tensor]:
    """The dense tensors of a state dict, also where it lies under the one usual key."""
    if isinstance(found, Mapping):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(inner := found.get(key), Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
                found = inner
                break
    if not isinstance(found, Mapping) or not all(isinstance(k, str) for k in found):
        raise SubcompressError(f"a base is a state dict, tensors by name; {what} holds a {type(found).__name__}")
    held = {k: v for k, v in found.items() if isinstance(v, Tensor) and holdable(v)}
    if not held:
        raise SubcompressError(f"a base holds dense tensors; {what} holds none")
    return held


def stand_on(base: Base, module: nn.Module, new: tuple[str, ...] = ()) -> OnBase:
    """How a module stands on a base: equal names and shapes, up to a prefix that all share.

    Parameters of the module that the base lacks, or has in another shape, start from the seed. They are the last ones
    of the module, its head, or are named in `new` (patterns, or names), and so do others that are named there. Raises
    SubcompressError, naming the first tensor, where others are missing, and where the base has different values for
    tensors that the module ties.
    """
    anew = {n for names in ties_of(module) if any(fnmatchcase(n, p) for n in names for p in new) for n in names}
    state = {n: t for n, t in module.state_dict().items() if isinstance(t, Tensor)}
    strip, add = _prefixes(base.layout, Layout.of(state))
    reference = Reference(base.name, base.revision, base.digest, len(base.layout), strip, add)
    unused, dtypes = [], set()
    for i, spec in enumerate(base.layout):
        name = reference.renamed(spec.name)
        tensor = None if name is None or name in anew else state.get(name)
        floats = tensor is not None and tensor.is_floating_point() and spec.dtype in FLOATS
        if tensor is None or tuple(tensor.shape) != spec.shape or not (floats or tensor.dtype == spec.torch_dtype):
            unused.append(i)
        elif floats and tensor.dtype != spec.torch_dtype:
            dtypes.add(Layout.of({"": tensor}).tensors[0].dtype)
    if dtypes:
        reference = replace(reference, dtype=min(dtypes))
    found = OnBase(replace(reference, unused=tuple(unused)), base)
    for spec in found.layout:
        if (given := state[spec.name]).dtype != spec.torch_dtype:
            raise SubcompressError(
                f"the floats of a base are converted to one dtype; the model has {spec.name} as {given.dtype}, others "
                f"as {reference.dtype}: convert the model"
            )
    _check_missing(found, module, state, new)
    _check_ties(found, module)
    return found


def ties_of(module: nn.Module) -> list[list[str]]:
    """The names of each parameter, in the module's order: two or more of one that is tied."""
    found: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return list(found.values())


def _check_ties(found: OnBase, module: nn.Module) -> None:
    for names in ties_of(module):
        first, *others = [n for n in names if n in found] or names[:1]
        for name in others:
            if raw_bytes(found.tensor(first)) != raw_bytes(found.tensor(name)):
                raise SubcompressError(
                    f"the model ties {first} and {name}; {found.base.name} has different values for them: untie them, "
                    "or give the base of this network"
                )


def _check_missing(found: OnBase, module: nn.Module, state: Mapping[str, Tensor], new: tuple[str, ...]) -> None:
    shapes = {found.reference.renamed(s.name): s.shape for s in found.base.layout}
    tied = ties_of(module)
    parameters = [names[0] for names in tied]
    present = [i for i, names in enumerate(tied) if any(n in found for n in names)]
    if not present:
        raise SubcompressError(
            f"a base has the model's tensors; {found.base.name} has {_some(found.base.tensors)}, the model "
            f"{_some(state)}: give the base of this network"
        )
    for pattern in new:
        if not any(fnmatchcase(n, pattern) for names in tied for n in names):
            raise SubcompressError(
                f"--new names tensors of the model, or a pattern of them; {pattern} is none: {_some(state)}"
            )
    for i, name in enumerate(parameters[: present[-1]]):
        if i in present or any(fnmatchcase(name, pattern) for pattern in new):
            continue
        has = f"has it as {list(shapes[name])}" if name in shapes else "lacks it"
        raise SubcompressError(
            f"a base has every tensor of the model but its head; {found.base.name} {has}: {name} "
            f"{list(state[name].shape)}: give the base of this network, or --new '{name}' to start it from the seed"
        )


def _some(names: Mapping[str, Any]) -> str:
    held = list(names)
    return ", ".join(held[:2]) + (f" and {len(held) - 2} more" if len(held) > 2 else "")


def _prefixes(base: Layout, model: Layout) -> tuple[str, str]:
    """What to strip from the names in the base and to add, so that most values find their place."""
    shapes = {s.name: s.shape for s in model}
    best, most = ("", ""), -1
    for strip in _leading(base):
        for add in _leading(model):
            size = sum(
                s.size for s in base if s.name.startswith(strip) and shapes.get(add + s.name[len(strip) :]) == s.shape
            )
            if size > most:
                best, most = (strip, add), size
    return best


def _leading(layout: Layout) -> Iterator[str]:
    """Nothing, and what up to two parts of a name may be that many of them begin with; the shortest first."""
    counts: dict[str, int] = {}
    for spec in layout:
        parts = spec.name.split(".")[:-1]
        for k in (1, 2):
            if len(parts) >= k:
                prefix = ".".join(parts[:k]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    yield ""
    yield from sorted((p for p, n in counts.items() if 2 * n > len(layout)), key=len)
