"""The name under which others get weights that lie in a local folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from forged_bases import HELD

from subcompress.base import BaseTensors, open_base
from subcompress.base.changes import Changes
from subcompress.base.origin import origin_of
from subcompress.training.fit_warnings import unnamed_base

COMMIT = "0123456789abcdef" * 2 + "01234567"


def saved(folder: Path, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(HELD, folder / name)
    return folder


def test_a_snapshot_in_the_cache_is_named_as_on_the_hub(tmp_path):
    folder = saved(tmp_path / "models--org--net.v1" / "snapshots" / COMMIT)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    for source in (folder, folder / "model.safetensors", tmp_path / "link"):
        found = open_base(source)
        assert (found.name, found.revision) == ("hub:org/net.v1", COMMIT)
        assert unnamed_base(found) is None


@pytest.mark.parametrize(
    "place", ["models--org--net/snapshots/main", "models--net/snapshots/" + COMMIT, "models--org--net/" + COMMIT]
)
def test_other_folders_have_their_own_name(tmp_path, place):
    found = open_base(saved(tmp_path / place))
    assert (found.name, found.revision) == (Path(place).name, "")


def test_only_what_the_hub_would_open_has_the_name_of_the_hub(tmp_path):
    folder = saved(tmp_path / "models--org--net" / "snapshots" / COMMIT)
    torch.save(HELD, folder / "pytorch_model.bin")
    assert open_base(folder / "pytorch_model.bin").name == "pytorch_model.bin"


def downloaded(folder: Path, name: str = "model.safetensors", commit: str = COMMIT, later: float = 0) -> None:
    place = folder / ".cache/huggingface/download"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.metadata").write_text(f"{commit}\n{'0' * 40}\n{time.time() + later}\n")


def test_a_local_folder_knows_its_commit_and_hints_at_its_name(tmp_path):
    folder = saved(tmp_path / "net")
    line = unnamed_base(open_base(folder))
    assert "the file will name its base 'net'" in line and line.endswith("--base-name hub:ORG/NAME@COMMIT")
    downloaded(folder)
    assert unnamed_base(open_base(folder)).endswith(f"--base-name hub:ORG/NAME@{COMMIT}")
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "org/net"}))
    assert f"--base-name hub:org/net@{COMMIT}; this name is from its config.json" in unnamed_base(open_base(folder))
    assert open_base(folder).name == "net", "a hint is no name"
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "/home/me/net"}))
    assert origin_of(folder).likely == ""


def test_a_commit_is_of_files_as_they_were_downloaded(tmp_path):
    folder = saved(tmp_path / "net")
    downloaded(folder, later=-100)
    assert origin_of(folder).commit == "", "the file was written since"
    saved(folder, "model-2.safetensors")
    downloaded(folder)
    downloaded(folder, "model-2.safetensors", commit=COMMIT[::-1])
    assert origin_of(folder).commit == "", "the files are of two commits"


def test_a_name_that_was_given_is_taken(tmp_path):
    folder = saved(tmp_path / "net")
    assert unnamed_base(open_base(folder, f"hub:org/net@{COMMIT}")) is None
    assert unnamed_base(open_base(folder, "net that you know")) is None
    assert unnamed_base(BaseTensors(HELD, "mine")) is None


def test_changes_are_no_part_of_the_name(tmp_path):
    found = open_base(saved(tmp_path / "net"))
    changed = found.changed(Changes((("m.a", "m.z"),)))
    assert changed.name != found.name
    assert "its base 'net'," in unnamed_base(changed)
