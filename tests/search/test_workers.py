"""Several processes in one run folder: claims, heartbeats, workers that die."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import ClassVar

import networks
import pytest
import torch
from commands import cli

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.search.executors import EXECUTORS, called, helping, payload
from subcompress.search.trials import Trial, trial_of
from subcompress.training import run, workers
from subcompress.training.dimension import Dimension
from subcompress.training.workers import Worker

HERE = Path(__file__).parent
OPTIONS = {"min_accuracy": 0.5, "epochs": 3, "batch_size": 32, "threads": 1, "seeds": 2, "max_fits": 6, "bits": 4}


def fit(folder: Path, **options) -> subcompress.Fit:
    case = networks.CASES["batch norm"]
    torch.manual_seed(0)
    return subcompress.fit(case.make, case.data(), folder, **OPTIONS | options)


def left(folder: Path, **about) -> str:
    """The ID of a worker whose file alone is there."""
    with Worker(folder, "fit") as worker:
        held = worker.about | about
    (folder / workers.WORKERS).mkdir(exist_ok=True)
    (folder / workers.WORKERS / "other.json").write_text(json.dumps(held))
    (folder / workers.CLAIMS).mkdir(exist_ok=True)
    return "other"


# --- claims ---


def test_one_of_two_has_a_claim(tmp_path):
    with Worker(tmp_path, "fit") as a, Worker(tmp_path, "fit") as b:
        assert a.claim("d9-s0")
        assert not b.claim("d9-s0")
        assert not a.claim("d9-s0")
        assert (a.claimed(), b.claimed()) == ([], ["d9-s0"])
        b.release("d9-s0")  # not its own
        assert not b.claim("d9-s0")
        a.release("d9-s0")
        assert b.claim("d9-s0")
        assert [other.id for other in a.others()] == [b.id]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("about", [{"pid": 2**22 + 1}, {"pid": os.getpid(), "started": "1"}, {"pid": "x"}])
def test_the_claim_of_a_process_that_is_gone_is_taken(tmp_path, about):
    owner = left(tmp_path, **about)
    (tmp_path / workers.CLAIMS / "d9-s0").write_text(owner)
    with Worker(tmp_path, "fit") as worker:
        assert worker.others() == []
        assert worker.claim("d9-s0")


def test_the_claim_of_a_machine_that_is_silent_is_taken(tmp_path):
    """By the file system's clock: this one may be wrong by hours."""
    owner = left(tmp_path, place="another machine")
    (tmp_path / workers.CLAIMS / "d9-s0").write_text(owner)
    path = tmp_path / workers.WORKERS / f"{owner}.json"
    with Worker(tmp_path, "fit") as worker:
        assert not worker.claim("d9-s0")
        assert [str(other) for other in worker.others()] == [f"process {os.getpid()} on {worker.about['host']}"]
        old = path.stat().st_mtime - workers.STALE - 1
        os.utime(path, (old, old))
        assert worker.claim("d9-s0")


def test_a_damaged_file_of_a_worker_is_alive_until_it_is_old(tmp_path):
    path = tmp_path / workers.WORKERS / "other.json"
    with Worker(tmp_path, "fit") as worker:
        for text in ("", "[]", "{" * 5_000, '{"pid": [], "place": {}}'):
            path.write_text(text)
            assert [other.id for other in worker.others()] == ["other"]
            assert "process" in str(worker.others()[0])


def test_a_file_system_without_exclusive_creation_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_create", lambda path, text: True)
    with pytest.raises(SubcompressError, match=r"^the file system of \S+ cannot create files exclusively[^\n]*$"):
        fit(tmp_path / "run")


