"""mypy in strict mode on what a user writes: the package says that it has types, and they fit."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import subcompress
import subcompress_models

ROOT = Path(__file__).parents[2]

SCRIPT = """
from __future__ import annotations

from pathlib import Path

from torch import nn

import subcompress


def make_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def main() -> float:
    data = subcompress.load_data("digits")
    fit = subcompress.fit(make_net, data, "run", d=300, epochs=2, listener=subcompress.Listener())
    size: int = subcompress.pack("run", "net.safetensors")
    dense: Path = subcompress.unpack("net.safetensors", "dense.safetensors")
    net: nn.Module = subcompress.load("net.safetensors", make_net())
    found = subcompress.measure_dimension(make_net, data, "dim", ds=[10, 20])
    print(size, dense, net, found.estimates[0].d, found.markdown())
    table = subcompress.compare("run", make_net(), data)
    print([row.bytes for row in table.rows])
    page: Path = subcompress.report("run", model=make_net, data=data)
    print(page.read_text(), subcompress.push)
    return fit.test
"""

WRONG = """
import subcompress

subcompress.fit(3, "digits", "run", d="many")
subcompress.measure_dimension()
subcompress.compare("run", 3, 4)
subcompress.push(1, 2)
"""


def test_the_packages_say_that_they_have_types():
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in (subcompress, subcompress_models):
        assert (Path(package.__file__).parent / "py.typed").exists()
        assert "py.typed" in held[package.__name__]


@pytest.mark.slow
def test_mypy_on_a_script(tmp_path):
    """As for an installed package, mypy reads no types without py.typed. The cache is kept: the first run is long."""
    for package in (subcompress, subcompress_models):
        (tmp_path / "site" / package.__name__).parent.mkdir(exist_ok=True)
        (tmp_path / "site" / package.__name__).symlink_to(Path(package.__file__).parent)
    (tmp_path / "right.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(WRONG)
    cache, none = ROOT / ".mypy_cache" / "users", tmp_path / "none.ini"
    none.write_text("[mypy]\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", none, "--cache-dir", cache]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [*command, "right.py", "wrong.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert not [line for line in errors if line.startswith("right.py")], done.stdout
    assert {line.split(":")[1] for line in errors} == {"4", "5", "6", "7"}, done.stdout
