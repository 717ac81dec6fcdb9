"""push: a file, its settings, its card and its graph to a repository, in one commit or none."""

from __future__ import annotations

import hashlib
import json
import random
import re
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress import format
from subcompress.api.info import info
from subcompress.api.unpack import unpack
from subcompress.errors import SubcompressError
from subcompress.hub import card
from subcompress.hub.card import About, Page
from subcompress.remote import CARD, COMMIT, CONFIG, FILE, GRAPH, Reference, settings, small_file, transport
from subcompress.remote.transport import (
    Hub,
    MissingError,
    MovedError,
    NoRevisionError,
    Remote,
    Say,
    UnreachableError,
    asked_wait,
    quiet,
)
from subcompress.support.names import GRAPHS

if TYPE_CHECKING:
    from torch import nn

EVALUATION = ".eval_results/subcompress.yaml"

RACES = 20
"""Times that others may commit first."""

OTHERS = re.compile(
    r"(model|pytorch_model|consolidated)([-.]\d+([-.]of[-.]\d+)?)?\.(safetensors|bin|pt|pth)|.*\.(safetensors|bin)\.index\.json"
    r"|tf_model\.h5|flax_model\.msgpack"
)
"""Names of weights that loaders would no longer look at beside a model.safetensors."""


@dataclass(frozen=True)
class Pushed:
    """commit: where the branch is; changed: whether this push made it; files: bytes of each in the repository."""

    id: str
    commit: str
    url: str
    changed: bool
    files: dict[str, int]


@dataclass(frozen=True)
class Parcel:
    """What is to be published. graph: model.onnx; None leaves one of the same weights there if `keep` says so; config:
    what else config.json holds; force: over what is not ours."""

    data: bytes
    info: dict[str, Any]
    graph: bytes | None
    about: About
    config: dict[str, Any]
    keep: bool = True
    force: bool = False
    replace_card: bool = False


def push(
    path: str | Path,
    repository: str,
    module: nn.Module | None = None,
    *,
    about: About | None = None,
    base: Any = None,
    onnx: str = "auto",
    private: bool | None = None,
    tag: str | None = None,
    message: str | None = None,
    force: bool = False,
    replace_card: bool = False,
    config: dict[str, Any] | None = None,
    token: str | bool | None = None,
    say: Say = quiet,
) -> Pushed:
    """Publish a file on the Hugging Face Hub, with a model card and an ONNX file.

    Everything goes into one commit, and none is made if nothing would change. If the call is interrupted, everything or
    nothing was published, and it may be made again. Repository and branch are made if they do not exist.

    Args:
        path: A packed file.
        repository: ORG/NAME or ORG/NAME@BRANCH.
        module: The network, to trace model.onnx of. Without it, a graph of the same weights stays and another is
            removed.
        about: What the card states: run, data set, task, license.
        base: The base that the file was fine-tuned from, if it has one; see `load`.
        onnx: auto (a graph that unfolds its own weights, where possible), dense or none.
        private: Who may see a new repository. By default as the account is set.
        tag: A tag for the commit.
        message: The message of the commit.
        force: Replace files that subcompress did not write.
        replace_card: Write the whole card anew, including the sections that its owner wrote.
        config: More entries of config.json.
        token: A token of the Hub. By default the one that `hf auth login` stored.
        say: Called with lines for a person.

    Returns:
        The commit, its address, and the bytes of each file.

    Raises:
        SubcompressError: The Hub refuses, or files of somebody else are in the way.
    """
    ref, about = Reference.of(repository), about or About()
    if onnx == "dense" and module is None:
        raise SubcompressError("a graph is traced from the network: give it, or leave the dense graph out")
    if ref.revision is not None and COMMIT.fullmatch(ref.revision):
        raise SubcompressError(
            f"a push goes to a branch; {ref.revision} is a commit: name a branch after @, or nothing"
        )
    data, found, hub = format.file_bytes(path), info(path), Hub(token, say)
    if tag is not None:
        hub.check_tag(Reference.of(f"{ref.id}@{tag}"))  # before anything is published
    card.measured(found, about)  # what is wrong with the run is said before anything is traced or sent
    graph = _graph(path, found, module, onnx, base)
    parcel = Parcel(data, found, graph, about, config or {}, onnx != "none", force, replace_card)
    pushed = _publish(hub, ref, parcel, private, message or f"Push {len(data)} bytes with subcompress")
    if tag is not None:
        hub.tag(Reference(pushed.id), tag, pushed.commit)
    return pushed


