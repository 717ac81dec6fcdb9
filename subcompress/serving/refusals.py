"""What a request is refused with: a status of HTTP and one line."""

from __future__ import annotations

from subcompress.errors import SubcompressError

MOST_ECHOED = 100
"""Characters of what a request says that come back in the refusal."""


class RefusedError(SubcompressError):
    """A request that is not answered: 4xx where the request is at fault, 503 where it may be given again."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(" ".join(text.split()))
        self.status = status


def shown(value: object) -> str:
    """What a request said, as a message may repeat it: on one line, quoted, and not long."""
    text = repr(value)
    return text if len(text) <= MOST_ECHOED else f"{text[:MOST_ECHOED]}..."
