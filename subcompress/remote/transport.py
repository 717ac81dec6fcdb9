"""The only module that talks to the Hub: huggingface_hub does, and what it raises becomes one line here.

Reads are tried again where the Hub or the line is at fault. A commit names the one it was built on, so that it is safe
to try again too: it either lands whole, or is refused because the branch has moved, by others or by itself.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress.errors import SubcompressError, one_line
from subcompress.remote.references import Reference

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Say = Callable[[str], None]
"""Told, a line at a time, what a person who waits would want to know."""

WAITS = (1.0, 2.0, 4.0)
"""Seconds before each further try of what failed through no fault of the user's."""

LONGEST_WAIT = 60.0
"""Seconds; where the Hub asks for more, the user is told instead."""

TIMEOUT = 30.0
"""Seconds without an answer to a question after which nobody answers."""

PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses that another try may cure."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
"""What a system says of a disk that takes no more."""

_turn = threading.RLock()
"""The client's log and Python's warnings are the process's: one call at a time listens to them."""


LISTENERS: list[Say] = []
"""Who is told where a call names nobody: the command line, for one."""


def quiet(line: str) -> None:
    """Tell LISTENERS, nobody unless somebody has asked for it."""
    for say in LISTENERS:
        say(line)


@dataclass(frozen=True)
class RemoteFile:
    """size in bytes; oid: SHA-256 of a large file, git's SHA-1 of a small one."""

    size: int
    oid: str

    def holds(self, data: bytes) -> bool:
        """Whether it is these bytes."""
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return self.oid in (git, hashlib.sha256(data).hexdigest())

    def is_at(self, path: Path) -> bool:
        """Whether it is the file there, of any size."""
        hashes = hashlib.sha1(b"blob %d\0" % path.stat().st_size), hashlib.sha256()
        with path.open("rb") as f:
            while data := f.read(1 << 20):
                for h in hashes:
                    h.update(data)
        return self.oid in [h.hexdigest() for h in hashes]


@dataclass(frozen=True)
class Remote:
    """A repository at one commit. id: its present name, where it was renamed."""

    id: str
    commit: str
    private: bool
    files: dict[str, RemoteFile]


class UnreachableError(SubcompressError):
    """The Hub cannot be reached, or has trouble: another try may do, or a copy at hand."""

    def __init__(self, what: str, then: str) -> None:
        super().__init__(f"{what}: {then}")
        self.what = what


class MissingError(SubcompressError):
    """There is no such repository, or none that this token may see."""


class NoRevisionError(SubcompressError):
    """The repository has no such branch, tag or commit."""


class MovedError(SubcompressError):
    """The branch is no longer at the commit that was built on."""