def _graph(path: str | Path, found: dict[str, Any], module: nn.Module | None, onnx: str, base: Any) -> bytes | None:
    if onnx not in GRAPHS:
        raise SubcompressError(f"--onnx is one of {', '.join(GRAPHS)}; given {onnx!r}")
    if module is None or onnx == "none" or (onnx == "auto" and found.get("base")):
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            place = Path(folder) / GRAPH
            return unpack(path, place, module, base=base, self_unfolding=onnx == "auto").read_bytes()
        except SubcompressError as e:
            raise SubcompressError(f"{e} (or push without a graph: --onnx none)") from e


def _publish(hub: Hub, ref: Reference, parcel: Parcel, private: bool | None, message: str) -> Pushed:
    """Commit until the branch holds the parcel: built anew where others came first, looked at again where nobody knows
    whether a commit came through."""
    waits, races, tried = list(transport.WAITS), 0, False
    while True:
        remote = _there(hub, ref, private)
        files, stays = contents(hub, ref, remote, parcel)
        sizes = {name: len(data) for name, data in files.items()} | stays
        gone = [n for n in (GRAPH, EVALUATION) if n in remote.files and n not in sizes]
        changed = {n: d for n, d in files.items() if n not in remote.files or not remote.files[n].holds(d)}
        if not changed and not gone:
            return _pushed(remote.id, remote.commit, tried, sizes)
        try:
            commit = hub.commit(replace(ref, id=remote.id), remote.commit, changed, gone, message)
            return _pushed(remote.id, commit, True, sizes)
        except MovedError:
            tried, races = True, races + 1
            if races == RACES:
                raise
            hub.wait(transport.WAITS[0] * random.uniform(0.1, 0.5), f"others have changed {ref.id} meanwhile")
        except UnreachableError as e:
            tried = True
            if not waits or transport.offline() or asked_wait(e) > transport.LONGEST_WAIT:
                raise
            hub.wait(max(waits.pop(0), asked_wait(e)), e.what)


def _pushed(id: str, commit: str, changed: bool, sizes: dict[str, int]) -> Pushed:
    return Pushed(id, commit, f"{transport.endpoint()}/{id}/commit/{commit}", changed, sizes)


def _there(hub: Hub, ref: Reference, private: bool | None) -> Remote:
    """The repository and its branch, made where they are not there."""
    for make in (True, True, False):
        try:
            remote = hub.look(ref)
            break
        except (MissingError, NoRevisionError) as e:
            lacking = e
        if not make or (isinstance(lacking, NoRevisionError) and ref.revision is None):
            raise lacking
        if isinstance(lacking, MissingError):
            hub.create(ref.id, private)
        else:
            hub.branch(ref.id, str(ref.revision))
    if private is not None and remote.private != private:
        asked, is_ = ("private", "public") if private else ("public", "private")
        raise SubcompressError(
            f"{ref.id} is {is_}, and {asked} was asked for: change it in its settings, or leave it out"
        )
    return remote


