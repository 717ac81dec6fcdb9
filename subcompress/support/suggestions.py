"""What somebody may have meant by a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 3
"""Names that are suggested at most."""

NEAR = 0.6
"""How alike two names are, from 0 to 1, for the one to be taken for a slip of the other."""


def close_matches(given: str, known: Iterable[str], most: int = MOST, cutoff: float = NEAR) -> list[str]:
    """The known names that are close to the given one, whatever their case, the closest first."""
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(name.lower(), name)
    return [names[name] for name in difflib.get_close_matches(str(given).lower()[:100], names, most, cutoff)]


def suggestion(given: str, known: Iterable[str]) -> str:
    """`: did you mean NAME?` for the end of an error that says there is no such name; empty where none is close."""
    found = close_matches(given, known)
    return f": did you mean {' or '.join(found)}?" if found else ""


__all__ = ["close_matches", "suggestion"]
