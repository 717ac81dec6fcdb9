"""Verified downloads into the cache: packed files, their companions, and the weights of bases."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.remote.references import COMMIT, PREFIX, Reference
from subcompress.remote.shards import INDEX, weight_map
from subcompress.remote.transport import Hub, Log, Remote, UnreachableError, log_to_listeners
from subcompress.support.files import MAX_FILE_BYTES, read_bytes

FILE, CONFIG, CARD, GRAPH = "model.safetensors", "config.json", "README.md", "model.onnx"
"""The names of the files in a repository."""

LARGE = 1 << 24
"""The size in bytes above which a file is downloaded only if the repository's config.json is one of subcompress."""


@dataclass(frozen=True)
class Fetched:
    """A downloaded file. path: its path in the cache. id, commit: its repository and commit. cached: whether it came
    from the cache without a download."""

    id: str
    commit: str
    path: Path
    cached: bool


def download(
    ref: Reference, *, token: str | bool | None = None, cached: bool = False, log: Log = log_to_listeners
) -> Fetched:
    """Download the packed file of a repository into the cache and compare it with what the Hub states.

    If the Hub cannot be reached, the copy in the cache is used, and that is logged. cached: do not ask the Hub at all.

    Raises SubcompressError for a repository that is missing or not accessible, one that holds something else, and a
    file that is damaged twice.
    """
    hub = Hub(token, log)
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
            log(f"{e.what}: using the copy in the cache, of commit {found.commit[:12]}")
    return found


def _from_hub(hub: Hub, ref: Reference) -> Fetched:
    remote = hub.look(ref)
    _require_packed_file(hub, ref, remote)
    pinned = replace(ref, revision=remote.commit)
    path = hub.download(ref, FILE)  # by the branch's name first, so that it is found in the cache when offline
    if path.parent.name != remote.commit:  # the branch has moved, or this is an older copy
        path = hub.download(pinned, FILE)
    return Fetched(remote.id, remote.commit, _verified(hub, pinned, FILE, remote, path), False)


def _verified(hub: Hub, pinned: Reference, name: str, remote: Remote, path: Path) -> Path:
    """Return the downloaded file, downloading it again if it is not what the Hub states, which the Hub's client does
    not check."""
    if remote.files[name].is_at(path):
        return path
    hub.log(f"{name} of {pinned.id} was damaged on the way; fetching it once more")
    path = hub.download(pinned, name, again=True)
    if not remote.files[name].is_at(path):
        raise SubcompressError(
            f"the download of {PREFIX}{pinned.id} was damaged twice, by the network or the cache: try another "
            "network, or set HF_HOME to another folder"
        )
    return path


def _require_packed_file(hub: Hub, ref: Reference, remote: Remote) -> None:
    """Raise SubcompressError if the repository evidently holds no packed file, before downloading it."""
    if FILE not in remote.files:
        raise SubcompressError(f"{ref} holds no {FILE}: is it the right repository?")
    most = MAX_FILE_BYTES
    if (size := remote.files[FILE].size) > most or (size > LARGE and not settings(hub, ref, remote)):
        raise SubcompressError(
            f"{ref} holds a {FILE} of {size} bytes that is not a packed file: is it the dense model?"
        )


def settings(hub: Hub, ref: Reference, remote: Remote) -> dict[str, Any]:
    """Return the config.json of a repository at that commit; empty if no push of subcompress wrote it."""
    return known_settings(text) if (text := small_file(hub, ref, remote, CONFIG)) is not None else {}


def json_object(text: bytes) -> dict[str, Any] | None:
    """Parse a JSON object in UTF-8 without a byte order mark; None for anything else."""
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def known_settings(text: bytes) -> dict[str, Any]:
    """Parse a config.json that a push wrote; empty if something else wrote it."""
    if (config := json_object(text)) is None:
        return {}
    own = config.get("subcompress")
    return config if isinstance(own, dict) and isinstance(own.get("sha256", {}), dict) else {}


def small_file(hub: Hub, ref: Reference, remote: Remote, name: str) -> bytes | None:
    """Return the bytes of a text file at that commit, None if there is none. Raises SubcompressError if it is too
    large."""
    if name not in remote.files:
        return None
    if remote.files[name].size > LARGE:
        raise SubcompressError(f"{ref} holds a {name} of {remote.files[name].size} bytes: is it the right repository?")
    return read_bytes(hub.download(replace(ref, revision=remote.commit), name), LARGE)


