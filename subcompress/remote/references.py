"""References to repositories: `hub:ORG/NAME` or `hub:ORG/NAME@REV`, where REV is a branch, tag, commit or pull
request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from subcompress.errors import SubcompressError

PREFIX = "hub:"

HF = "hf:"
"""How the name of a network of transformers begins: hf:DIR_OR_ID[@REVISION][,OPTION=VALUE]..."""

COMMIT = re.compile(r"[0-9a-f]{40}")

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,199}")


@dataclass(frozen=True)
class Reference:
    """A repository and a revision of it; None is the default branch."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.id}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def of(cls, text: str) -> Reference:
        """Parse a reference with or without the prefix. Raises SubcompressError."""
        name, at, revision = text.removeprefix(PREFIX).partition("@")
        if not _ID.fullmatch(name) or len(name) > 96 or "--" in name or ".." in name or name.endswith(".git"):
            raise SubcompressError(
                f"a repository must be ORG/NAME or ORG/NAME@REV, at most 96 letters, digits and . _ -; got {text!r}"
            )
        if at and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
            raise SubcompressError(f"a branch, a tag or a commit must follow @; got {text!r}: leave @ out for main")
        return cls(name, revision or None)


def is_reference(name: str | Path) -> bool:
    """Return whether a FILE argument names a repository. A local file of such a name is given as `./hub:...`."""
    return isinstance(name, str) and name.startswith(PREFIX)


def split_options(name: str) -> tuple[str, dict[str, str]]:
    """Split PLACE[,OPTION=VALUE]..., perhaps behind `hf:`, into the place and the options. A place may have commas."""
    place, *rest = re.split(r",(?=\w+=)", name.removeprefix(HF))
    return place, dict(part.split("=", 1) for part in rest)
