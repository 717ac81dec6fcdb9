"""Refusals of requests: an HTTP status and one line."""

from __future__ import annotations

from subcompress.errors import SubcompressError

MOST_ECHOED = 100
"""The most characters of a request that a refusal repeats."""


class RefusedError(SubcompressError):
    """A refused request: 4xx if the request is at fault, 503 if it may be repeated."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(" ".join(text.split()))
        self.status = status


def shown(value: object) -> str:
    """Quote a value from a request for a message: on one line and not too long."""
    text = repr(value)
    return text if len(text) <= MOST_ECHOED else f"{text[:MOST_ECHOED]}..."
