"""Files of repositories in the cache, each what the Hub promises: ours, what lies beside it, a base's weights."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.remote.references import COMMIT, PREFIX, Reference
from subcompress.remote.shards import INDEX, weight_map
from subcompress.remote.transport import Hub, Remote, Say, UnreachableError, quiet
from subcompress.support.files import MAX_FILE_BYTES, read_bytes

FILE, CONFIG, CARD, GRAPH = "model.safetensors", "config.json", "README.md", "model.onnx"
"""What a repository holds."""

LARGE = 1 << 24
"""Bytes from which a file is not fetched before its repository has said that it is ours."""


@dataclass(frozen=True)
class Fetched:
    """path: the file in the cache; commit: of the repository, where it lies; cached: the Hub was not asked."""

    id: str
    commit: str
    path: Path
    cached: bool


def download(ref: Reference, *, token: str | bool | None = None, cached: bool = False, say: Say = quiet) -> Fetched:
    """The file of a repository in the cache, compared with what the Hub says of it. Where the Hub is out of reach, the
    copy of before is used, and said to be. cached: the Hub is not asked at all.

    Raises SubcompressError for a repository that is not there or not open, one that holds something else, and a file
    that comes damaged twice.
    """
    hub = Hub(token, say)
    try:
        if cached:
            raise UnreachableError("the Hub is not asked", f"{ref} is not in the cache")
        found = _from_hub(hub, ref)
    except UnreachableError as e:
        try:
            path = hub.download(ref, FILE, cached=True)
        except SubcompressError:
            raise e from None
        found = Fetched(ref.id, path.parent.name, path, True)
        if not cached:
            say(f"{e.what}: using the copy in the cache, of commit {found.commit[:12]}")
    return found


def _from_hub(hub: Hub, ref: Reference) -> Fetched:
    remote = hub.look(ref)
    _require_ours(hub, ref, remote)
    pinned = replace(ref, revision=remote.commit)
    path = hub.download(ref, FILE)  # by its name first: so it is found again where there is no Hub
    if path.parent.name != remote.commit:  # the branch has moved since we looked, or this is the copy of before
        path = hub.download(pinned, FILE)
    return Fetched(remote.id, remote.commit, _promised(hub, pinned, FILE, remote, path), False)


def _promised(hub: Hub, pinned: Reference, name: str, remote: Remote, path: Path) -> Path:
    """The file that was downloaded to `path`, fetched once more where it is not what the Hub promises: its client does
    not look."""
    if remote.files[name].is_at(path):
        return path
    hub.say(f"{name} of {pinned.id} came damaged; fetching it once more")
    path = hub.download(pinned, name, again=True)
    if not remote.files[name].is_at(path):
        raise SubcompressError(
            f"what comes of {PREFIX}{pinned.id} is not what the Hub promises, twice: the line or the cache damages it; "
            "try another network, or set HF_HOME to another folder"
        )
    return path


def _require_ours(hub: Hub, ref: Reference, remote: Remote) -> None:
    """Raise SubcompressError for what need not be fetched to see that it is not ours."""
    if FILE not in remote.files:
        raise SubcompressError(f"a repository of ours holds {FILE}; {ref} does not: is it the right one?")
    most = MAX_FILE_BYTES
    if (size := remote.files[FILE].size) > most or (size > LARGE and not settings(hub, ref, remote)):
        raise SubcompressError(f"{ref} holds a {FILE} of {size} bytes that is none of ours: is it the dense model?")


def settings(hub: Hub, ref: Reference, remote: Remote) -> dict[str, Any]:
    """The config.json of a repository, at the commit that was seen; empty where no push of ours wrote it."""
    return known_settings(text) if (text := small_file(hub, ref, remote, CONFIG)) is not None else {}


def json_object(text: bytes) -> dict[str, Any] | None:
    """The object that a text is in JSON, in UTF-8 without a mark, as other readers of it want it; None for any other
    text."""
    try:
        held = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return held if isinstance(held, dict) else None


def known_settings(text: bytes) -> dict[str, Any]:
    """A config.json of ours, empty where it is none."""
    if (held := json_object(text)) is None:
        return {}
    ours = held.get("subcompress")
    return held if isinstance(ours, dict) and isinstance(ours.get("sha256", {}), dict) else {}


def small_file(hub: Hub, ref: Reference, remote: Remote, name: str) -> bytes | None:
    """A text beside the file, at the commit that was seen; None where there is none. Raises SubcompressError for one
    that is too large to be a text."""
    if name not in remote.files:
        return None
    if remote.files[name].size > LARGE:
        raise SubcompressError(f"{ref} holds a {name} of {remote.files[name].size} bytes: is it the right repository?")
    return read_bytes(hub.download(replace(ref, revision=remote.commit), name), LARGE)


def _cached(hub: Hub, ref: Reference, files: Sequence[str]) -> Fetched | None:
    """The first of the files that is in the cache, and with it those that it names."""
    for file in files:
        with contextlib.suppress(SubcompressError):
            path = hub.download(ref, file, cached=True)
            if file.endswith(INDEX):
                for shard in dict.fromkeys(weight_map(read_bytes(path, LARGE), file).values()):
                    hub.download(ref, shard, cached=True)
            return Fetched(ref.id, path.parent.name, path, True)
    return None


def weights_of(
    name: str,
    files: Sequence[str],
    most: float = math.inf,
    *,
    cached: bool = False,
    token: str | bool | None = None,
    say: Say = quiet,
) -> Fetched:
    """The weights of a base, `hub:ORG/NAME[@REV]`: the first of `files` that it has, of at most `most` bytes, in the
    cache, compared with what the Hub says of it. Where the Hub is out of reach, the copy of before; with `cached`, that
    one wherever REV is a commit, nothing asked.

    Raises SubcompressError as `fetch` does, and for a repository that has none of them, or a larger one.
    """
    ref, hub = Reference.of(name), Hub(token, say)
    if cached and COMMIT.fullmatch(ref.revision or "") and (found := _cached(hub, ref, files)):
        return found
    try:
        remote = hub.look(ref)
    except UnreachableError as e:
        if (found := _cached(hub, ref, files)) is None:
            raise
        hub.say(f"{e.what}: using the copy in the cache, of commit {found.commit[:12]}")
        return found
    held = [file for file in files if file in remote.files]
    if not held:
        raise SubcompressError(
            f"a base has its weights in {' or '.join(files)}, one file; {ref} has {', '.join(list(remote.files)[:4])}: "
            "fetch it, make one file of it, and give that"
        )
    if (size := remote.files[held[0]].size) > most:
        raise SubcompressError(
            f"a base has about as many bytes as the weights of the file that names it; {held[0]} of {ref} has {size}: "
            "if you trust it, fetch it and give it with --base"
        )
    hub.say(f"{held[0]} of {remote.id} at commit {remote.commit}, {size:,} bytes, is the base")
    path = _pinned(hub, ref, held[0], remote)
    if held[0].endswith(INDEX):
        _fetch_shards(hub, ref, path, remote, most)
    return Fetched(remote.id, remote.commit, path, False)


def _pinned(hub: Hub, ref: Reference, file: str, remote: Remote) -> Path:
    """A file of a repository in the cache, at the commit that was seen, as the Hub promises it."""
    pinned = replace(ref, revision=remote.commit)
    path = hub.download(ref, file)  # by its name first, as in _from_hub
    if path.parent.name != remote.commit:
        path = hub.download(pinned, file)
    return _promised(hub, pinned, file, remote, path)


def _fetch_shards(hub: Hub, ref: Reference, index: Path, remote: Remote, most: float) -> None:
    """Fetch the files that an index names, beside it. Raises SubcompressError where one is not there, or all are more
    than `most` bytes."""
    files = dict.fromkeys(weight_map(read_bytes(index, LARGE), f"{index.name} of {ref}").values())
    if missing := next((file for file in files if file not in remote.files), None):
        raise SubcompressError(f"a base is whole; {index.name} of {ref} names {missing}, which is not there")
    if (size := sum(remote.files[file].size for file in files)) > most:
        raise SubcompressError(
            f"a base has about as many bytes as the weights of the file that names it; those of {ref} have {size}: "
            "if you trust it, fetch it and give it with --base"
        )
    for file in files:
        _pinned(hub, ref, file, remote)
