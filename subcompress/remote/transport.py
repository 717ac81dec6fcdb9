"""Requests to the Hub: the only module that calls huggingface_hub, whose errors become one line each.

Reads are retried if the Hub or the network is at fault. A commit states the one it was built on, so that it is safe to
retry too: it is either made completely or refused because the branch has moved.
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

Log = Callable[[str], None]
"""Receives lines for a user who waits."""

WAITS = (1.0, 2.0, 4.0)
"""Seconds before each retry of a request that failed through no fault of the user."""

LONGEST_WAIT = 60.0
"""The longest wait, in seconds, that the Hub may ask for; the user is told about a longer one instead."""

TIMEOUT = 30.0
"""Seconds without an answer after which a request has failed."""

TRANSIENT = (408, 429, 500, 502, 503, 504)
"""HTTP statuses that are worth a retry."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
"""Error numbers of a disk that cannot be written."""

_lock = threading.RLock()
"""Serializes calls, because the client's log and Python's warnings, which are captured, are global to the process."""


LISTENERS: list[Log] = []
"""Receive the lines of calls without a `log` of their own. The command line adds one."""


def log_to_listeners(line: str) -> None:
    """Pass a line to all LISTENERS."""
    for listener in LISTENERS:
        listener(line)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. size: in bytes; oid: SHA-256 of a large file, git's SHA-1 of a small one."""

    size: int
    oid: str

    def holds(self, data: bytes) -> bool:
        """Return whether the file has these bytes."""
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return self.oid in (git, hashlib.sha256(data).hexdigest())

    def is_at(self, path: Path) -> bool:
        """Return whether the file at a path has the same bytes; reads it in blocks."""
        hashes = hashlib.sha1(b"blob %d\0" % path.stat().st_size), hashlib.sha256()
        with path.open("rb") as f:
            while data := f.read(1 << 20):
                for h in hashes:
                    h.update(data)
        return self.oid in [h.hexdigest() for h in hashes]


@dataclass(frozen=True)
class Remote:
    """A repository at a commit. id: its present name, even if it was asked for by an old one."""

    id: str
    commit: str
    private: bool
    files: dict[str, RemoteFile]


class UnreachableError(SubcompressError):
    """The Hub cannot be reached or has a problem: a retry may help, or a copy in the cache."""

    def __init__(self, what: str, then: str) -> None:
        super().__init__(f"{what}: {then}")
        self.what = what


class MissingError(SubcompressError):
    """The repository does not exist, or the token may not see it."""


class NoRevisionError(SubcompressError):
    """The repository has no such branch, tag or commit."""


class MovedError(SubcompressError):
    """The branch is no longer at the commit that was built on."""


