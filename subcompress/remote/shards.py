"""Sharded weights: the files of an index or of a numbered series, and the tensors in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.support.files import read_bytes

INDEX = ".index.json"
"""The suffix of an index's name."""

MAX_INDEX = 1 << 26
"""The largest index, in bytes."""

_NUMBERED = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.safetensors|\.bin)")


def weight_map(data: bytes, name: str) -> dict[str, str]:
    """Return tensor -> file as an index states it; the files are in its folder. Raises SubcompressError if it is no
    index."""
    try:
        found = json.loads(data)["weight_map"]
        is_valid = bool(found) and all(_is_bare_name(file) for file in found.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise SubcompressError(
            f"{name} has no weight_map that names the file of each tensor, in the same folder: fetch it"
        )
    return dict(found)


def shards_of(path: Path) -> list[Path]:
    """Return the files that an index names, each once. Raises SubcompressError if one is missing."""
    files = dict.fromkeys(weight_map(read_bytes(path, MAX_INDEX), str(path)).values())
    if missing := next((file for file in files if not (path.parent / file).is_file()), None):
        raise SubcompressError(f"{path.name} names {missing}, which is not in {path.parent}: fetch it")
    return [path.parent / file for file in files]


def numbered_shards(folder: Path) -> list[Path]:
    """Return all files of a numbered series, `model-00001-of-00003.safetensors`, in a folder without an index.

    Empty if there are none, or several series. Raises SubcompressError if one is missing.
    """
    found = {path.name: match for path in folder.iterdir() if (match := _NUMBERED.fullmatch(path.name))}
    kinds = {(match[1], match[3], match[4]) for match in found.values()}
    if len(kinds) != 1:
        return []
    ((prefix, count, suffix),) = kinds
    names = [f"{prefix}{i:05}-of-{count}{suffix}" for i in range(1, min(int(count), len(found) + 1) + 1)]
    if missing := next((name for name in names if name not in found), None):
        raise SubcompressError(f"{folder} has {min(found)} but no {missing}: fetch it")
    return [folder / name for name in names]


def read_indexed(path: Path, read: Callable[[Path], tuple[Mapping[str, Any], Mapping[str, str]]]) -> tuple[Any, Any]:
    """Read the tensors in the files of an index, and what is left out of them. read: returns both for one file.

    A tensor that is in several files is taken from the one that the index states. Raises SubcompressError if that file
    lacks it.
    """
    where = weight_map(read_bytes(path, MAX_INDEX), str(path))
    parts = {file.name: read(file) for file in shards_of(path)}
    for name, file in where.items():
        if name not in parts[file][0] and name not in parts[file][1]:
            raise SubcompressError(f"{path.name} says that {name} is in {file}, which lacks it: fetch both again")
    return _merge(parts, where)


def _merge(
    parts: Mapping[str, tuple[Mapping[str, Any], Mapping[str, str]]], where: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    tensors: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for file, (tensors_of_file, left_out_of_file) in parts.items():
        for found, target in ((tensors_of_file, tensors), (left_out_of_file, left_out)):
            for name, value in found.items():
                if where.get(name, file) == file:
                    if name in target:
                        raise SubcompressError(f"the tensor {name} is in {file} and in another file: keep it in one")
                    target[name] = value
    return tensors, left_out


def read_numbered(
    files: list[Path], read: Callable[[Path], tuple[Mapping[str, Any], Mapping[str, str]]]
) -> tuple[Any, Any]:
    """Read the tensors in files without an index, and what is left out. Raises SubcompressError for a tensor in two
    files."""
    return _merge({file.name: read(file) for file in files}, {})


def _is_bare_name(file: Any) -> bool:
    """Return whether this is a bare file name, without a folder."""
    return isinstance(file, str) and file not in ("", ".", "..") and not set(file) & set("/\\\0")
