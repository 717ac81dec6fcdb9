"""Every command and every line of Python in the README is run, but for those that need MNIST or a fresh machine."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from commands import cli

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(Path(__file__).parents[1] / "examples")
    lines = [line for block in re.findall(r"```\n(.*?)```", README, re.S) for line in block.splitlines()]
    elsewhere = ("mnist", "ORG/NAME", "subcompress serve")  # what speaks to a Hub is run in test_hub.py
    commands = [
        shlex.split(line)[1:]
        for line in lines
        if line.startswith("subcompress ") and not any(word in line for word in elsewhere)
    ]
    assert {c[0] for c in commands} == {
        *("fit", "dim", "pack", "unpack", "info", "verify", "compare", "report", "doctor", "export"),
    }
    for command in commands:
        result = cli(*command)
        assert result.exit_code == 0, result.output
    assert_served(lines)
    assert {p.name for p in tmp_path.iterdir()} == {
        "examples",
        "request.json",
        "models",
        "runs",
        "net.safetensors",
        "dense.safetensors",
        "half.safetensors",
        "tuned.safetensors",
        "full.safetensors",
        "net.onnx",
        "unfolding.onnx",
    }


def assert_served(lines):
    """The server of the README answers the requests that follow it there."""
    at = next(i for i, line in enumerate(lines) if line.startswith("subcompress serve"))
    command = [sys.executable, "-m", "subcompress_cli", *shlex.split(lines[at])[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address, _, rest = server.stdout.readline().removeprefix("http://").partition(": ")
            assert rest == "2 models\n"
            asking = [line.replace("127.0.0.1:8000", address) for line in lines[at + 1 : at + 4]]
            for line in asking if shutil.which("curl") else asking[1:2]:
                line = line.replace("python3", sys.executable)
                found = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
                assert found.returncode == 0, found.stderr
            if shutil.which("curl"):
                assert len(json.loads(found.stdout)["outputs"][0]["data"]) == 10
        finally:
            server.terminate()
        assert server.wait(60) == 0


def test_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "".join(re.findall(r"```python\n(.*?)```", README, re.S))
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "net.safetensors").stat().st_size < 500
    assert (tmp_path / "mine.safetensors").stat().st_size < 500


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"@[A-Z]+@", README)


def test_files_that_it_names_exist():
    root = Path(__file__).parents[1]
    for path in re.findall(r"\]\(([^)h][^)]*)\)|`((?:benchmarks|tests|docs|examples)/[\w./]+)`", README):
        assert (root / (path[0] or path[1])).exists(), path
