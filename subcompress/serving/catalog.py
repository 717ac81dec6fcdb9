"""The catalog of served models: files, folders, `hub:` ids and .onnx graphs by name, checked for changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from subcompress import format
from subcompress.errors import SubcompressError
from subcompress.remote.references import PREFIX, Reference
from subcompress.serving.networks import Packed
from subcompress.support.files import MAX_FILE_BYTES, read_bytes
from subcompress.tensors.layout import is_valid_text

PACKED, GRAPH = SUFFIXES = (".safetensors", ".onnx")

Signature = tuple[int, ...]


@dataclass(frozen=True)
class FoundFile:
    """A file to serve under a name. signature: changes when the file does, constant for the Hub; wrong: why it cannot
    be served."""

    name: str
    place: str
    path: Path | None = None
    signature: Signature = ()
    wrong: str = ""


@dataclass(eq=False)
class Content:
    """The content of a file: a packed file, or a graph that is opened from its path."""

    found: FoundFile
    packed: Packed | None = None
    nbytes: int = 0


def find_models(
    sources: Sequence[str], listed: dict[str, list[FoundFile]] | None = None
) -> tuple[dict[str, FoundFile], list[str]]:
    """Return every model by name, and the problems with sources.

    A name is NAME in NAME=PATH, the file's name without suffix, or that of the repository. Two files of one name are
    both left out, and the name's entry says why. listed: what each source held at the previous call, updated; a source
    that has disappeared keeps it. Raises SubcompressError for a source that never was valid.
    """
    by_name: dict[str, FoundFile] = {}
    wrong_sources: list[str] = []
    listed = {} if listed is None else listed
    for source in sources:
        try:
            listed[source] = list(_files_of(source))
        except (SubcompressError, OSError) as e:
            reason = str(e) if isinstance(e, SubcompressError) else f"{source} cannot be read: {e.strerror or e}"
            if source not in listed:
                raise SubcompressError(reason) from e
            wrong_sources.append(f"{_legible(reason)} (what was served before is still served)")
        for found in listed[source]:
            if (other := by_name.get(found.name)) is not None and other.place != found.place:
                places = sorted({other.place, found.place})
                wrong = other.wrong or (
                    f"two files are called {found.name}: {places[0]} and {places[1]}; "
                    "rename one, or give it as NAME=PATH"
                )
                found = FoundFile(found.name, other.place, wrong=wrong)
            by_name[found.name] = found
    return by_name, wrong_sources


def _files_of(source: str) -> Iterable[FoundFile]:
    name, source = _split_source(source)
    if name is not None and not is_valid_name(name):
        raise SubcompressError(
            f"the name of a model must be letters, digits and . _ -, not beginning with a dot; got {name!r}"
        )
    if source.startswith(PREFIX):
        yield FoundFile(name or Reference.of(source).id.rpartition("/")[2], source)
        return
    path = Path(source)
    if path.is_dir():
        if name is not None:
            raise SubcompressError(f"{source} is a folder, and only a file can have a name: leave {name}= out")
        with os.scandir(path) as entries:
            files = sorted(e.path for e in entries if e.name.endswith(SUFFIXES) and not e.name.startswith("."))
        for file in files:
            if (found := _found_file(Path(file))) is not None:
                yield found
        return
    if path.suffix not in SUFFIXES and not path.exists():
        raise SubcompressError(f"no such file: {source}")
    if path.suffix not in SUFFIXES:
        raise SubcompressError(
            f"serve takes a {' or '.join(SUFFIXES)} file, a folder of them, or {PREFIX}ORG/NAME; got {source}"
        )
    if (found := _found_file(path, name)) is not None:
        yield found


def _split_source(source: str) -> tuple[str | None, str]:
    """Split NAME=PATH into name and path, where a path may contain an =; the name is None if there is none."""
    name, equals, rest = source.partition("=")
    return (name, rest) if equals and not os.path.exists(source) else (None, source)


def _found_file(path: Path, name: str | None = None) -> FoundFile | None:
    """Return the file, None if it has disappeared meanwhile."""
    try:
        status = path.stat()
    except OSError:
        return None
    name, place = name or path.stem, _legible(str(path))
    if not is_valid_name(name):
        return FoundFile(
            _legible(name), place, wrong=f"the name of a model must be letters, digits and . _ -: rename {place}"
        )
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        return FoundFile(name, place, wrong=f"{place} is not a regular file: remove it")
    if path.suffix == PACKED and status.st_size > MAX_FILE_BYTES:
        wrong = f"{place} has more than the {MAX_FILE_BYTES} bytes of a packed file: is it the dense model?"
        return FoundFile(name, place, wrong=wrong)
    # Its times are those of its content, and of its mode and its name.
    return FoundFile(name, place, path, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def _legible(text: str) -> str:
    """Return a path as one line of valid text, for JSON and messages."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def is_valid_name(name: str) -> bool:
    """Return whether a model may have this name, which becomes part of URLs, metrics and tables."""
    return (
        0 < len(name) <= 200
        and is_valid_text(name)
        and all(c.isalnum() or c in "._-" for c in name)
        and not name.startswith(".")
    )


def require_all(sources: Sequence[str]) -> None:
    """Raise SubcompressError for a missing source: a mistake at the start, later merely a file that disappeared."""
    for source in sources:
        _, place = _split_source(source)
        if not place.startswith(PREFIX) and not os.path.exists(place):
            raise SubcompressError(f"no such file: {place}")


def read_content(found: FoundFile) -> Content:
    """Read a file. Raises SubcompressError if it cannot be served."""
    if found.wrong:
        raise SubcompressError(found.wrong)
    if found.path is None:
        data = format.file_bytes(found.place)
    elif found.path.suffix == GRAPH:
        if not found.signature[1]:
            raise SubcompressError(f"{found.place} is empty: write it again with `subcompress unpack`")
        return Content(found, None, found.signature[1])
    else:
        data = read_bytes(found.path, MAX_FILE_BYTES)
    return Content(found, Packed(found.name, data), len(data))
