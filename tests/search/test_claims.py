"""Claims and beats of workers where several act at the same moment, and where files are odd."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_workers import fit, left

from subcompress import Listener, SubcompressError
from subcompress.training import run, workers
from subcompress.training.workers import Worker


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls give, each in a thread of its own; an exception in place of what it would give."""
    found: list[Any] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def make(i: int) -> None:
        barrier.wait()
        try:
            found[i] = calls[i]()
        except Exception as e:
            found[i] = e

    threads = [threading.Thread(target=make, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def dead_claim(folder: Path, name: str = "d9-s0") -> Path:
    """A claim of a process that is gone."""
    owner = left(folder, pid=2**22 + 1)
    (folder / workers.CLAIMS / name).write_text(owner)
    return folder / workers.CLAIMS / name


def test_of_workers_that_take_over_at_the_same_moment_one_gets_the_claim(tmp_path, monkeypatch):
    """All have seen that the owner is dead before any of them acts."""
    seen, is_held = threading.Barrier(3), Worker._is_held

    def waits(worker, path, owner):
        held = is_held(worker, path, owner)
        if owner == "other":
            seen.wait(10)
        return held

    monkeypatch.setattr(Worker, "_is_held", waits)
    with Worker(tmp_path, "fit") as a, Worker(tmp_path, "fit") as b, Worker(tmp_path, "fit") as c:
        for i in range(10):
            path = dead_claim(tmp_path, f"d{i}-s0")
            found = at_once(*[partial(w.claim, path.name) for w in (a, b, c)])
            assert sorted(found) == [False, False, True]
            assert path.read_text() == (a, b, c)[found.index(True)].id
        assert not list(path.parent.glob("*~*"))


def test_a_worker_that_saw_a_dead_owner_long_ago_does_not_take_the_claim_of_its_successor(tmp_path, monkeypatch):
    path, is_held = dead_claim(tmp_path), Worker._is_held
    with Worker(tmp_path, "fit") as quick, Worker(tmp_path, "fit") as slow:

        def late(worker, claim, owner):
            held = is_held(worker, claim, owner)
            if worker is slow and claim == path:
                assert quick.claim(path.name)
            return held

        monkeypatch.setattr(Worker, "_is_held", late)
        assert not slow.claim(path.name)
        assert path.read_text() == quick.id


def test_a_claim_that_was_taken_from_a_silent_worker_is_not_given_back_by_it(tmp_path, monkeypatch):
    """The other one takes it between this worker's look at its claim and the deletion."""
    with Worker(tmp_path, "fit") as silent, Worker(tmp_path, "fit") as other:
        assert silent.claim("d9-s0")
        monkeypatch.setattr(other, "others", list)
        claim = silent.claim

        def taken_before(name):
            assert other.claim("d9-s0")
            return claim(name)

        monkeypatch.setattr(silent, "claim", taken_before)
        silent.release("d9-s0")
        assert (tmp_path / workers.CLAIMS / "d9-s0").read_text() == other.id


def test_the_claim_to_succeed_of_a_worker_that_died_meanwhile_is_taken_too(tmp_path):
    path = dead_claim(tmp_path)
    shutil.copy(path, path.with_name(workers._succession(path.name, "other")))
    with Worker(tmp_path, "fit") as worker:
        assert worker.claim(path.name)
        assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("held", [b"", b"\xff\xfe", None])
def test_a_claim_that_cannot_be_read_is_not_waited_for_for_ever(tmp_path, held):
    """held: the bytes of the claim; None for a folder in its place."""
    path = tmp_path / workers.CLAIMS / "d9-s0"
    with Worker(tmp_path, "fit") as worker:
        path.mkdir() if held is None else path.write_bytes(held)
        assert not worker.claim("d9-s0")  # another worker may be writing it
        old = path.stat().st_mtime - workers.STALE - 1
        os.utime(path, (old, old))
        if held is None:
            with pytest.raises(SubcompressError, match=r"^[^\n]*d9-s0 cannot be written: [^\n]*remove it[^\n]*$"):
                worker.claim("d9-s0")
            path.rmdir()
        else:
            assert worker.claim("d9-s0")


@pytest.mark.parametrize("away", [-1, 1])
def test_a_worker_whose_file_is_of_another_time_is_dead(tmp_path, away):
    """Of the future too: the folder was copied, or the clock was set back."""
    path = dead_claim(tmp_path)
    left(tmp_path, place="another machine")
    file = tmp_path / workers.WORKERS / "other.json"
    with Worker(tmp_path, "fit") as worker:
        assert not worker.claim(path.name)
        at = file.stat().st_mtime + away * (workers.STALE + 30)
        os.utime(file, (at, at))
        assert worker.others() == []
        assert worker.claim(path.name)


def test_a_long_wait_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "LONG", 0.0)
    lines = []
    with Worker(tmp_path, "fit") as a, Worker(tmp_path, "fit", lines.append) as b:
        assert a.claim("begin")
        thread = threading.Timer(0.1, a.release, ("begin",))
        thread.start()
        with b.alone("begin"):
            thread.join()
    assert len(lines) == 1
    assert re.match(rf"waiting for process {os.getpid()} on \S+, which holds \S+begin$", lines[0])


def test_folders_that_a_leaving_worker_removes_are_made_again(tmp_path, monkeypatch):
    write, removed = Path.write_text, []

    def removing(path, text):
        if path.suffix == ".draft" and len(removed) < 5:
            path.parent.rmdir()
            removed.append(path)
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", removing)
    with Worker(tmp_path, "fit") as worker:
        assert len(removed) == 5
        assert worker.claim("d9-s0")


@pytest.mark.parametrize("name", [workers.WORKERS, workers.CLAIMS])
def test_a_file_in_place_of_a_folder_is_told(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(SubcompressError, match=rf"^\S+{name} cannot be written: File exists; remove it[^\n]*$"):
        Worker(tmp_path, "fit").__enter__()


# --- runs ---


COMMAND: dict[str, Any] = {
    "recipe": {
        "bits": 4, "epochs": 3, "seed": 0, "lr": None, "batch_size": 32, "operator": "auto", "structured": "random",
        "rounded": True, "rate": 0.0, "optimiser": "adam", "act_on": "all", "precision": "fp32", "drop": [],
        "loss": "cross-entropy", "metric": "accuracy", "minimise": False,
    },
    "network": {"start": "0", "code": "1", "data": "2"},
    "machine": {"device": "cpu", "threads": 1},
    "goal": {"d": 9},
}  # fmt: skip


def changed(group: str, **values: Any) -> dict[str, Any]:
    return COMMAND | {group: COMMAND[group] | values}


def test_of_two_that_come_to_an_empty_folder_at_once_one_begins_and_the_other_joins(tmp_path):
    def works(folder: Path, both: threading.Barrier) -> bool:
        with run.working(folder, COMMAND, "fit") as held:
            both.wait(10)  # each sees the other
            with held.worker.alone("begin"):
                joined = held.begin(False)
            held.check_own()
            both.wait(10)
            return joined

    for i in range(5):
        folder, both = tmp_path / str(i), threading.Barrier(2)
        assert sorted(at_once(*[lambda f=folder, b=both: works(f, b)] * 2)) == [False, True]


def test_one_who_comes_with_other_data_is_told_both_digests(tmp_path):
    with run.working(tmp_path, COMMAND, "fit") as first:
        first.begin(False)
        with run.working(tmp_path, changed("network", data="3"), "fit") as second:
            words = (
                r"^another process works in \S+ \(process \d+ on \S+\) with other options: its data \(by their "
                r"digest\) was 2, now 3: wait for it, or give another folder$"
            )
            with pytest.raises(SubcompressError, match=words):
                second.begin(False)


@pytest.mark.parametrize("other", [COMMAND, changed("recipe", epochs=4)])
def test_a_frozen_worker_writes_nothing_into_a_run_that_was_begun_anew(tmp_path, other):
    """Not even where the command is the same: what made somebody begin anew may be in no digest."""
    with run.working(tmp_path, COMMAND, "fit") as frozen:
        frozen.begin(False)
        frozen.worker.path.unlink()  # as if it were silent for long
        with run.working(tmp_path, other, "fit") as anew:
            anew.worker.others = list  # type: ignore[method-assign]
            anew.begin(True)
            before = {p: p.read_bytes() for p in tmp_path.rglob("*.json") if p.parent == tmp_path}
            for write in (
                lambda: frozen.note("d9-s0", {"value": 1.0}),
                lambda: frozen.checkpoint("d9-s0").save({}, {}),
                lambda: frozen.finish(None, {"fit": 1}),
            ):
                with pytest.raises(SubcompressError, match=r"^another process began another run in [^\n]*$"):
                    write()
            assert {p: p.read_bytes() for p in tmp_path.rglob("*.json") if p.parent == tmp_path} == before
            assert not (tmp_path / run.CHECKPOINTS).exists()
            anew.check_own()


def test_a_run_of_an_older_version_is_gone_on_with(tmp_path):
    (tmp_path / run.COMMAND).write_text(json.dumps(COMMAND))
    with run.working(tmp_path, COMMAND, "fit") as held:
        held.begin(False)
        held.check_own()
    assert "begun" not in json.loads((tmp_path / run.COMMAND).read_text())


@pytest.mark.parametrize("when", ["measured", "epoch"])
def test_a_folder_that_is_removed_under_a_fit_ends_it(tmp_path, when):
    folder = tmp_path / "run"

    class Removing(Listener):
        def note(self, text):
            if text.startswith(when):
                shutil.rmtree(folder)

        def epoch(self, progress):
            if when == "epoch":
                shutil.rmtree(folder, ignore_errors=True)

    with pytest.raises(SubcompressError, match=r"^\S+run was removed while the run was under way: give [^\n]*$"):
        fit(folder, min_accuracy=None, d=20, seeds=3, max_fits=None, listener=Removing())
    assert not folder.exists()


def test_a_folder_that_was_emptied_is_not_filled_again(tmp_path):
    with run.working(tmp_path, COMMAND, "fit") as held:
        held.begin(False)
        (tmp_path / run.COMMAND).unlink()
        with pytest.raises(SubcompressError, match=r"was removed while the run was under way: give the command again$"):
            held.finish(None, {"fit": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_that_another_command_replaces_is_told(tmp_path):
    (tmp_path / run.COMMAND).write_text(json.dumps(COMMAND))
    (tmp_path / run.SUMMARY).write_text("{}")
    lines = []
    with run.working(tmp_path, changed("recipe", epochs=4), "fit", lines.append) as held:
        held.begin(False)
    assert lines == [
        f"warning: the finished run in {tmp_path} had other options (its epochs was 3, now 4): it is replaced"
    ]
