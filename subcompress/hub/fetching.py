"""Reading packed files from the Hub: pull, from_pretrained, and `hub:ORG/NAME` wherever a file is accepted."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress import format
from subcompress.errors import SubcompressError
from subcompress.remote import CONFIG, FILE, Fetched, Hub, Log, Reference, download, is_reference, log_to_listeners
from subcompress.support.files import MAX_FILE_BYTES, read_bytes, write_bytes

if TYPE_CHECKING:
    from torch import nn


def fetch(
    ref: Reference, *, token: str | bool | None = None, cached: bool = False, say: Log = log_to_listeners
) -> Fetched:
    """Download the packed file of a repository into the cache and check that it can be parsed. Raises
    SubcompressError."""
    found = download(ref, token=token, cached=cached, log=say)
    _check(ref, found.path)
    return found


def _check(ref: Reference, path: Path) -> None:
    try:
        format.contents(path)
    except SubcompressError as e:
        raise SubcompressError(f"{ref} holds something else under the name {FILE}: {e}") from e


def local(name: str | Path, *, token: str | bool | None = None, say: Log = log_to_listeners) -> Path:
    """Return the local path of a FILE: `hub:ORG/NAME[@REV]` is downloaded into the cache and checked.

    Any other name is a path already. Raises SubcompressError as `fetch` does.
    """
    if is_reference(name):
        return fetch(Reference.of(str(name)), token=token, say=say).path
    return Path(name)


def pull(
    repository: str,
    output: str | Path,
    *,
    digest: str | None = None,
    token: str | bool | None = None,
    say: Log = log_to_listeners,
) -> Fetched:
    """Download the file of a repository on the Hugging Face Hub, check it, and write it.

    Args:
        repository: ORG/NAME or ORG/NAME@REV, where REV is a branch, a tag or a commit.
        output: The file to write, whole or not at all.
        digest: Refuse a file that states another digest of its weights, in hexadecimal. `verify` checks the weights.
        token: A token of the Hub. By default the one that `hf auth login` stored.
        say: Called with lines for a person.

    Returns:
        Repository, commit, and whether the file came from the cache.

    Raises:
        SubcompressError: The repository cannot be read, the file is damaged or states another digest, or the output
            cannot be written.
    """
    ref = Reference.of(repository)
    found = fetch(ref, token=token, say=say)
    data = read_bytes(found.path, MAX_FILE_BYTES)
    found_digest = format.parse(data).digest.hex()
    if digest is not None and digest.lower() != found_digest:
        raise SubcompressError(
            f"{ref} holds weights with the digest {found_digest}, but {digest} was asked for: name a commit"
        )
    write_bytes(output, data)
    return found


def from_pretrained(
    repository: str,
    module: nn.Module,
    *,
    revision: str | None = None,
    base: Any = None,
    check: bool = True,
    token: str | bool | None = None,
) -> nn.Module:
    """Rebuild the weights of a repository on the Hub into a module.

    Args:
        repository: ORG/NAME or ORG/NAME@REV; a file or a folder of this machine is taken too.
        module: A module with the tensors that the file holds.
        revision: A branch, a tag or a commit.
        base: As for `load`.
        check: As for `load`.
        token: A token of the Hub. By default the one that `hf auth login` stored.

    Returns:
        The module, in evaluation mode.

    Raises:
        SubcompressError: The repository cannot be read, or the module has other tensors.
    """
    from subcompress.api.load import load  # which imports torch, and a pull does not

    file = Path(repository) if Path(repository).is_file() else local_folder(repository, revision, token) / FILE
    return load(file, module, base=base, check=check)


def local_folder(name: str, revision: str | None, token: str | bool | None = None, *, cached: bool = False) -> Path:
    """Return the folder with a repository's packed file and its config.json, if any; a local folder as it is."""
    if Path(name).is_dir():
        return Path(name)
    ref = Reference.of(name)
    ref = ref if revision is None else Reference.of(f"{ref.id}@{revision}")
    found = fetch(ref, token=token, cached=cached)
    at, hub = replace(ref, revision=found.commit), Hub(token)
    with contextlib.suppress(SubcompressError):  # a repository made by hand may have none
        hub.download(at, CONFIG, cached=found.cached)
    return found.path.parent
