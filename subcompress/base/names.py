"""Which tensor of a base is which of a network, where their names differ: wrappers, old names, tables of other lengths.

Exact names win. Else names are compared without the parts that wrappers add, and as transformers renames old ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from itertools import chain, combinations

from subcompress.base.changes import Changes, window
from subcompress.tensors.layout import Layout, TensorSpec

FLOATS = ("F32", "F16", "BF16", "F64")
"""What the floating-point tensors of a base can be converted to, in the order of the format's numbers less one."""

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module")
"""Parts of a name that DataParallel, torch.compile and checkpoint_wrapper add."""

LEGACY = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
)
"""Names of before, as transformers renames them too."""


def canonical(name: str) -> str:
    """A name without the parts of wrappers, old names as the new ones."""
    plain = Changes(LEGACY).renamed(name)
    return ".".join(part for part in plain.split(".") if part not in WRAPPERS) or plain


def fits(held: TensorSpec, wanted: TensorSpec) -> bool:
    """Whether a tensor of a base can be one of a model."""
    return held.shape == wanted.shape and alike(held, wanted)


def alike(held: TensorSpec, wanted: TensorSpec) -> bool:
    """Whether the dtype of the one becomes that of the other."""
    return held.dtype == wanted.dtype or (held.dtype in FLOATS and wanted.dtype in FLOATS)


@dataclass(frozen=True)
class Prefix:
    """What is stripped from names in a base, and what is added."""

    strip: str = ""
    add: str = ""

    def of(self, name: str) -> str | None:
        """The name in the model, None for one that does not begin so."""
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) else None


def prefix_of(base: Iterable[TensorSpec], model: Iterable[TensorSpec]) -> Prefix:
    """The prefix with which most values find their place."""
    base, model = tuple(base), tuple(model)
    shapes = {s.name: s.shape for s in model}
    best, most = Prefix(), -1
    for strip in _leading(base):
        for add in _leading(model):
            size = sum(
                s.size for s in base if s.name.startswith(strip) and shapes.get(add + s.name[len(strip) :]) == s.shape
            )
            if size > most:
                best, most = Prefix(strip, add), size
    return best


def _leading(specs: tuple[TensorSpec, ...]) -> Iterator[str]:
    """Nothing, and what up to two parts of a name may be that many of them begin with; the shortest first."""
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
    """Tensors of a model and of a base. tables: the model's embeddings, by name; anew: what starts from the seed."""

    def __init__(
        self, base: Layout, model: Layout, tables: Set[str] = frozenset(), anew: Set[str] = frozenset()
    ) -> None:
        self.base, self.model, self.tables = base, model, tables
        self.prefix = prefix_of(base, model)
        wanted = {s.name: s for s in model if s.name not in anew}
        self.found: dict[str, str] = {}  # name in the base -> in the model
        for spec in base:
            name = self.prefix.of(spec.name)
            if name is not None and name in wanted and fits(spec, wanted[name]):
                self.found[spec.name] = name
        taken = set(self.found.values())
        self.spare = [s for s in base if s.name not in self.found]
        self.lacking = [s for s in wanted.values() if s.name not in taken]

    def named_alike(self) -> Iterator[tuple[TensorSpec, TensorSpec]]:
        """Of what no prefix brings together: each tensor of the model with that of the base of its name, or of its
        name but for wrappers, whatever their shapes; none where several of the base may be meant."""
        plain = {s.name: canonical(s.name) for s in chain(self.base, self.model)}
        prefix = prefix_of(*([replace(s, name=plain[s.name]) for s in layout] for layout in (self.base, self.model)))
        exact = {s.name: s for s in self.spare}
        others: dict[str, list[TensorSpec]] = {}
        for spec in self.spare:
            for name in {plain[spec.name], prefix.of(plain[spec.name])} - {None}:
                others.setdefault(str(name), []).append(spec)
        for wanted in self.lacking:
            if wanted.name in exact:
                yield exact[wanted.name], wanted
            elif len(near := others.get(plain[wanted.name], [])) == 1:
                yield near[0], wanted

    def changes(self) -> Changes:
        """What to change of the base so that a prefix brings together what belongs together; nothing where that is not
        known, or cannot be said."""
        pairs = list(self.named_alike()) if self.spare and self.lacking else []
        rows = self._rows(pairs)
        numbers = {s.name: i for i, s in enumerate(self.base)}
        found = dict(self.found)
        sized: dict[int, int] = {}
        for held, wanted in pairs:
            if fits(held, wanted) or (held.name, wanted.name) in rows:
                found[held.name] = wanted.name
            if (held.name, wanted.name) in rows:
                sized[numbers[held.name]] = wanted.shape[0]
        if len(found) == len(self.found) or len(set(found.values())) < len(found):
            return Changes()
        known = tuple(sorted(sized.items()))
        tried = (Changes(renames, known) for renames in self._renames(found))
        return next((c for c in tried if c.sound and self._reaches(c, found)), Changes())

    def _rows(self, pairs: list[tuple[TensorSpec, TensorSpec]]) -> set[tuple[str, str]]:
        """The pairs that differ in their rows, and are tables of a vocabulary, or as long as the largest one."""
        differ = [(h, w) for h, w in pairs if h.shape[1:] == w.shape[1:] and h.shape != w.shape and alike(h, w)]
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
        """Renames that may do, those that are said in fewest words first: wrappers and old names wherever they occur,
        then each place by itself."""
        parts = {part for name in found for part in name.split(".")}
        worn = [(w, "") for w in WRAPPERS if w in parts]
        old = tuple(rule for rule in LEGACY if any(Changes((rule,)).renamed(n) != n for n in found))
        for count in range(len(worn) + 1):
            for chosen in combinations(worn, count):
                yield chosen
                if old:
                    yield (*chosen, *old)
        renewed = {name: Changes(old).renamed(name) for name in found}
        places = (window(renewed[name], wanted) for name, wanted in found.items())
        yield (*old, *dict.fromkeys(place for place in places if place is not None))

    def _reaches(self, changes: Changes, found: Mapping[str, str]) -> bool:
        """Whether the names that these changes give, and the prefix that suits them, are those that were found."""
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