class Hub:
    """A client of the Hub for one user, whose messages go to `log`.

    token: True or None for the one that `hf auth login` or HF_TOKEN stored, False for none. Every method raises
    SubcompressError.
    """

    def __init__(self, token: str | bool | None = None, log: Log = log_to_listeners) -> None:
        if isinstance(token, str):
            token = token.strip()
            if not token or not token.isprintable():
                raise SubcompressError("a token must be one line of printable characters: check the one that was given")
        self.token, self.renamed, self._log = token, "", log

    def log(self, line: str) -> None:
        """Log a line with the token removed."""
        self._log(without_token(line, self.token))

    @property
    def api(self) -> HfApi:
        """The client of huggingface_hub."""
        from huggingface_hub import HfApi

        return HfApi(token=self.token, library_name="subcompress")

    def look(self, ref: Reference) -> Remote:
        """Return the repository's present commit and files."""
        call = partial(self.api.model_info, ref.id, revision=ref.revision, files_metadata=True, timeout=TIMEOUT)
        found = self._with_retries(ref, call)
        files = {}
        for s in found.siblings or ():
            files[s.rfilename] = RemoteFile(s.size or 0, s.lfs.sha256 if s.lfs else s.blob_id or "")
        if found.id not in (ref.id, self.renamed):
            self.renamed = found.id
            self.log(f"{ref.id} is now called {found.id}")
        return Remote(found.id, found.sha or "", bool(found.private), files)

    def download(self, ref: Reference, name: str, *, again: bool = False, cached: bool = False) -> Path:
        """Download a file into the cache; the path's folder is named after the commit.

        again: even if it is in the cache already; cached: only from the cache, without a request.
        """
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
            with self._translating_errors(ref):
                return Path(call())
        return Path(self._with_retries(ref, call))

    def create(self, id: str, private: bool | None) -> None:
        """Create a repository unless it exists."""
        self._with_retries(Reference(id), lambda: self.api.create_repo(id, private=private, exist_ok=True))

    def branch(self, id: str, name: str) -> None:
        """Create a branch off the default one unless it exists."""
        self._with_retries(Reference(id), lambda: self.api.create_branch(id, branch=name, exist_ok=True))

    def commit(self, ref: Reference, parent: str, files: dict[str, bytes], gone: list[str], message: str) -> str:
        """Add files on top of `parent` and delete those in `gone`, all or none; return the new commit.

        It is tried once. Raises MovedError if the branch is at another commit, and UnreachableError if it is unknown
        whether the commit was made.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        changes: list[Any] = [CommitOperationAdd(name, data) for name, data in files.items()]
        changes += [CommitOperationDelete(name, is_folder=False) for name in gone]
        call = partial(self.api.create_commit, ref.id, changes, commit_message=message, revision=ref.revision)
        with self._translating_errors(ref):
            return str(_interruptible(partial(call, parent_commit=parent)).oid)

    def check_tag(self, ref: Reference) -> None:
        """Raise SubcompressError if the tag exists at another commit than a branch's newest."""
        with contextlib.suppress(MissingError):
            refs = self._with_retries(ref, lambda: self.api.list_repo_refs(ref.id))
            newest = {b.target_commit for b in refs.branches}
            for t in refs.tags:
                if t.name == ref.revision and t.target_commit not in newest:
                    raise SubcompressError(
                        f"{ref.id} already has the tag {t.name}, at {t.target_commit}, and tags are not moved: "
                        "name another"
                    )

    def tag(self, ref: Reference, name: str, commit: str) -> None:
        """Tag a commit, unless it has the tag."""
        for t in self._with_retries(ref, lambda: self.api.list_repo_refs(ref.id)).tags:
            if t.name == name and t.target_commit == commit:
                return
            if t.name == name:
                raise SubcompressError(
                    f"{ref.id} already has the tag {name}, at {t.target_commit}, and tags are not moved: name another"
                )
        self._with_retries(ref, lambda: self.api.create_tag(ref.id, tag=name, revision=commit, exist_ok=True))

    def wait(self, seconds: float, why: str) -> None:
        """Log why, then wait."""
        self.log(f"{why}; trying again in {seconds:.2g} s")
        time.sleep(seconds)

    def _with_retries(self, ref: Reference, call: Callable[[], Any]) -> Any:
        """Call and return the result, with retries while the failure may be transient."""
        for wait in (*WAITS, None):
            try:
                with self._translating_errors(ref):
                    return call()
            except UnreachableError as e:
                if wait is None or offline() or requested_wait(e) > LONGEST_WAIT:
                    raise
                self.wait(max(wait, requested_wait(e)), e.what)
        raise AssertionError

    @contextmanager
    def _translating_errors(self, ref: Reference) -> Iterator[None]:
        """Translate exceptions of the client into SubcompressError, and log its messages and warnings."""
        try:
            with _lock, _capturing_log(self.log), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
            for w in caught:
                if issubclass(w.category, UserWarning):  # about a card; deprecations in the client are not for the user
                    self.log(one_line(Exception(str(w.message))))
        except SubcompressError:
            raise
        except Exception as e:
            raise _translate(e, ref, self.token) from e


def offline() -> bool:
    """Return whether the user disabled requests to the Hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def endpoint() -> str:
    """Return the Hub's address."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextmanager
