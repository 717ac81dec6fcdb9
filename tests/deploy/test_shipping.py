"""What a release holds: the parts that are needed without the repository, by pyproject.toml and in what it builds."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from places import GOLDEN, ROOT

import subcompress
from subcompress.errors import LEFT_OUT
from subcompress_cli import finding, main

doctor = importlib.import_module("subcompress.api.doctor")

CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TOOLS = CONFIG["tool"]["setuptools"]
FOLDERS = {"subcompress": "subcompress", "cli": "subcompress_cli", "models": "subcompress_models"}
"""Folder of this repository -> the package it is."""

STAY = "models/packed/*", "*/__pycache__/*", "*.so", "*.pyd"
"""Files in those folders that are not shipped."""

HELD = (
    *("subcompress/py.typed", "subcompress/templates/card.md.j2", "subcompress/templates/triton_model.py"),
    *("subcompress/format/tables.json", "subcompress/data/digits.npz", "subcompress/serving/page.html"),
    *("subcompress_cli/py.typed", "subcompress_cli/starter/", "subcompress_models/py.typed"),
)
"""Of what every wheel must hold, what is no module."""


def shipped_by(package: str, path: str) -> bool:
    """Whether setuptools puts a file of a package into a wheel. path: within the package's folder."""
    if path.endswith(".py") and "/" not in path:
        return True
    return any(fnmatch(path, pattern) for pattern in TOOLS["package-data"].get(package, ()))


def owner(path: Path) -> tuple[str, str]:
    """The innermost listed package that a file lies in, and its path there."""
    top, *inner = path.relative_to(ROOT).parts
    parts = [FOLDERS[top], *inner]
    known = [".".join(parts[:n]) for n in range(1, len(parts)) if ".".join(parts[:n]) in TOOLS["packages"]]
    return known[-1], "/".join(parts[len(known[-1].split(".")) :])


def sources() -> set[str]:
    """What the compiled part is made of: in the source distribution alone."""
    (extension,) = TOOLS["ext-modules"]
    return {*extension["sources"], *extension["depends"]}


def test_every_file_of_a_package_is_shipped():
    missing = []
    for folder in FOLDERS:
        for path in (p for p in (ROOT / folder).rglob("*") if p.is_file()):
            name = path.relative_to(ROOT).as_posix()
            if any(fnmatch(name, pattern) for pattern in STAY) or name in sources():
                continue
            if not shipped_by(*owner(path)):
                missing.append(name)
    assert missing == [], "add its package, or its pattern under package-data, to pyproject.toml"


