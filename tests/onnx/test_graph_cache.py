"""Traced graphs on disk: found again as long as what they were made of is the same, and never otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from subcompress.onnx import graph_cache
from subcompress.onnx.graph_cache import SUFFIX, GraphCache, Traced, default_folder, installed_packages

GRAPH = Traced(b"graph\nof bytes", ("a", "b.weight"), True, "own.py:net")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file that a network reads."""
    path = tmp_path / "own.py"
    path.write_text("width = 3")
    return path


@pytest.fixture
def cache(tmp_path: Path, own: Path) -> GraphCache:
    """A cache with an answer to "question"."""
    found = GraphCache(tmp_path / "graphs")
    found.keep("question", GRAPH, [str(own)])
    return found


def entry(cache: GraphCache) -> Path:
    """The only entry."""
    (path,) = cache.folder.glob(f"*{SUFFIX}")
    return path


def test_what_was_kept_is_found_by_another_process(cache: GraphCache) -> None:
    assert GraphCache(cache.folder).find("question") == GRAPH
    assert cache.find("another question") is None
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_a_changed_source_makes_it_unknown(cache: GraphCache, own: Path) -> None:
    own.write_text("width = 4")
    cache.forget_states()
    assert cache.find("question") is None
    own.unlink()
    assert GraphCache(cache.folder).find("question") is None
    own.write_text("width = 3")
    assert GraphCache(cache.folder).find("question") == GRAPH


def test_large_files_count_by_size_and_time(tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_cache, "MAX_HASHED", 4)
    cache = GraphCache(tmp_path / "graphs")
    cache.keep("question", GRAPH, [str(own)])
    assert cache.find("question") == GRAPH
    os.utime(own, ns=(0, 0))
    assert GraphCache(cache.folder).find("question") is None


def test_another_package_makes_it_unknown(cache: GraphCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = installed_packages()
    (tmp_path / "site-packages" / "torch-9.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    assert installed_packages() != before
    assert GraphCache(cache.folder).find("question") is None


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_cut_entry_is_none(cache: GraphCache, cut: int) -> None:
    path = entry(cache)
    path.write_bytes(path.read_bytes()[:cut])
    assert cache.find("question") is None


@pytest.mark.parametrize("header", [{}, [], 3, {"reads": 3}, {"version": 0}, {"names": None}])
def test_an_entry_of_something_else_is_none(cache: GraphCache, header: object) -> None:
    path = entry(cache)
    old, _, graph = path.read_bytes().partition(b"\n")
    changed = {**json.loads(old), **header} if isinstance(header, dict) and header else header
    path.write_bytes(json.dumps(changed).encode() + b"\n" + graph)
    assert cache.find("question") is None


def test_a_folder_that_others_can_write_to_is_not_used(cache: GraphCache) -> None:
    cache.folder.chmod(0o777)
    assert cache.find("question") is None
    entry(cache).unlink()
    cache.keep("question", GRAPH, [])
    assert not list(cache.folder.iterdir())


def test_a_folder_that_cannot_be_made_is_left_alone(own: Path) -> None:
    cache = GraphCache(own / "graphs")
    cache.keep("question", GRAPH, [])
    assert cache.find("question") is None


def test_bounds(cache: GraphCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_cache, "MAX_ENTRIES", 2)
    os.utime(entry(cache), (1, 1))  # the oldest
    for i in range(2):
        cache.keep(f"question {i}", GRAPH, [])
    assert cache.find("question") is None and cache.find("question 0") == cache.find("question 1") == GRAPH
    monkeypatch.setattr(graph_cache, "MAX_READS", 0)
    cache.keep("question", GRAPH, ["x"])
    monkeypatch.setattr(graph_cache, "MAX_BYTES", 100)
    cache.keep("question", replace(GRAPH, graph=bytes(100)), [])
    assert cache.find("question") is None and cache.find("question 0") is None


def test_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUBCOMPRESS_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "graphs"
    monkeypatch.delenv("SUBCOMPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "subcompress" / "graphs"


READING = """
import sys
from subcompress.onnx.graph_cache import Reads
reads = Reads()
sys.path.insert(0, {folder!r})
import own
open({folder!r} + "/settings.json").close()
open({folder!r} + "/written.txt", "w").close()
print(*reads.names(), sep="\\n")
"""


def test_reads_are_seen(own: Path) -> None:
    """Of imported modules the source, even if Python reads only what it compiled before."""
    (own.parent / "settings.json").write_text("{}")
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", READING.format(folder=str(own.parent))], capture_output=True, text=True, check=True
        )
        found = ran.stdout.split("\n")
        assert {str(own), str(own.parent / "settings.json")} <= set(found)
        assert str(own.parent / "written.txt") not in found
        assert not any("site-packages" in name or name.endswith("json/__init__.py") for name in found)
