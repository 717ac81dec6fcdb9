"""Matching the tensors of a base to those of a network whose names or row counts differ.

Equal names win. Otherwise names are compared without the parts that wrappers add, and with old names renamed as
transformers does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from itertools import chain, combinations

from subcompress.base.changes import Changes, shortest_rename
from subcompress.tensors.layout import Layout, TensorSpec

FLOATS = ("F32", "F16", "BF16", "F64")
"""The dtypes that floats of a base can be converted to; the format numbers them in this order, from 1 on."""

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module")
"""Parts of a name that DataParallel, torch.compile and checkpoint_wrapper add."""

LEGACY = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
)
"""Old parts of names and their replacements, as in transformers."""


def canonical(name: str) -> str:
    """Return a name without the parts of wrappers, with old names replaced by new ones."""
    plain = Changes(LEGACY).renamed(name)
    return ".".join(part for part in plain.split(".") if part not in WRAPPERS) or plain


def fits(source: TensorSpec, target: TensorSpec) -> bool:
    """Return whether a tensor of a base can become one of a model."""
    return source.shape == target.shape and is_convertible(source, target)


def is_convertible(source: TensorSpec, target: TensorSpec) -> bool:
    """Return whether the dtype of one can be converted to that of the other."""
    return source.dtype == target.dtype or (source.dtype in FLOATS and target.dtype in FLOATS)


@dataclass(frozen=True)
class Prefix:
    """A prefix that is stripped from names in a base, and one that is added."""

    strip: str = ""
    add: str = ""

    def of(self, name: str) -> str | None:
        """Return the name in the model, None for a name without the prefix."""
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) else None


def prefix_of(base: Iterable[TensorSpec], model: Iterable[TensorSpec]) -> Prefix:
    """Return the prefix under which most values of the base match a tensor of the model."""
    base, model = tuple(base), tuple(model)
    shapes = {s.name: s.shape for s in model}
    best, most = Prefix(), -1
    for strip in _common_prefixes(base):
        for add in _common_prefixes(model):
            size = sum(
                s.size for s in base if s.name.startswith(strip) and shapes.get(add + s.name[len(strip) :]) == s.shape
            )
            if size > most:
                best, most = Prefix(strip, add), size
    return best


def _common_prefixes(specs: tuple[TensorSpec, ...]) -> Iterator[str]:
    """Yield the empty prefix, then those of up to two parts that most names share, the shortest first."""
    counts: dict[str, int] = {}
    for spec in specs:
        parts = spec.name.split(".")[:-1]
        for k in (1, 2):
            if len(parts) >= k:
                prefix = ".".join(parts[:k]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    yield ""
    yield from sorted((p for p, n in counts.items() if 2 * n > len(specs)), key=len)


class Pairing:
    """Matches the tensors of a base to those of a model. tables: names of the model's embeddings; anew: tensors that
    start from the seed."""

    def __init__(
        self, base: Layout, model: Layout, tables: Set[str] = frozenset(), anew: Set[str] = frozenset()
    ) -> None:
        self.base, self.model, self.tables = base, model, tables
        self.prefix = prefix_of(base, model)
        targets = {s.name: s for s in model if s.name not in anew}
        self.found: dict[str, str] = {}  # name in the base -> in the model
        for spec in base:
            name = self.prefix.of(spec.name)
            if name is not None and name in targets and fits(spec, targets[name]):
                self.found[spec.name] = name
        matched = set(self.found.values())
        self.spare = [s for s in base if s.name not in self.found]
        self.lacking = [s for s in targets.values() if s.name not in matched]

    def named_alike(self) -> Iterator[tuple[TensorSpec, TensorSpec]]:
        """Yield pairs (base, model) of unmatched tensors of equal name, or of equal name without wrappers, whatever
        their shapes.

        A name that several tensors of the base could match is left out.
        """
        plain = {s.name: canonical(s.name) for s in chain(self.base, self.model)}
        prefix = prefix_of(*([replace(s, name=plain[s.name]) for s in layout] for layout in (self.base, self.model)))
        exact = {s.name: s for s in self.spare}
        others: dict[str, list[TensorSpec]] = {}
        for spec in self.spare:
            for name in {plain[spec.name], prefix.of(plain[spec.name])} - {None}:
                others.setdefault(str(name), []).append(spec)
        for target in self.lacking:
            if target.name in exact:
                yield exact[target.name], target
            elif len(candidates := others.get(plain[target.name], [])) == 1:
                yield candidates[0], target

    def changes(self) -> Changes:
        """Return the changes to the base after which one prefix matches all pairs; none if they are unknown or cannot
        be expressed."""
        pairs = list(self.named_alike()) if self.spare and self.lacking else []
        rows = self._rows(pairs)
        numbers = {s.name: i for i, s in enumerate(self.base)}
        found = dict(self.found)
        sized: dict[int, int] = {}
        for source, target in pairs:
            if fits(source, target) or (source.name, target.name) in rows:
                found[source.name] = target.name
            if (source.name, target.name) in rows:
                sized[numbers[source.name]] = target.shape[0]
        if len(found) == len(self.found) or len(set(found.values())) < len(found):
            return Changes()
        rows_by_number = tuple(sorted(sized.items()))
        candidates = (Changes(renames, rows_by_number) for renames in self._renames(found))
        return next((c for c in candidates if c.is_valid and self._reaches(c, found)), Changes())

    def _rows(self, pairs: list[tuple[TensorSpec, TensorSpec]]) -> set[tuple[str, str]]:
        """Return the pairs that differ only in rows and are embeddings, or have the same number of rows as the largest
        one."""
        differ = [
            (h, w) for h, w in pairs if h.shape[1:] == w.shape[1:] and h.shape != w.shape and is_convertible(h, w)
        ]
        tables = [(h, w) for h, w in differ if w.name in self.tables]
        largest = max(tables, key=lambda pair: pair[0].size, default=None)
        return {
            (h.name, w.name)
            for h, w in differ
            if (h, w) in tables
            or (
                largest is not None
                and (h.shape[0], w.shape[0]) == (largest[0].shape[0], largest[1].shape[0])
                and h.shape in (largest[0].shape, largest[0].shape[:1])
            )
        }

    def _renames(self, found: Mapping[str, str]) -> Iterator[tuple[tuple[str, str], ...]]:
        """Yield candidate lists of renames, the shortest first: wrappers and old names wherever they occur, then each
        name by itself."""
        parts = {part for name in found for part in name.split(".")}
        wrappers = [(w, "") for w in WRAPPERS if w in parts]
        old = tuple(rule for rule in LEGACY if any(Changes((rule,)).renamed(n) != n for n in found))
        for count in range(len(wrappers) + 1):
            for chosen in combinations(wrappers, count):
                yield chosen
                if old:
                    yield (*chosen, *old)
        renewed = {name: Changes(old).renamed(name) for name in found}
        renames = (shortest_rename(renewed[name], wanted) for name, wanted in found.items())
        yield (*old, *dict.fromkeys(rename for rename in renames if rename is not None))

    def _reaches(self, changes: Changes, found: Mapping[str, str]) -> bool:
        """Return whether the changes, with the best prefix, give exactly the pairs found."""
        names = changes.names(s.name for s in self.base)
        sized = dict(changes.rows)
        specs = [
            replace(s, name=names[s.name], shape=(sized.get(i, s.shape[0] if s.shape else 0), *s.shape[1:]))
            if i in sized
            else replace(s, name=names[s.name])
            for i, s in enumerate(self.base)
        ]
        prefix = prefix_of(sorted(specs, key=lambda s: s.name.encode()), self.model)
        return all(prefix.of(names[name]) == wanted for name, wanted in found.items())
