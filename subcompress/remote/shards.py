"""Weights in several files: which they are, by an index or by their numbers, and which tensor lies in which."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.support.files import read_bytes

INDEX = ".index.json"
"""What the name of an index ends with."""

MAX_INDEX = 1 << 26
"""Bytes of an index."""

_NUMBERED = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.safetensors|\.bin)")


def weight_map(data: bytes, name: str) -> dict[str, str]:
    """Tensor -> file, as an index says it; the files lie beside it. Raises SubcompressError for what is no index."""
    try:
        found = json.loads(data)["weight_map"]
        sound = bool(found) and all(_plain(file) for file in found.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise SubcompressError(
            f"an index has a weight_map, the file of each tensor, all in its own folder; {name} has none: fetch it"
        )
    return dict(found)


def shards_of(path: Path) -> list[Path]:
    """The files that an index names, each once. Raises SubcompressError for one that is missing."""
    files = dict.fromkeys(weight_map(read_bytes(path, MAX_INDEX), str(path)).values())
    if missing := next((file for file in files if not (path.parent / file).is_file()), None):
        raise SubcompressError(f"a base is whole; {path.name} names {missing}, which is not in {path.parent}: fetch it")
    return [path.parent / file for file in files]


def numbered(folder: Path) -> list[Path]:
    """The files of a folder without an index that are numbered, `model-00001-of-00003.safetensors`, all of them; none
    where there are none, or of several kinds. Raises SubcompressError for one that is missing."""
    found = {path.name: match for path in folder.iterdir() if (match := _NUMBERED.fullmatch(path.name))}
    kinds = {(match[1], match[3], match[4]) for match in found.values()}
    if len(kinds) != 1:
        return []
    ((begin, count, end),) = kinds
    wanted = [f"{begin}{i:05}-of-{count}{end}" for i in range(1, min(int(count), len(found) + 1) + 1)]
    if missing := next((name for name in wanted if name not in found), None):
        raise SubcompressError(f"a base is whole; {folder} has {min(found)} and no {missing}: fetch it")
    return [folder / name for name in wanted]


def joined(path: Path, read: Callable[[Path], tuple[Mapping[str, Any], Mapping[str, str]]]) -> tuple[Any, Any]:
    """The tensors of the files of an index, and what is left out of them. read: gives both of one file. A tensor that
    lies in several is that of the file that the index says.

    Raises SubcompressError where a tensor is not in the file that the index says.
    """
    where = weight_map(read_bytes(path, MAX_INDEX), str(path))
    parts = {file.name: read(file) for file in shards_of(path)}
    for name, file in where.items():
        if name not in parts[file][0] and name not in parts[file][1]:
            raise SubcompressError(
                f"an index says where each tensor is; {path.name} says {name} is in {file}, which lacks it: fetch both "
                "again"
            )
    return _merged(parts, where)


def _merged(
    parts: Mapping[str, tuple[Mapping[str, Any], Mapping[str, str]]], where: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    tensors: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for file, (held, left) in parts.items():
        for found, all_of in ((held, tensors), (left, left_out)):
            for name, value in found.items():
                if where.get(name, file) == file:
                    if name in all_of:
                        raise SubcompressError(
                            f"a tensor is in one file; {name} is in {file} and another: name it once"
                        )
                    all_of[name] = value
    return tensors, left_out


def joined_numbered(
    files: list[Path], read: Callable[[Path], tuple[Mapping[str, Any], Mapping[str, str]]]
) -> tuple[Any, Any]:
    """The tensors of files without an index, and what is left out of them. Raises SubcompressError for a tensor that is
    in two."""
    return _merged({file.name: read(file) for file in files}, {})


def _plain(file: Any) -> bool:
    """Whether it is the name of a file and of no other place."""
    return isinstance(file, str) and file not in ("", ".", "..") and not set(file) & set("/\\\0")
