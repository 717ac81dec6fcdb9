"""push: publish a packed file with its settings, card and graph in one commit or none."""

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
    Log,
    MissingError,
    MovedError,
    NoRevisionError,
    Remote,
    UnreachableError,
    log_to_listeners,
    requested_wait,
)
from subcompress.support.names import GRAPHS

if TYPE_CHECKING:
    from torch import nn

EVALUATION = ".eval_results/subcompress.yaml"

MAX_RACES = 20
"""How many times others may commit first before a push gives up."""

IGNORED_WEIGHTS = re.compile(
    r"(model|pytorch_model|consolidated)([-.]\d+([-.]of[-.]\d+)?)?\.(safetensors|bin|pt|pth)|.*\.(safetensors|bin)\.index\.json"
    r"|tf_model\.h5|flax_model\.msgpack"
)
"""Names of weights that loaders ignore if there is a model.safetensors."""


@dataclass(frozen=True)
class Pushed:
    """The result of a push. commit: the commit of the branch. changed: whether this push made it. files: the bytes of
    each file."""

    id: str
    commit: str
    url: str
    changed: bool
    files: dict[str, int]


@dataclass(frozen=True)
class Upload:
    """What is to be published.

    graph: model.onnx; with None, an existing graph of the same weights stays if `keep` is set; config: further entries
    of config.json; force: replace files that subcompress did not write.
    """

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
    say: Log = log_to_listeners,
) -> Pushed:
    """Publish a file on the Hugging Face Hub, with a model card and an ONNX file.

    Everything goes into one commit. No commit is made if nothing would change. If the call is interrupted, everything
    or nothing was published, and it is safe to call again. Repository and branch are created if they do not exist.

    Args:
        path: A packed file.
        repository: ORG/NAME or ORG/NAME@BRANCH.
        module: The network from which model.onnx is traced. Without it, a model.onnx of the same weights stays in the
            repository, and one of other weights is removed.
        about: What the card states: run, data set, task, license.
        base: The base that the file was fine-tuned from, if it has one; see `load`.
        onnx: auto (a graph that computes its own weights, or none for a fine-tune), dense or none.
        private: Whether a new repository is private. By default the setting of the account.
        tag: A tag for the commit.
        message: The message of the commit.
        force: Replace files that subcompress did not write.
        replace_card: Replace the whole card, including the sections that its owner wrote.
        config: More entries of config.json.
        token: A token of the Hub. By default the one that `hf auth login` stored.
        say: Called with each line of progress.

    Returns:
        The commit, its address, and the bytes of each file.

    Raises:
        SubcompressError: The Hub refuses, or files of somebody else are in the way.
    """
    ref, about = Reference.of(repository), about or About()
    _check_arguments(ref, module, onnx)
    data, description, hub = format.file_bytes(path), info(path), Hub(token, say)
    if tag is not None:
        hub.check_tag(Reference.of(f"{ref.id}@{tag}"))  # before anything is published
    card.measurement_of(description, about)  # reports a wrong run before anything is traced or sent
    graph = _trace_graph(path, description, module, onnx, base)
    upload = Upload(data, description, graph, about, config or {}, onnx != "none", force, replace_card)
    pushed = _publish(hub, ref, upload, private, message or f"Push {len(data)} bytes with subcompress")
    if tag is not None:
        hub.tag(Reference(pushed.id), tag, pushed.commit)
    return pushed


def _check_arguments(ref: Reference, module: nn.Module | None, onnx: str) -> None:
    if onnx == "dense" and module is None:
        raise SubcompressError(
            "a dense graph is traced from the network: give the network, or leave the dense graph out"
        )
    if ref.revision is not None and COMMIT.fullmatch(ref.revision):
        raise SubcompressError(
            f"{ref.revision} is a commit, and a push needs a branch: name a branch after @, or leave @ out"
        )


def _trace_graph(
    path: str | Path, found: dict[str, Any], module: nn.Module | None, onnx: str, base: Any
) -> bytes | None:
    if onnx not in GRAPHS:
        raise SubcompressError(f"--onnx must be one of {', '.join(GRAPHS)}; got {onnx!r}")
    if module is None or onnx == "none" or (onnx == "auto" and found.get("base")):
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            place = Path(folder) / GRAPH
            return unpack(path, place, module, base=base, self_unfolding=onnx == "auto").read_bytes()
        except SubcompressError as e:
            raise SubcompressError(f"{e} (or push without a graph: --onnx none)") from e


def _publish(hub: Hub, ref: Reference, upload: Upload, private: bool | None, message: str) -> Pushed:
    """Commit until the branch holds the upload.

    If others commit first, the files are built again; if it is unknown whether a commit was made, the branch is looked
    at again.
    """
    waits, races, attempted = list(transport.WAITS), 0, False
    while True:
        remote = _ensure_branch(hub, ref, private)
        files, unchanged = plan_files(hub, ref, remote, upload)
        sizes = {name: len(data) for name, data in files.items()} | unchanged
        gone = [n for n in (GRAPH, EVALUATION) if n in remote.files and n not in sizes]
        changed = {n: d for n, d in files.items() if n not in remote.files or not remote.files[n].holds(d)}
        if not changed and not gone:
            return _pushed(remote.id, remote.commit, attempted, sizes)
        try:
            commit = hub.commit(replace(ref, id=remote.id), remote.commit, changed, gone, message)
            return _pushed(remote.id, commit, True, sizes)
        except MovedError:
            attempted, races = True, races + 1
            if races == MAX_RACES:
                raise
            hub.wait(transport.WAITS[0] * random.uniform(0.1, 0.5), f"others have changed {ref.id} meanwhile")
        except UnreachableError as e:
            attempted = True
            if not waits or transport.offline() or requested_wait(e) > transport.LONGEST_WAIT:
                raise
            hub.wait(max(waits.pop(0), requested_wait(e)), e.what)