def test_a_file_system_without_links_does(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(workers.errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    with Worker(tmp_path, "fit") as a, Worker(tmp_path, "fit") as b:
        assert a.claim("x")
        assert not b.claim("x")


def test_names_of_trials():
    for trial in (Trial(9, 3), Trial(40, 0, short=True), Trial(0, 1), Trial(0, 1, lr=4e-3)):
        assert trial_of(trial.key) == trial
    assert trial_of("moves") is trial_of("d9-s0-died") is None


# --- several workers, one result ---


@pytest.mark.parametrize("about", [{"version": "subcompress 0.0.1, torch 1.0"}, {"task": "compare"}])
def test_workers_of_another_kind_are_refused(tmp_path, about):
    (tmp_path / "run").mkdir()
    left(tmp_path / "run", place="another machine", **about)
    words = (
        r"need the same version of subcompress; process \d+ on \S+ has subcompress 0.0.1"
        if "version" in about
        else "another process works"
    )
    with pytest.raises(SubcompressError, match=words):
        fit(tmp_path / "run")


def test_what_another_worker_trained_counts(tmp_path):
    """The other ends trainings of the same command while this one searches: nothing is trained twice."""
    whole = fit(tmp_path / "whole")
    folder = tmp_path / "run"

    class Shared(Listener):
        def run(self, title, epochs):
            if title.startswith("d = "):
                return
            shutil.copytree(tmp_path / "whole" / run.PROBES, folder / run.PROBES, dirs_exist_ok=True)

        def note(self, text):
            if text.startswith("measured"):
                shutil.copytree(tmp_path / "whole" / run.PROBES, folder / run.PROBES, dirs_exist_ok=True)
                shutil.copy(tmp_path / "whole" / run.JOURNAL, folder / run.JOURNAL)

        def epoch(self, progress):
            raise AssertionError("trained again")

    assert fit(folder, listener=Shared()).probes == whole.probes


def test_jobs_share_the_trials(tmp_path):
    found = fit(tmp_path / "run", jobs=2)
    assert found.reached
    journal = json.loads((tmp_path / "run" / run.JOURNAL).read_text())
    assert len(found.probes) == sum("value" in entry for entry in journal.values())
    assert not (tmp_path / "run" / workers.WORKERS).exists()
    assert cli("runs", tmp_path).stdout.splitlines()[1].split()[1] == "finished"


class Inline(Executor):
    """Makes the call at once, in this process, where a module of the user's is none that can be imported."""

    sent: ClassVar[list[str]] = []

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = [p for p in (folder / run.RECIPE, folder / run.COMMAND) if p.exists()]

    def submit(self, fn, /, *args, **kwargs):
        self.sent.append(payload(lambda: fn(*args, **kwargs)))
        before = [p.read_bytes() for p in self.files]
        module = sys.modules.pop("own", None)
        called(self.sent[-1])
        sys.modules |= {"own": module} if module else {}
        assert [p.read_bytes() for p in self.files] == before
        assert not (self.folder / "dim.json").exists()
        future: Future[None] = Future()
        future.set_result(None)
        return future


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's that helpers cannot import."""
    (tmp_path / "own.py").write_text("from torch import nn\nclass Net(nn.Sequential):\n    pass\n")
    spec = importlib.util.spec_from_file_location("own", tmp_path / "own.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own", module)
    monkeypatch.setattr("subcompress.search.executors.BY_VALUE", [module])
    monkeypatch.setitem(EXECUTORS, "processes", Inline)
    spec.loader.exec_module(module)
    return module


class NoEpoch(Listener):
    """Of a process whose helper trains all."""

    def epoch(self, progress):
        raise AssertionError("trained again")


def test_a_helper_of_a_fit_trains_and_leaves_what_was_asked_for(tmp_path, own):
    """recipe.toml and command.json are those of the command, not of the helper's call, which has one job and cannot
    read the code."""
    net = own.Net(*networks.mlp())
    options = {"seeds": 1, "epochs": 1, "min_accuracy": 0.01, "max_fits": None, "jobs": 2, "listener": NoEpoch()}
    assert subcompress.fit(net, networks.blobs(), tmp_path / "run", **OPTIONS | options).reached
    held = tomllib.loads((tmp_path / "run" / run.RECIPE).read_text())
    assert held["machine"]["jobs"] == 2
    assert "max_fits" not in held["goal"]


def test_a_helper_of_a_measurement_trains_and_writes_no_result(tmp_path, own, monkeypatch):
    """One that comes late finds nothing to do."""
    monkeypatch.setattr(Dimension, "plot", lambda self, path: path.write_bytes(b""))
    net, folder = own.Net(*networks.mlp()), tmp_path / "run"
    options = {"ds": [10, 20], "repeats": 1, "epochs": 1, "batch_size": 32, "threads": 1, "jobs": 2}
    found = subcompress.measure_dimension(net, networks.blobs(), folder, **options, listener=NoEpoch())
    assert [p.d for p in found.points] == [10, 20]
    held = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    called(Inline.sent[-1])
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == held
    assert {p.name for p in held} >= {"dim.md", "dim.json", run.SUMMARY}


OWN = """
import sys, torch, networks, subcompress
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(144, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))

class Share:
    def __init__(self):
        self.reset()

    def reset(self):
        self.right = self.all = 0

    def update(self, outputs, y):
        self.right, self.all = self.right + int((outputs.argmax(1) == y).sum()), self.all + len(y)

    def compute(self):
        return self.right / self.all

found = subcompress.fit(
    Net, networks.blobs(), sys.argv[1], target=0.3, metric=Share(), jobs=2, epochs=2, batch_size=32, seeds=1, max_fits=4
)
print(found.reached)
"""


@pytest.mark.slow
def test_classes_of_a_script_are_sent_to_helpers(tmp_path):
    """A helper has no source of them; it takes the word of the process that began for the digest of the code."""
    (tmp_path / "own.py").write_text(OWN)
    found = subprocess.run(
        [sys.executable, tmp_path / "own.py", tmp_path / "run"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "ended early" not in found.stderr
    assert (found.returncode, found.stdout) == (0, "True\n"), found.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"jobs": 2}, "not used, because with --d there is one training and no search: --jobs"),
        (
            {"seeds": 5, "max_fits": 3},
            "not used, because with --d there is one training and no search: --seeds, --max-fits",
        ),
        ({}, None),
    ],
)
def test_options_of_a_search_beside_d_are_told(tmp_path, options, words, monkeypatch):
    monkeypatch.setitem(EXECUTORS, "processes", None)
    notes = []

    class Heard(Listener):
        def note(self, text):
            notes.append(text)

    fit(
        tmp_path / "run",
        **{"min_accuracy": None, "seeds": 3, "max_fits": None, "d": 9, "epochs": 1} | options,
        listener=Heard(),
    )
    told = [note for note in notes if note.startswith("not used")]
    assert told == ([words] if words else [])


