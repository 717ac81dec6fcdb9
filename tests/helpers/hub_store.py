"""What a stand-in for the Hub holds: repositories, commits, and faults to come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LARGE = (".safetensors", ".onnx")
"""What goes by LFS or Xet; the rest is part of the commit."""


@dataclass(frozen=True)
class Blob:
    """oid: SHA-256 of a large file, git's SHA-1 of a small one; data: None where only the Xet store has them."""

    oid: str
    size: int
    data: bytes | None
    large: bool


@dataclass(frozen=True)
class Commit:
    """One commit: its parent's id, its message, and all files."""

    parent: str | None
    message: str
    tree: dict[str, Blob]


@dataclass
class Repo:
    """commits: id -> commit, in order; heads: branch -> id."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, message: str, changes: dict[str, Blob | None]) -> str:
        """Put changes on a branch; None takes a file away."""
        parent = self.heads.get(branch)
        tree = {**(self.commits[parent].tree if parent else {}), **changes}
        whole = {name: blob for name, blob in tree.items() if blob is not None}
        oid = hashlib.sha1(f"{parent} {message} {sorted((n, b.oid) for n, b in whole.items())}".encode()).hexdigest()
        self.commits[oid] = Commit(parent, message, whole)
        self.heads[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        """The id of a branch, tag or commit."""
        return self.heads.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """Met by the next `times` requests of that method whose path the pattern is found in.

    kind: a status; "drop" (no answer), "lose" (done, but no answer), "flip" (a bit of the body), "cut" (half a body),
    "short" (half a body that claims to be all); or a function that is called first, and whose request goes on.
    """

    method: str
    pattern: str
    kind: int | str | Callable[[], None]
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Answer(Exception):  # noqa: N818 - no error: a request ends by raising it
    """What a request gets."""

    def __init__(self, status: int = 200, body: Any = b"", **headers: str) -> None:
        super().__init__(status)
        self.status, self.headers = status, {k.replace("_", "-"): v for k, v in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
