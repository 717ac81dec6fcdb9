"""info: what a file holds, without rebuilding it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from subcompress import format
from subcompress.api.bound import DELTA, bound_of
from subcompress.base import BaseReference
from subcompress.format import tables
from subcompress.format.payload import version_of
from subcompress.format.record import Entry, Factored
from subcompress.tensors.layout import Layout


def info(path: str | Path, *, bound: int | None = None, delta: float = DELTA) -> dict[str, Any]:
    """Describe what a file holds, without rebuilding its weights and without its base.

    Args:
        path: A packed file.
        bound: Examples of the training split, for a bound on the error on new ones.
        delta: How likely that bound may be wrong.

    Returns:
        A dict with seed, d, D, bits, operator, layout, facts, digest, base, `factors` (the matrices that coordinates
        act on through factors, by kind and rank, None if there are none), `file_bytes`, `dense_bytes` (of the state
        dict), `distinct_bytes` (without tied tensors; which tensors of a base are tied is not known),
        `bits_per_coordinate` (of trained coordinates), `ledger`, the bytes of each part of the file, and with `bound`
        also `bound`: `gap`, by which the error on new examples exceeds that on the training split at most, and whether
        that is `vacuous`.

    Raises:
        SubcompressError: The file cannot be read or is damaged, or there is no such bound.
    """
    found = format.contents(path)
    told = {} if bound is None else {"bound": bound_of(sum(found.ledger.values()), bound, delta).to_json()}
    base, layout = found.base, found.layout
    trained = {id(g) for g in found.trained}
    bits = [bits for g, bits in zip(found.groups, found.coordinate_bits, strict=True) if id(g) in trained]
    return {
        "seed": found.seed,
        "d": sum(g.operator.d for g in found.trained),
        "D": sum(g.operator.D for g in found.trained),
        "bits": max((g.bits for g in found.trained), default=0),
        "operator": ", ".join(sorted({g.operator.name for g in found.trained})),
        "layout": tables.name_of(layout) if isinstance(layout, Layout) else None,
        "base": None if base is None else _named(base),
        "groups": [
            {
                "operator": g.operator.name,
                "kind": "values one by one" if g.one_by_one else "subspace",
                "bits": g.bits,
                **dict(zip(g.operator.limits, g.operator.parameters(), strict=True)),
            }
            for g in found.groups
        ],
        "factors": _factors(found.entries),
        "format_version": version_of(found.entries),
        "digest": found.digest.hex(),
        "tensors": len(layout),
        "dense_bytes": layout.nbytes,
        "distinct_bytes": layout.nbytes - found.tied_bytes,
        "file_bytes": sum(found.ledger.values()),
        "ledger": found.ledger,
        "facts": found.facts.to_json(),
        "bits_per_coordinate": sum(bits) / d if (d := sum(g.operator.d for g in found.trained)) else None,
        "test_accuracy": found.test_accuracy,
        **told,
    }


def _factors(entries: Iterable[Entry]) -> list[dict[str, Any]] | None:
    """How many matrices have factors, by kind and rank."""
    counts = Counter((e.kind, e.rank) for e in entries if isinstance(e, Factored))
    return [{"kind": kind, "rank": rank, "tensors": n} for (kind, rank), n in sorted(counts.items())] or None


def _named(base: BaseReference) -> dict[str, str]:
    """What a file says of its base: where it is had, and what is changed of it."""
    found = {"id": base.source, "revision": base.revision, "digest": base.digest.hex()}
    return found | ({"changes": str(base.changes)} if base.changes else {})