def _pushed(id: str, commit: str, changed: bool, sizes: dict[str, int]) -> Pushed:
    return Pushed(id, commit, f"{transport.endpoint()}/{id}/commit/{commit}", changed, sizes)


def _ensure_branch(hub: Hub, ref: Reference, private: bool | None) -> Remote:
    """Return the repository and its branch, creating them if they are missing."""
    for make in (True, True, False):
        try:
            remote = hub.look(ref)
            break
        except (MissingError, NoRevisionError) as e:
            missing = e
        if not make or (isinstance(missing, NoRevisionError) and ref.revision is None):
            raise missing
        if isinstance(missing, MissingError):
            hub.create(ref.id, private)
        else:
            hub.branch(ref.id, str(ref.revision))
    if private is not None and remote.private != private:
        requested, actual = ("private", "public") if private else ("public", "private")
        raise SubcompressError(
            f"{ref.id} is {actual}, but {requested} was asked for: change it in the settings of the repository, "
            "or leave the option out"
        )
    return remote


def plan_files(hub: Hub, ref: Reference, remote: Remote, upload: Upload) -> tuple[dict[str, bytes], dict[str, int]]:
    """Return the files that the repository is to hold, and the sizes of those that stay unchanged.

    Raises SubcompressError if files of others are in the way, and for a card that cannot be read.
    """
    config = settings(hub, ref, remote)
    if not upload.force:
        _require_replaceable(ref, remote, config)
    unchanged = {}
    same_weights = config.get("subcompress", {}).get("digest") == upload.info["digest"]
    if upload.graph is None and upload.keep and same_weights and GRAPH in remote.files:
        unchanged = {GRAPH: remote.files[GRAPH]}
    text, card_text = small_file(hub, ref, remote, CARD), None
    try:
        card_text = text if text is None else text.decode()
    except UnicodeDecodeError as e:
        if not upload.replace_card:
            raise SubcompressError(
                f"README.md of {ref.id} is not UTF-8, and what its owner wrote would be lost: fix it, or give "
                "--replace-card"
            ) from e
    sums = {name: (f.oid, f.size) for name, f in unchanged.items()}
    files = build_files(remote.id, upload, sums, config, card_text, hub.log)
    return files, {name: f.size for name, f in unchanged.items()}


def build_files(
    id: str,
    upload: Upload,
    stays: dict[str, tuple[str, int]] | None = None,
    config: dict[str, Any] | None = None,
    card_text: str | None = None,
    log: Log = lambda line: None,
) -> dict[str, bytes]:
    """Build the packed file, the graph, the settings and the card.

    stays: SHA-256 and bytes of files that stay unchanged; config, card_text: the existing settings and card; log:
    called with lines about what others wrote in the card and is replaced.
    """
    files = {FILE: upload.data} | ({} if upload.graph is None else {GRAPH: upload.graph})
    sums = {n: (hashlib.sha256(data).hexdigest(), len(data)) for n, data in files.items()} | (stays or {})
    found = card.measurement_of(upload.info, upload.about)
    previous_config = (config or {}).get("subcompress", {})
    if upload.about.run is None and previous_config.get("digest") == upload.info["digest"]:
        found = card.previous_measurement(previous_config.get("measured")) or found  # of the same weights
    page = Page(id, upload.info, sums, upload.about, found)
    keys = ("format_version", "seed", "d", "D", "bits", "operator", "layout", "digest", "facts")
    own = {k: upload.info[k] for k in keys} | {"base": upload.info.get("base")}
    own["measured"] = asdict(found) if found is not None and found.recipe else None
    own["front_matter"] = card.own_front_matter(page)
    own["sha256"] = {name: sha256 for name, (sha256, _) in sums.items()}
    merged = {**(config or {}), **upload.config, "library_name": "subcompress", "subcompress": own}
    files[CONFIG] = (json.dumps(merged, indent=2, sort_keys=True) + "\n").encode()
    previous = None
    if not upload.replace_card:
        previous = previous_config.get("front_matter") if previous_config else {}
        previous = previous if isinstance(previous, dict) else None
        for line in card.replaced_lines(page, card_text, previous):
            log(line)
        if previous is None:  # an older push did not record its keys: assume that it wrote all of them
            previous = card.existing_front_matter(page, card_text)
    files[CARD] = card.write_card(page, card_text, anew=upload.replace_card, previous=previous).encode()
    if (results := card.evaluation(page)) is not None:
        files[EVALUATION] = results.encode()
    return files


def _require_replaceable(ref: Reference, remote: Remote, config: dict[str, Any]) -> None:
    """Raise SubcompressError if a push would replace files that no push of subcompress wrote."""
    sums = config.get("subcompress", {}).get("sha256", {})
    others = sorted(n for n in remote.files if n != FILE and IGNORED_WEIGHTS.fullmatch(n))
    if others and FILE not in sums:
        raise SubcompressError(
            f"{ref.id} holds weights in {', '.join(others[:2])}, which loaders ignore if there is a {FILE}: "
            "name another repository, or give --force to add one"
        )
    for name in (FILE, GRAPH, CONFIG):
        if name not in remote.files:
            continue
        oid = remote.files[name].oid
        if not config or (name in (FILE, GRAPH) and len(oid) == 64 and sums.get(name) != oid):
            raise SubcompressError(
                f"{ref.id} holds a {name} that subcompress did not write: name another repository, or give "
                "--force to replace it"
            )