def contents(hub: Hub, ref: Reference, remote: Remote, parcel: Parcel) -> tuple[dict[str, bytes], dict[str, int]]:
    """The files that the repository is to hold, and the bytes of those that stay as they are.

    Raises SubcompressError where files of others stand under their names, and for a card that cannot be read.
    """
    config = settings(hub, ref, remote)
    if not parcel.force:
        _require_replaceable(ref, remote, config)
    stays = {}
    same = config.get("subcompress", {}).get("digest") == parcel.info["digest"]
    if parcel.graph is None and parcel.keep and same and GRAPH in remote.files:
        stays = {GRAPH: remote.files[GRAPH]}
    text, held = small_file(hub, ref, remote, CARD), None
    try:
        held = text if text is None else text.decode()
    except UnicodeDecodeError as e:
        if not parcel.replace_card:
            raise SubcompressError(
                f"README.md of {ref.id} is not UTF-8, and what its owner wrote would be lost: mend it, or give "
                "--replace-card"
            ) from e
    there = {name: (f.oid, f.size) for name, f in stays.items()}
    files = described(remote.id, parcel, there, config, held, hub.say)
    return files, {name: f.size for name, f in stays.items()}


def described(
    id: str,
    parcel: Parcel,
    stays: dict[str, tuple[str, int]] | None = None,
    config: dict[str, Any] | None = None,
    held: str | None = None,
    say: Say = lambda line: None,
) -> dict[str, bytes]:
    """The file and the graph, with settings and card. stays: SHA-256 and bytes of what is there and stays beside them;
    config, held: the settings and the card that are there; say: told what others wrote in the card and is replaced."""
    files = {FILE: parcel.data} | ({} if parcel.graph is None else {GRAPH: parcel.graph})
    sums = {n: (hashlib.sha256(data).hexdigest(), len(data)) for n, data in files.items()} | (stays or {})
    found = card.measured(parcel.info, parcel.about)
    before = (config or {}).get("subcompress", {})
    if parcel.about.run is None and before.get("digest") == parcel.info["digest"]:
        found = card.measured_before(before.get("measured")) or found  # of the same weights
    page = Page(id, parcel.info, sums, parcel.about, found)
    keys = ("format_version", "seed", "d", "D", "bits", "operator", "layout", "digest", "facts")
    ours = {k: parcel.info[k] for k in keys} | {"base": parcel.info.get("base")}
    ours["measured"] = asdict(found) if found is not None and found.recipe else None
    ours["front_matter"] = card.own(page)
    ours["sha256"] = {name: sha256 for name, (sha256, _) in sums.items()}
    whole = {**(config or {}), **parcel.config, "library_name": "subcompress", "subcompress": ours}
    files[CONFIG] = (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode()
    wrote = None
    if not parcel.replace_card:
        wrote = before.get("front_matter") if before else {}
        wrote = wrote if isinstance(wrote, dict) else None
        for line in card.replaced(page, held, wrote):
            say(line)
        if wrote is None:  # of a push before they were noted: all that is there is taken for ours
            wrote = card.there(page, held)
    files[CARD] = card.write(page, held, anew=parcel.replace_card, wrote=wrote).encode()
    if (results := card.evaluation(page)) is not None:
        files[EVALUATION] = results.encode()
    return files


def _require_replaceable(ref: Reference, remote: Remote, config: dict[str, Any]) -> None:
    """Raise SubcompressError where a push would replace what no push of ours wrote."""
    sums = config.get("subcompress", {}).get("sha256", {})
    others = sorted(n for n in remote.files if n != FILE and OTHERS.fullmatch(n))
    if others and FILE not in sums:
        raise SubcompressError(
            f"{ref.id} holds weights in {', '.join(others[:2])}, and beside a {FILE} nobody would load them: name "
            "another repository, or --force to put one there"
        )
    for name in (FILE, GRAPH, CONFIG):
        if name not in remote.files:
            continue
        oid = remote.files[name].oid
        if not config or (name in (FILE, GRAPH) and len(oid) == 64 and sums.get(name) != oid):
            raise SubcompressError(
                f"{ref.id} holds a {name} that no push of subcompress wrote: name another repository, or --force to "
                "replace it"
            )
