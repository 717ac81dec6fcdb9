"""Where the other workers of --jobs run, and `subcompress runs`."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import networks
import pytest
import torch
from commands import cli

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.api.runs import RunState, _goal
from subcompress.search.executors import called, helping, payload
from subcompress.search.working import Reporting
from subcompress.support.listener import Progress
from subcompress.training import run
from subcompress.training.workers import Worker

OPTIONS = {"min_accuracy": 0.5, "epochs": 3, "batch_size": 32, "threads": 1, "seeds": 2, "max_fits": 6, "bits": 4}


def fit(folder: Path, **options) -> subcompress.Fit:
    case = networks.CASES["batch norm"]
    torch.manual_seed(0)
    return subcompress.fit(case.make, case.data(), folder, **OPTIONS | options)


def test_a_payload_is_a_call(tmp_path):
    called(payload(lambda: (tmp_path / "x").write_text("1")))
    assert (tmp_path / "x").read_text() == "1"
    called("")
    lock = threading.Lock()
    with pytest.raises(SubcompressError, match=r"^--jobs sends the network[^\n]*which failed"):
        payload(lambda: lock)


def helped(name: str, folder: Path) -> list[str]:
    """What two workers wrote, and what was noted of them."""
    notes = []

    class Heard(Listener):
        def note(self, text):
            notes.append(text)

    def call(folder=folder):
        import os
        from pathlib import Path

        Path(folder, f"{os.getpid()}.txt").write_text("")
        raise ValueError("of this worker")

    with helping(name, 2, folder, call, Heard()):
        pass
    assert len(list(folder.glob("*.txt"))) == 2
    return notes


@pytest.mark.parametrize("name", ["processes", *(pytest.param(n, marks=pytest.mark.slow) for n in ("slurm", "ray"))])
@pytest.mark.filterwarnings("ignore")
def test_executors(name, tmp_path):
    pytest.importorskip({"slurm": "submitit"}.get(name, "subcompress" if name == "processes" else name))
    notes = helped(name, tmp_path)
    if name == "slurm":
        assert notes.pop(0) == "Slurm was not found here: the workers run on this machine"
    assert len(notes) == 2
    assert all("ended early" in note and "of this worker" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"jobs": 0}, "--jobs must be between 1 and 256; got 0"),
        ({"executor": "slum"}, "--executor must be one of processes, ray, slurm; got slum: did you mean slurm"),
    ],
)
def test_wrong_options(tmp_path, options, words):
    with pytest.raises(SubcompressError, match=words):
        fit(tmp_path / "run", **options)


# --- runs ---


def test_states_of_runs(tmp_path, small_run):
    shutil.copytree(small_run, tmp_path / "done")
    shutil.copytree(small_run, tmp_path / "half")
    (tmp_path / "half" / run.SUMMARY).unlink()
    shutil.copytree(tmp_path / "half", tmp_path / "busy")
    shutil.copytree(small_run, tmp_path / "hurt")
    (tmp_path / "hurt" / run.JOURNAL).write_text("{")
    with Worker(tmp_path / "busy", "fit") as worker:
        worker.says("d300-s1")
        worker._write()
        found = {Path(s.folder).name: s for s in subcompress.runs([tmp_path])}
    assert {name: s.state for name, s in found.items()} == {
        "busy": "running",
        "done": "finished",
        "half": "interrupted",
        "hurt": "damaged",
    }
    assert found["busy"].workers[0].endswith(": d300-s1")
    assert found["done"].best == found["half"].best
    assert (found["done"].goal, found["done"].trainings) == ("d = 200", 1)
    assert "journal.json" in found["hurt"].problem
    assert len(json.loads(cli("runs", tmp_path, "--json").stdout)) == 4
    assert cli("runs", tmp_path / "no").stderr.startswith("error: ")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    """For whoever is not root; root may read all."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert cli("runs", tmp_path).stderr == f"error: {tmp_path} cannot be read: Permission denied\n"


def test_a_folder_that_may_not_be_entered_is_no_run(tmp_path, monkeypatch):
    for name in ("seen", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / run.COMMAND).write_text("{}")
    stat = os.stat

    def refuse(path, *args, **kwargs):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    assert [Path(s.folder).name for s in subcompress.runs([tmp_path])] == ["seen"]


@pytest.mark.parametrize(
    ("goal", "metric", "words"),
    [
        ({"d": 1_234_567}, "accuracy", "d = 1234567"),
        ({"target": 0.9}, "accuracy", "accuracy >= 0.9"),
        ({"target": 0.25}, "mse {x}", "mse (x) <= 0.25"),
        ({"max_drop": 0.01}, "accuracy", "at most 0.01 below direct training"),
        ({"bytes": 1_048_577}, "accuracy", "at most 1048577 bytes"),
        ({"ds": [10, 20]}, "accuracy", "d = 10, 20"),
    ],
)
def test_goals_in_words(goal, metric, words):
    assert _goal(goal, metric, "<=" in words) == words


def test_a_worker_says_how_far_its_training_is():
    told = []
    heard = []
    folder = SimpleNamespace(worker=SimpleNamespace(says=told.append))
    listener = Reporting(SimpleNamespace(epoch=heard.append), folder, "d20-s0")
    progress = Progress(2, 3, 0.1, 0.75, 1.0)
    listener.epoch(progress)
    assert heard == [progress]
    assert told == ["d20-s0, epoch 2/3, accuracy 0.7500"]


def test_runs_are_watched_until_they_end(tmp_path, monkeypatch):
    states = iter([["running", "running"], ["running", "finished"], ["finished", "finished"]])
    looked = []

    def looks(folders):
        looked.append(next(states))
        return [RunState(f"run-{i}", state, workers=("1 on here: d20-s0",)) for i, state in enumerate(looked[-1])]

    monkeypatch.setattr("subcompress.api.runs.runs", looks)
    monkeypatch.setattr("subcompress_cli.runs.EVERY", 0.0)
    done = cli("runs", tmp_path, "--watch")
    assert done.exit_code == 0, done.output
    assert len(looked) == 3
    assert done.stdout.count("finished") == 2
    assert "running" not in done.stdout