START = """
import sys; sys.path[:0] = {paths!r}
import test_workers as t
from pathlib import Path
t.workers.STALE = 3.0
t.fit(Path({folder!r}), epochs=40)
"""


def start(folder: Path) -> subprocess.Popen:
    paths = [str(HERE), str(HERE.parent / "helpers")]
    return subprocess.Popen([sys.executable, "-c", START.format(paths=paths, folder=str(folder))])


def await_claims(folder: Path, number: int, process: subprocess.Popen) -> None:
    """Wait until so many trials are being trained, while this process lives."""
    while len(list(folder.glob(f"{workers.CLAIMS}/d*"))) < number:
        assert process.poll() is None, "the worker ended before it began a trial"
        time.sleep(0.05)


@pytest.mark.slow
def test_one_worker_is_killed_and_one_is_frozen(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    killed = start(folder)
    await_claims(folder, 1, killed)
    frozen = start(folder)
    await_claims(folder, 2, frozen)
    os.kill(killed.pid, 9)
    os.kill(frozen.pid, 19)
    monkeypatch.setattr(workers, "STALE", 3.0)
    found = fit(folder, epochs=40)
    os.kill(frozen.pid, 18)
    assert frozen.wait(60) == 0
    assert killed.wait() == -9
    assert subcompress.fit is not None and found == fit(folder, epochs=40)
    journal = json.loads((folder / run.JOURNAL).read_text())
    assert {p.seed for p in found.probes if p.whole} == {0, 1}
    assert len(found.probes) <= sum("value" in entry for entry in journal.values())


# --- executors ---


def test_an_interruption_ends_helpers_without_a_word(tmp_path):
    """Ctrl-C reaches all processes of a terminal's group, to which helpers do not belong."""
    notes, began = [], time.monotonic()

    class Heard(Listener):
        def note(self, text):
            notes.append(text)

    def call(folder=tmp_path):
        import os
        import time

        (folder / "draft").write_text(f"{os.getpid()} {os.getpgid(0)}")
        (folder / "draft").rename(folder / "ids")
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt), helping("processes", 1, tmp_path, call, Heard()):
        while not (tmp_path / "ids").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30
    process, group = map(int, (tmp_path / "ids").read_text().split())
    assert group != os.getpgid(0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert notes == []
