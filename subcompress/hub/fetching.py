"""What is on the Hub as a file here: pull, from_pretrained, and `hub:ORG/NAME` wherever a file is taken."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress import format
from subcompress.errors import SubcompressError
from subcompress.remote import CONFIG, FILE, Fetched, Hub, Reference, Say, download, is_reference, quiet
from subcompress.support.files import MAX_FILE_BYTES, read_bytes, write_bytes

if TYPE_CHECKING:
    from torch import nn


def fetch(ref: Reference, *, token: str | bool | None = None, cached: bool = False, say: Say = quiet) -> Fetched:
    """`remote.download` of our file, and its own checksum compared. Raises SubcompressError."""
    found = download(ref, token=token, cached=cached, say=say)
    _check(ref, found.path)
    return found


def _check(ref: Reference, path: Path) -> None:
    try:
        format.contents(path)
    except SubcompressError as e:
        raise SubcompressError(f"{ref} holds something else under the name {FILE}: {e}") from e


def local(name: str | Path, *, token: str | bool | None = None, say: Say = quiet) -> Path:
    """Where a FILE lies: `hub:ORG/NAME` and `hub:ORG/NAME@REV` in the cache, fetched and checked; any other name where
    it says. Raises SubcompressError as `fetch` does."""
    if is_reference(name):
        return fetch(Reference.of(str(name)), token=token, say=say).path
    return Path(name)


def pull(
    repository: str,
    output: str | Path,
    *,
    digest: str | None = None,
    token: str | bool | None = None,
    say: Say = quiet,
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
    held = format.parse(data).digest.hex()
    if digest is not None and digest.lower() != held:
        raise SubcompressError(f"weights of digest {digest} were asked for; {ref} holds those of {held}: name a commit")
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
    from subcompress.api.unpack import load  # which imports torch, and a pull does not

    file = Path(repository) if Path(repository).is_file() else place(repository, revision, token) / FILE
    return load(file, module, base=base, check=check)


def place(name: str, revision: str | None, token: str | bool | None = None, *, cached: bool = False) -> Path:
    """The folder that holds the file of a repository, or of a folder here, and its config.json where there is one."""
    if Path(name).is_dir():
        return Path(name)
    ref = Reference.of(name)
    ref = ref if revision is None else Reference.of(f"{ref.id}@{revision}")
    found = fetch(ref, token=token, cached=cached)
    at, hub = replace(ref, revision=found.commit), Hub(token)
    with contextlib.suppress(SubcompressError):  # a repository made by hand may have none
        hub.download(at, CONFIG, cached=found.cached)
    return found.path.parent
