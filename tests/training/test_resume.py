"""Stopped at any moment, the same command goes on to the same file; two processes never share a folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import networks
import pytest
from places import HELPERS
from stopping import FIT, Stopping, fit, result

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.training import run
from subcompress.training.workers import Worker

SEARCH = {"min_accuracy": 0.4, "epochs": 4, "batch_size": 32, "threads": 1, "seeds": 2, "max_fits": 8}


@pytest.fixture(autouse=True)
def always_save(monkeypatch):
    monkeypatch.setattr("subcompress.training.loop.SAVE_EVERY", -1.0)


SLOW_CASES = [pytest.param(name, marks=pytest.mark.slow) for name in ("dict", "mlp")]


@pytest.mark.parametrize("case", ["batch norm", *SLOW_CASES])
def test_a_fit_stopped_after_each_epoch(tmp_path, case):
    """Running statistics, dropout and noise of the data set go on as they would have."""
    fit(tmp_path / "whole", FIT, case=case)
    for after in (1, 3):  # before rounding begins, and after
        folder = tmp_path / f"stopped{after}"
        with pytest.raises(KeyboardInterrupt):
            fit(folder, FIT, Stopping(after), case)
        assert not (folder / run.SUMMARY).exists()
        second = Stopping(100)
        fit(folder, FIT, second, case)
        assert second.seen == 4 - after + 1  # the last epoch was not saved yet when its listener raised
        assert result(folder) == result(tmp_path / "whole")


def test_an_augmented_and_priced_fit_goes_on(tmp_path):
    from dataclasses import replace

    import torch

    from subcompress.data import augment_of

    def batch_norm_net():
        torch.manual_seed(0)
        return networks.batch_norm()

    data, options = (
        replace(networks.blobs(), augment=augment_of("flip-shift")),
        {**FIT, "rate": 1e-3, "optimiser": "eigen"},
    )
    whole = subcompress.fit(batch_norm_net(), data, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        subcompress.fit(batch_norm_net(), data, tmp_path / "stopped", **options, listener=Stopping(4))
    again = subcompress.fit(batch_norm_net(), data, tmp_path / "stopped", **options)
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")
    assert again.bytes == whole.bytes


def test_buffers_that_no_file_holds_do_not_stop_a_checkpoint(tmp_path):
    import torch

    net = networks.mlp()
    net[1].register_buffer("sparse", torch.eye(3).to_sparse(), persistent=False)
    net[1].register_buffer("wide", torch.ones(2, dtype=torch.complex128), persistent=False)
    with pytest.raises(KeyboardInterrupt):
        subcompress.fit(net, networks.blobs(), tmp_path / "run", **FIT, listener=Stopping(3))
    assert list((tmp_path / "run" / run.CHECKPOINTS).iterdir())
    assert subcompress.fit(net, networks.blobs(), tmp_path / "run", **FIT).d == 60


@pytest.mark.slow
def test_a_search_stopped_again_and_again(tmp_path):
    fit(tmp_path / "whole", SEARCH)
    for _ in range(40):
        try:
            fit(tmp_path / "stopped", SEARCH, Stopping(11))
            break
        except KeyboardInterrupt:
            continue
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")


def test_another_command_is_told_and_may_discard(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", FIT, Stopping(2))
    with pytest.raises(SubcompressError, match=r"an unfinished run with other options \(its bits was 8, now 5\)"):
        fit(tmp_path / "run", {**FIT, "bits": 5})
    words = r"\(its bits was 8, now 5; its epochs was 4, now 7; its d was 60, now 61\).*limits may change"
    with pytest.raises(SubcompressError, match=words):
        fit(tmp_path / "run", {**FIT, "bits": 5, "epochs": 7, "d": 61})
    assert fit(tmp_path / "run", {**FIT, "bits": 5, "restart": True}).bits == 5
    assert fit(tmp_path / "run", {**FIT, "bits": 3}).bits == 3  # a finished one is replaced


def journal_of(folder: Path) -> dict:
    """Each training in the folder, with the seconds it took, which tell whether it was trained again."""
    return json.loads((folder / run.JOURNAL).read_text())


@pytest.mark.parametrize("within", [pytest.param(True, marks=pytest.mark.slow), False])
def test_limits_change_and_the_search_goes_on(tmp_path, within):
    """Of a search that missed its target, and of one that ended well: what was trained stays, and counts."""
    goal = {"within": 800} if within else {"min_accuracy": 0.999}
    options = {"epochs": 1, "batch_size": 32, "threads": 1, "bits": 4} | goal

    def searched(seeds: int, max_fits: float) -> subcompress.Fit | str:
        try:
            return fit(tmp_path / "run", options | {"seeds": seeds, "max_fits": max_fits})
        except SubcompressError as e:
            assert "not reached" in str(e)
            return str(e)

    searched(1, 2)
    first = journal_of(tmp_path / "run")
    found = searched(2, 5)
    second = journal_of(tmp_path / "run")
    assert second.items() >= first.items()
    assert len(second) > len(first)
    trained = sum("value" in entry for entry in second.values())
    if isinstance(found, subcompress.Fit):
        assert len(found.probes) == trained
    searched(1, 4)  # lower again: nothing is trained, nothing is lost
    assert journal_of(tmp_path / "run") == second
    held = json.loads((tmp_path / "run" / run.COMMAND).read_text())
    assert held["limits"]["seeds"] == 1
    assert [e["seeds"] for e in held["earlier"]] == [1, 2]
    # Both have ended: with other options the folder is begun anew.
    with pytest.raises(SubcompressError, match="not reached") if not within else nullcontext():
        fit(tmp_path / "run", options | {"epochs": 2, "seeds": 1, "max_fits": 4})
    assert not journal_of(tmp_path / "run").items() >= second.items()


@pytest.mark.slow
def test_a_search_that_went_on_under_other_limits_goes_on_again(tmp_path):
    """Stopped after its limits changed, it comes to what it would have come to."""
    more = SEARCH | {"max_fits": 12, "seeds": 3}
    ends = []
    for name, after in (("whole", None), ("stopped", 3)):
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / name, SEARCH, Stopping(10))
        if after is not None:
            with pytest.raises(KeyboardInterrupt):
                fit(tmp_path / name, more, Stopping(after))
        fit(tmp_path / name, more)
        ends.append(result(tmp_path / name))
    assert ends[0] == ends[1]


def test_a_second_process_with_the_same_command_joins(tmp_path):
    """It waits for the one training that the first does, and ends with the same result."""
    joined, context = [], multiprocessing.get_context("fork")  # torch is imported here, which takes seconds elsewhere
    heard, sent = context.Pipe(duplex=False)

    class Second(Listener):
        def epoch(self, progress):
            if not joined:
                work = lambda: sent.send(fit(tmp_path / "run", FIT).validation)  # noqa: E731
                joined.append(context.Process(target=work))
                joined[0].start()

    found = fit(tmp_path / "run", FIT, Second())
    joined[0].join(60)
    assert joined[0].exitcode == 0 and heard.recv() == found.validation
    assert list(journal_of(tmp_path / "run")) == ["moves", "d60-s0"]


def test_a_folder_in_which_others_work_is_not_discarded(tmp_path):
    options = {**FIT, "epochs": 1}
    fit(tmp_path / "run", options)
    with Worker(tmp_path / "run", "fit"):
        for other in ({"bits": 5}, {"restart": True}):
            with pytest.raises(SubcompressError, match=r"^another process works in \S+ \(process \d+ on "):
                fit(tmp_path / "run", {**options, **other})
        assert fit(tmp_path / "run", options).d == 60


COMMAND = """fit --model {here}/networks.py:batch_norm --data {here}/networks.py:blobs --min-accuracy 0.5 --epochs 12
--batch-size 16 --threads 1 --seeds 2 --max-fits 6 --json -o {folder}"""


def start(folder: Path) -> subprocess.Popen:
    command = COMMAND.format(here=HELPERS, folder=folder).split()
    code = "import subcompress.training.loop as t; t.SAVE_EVERY = -1.0; import subcompress_cli; subcompress_cli.main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def killed_and_finished(folder: Path, moments: list[float]) -> int:
    """Kill the command at those moments, in seconds after it has begun to train; finish it; how many kills hit."""
    hits = 0
    for moment in moments:
        process = start(folder)
        while process.poll() is None and not (folder / run.COMMAND).exists():
            time.sleep(0.01)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            hits += 1
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == 0:
            break
    process = start(folder)
    process.wait()
    assert process.returncode == 0
    return hits


@pytest.mark.slow
def test_killed_at_20_random_moments(tmp_path):
    start(tmp_path / "whole").wait()
    rng, hits = random.Random(1), 0
    for i in range(20):
        hits += killed_and_finished(tmp_path / f"killed{i}", [rng.uniform(0.0, 6.0)])
        assert result(tmp_path / f"killed{i}") == result(tmp_path / "whole")
    assert hits >= 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "goal"),
    [
        (signal.SIGTERM, 143, "--d 60"),
        (signal.SIGINT, 130, "--d 60"),
        (signal.SIGINT, 130, "--min-accuracy 1 --jobs 2"),
    ],
)
def test_an_interruption_is_one_line(tmp_path, number, status, goal):
    """In the default run test_ctrl_c_ends_all_processes of tests/data/test_loaders.py interrupts a fit."""
    here = HELPERS
    command = f"fit --model {here}/networks.py:batch_norm --data {here}/networks.py:blobs {goal} --epochs 5000 "
    command += f"--batch-size 16 --threads 1 -o {tmp_path / 'run'}"
    process = subprocess.Popen(
        [sys.executable, "-m", "subcompress_cli", *command.split()],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            if "epoch 2/" in line:
                break
        os.killpg(process.pid, number)  # as a terminal does
        rest = process.stderr.read().strip().splitlines()
    assert process.wait() == status
    assert rest[-1].startswith("interrupted: run the same command again")
    assert not any("Traceback" in line for line in rest)