def _find_cached(hub: Hub, ref: Reference, files: Sequence[str]) -> Fetched | None:
    """Return the first of the files that is in the cache, complete with its shards if it is an index."""
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
    log: Log = log_to_listeners,
) -> Fetched:
    """Download the weights of a base, `hub:ORG/NAME[@REV]`: the first of `files` that it has, of at most `most` bytes.

    The file is compared with what the Hub states. If the Hub cannot be reached, the copy in the cache is used; with
    `cached` it is used without asking if REV is a commit.

    Raises SubcompressError as `download` does, and if the repository has none of the files, or a larger one.
    """
    ref, hub = Reference.of(name), Hub(token, log)
    if cached and COMMIT.fullmatch(ref.revision or "") and (found := _find_cached(hub, ref, files)):
        return found
    try:
        remote = hub.look(ref)
    except UnreachableError as e:
        if (found := _find_cached(hub, ref, files)) is None:
            raise
        hub.log(f"{e.what}: using the copy in the cache, of commit {found.commit[:12]}")
        return found
    present = [file for file in files if file in remote.files]
    if not present:
        raise SubcompressError(
            f"{ref} has no {' or '.join(files)} but {', '.join(list(remote.files)[:4])}: fetch it, make one "
            "file of it, and give that"
        )
    if (size := remote.files[present[0]].size) > most:
        raise SubcompressError(
            f"{present[0]} of {ref} has {size} bytes, many more than the weights of the file that names it: if "
            "you trust it, fetch it and give it with --base"
        )
    hub.log(f"{present[0]} of {remote.id} at commit {remote.commit}, {size:,} bytes, is the base")
    path = _download_verified(hub, ref, present[0], remote)
    if present[0].endswith(INDEX):
        _fetch_shards(hub, ref, path, remote, most)
    return Fetched(remote.id, remote.commit, path, False)


def _download_verified(hub: Hub, ref: Reference, file: str, remote: Remote) -> Path:
    """Download a file at that commit into the cache and compare it with what the Hub states."""
    pinned = replace(ref, revision=remote.commit)
    path = hub.download(ref, file)  # by the branch's name first, as in _from_hub
    if path.parent.name != remote.commit:
        path = hub.download(pinned, file)
    return _verified(hub, pinned, file, remote, path)


def _fetch_shards(hub: Hub, ref: Reference, index: Path, remote: Remote, most: float) -> None:
    """Download the files that an index names. Raises SubcompressError if one is missing, or all exceed `most` bytes."""
    files = dict.fromkeys(weight_map(read_bytes(index, LARGE), f"{index.name} of {ref}").values())
    if missing := next((file for file in files if file not in remote.files), None):
        raise SubcompressError(f"the base {ref} is incomplete: its {index.name} names {missing}, which is not there")
    if (size := sum(remote.files[file].size for file in files)) > most:
        raise SubcompressError(
            f"the weights of {ref} have {size} bytes, many more than those of the file that names it: if you "
            "trust it, fetch it and give it with --base"
        )
    for file in files:
        _download_verified(hub, ref, file, remote)


def companions_of(
    name: str,
    wanted: Callable[[str], bool],
    *,
    token: str | bool | None = None,
    log: Log = log_to_listeners,
) -> dict[str, Path]:
    """Download the files of a repository, `hub:ORG/NAME[@REV]`, whose names are wanted: name -> path in the cache.

    If the Hub cannot be reached, those in the cache are taken. Raises SubcompressError as `download` does.
    """
    ref, hub = Reference.of(name), Hub(token, log)
    try:
        remote = hub.look(ref)
    except UnreachableError as e:
        try:
            folder = hub.download(ref, CONFIG, cached=True).parent
        except SubcompressError:
            raise e from None
        hub.log(f"{e.what}: using the files in the cache, of commit {folder.name[:12]}")
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return {file: path for file, path in found.items() if wanted(file)}
    names = [file for file in remote.files if wanted(file)]
    if large := next((file for file in names if remote.files[file].size > MAX_FILE_BYTES), None):
        raise SubcompressError(
            f"{ref} holds a {large} of {remote.files[large].size} bytes: is it the right repository?"
        )
    return {file: _download_verified(hub, ref, file, remote) for file in names}