class Hub:
    """The Hub as one user sees it, who is told through `say` what is waited for.

    token: True or None for the one that `hf auth login` or HF_TOKEN left, False for none. Every method raises
    SubcompressError.
    """

    def __init__(self, token: str | bool | None = None, say: Say = quiet) -> None:
        if isinstance(token, str):
            token = token.strip()
            if not token or not token.isprintable():
                raise SubcompressError("a token is one line of printable characters: look at the one that was given")
        self.token, self.renamed, self._say = token, "", say

    def say(self, line: str) -> None:
        """Tell who waits, without the token."""
        self._say(without_token(line, self.token))

    @property
    def api(self) -> HfApi:
        """The client."""
        from huggingface_hub import HfApi

        return HfApi(token=self.token, library_name="subcompress")

    def look(self, ref: Reference) -> Remote:
        """What is there now."""
        call = partial(self.api.model_info, ref.id, revision=ref.revision, files_metadata=True, timeout=TIMEOUT)
        found = self._steadily(ref, call)
        files = {}
        for s in found.siblings or ():
            files[s.rfilename] = RemoteFile(s.size or 0, s.lfs.sha256 if s.lfs else s.blob_id or "")
        if found.id not in (ref.id, self.renamed):
            self.renamed = found.id
            self.say(f"{ref.id} is called {found.id} now")
        return Remote(found.id, found.sha or "", bool(found.private), files)

    def download(self, ref: Reference, name: str, *, again: bool = False, cached: bool = False) -> Path:
        """A file in the cache, of the commit that its folder is named after. again: also where it is in the cache
        already; cached: only if it is, without a request."""
        from huggingface_hub import hf_hub_download

        def call() -> str:
            return hf_hub_download(
                ref.id,
                name,
                revision=ref.revision,
                token=self.token,
                library_name="subcompress",
                force_download=again,
                local_files_only=cached,
            )

        if cached:
            with self._words(ref):
                return Path(call())
        return Path(self._steadily(ref, call))

    def create(self, id: str, private: bool | None) -> None:
        """Make a repository, unless another process just has."""
        self._steadily(Reference(id), lambda: self.api.create_repo(id, private=private, exist_ok=True))

    def branch(self, id: str, name: str) -> None:
        """Make a branch of the default one, unless it is there."""
        self._steadily(Reference(id), lambda: self.api.create_branch(id, branch=name, exist_ok=True))

    def commit(self, ref: Reference, parent: str, files: dict[str, bytes], gone: list[str], message: str) -> str:
        """Put the files on top of `parent`, all or none, and take the gone ones away; the new commit. Tried once: it
        raises MovedError where the branch is elsewhere, UnreachableError where nobody knows whether it came through."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        changes: list[Any] = [CommitOperationAdd(name, data) for name, data in files.items()]
        changes += [CommitOperationDelete(name, is_folder=False) for name in gone]
        call = partial(self.api.create_commit, ref.id, changes, commit_message=message, revision=ref.revision)
        with self._words(ref):
            return str(_interruptible(partial(call, parent_commit=parent)).oid)

    def check_tag(self, ref: Reference) -> None:
        """Raise SubcompressError where a repository has that tag, at another commit than its newest."""
        with contextlib.suppress(MissingError):
            refs = self._steadily(ref, lambda: self.api.list_repo_refs(ref.id))
            newest = {b.target_commit for b in refs.branches}
            for t in refs.tags:
                if t.name == ref.revision and t.target_commit not in newest:
                    raise SubcompressError(
                        f"a tag stays where it is; {t.name} of {ref.id} is at {t.target_commit}: name another"
                    )

    def tag(self, ref: Reference, name: str, commit: str) -> None:
        """Tag a commit, unless it has the tag."""
        for t in self._steadily(ref, lambda: self.api.list_repo_refs(ref.id)).tags:
            if t.name == name and t.target_commit == commit:
                return
            if t.name == name:
                raise SubcompressError(
                    f"a tag stays where it is; {name} of {ref.id} is at {t.target_commit}: name another"
                )
        self._steadily(ref, lambda: self.api.create_tag(ref.id, tag=name, revision=commit, exist_ok=True))

    def wait(self, seconds: float, why: str) -> None:
        """Say so, then wait."""
        self.say(f"{why}; trying again in {seconds:.2g} s")
        time.sleep(seconds)

    def _steadily(self, ref: Reference, call: Callable[[], Any]) -> Any:
        """What the call returns, tried again while its failure may pass."""
        for wait in (*WAITS, None):
            try:
                with self._words(ref):
                    return call()
            except UnreachableError as e:
                if wait is None or offline() or asked_wait(e) > LONGEST_WAIT:
                    raise
                self.wait(max(wait, asked_wait(e)), e.what)
        raise AssertionError

    @contextmanager
    def _words(self, ref: Reference) -> Iterator[None]:
        """What the client raises, in a line of ours; what it logs and warns of, said."""
        try:
            with _turn, _listening(self.say), warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                yield
            for w in heard:
                if issubclass(w.category, UserWarning):  # of a card; not what is deprecated in the client
                    self.say(one_line(Exception(str(w.message))))
        except SubcompressError:
            raise
        except Exception as e:
            raise _translated(e, ref, self.token) from e


def offline() -> bool:
    """Whether the user has said that there is no Hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def endpoint() -> str:
    """The Hub's address."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextmanager
def _listening(say: Say) -> Iterator[None]:
    """The client's progress bars hidden, of its log only what it waits for, said."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if any(word in record.getMessage() for word in ("Retrying", "Waiting", "resume")):
                say(" ".join(record.getMessage().split()))

    logger = logging.getLogger("huggingface_hub")
    handlers, propagate, shown = logger.handlers[:], logger.propagate, not are_progress_bars_disabled()
    logger.handlers, logger.propagate = [Handler()], False
    try:
        if shown:
            disable_progress_bars()
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        if shown:
            enable_progress_bars()


def _interruptible(call: Callable[[], Any]) -> Any:
    """The call in a thread of its own: Xet waits in native code, where Ctrl-C would not be heard before it is done."""
    done: Future[Any] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as e:
            done.set_exception(e)

    threading.Thread(target=work, daemon=True).start()
    return done.result()


