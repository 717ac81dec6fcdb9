"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 3
"""The largest number of suggestions."""

NEAR = 0.6
"""The similarity, from 0 to 1, from which a name is suggested."""


def close_matches(given: str, known: Iterable[str], most: int = MOST, cutoff: float = NEAR) -> list[str]:
    """Return the known names that are similar to the given one, ignoring case, the closest first."""
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(name.lower(), name)
    return [names[name] for name in difflib.get_close_matches(str(given).lower()[:100], names, most, cutoff)]


def suggestion(given: str, known: Iterable[str]) -> str:
    """Return `: did you mean NAME?` for the end of an error message, or an empty string if no name is close."""
    found = close_matches(given, known)
    return f": did you mean {' or '.join(found)}?" if found else ""


__all__ = ["close_matches", "suggestion"]
