"""The files that accompany the weights of a transformers model: configuration, tokenizer, license."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from subcompress.api.formats.base import Wanted
from subcompress.base import HUB
from subcompress.errors import SubcompressError, one_line
from subcompress.format.record import Record
from subcompress.remote import CONFIG, companions_of

PATTERNS = (
    CONFIG,
    "generation_config.json",
    "*processor_config.json",
    "tokenizer*.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "*.spm",
    "*.tiktoken",
    "*bpe.model",
    "spiece.model",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
)
"""The names of files that are copied. Code and weights are not."""


def is_companion(name: str) -> bool:
    """Return whether a file of that name, relative to its folder, is taken over."""
    folder, _, _ = name.rpartition("/")
    return any(fnmatchcase(name, p) and p.rpartition("/")[0] == folder for p in PATTERNS)


def copy_companions(record: Record, wanted: Wanted, folder: Path) -> dict[str, Any]:
    """Copy the files into a folder and return the configuration. Raises SubcompressError if there is none."""
    place = _place(record, wanted)
    found = companions_of(place, is_companion) if place.startswith(HUB) else _local(Path(place))
    if CONFIG not in found:
        raise SubcompressError(
            f"{place} has no {CONFIG}, which a transformers model needs: give a folder that has one with --model hf:DIR"
        )
    for name, path in found.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return read_settings(folder, place)


def read_settings(folder: Path, place: str) -> dict[str, Any]:
    """Parse the configuration in a folder; place: where it is from. Raises SubcompressError if it is damaged."""
    try:
        found = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise SubcompressError(f"the {CONFIG} of {place} cannot be read ({one_line(e, 100)}): fetch it again") from e
    if not isinstance(found, dict):
        raise SubcompressError(f"the {CONFIG} of {place} is not a JSON object: fetch it again")
    return found


def _place(record: Record, wanted: Wanted) -> str:
    """The folder or `hub:ORG/NAME[@REV]` that has the files. Raises SubcompressError if none is known."""
    if wanted.files is not None:
        return str(wanted.files)
    reference = None if record.base is None else record.base.reference
    pinned = reference if reference is not None and reference.source.startswith(HUB) else None
    if isinstance(wanted.base, (str, os.PathLike)) and (pinned is None or str(wanted.base) != pinned.source):
        return str(wanted.base)
    if pinned is not None:
        return pinned.where
    has = "the file has no base" if reference is None else f"its base, {reference.source}, is not a folder"
    raise SubcompressError(
        f"configuration and tokenizer are taken from the base, but {has}: give them with --model hf:DIR"
    )


def _local(place: Path) -> dict[str, Path]:
    """The files in a folder, or in the folder of a file of weights."""
    folder = place if place.is_dir() else place.parent
    if not folder.is_dir():
        raise SubcompressError(f"{place} is not a folder: check the path")
    paths = [p for p in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")) if p.is_file()]
    return {name: p for p in sorted(paths) if is_companion(name := p.relative_to(folder).as_posix())}