def asked_wait(e: BaseException) -> float:
    """Seconds that the Hub asks to wait, zero where it does not."""
    for cause in _chain(e):
        headers = getattr(getattr(cause, "response", None), "headers", {})
        after, limit = headers.get("Retry-After", ""), headers.get("RateLimit", "")
        if found := re.search(r"^\d+", after) or re.search(r"(?<=t=)\d+", limit):
            return float(found[0])
    return 0.0


def _translated(e: Exception, ref: Reference, token: str | bool | None) -> SubcompressError:
    """One line on what the client raised."""
    from huggingface_hub import errors

    causes = list(_chain(e))
    first, said = causes[-1], without_token(one_line(causes[-1], 200), token)

    def of(kind: Any) -> Any:
        return next((c for c in causes if isinstance(c, kind)), None)

    if of(errors.GatedRepoError):
        link = f"{endpoint()}/{ref.id}"
        return SubcompressError(f"{ref} is gated: ask for access at {link}, then log in with `hf auth login`")
    if of(errors.RevisionNotFoundError):
        return NoRevisionError(
            f"{ref.id} has no branch, tag or commit {ref.revision or 'main'}: see {endpoint()}/{ref.id}/commits/main"
        )
    if of(errors.RepositoryNotFoundError):
        return MissingError(
            f"there is no {ref} that you may see: it was deleted or moved, its name is misspelt, or it is private and "
            "you are not logged in (`hf auth login`)"
        )
    if (answer := of(errors.HfHubHTTPError)) is not None:
        return _status(answer, ref, token)
    if of(errors.OfflineModeIsEnabled):
        return UnreachableError("HF_HUB_OFFLINE forbids to ask the Hub", f"unset it, for {ref} is asked of it")
    if of(json.JSONDecodeError):
        return UnreachableError(f"the Hub at {endpoint()} answers with something else than JSON", "try again later")
    if of(errors.HfHubHTTPError.__bases__[0]):  # httpx's, under the name that it has there
        return UnreachableError(
            f"the Hub at {endpoint()} cannot be reached ({said})", "check the network, or try again"
        )
    if isinstance(first, OSError) and first.errno in UNWRITABLE:
        return SubcompressError(
            f"the cache of downloads cannot be written: {first.strerror}; make room, or set HF_HOME to another folder"
        )
    if of(errors.LocalEntryNotFoundError):
        return UnreachableError(f"{ref} is not in the cache", "fetch it once while the Hub can be reached")
    if "Consistency check failed" in str(e):
        return UnreachableError(f"a file of {ref} came cut", "try again")
    if "Invalid metadata in README.md" in str(e):
        return SubcompressError(f"the Hub refuses the card of {ref}: {without_token(one_line(e, 200), token)}")
    return SubcompressError(f"{ref}: {type(first).__name__}: {said}")


def _status(e: Any, ref: Reference, token: str | bool | None) -> SubcompressError:
    """One line on an answer of the Hub that is not one of its named cases."""
    status, said = int(e.response.status_code), e.server_message or ""
    page = said.lstrip().startswith("<")
    reason = f" ({without_token(one_line(Exception(said), 160), token)})" if said and not page else ""
    if status == 401:
        return SubcompressError(
            f"the Hub knows its users by a token; for {ref.id} yours is missing, wrong or expired{reason}: "
            "`hf auth login`, or set HF_TOKEN"
        )
    if status == 403:
        return SubcompressError(f"your token may not do this to {ref.id}{reason}: `hf auth login` with one that may")
    if status in (409, 412):
        return MovedError(f"{ref} was changed meanwhile{reason}: give the command again")
    if status == 429:
        wait = asked_wait(e)
        return UnreachableError(
            f"the Hub has had too many requests{reason}", f"try again {f'in {wait:.0f} s' if wait else 'later'}"
        )
    if status in PASSING or status >= 500:
        return UnreachableError(f"the Hub answers {status}, it has trouble of its own{reason}", "try again later")
    return SubcompressError(
        f"the Hub refuses this for {ref}: {status}{reason or ', ' + without_token(one_line(e, 160), token)}"
    )


def _chain(e: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    at: BaseException | None = e
    while at is not None:
        yield at
        at = at.__cause__


def without_token(text: str, token: str | bool | None = None) -> str:
    """A token is never shown."""
    from huggingface_hub import get_token

    for held in (token, get_token()):
        if isinstance(held, str) and held.strip():
            text = text.replace(held.strip(), "hf_...")
    return re.sub(r"hf_[\w.-]{20,}", "hf_...", text)