def _capturing_log(log: Log) -> Iterator[None]:
    """Hide the client's progress bars, and pass on the lines of its log about waiting and retrying."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if any(word in record.getMessage() for word in ("Retrying", "Waiting", "resume")):
                log(" ".join(record.getMessage().split()))

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
    """Run the call in a thread, because Xet waits in native code, which Ctrl-C does not interrupt."""
    done: Future[Any] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as e:
            done.set_exception(e)

    threading.Thread(target=work, daemon=True).start()
    return done.result()


def requested_wait(e: BaseException) -> float:
    """Return the seconds that the Hub asks to wait, zero if it does not."""
    for cause in _chain(e):
        headers = getattr(getattr(cause, "response", None), "headers", {})
        after, limit = headers.get("Retry-After", ""), headers.get("RateLimit", "")
        if found := re.search(r"^\d+", after) or re.search(r"(?<=t=)\d+", limit):
            return float(found[0])
    return 0.0


def _translate(e: Exception, ref: Reference, token: str | bool | None) -> SubcompressError:
    """Convert an exception of the client into an error of one line."""
    from huggingface_hub import errors

    causes = list(_chain(e))
    first, message = causes[-1], without_token(one_line(causes[-1], 200), token)

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
            f"there is no {ref} that you may see: it was deleted or moved, its name is misspelled, or it is private "
            "and you are not logged in (`hf auth login`)"
        )
    if (answer := of(errors.HfHubHTTPError)) is not None:
        return _translate_status(answer, ref, token)
    if of(errors.OfflineModeIsEnabled):
        return UnreachableError(
            "HF_HUB_OFFLINE forbids access to the Hub", f"unset it, because {ref} is needed from there"
        )
    if of(json.JSONDecodeError):
        return UnreachableError(f"the Hub at {endpoint()} does not answer in JSON", "try again later")
    if of(errors.HfHubHTTPError.__bases__[0]):  # httpx's, under the name that it has there
        return UnreachableError(
            f"the Hub at {endpoint()} cannot be reached ({message})", "check the network, or try again"
        )
    if isinstance(first, OSError) and first.errno in UNWRITABLE:
        return SubcompressError(
            f"the cache of downloads cannot be written: {first.strerror}; free space, or set HF_HOME to another folder"
        )
    if of(errors.LocalEntryNotFoundError):
        return UnreachableError(f"{ref} is not in the cache", "fetch it once while the Hub can be reached")
    if "Consistency check failed" in str(e):
        return UnreachableError(f"a file of {ref} was cut on the way", "try again")
    if "Invalid metadata in README.md" in str(e):
        return SubcompressError(f"the Hub refuses the card of {ref}: {without_token(one_line(e, 200), token)}")
    return SubcompressError(f"{ref}: {type(first).__name__}: {message}")


def _translate_status(e: Any, ref: Reference, token: str | bool | None) -> SubcompressError:
    """Convert an HTTP status without an exception class of its own into an error of one line."""
    status, message = int(e.response.status_code), e.server_message or ""
    page = message.lstrip().startswith("<")
    reason = f" ({without_token(one_line(Exception(message), 160), token)})" if message and not page else ""
    if status == 401:
        return SubcompressError(
            f"your token for the Hub is missing, wrong or expired, for {ref.id}{reason}: run `hf auth login`, "
            "or set HF_TOKEN"
        )
    if status == 403:
        return SubcompressError(
            f"your token does not permit this for {ref.id}{reason}: run `hf auth login` with one that does"
        )
    if status in (409, 412):
        return MovedError(f"{ref} was changed meanwhile{reason}: run the command again")
    if status == 429:
        wait = requested_wait(e)
        return UnreachableError(
            f"the Hub received too many requests{reason}", f"try again {f'in {wait:.0f} s' if wait else 'later'}"
        )
    if status in TRANSIENT or status >= 500:
        return UnreachableError(f"the Hub answers {status}, a fault of its own{reason}", "try again later")
    return SubcompressError(
        f"the Hub refuses this for {ref}: {status}{reason or ', ' + without_token(one_line(e, 160), token)}"
    )


def _chain(e: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    at: BaseException | None = e
    while at is not None:
        yield at
        at = at.__cause__


def without_token(text: str, token: str | bool | None = None) -> str:
    """Remove tokens from a text."""
    from huggingface_hub import get_token

    for secret in (token, get_token()):
        if isinstance(secret, str) and secret.strip():
            text = text.replace(secret.strip(), "hf_...")
    return re.sub(r"hf_[\w.-]{20,}", "hf_...", text)
