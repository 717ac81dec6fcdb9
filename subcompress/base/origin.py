"""Where local weights come from: the repository on the Hub and the commit, as what downloaded them has left it."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from subcompress.errors import SubcompressError
from subcompress.remote import COMMIT, PREFIX, Reference

METADATA = Path(".cache/huggingface/download")
"""Where `snapshot_download(local_dir=...)` keeps the commit of each file, below that folder."""

MAX_SETTINGS = 1 << 24
"""The largest configuration that is looked at, in bytes."""


@dataclass(frozen=True)
class Origin:
    """What is known. id: `ORG/NAME`, empty if unknown; commit: empty if unknown; likely: the name that a configuration
    gives, which may be that of another network."""

    id: str = ""
    commit: str = ""
    likely: str = ""

    @property
    def where(self) -> str:
        """What --base-name may be, with placeholders for what is unknown."""
        return f"{PREFIX}{self.id or self.likely or 'ORG/NAME'}@{self.commit or 'COMMIT'}"

    @property
    def is_known(self) -> bool:
        """Whether others get the same weights by this name and commit."""
        return bool(self.id and self.commit)


def origin_of(path: Path) -> Origin:
    """Return what is known of a folder of weights, or of a file in one."""
    place = path if path.is_dir() else path.parent
    for folder in dict.fromkeys((Path(os.path.abspath(place)), Path(os.path.realpath(place)))):
        if (found := _in_cache(folder)) is not None:
            return found
    return Origin("", _downloaded(place, path), _likely(place))


def _in_cache(folder: Path) -> Origin | None:
    """The repository and commit of a folder of the Hub's cache, `models--ORG--NAME/snapshots/COMMIT`."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not COMMIT.fullmatch(folder.name):
        return None
    if not (match := re.fullmatch(r"models--(.+)", repository)):
        return None
    name = match[1].replace("--", "/")
    return Origin(name, folder.name) if _is_id(name) else None


def _is_id(name: str) -> bool:
    with suppress(SubcompressError):
        Reference.of(name)
        return "@" not in name
    return False


def _downloaded(folder: Path, path: Path) -> str:
    """The commit that all files of weights of a folder were downloaded at, empty if it is unknown or they differ."""
    names = [path.name] if path.is_file() else [p.name for p in sorted(folder.glob("*.safetensors"))]
    commits = {_commit(folder, name) for name in names}
    return commits.pop() if len(commits) == 1 else ""


def _commit(folder: Path, name: str) -> str:
    """The commit of a file, empty if it is unknown or the file was changed since."""
    try:
        commit, _, time, *_ = (folder / METADATA / f"{name}.metadata").read_text("utf-8").split("\n")
        changed = (folder / name).stat().st_mtime > float(time) + 1
    except (OSError, ValueError):
        return ""
    return commit if COMMIT.fullmatch(commit) and not changed else ""


def _likely(folder: Path) -> str:
    """The name in a configuration, if it may be one of the Hub."""
    path = folder / "config.json"
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        if path.stat().st_size <= MAX_SETTINGS:
            name = json.loads(path.read_text("utf-8")).get("_name_or_path")
            if isinstance(name, str) and _is_id(name):
                return name
    return ""
