"""Stdout is for answers: what a user's code prints, in Python, in C or in a child process, goes to stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import cli

from subcompress_cli.streams import Command, answer, redirect_stdout

LOUD = """
import torch
from torch import nn
import networks

print("import is loud")

class Net(nn.Sequential):
    def forward(self, x):
        print("forward is loud")
        return super().forward(x)

def net():
    print("factory is loud")
    return Net(nn.Flatten(), nn.Linear({width}, 4))

def data():
    print("data is loud")
    return networks.blobs()

def loss(module, batch):
    print("loss is loud")
    return nn.functional.cross_entropy(module(batch[0]), batch[1])

def metric(outputs, y):
    print("metric is loud")
    return float((outputs.argmax(1) == y).float().mean())
"""


@pytest.fixture(scope="module")
def loud(tmp_path_factory) -> Path:
    import networks

    x, _ = networks.blobs().train[0]
    path = tmp_path_factory.mktemp("loud") / "loud.py"
    path.write_text(LOUD.replace("{width}", str(x.numel())))
    return path


def test_a_fit_answers_alone(loud, tmp_path):
    options = [
        f"--loss={loud}:loss",
        f"--metric={loud}:metric",
        "--epochs=1",
        "--batch-size=32",
        "--threads=1",
        "--d=9",
    ]
    done = cli("fit", f"--model={loud}:net", f"--data={loud}:data", *options, "-o", tmp_path / "run", "--json")
    assert json.loads(done.stdout)["d"] == 9
    for what in ("import", "factory", "data", "forward", "loss", "metric"):
        assert f"{what} is loud" in done.stderr


@pytest.mark.slow
def test_every_command_that_runs_code_of_the_user_answers_alone(loud, tmp_path):
    ours = [f"--model={loud}:net", f"--data={loud}:data"]
    training = [f"--loss={loud}:loss", f"--metric={loud}:metric", "--epochs=1", "--batch-size=32", "--threads=1"]
    run, net = tmp_path / "run", tmp_path / "net.safetensors"
    for args in (
        ["fit", *ours, *training, "--d", "9", "-o", run],
        ["dim", *ours, *training, "--d", "9", "--repeats", "1", "-o", tmp_path / "dim"],
        ["pack", run, "-o", net],
        ["compare", run, "--peers", "dense", "--threads", "1"],
        ["unpack", net, ours[0], "-o", tmp_path / "net.onnx"],
        ["verify", net, *ours],
        ["export", net, ours[0], "--triton-repo", tmp_path / "triton"],
    ):
        done = cli(*args, "--json")
        assert done.exit_code == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
        assert "is loud" not in done.stdout
        assert args[0] == "pack" or "factory is loud" in done.stderr


CODE = """
import os, subprocess, sys
from subcompress_cli.streams import answer, redirect_stdout
print("before")
with redirect_stdout():
    print("python")
    os.write(1, b"c\\n")
    subprocess.run(["echo", "child"])
    answer("the answer")
    print("python again")
print("after")
"""


def test_prints_of_c_and_of_child_processes():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before", "the answer", "after"]
    assert sorted(done.stderr.splitlines()) == ["c", "child", "python", "python again"]


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams(closed):
    code = "from subcompress_cli.streams import redirect_stdout\nwith redirect_stdout():\n    print('x')"
    assert subprocess.run(["sh", "-c", f'{sys.executable} -c "{code}" {closed}'], check=True, stderr=-3, stdout=-3)


def test_all_commands_answer_so():
    from subcompress_cli import COMMANDS, main

    for name in COMMANDS:
        found = main.get_command(None, name)
        assert isinstance(found, Command) or name == "serve"  # whose networks are traced by a process of its own


def test_answers_nest(capsys):
    with redirect_stdout():
        answer("outer")
        with redirect_stdout():
            print("noise")
            answer("inner")
        answer("outer again")
    answer("at last")
    told = capsys.readouterr()
    assert told.out.splitlines() == ["outer", "inner", "outer again", "at last"]
    assert told.err == "noise\n"