def test_the_listed_packages_are_the_folders_with_modules():
    found = {owner(path)[0] for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert found == set(TOOLS["packages"])
    assert all((ROOT / name).exists() for name in sources())


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", subcompress.__version__)
    assert CONFIG["project"]["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == subcompress.__version__
    (heading, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert heading == subcompress.__version__


def test_plain_installs_bring_the_packages_that_are_promised():
    names = {re.match(r"[\w.-]+", each)[0] for each in CONFIG["project"]["dependencies"]}
    assert names >= {"torch", "onnx", "onnxruntime", "onnxruntime-gpu", "safetensors", "huggingface_hub", "click"}


def test_the_server_leaves_out_what_its_errors_name():
    server = CONFIG["tool"]["subcompress"]["server"]
    names = {re.match(r"[\w.-]+", each)[0] for each in CONFIG["project"]["dependencies"]}
    assert set(server["without"]) <= names
    assert {*LEFT_OUT, "onnxruntime-gpu"} == set(server["without"])
    made = runpy.run_path(str(ROOT / "deploy" / "make_dist.py"))["server_config"](CONFIG)["project"]
    assert made["name"] == "subcompress-server"
    assert [each for each in made["dependencies"] if each.startswith("onnxruntime")] == ["onnxruntime>=1.22"]
    assert "torch" not in " ".join(made["dependencies"])


def test_constraints_pin_what_is_needed():
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in constraints()}
    extras = CONFIG["project"]["optional-dependencies"]
    for each in (*CONFIG["project"]["dependencies"], *extras["dev"], *extras["release"]):
        name = re.match(r"[\w.-]+", each)[0].lower().replace("_", "-")
        assert name in {*pinned, "subcompress"}, f"{name} has no version in constraints.txt"
    assert "torch==2.13.0" in constraints()


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# --- what is built ---


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """All that `make dist` writes."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, ROOT / "deploy" / "make_dist.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_release_is_whole(dist):
    version = subcompress.__version__
    wheels = sorted(path.name for path in dist.glob("*.whl"))
    assert [name for name in wheels if name.endswith("-py3-none-any.whl")] == [
        f"subcompress-{version}-py3-none-any.whl",
        f"subcompress_server-{version}-py3-none-any.whl",
    ]
    compiled = [name for name in wheels if "-cp311-abi3-" in name]
    assert len(compiled) == 2 and len(wheels) == 4
    assert sys.platform != "linux" or all("manylinux" in name for name in compiled)
    with tarfile.open(dist / f"subcompress-{version}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {*sources(), "CHANGELOG.md", "CITATION.cff", "constraints.txt", "LICENSE", "README.md"}
    assert names >= {"subcompress/format/tables.json", "cli/py.typed", "models/lenet.py", "subcompress/py.typed"}


@pytest.mark.slow
def test_wheels_hold_what_they_need(dist):
    for path in dist.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
        for wanted in HELD:
            assert any(name.startswith(wanted) for name in names), (path.name, wanted)
        native = [name for name in names if re.match(r"subcompress/_native\..*(so|pyd)$", name)]
        assert bool(native) == ("none-any" not in path.name), path.name
        needs_torch = re.search(r"^Requires-Dist: torch", metadata, re.M) is not None
        assert needs_torch == (not path.name.startswith("subcompress_server")), path.name


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({left_out}))
from subcompress_cli import main
main(prog_name="subcompress")
"""
"""The command line where packages that a server has not are not there."""


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.replace("{left_out}", repr(LEFT_OUT))
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


REFUSED = (
    "error: subcompress unpack needs torch, which is not installed; subcompress-server leaves it out: "
    "pip install subcompress\n"
)


@pytest.mark.slow
def test_commands_where_torch_is_not(tmp_path):
    graph, dense = tmp_path / "graph.onnx", tmp_path / "dense.safetensors"
    done = without_torch("unpack", GOLDEN / "lenet.safetensors", "-o", graph)
    assert (done.returncode, done.stderr) == (1, REFUSED)
    assert not graph.exists()
    assert without_torch("unpack", GOLDEN / "lenet.safetensors", "-o", dense).returncode == 0
    assert without_torch("info", GOLDEN / "lenet.safetensors").returncode == 0
    assert without_torch("doctor").stderr == "fault: torch not installed; pip install torch\n"


def missing(name: str) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return fail


def test_what_needs_torch_says_so_in_one_line(tmp_path, monkeypatch):
    arguments = ["unpack", str(GOLDEN / "lenet.safetensors"), "-o", str(tmp_path / "graph.onnx")]
    monkeypatch.setattr(finding, "network_for", missing("torch.nn"))
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stderr) == (1, REFUSED)
    monkeypatch.setattr(finding, "network_for", missing("subcompress.mistake"))  # ours, and a bug
    assert isinstance(CliRunner().invoke(main, arguments).exception, ModuleNotFoundError)


def test_doctor_examines_a_machine_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "_version", lambda name: "0.2.0" if name == doctor.SERVER else None)
    found = {each.name: each for each in [*doctor._torch(), *doctor._backends()]}
    assert found["torch"] == doctor.Finding("torch", "not installed")
    assert found["backend numpy"].found == "rebuilds the right bits"
    assert not any(each.fix for each in found.values())
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert [each.fix for each in doctor._torch()] == ["pip install torch"]


def test_doctor_finds_both_distributions(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "0.2.0")
    (both,) = [each for each in doctor._versions() if each.name == doctor.SERVER]
    assert both.found == "0.2.0: it and subcompress overwrite each other's files"
    assert both.fix.startswith("pip uninstall -y subcompress-server")


def test_serving_a_packed_file_asks_for_torch():
    from subcompress_cli.tracing import _untraced

    assert _untraced(ModuleNotFoundError("No module named 'torch'", name="torch")) == (
        "tracing its network needs torch, which is not installed; subcompress-server leaves it out: pip install "
        "subcompress, or serve the graph that `subcompress unpack --self-unfolding` writes elsewhere"
    )
    own = ModuleNotFoundError("No module named 'mine'", name="mine")
    assert _untraced(own) == "its network could not be traced (ModuleNotFoundError: No module named 'mine')"
