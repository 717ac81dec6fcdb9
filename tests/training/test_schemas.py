"""What is read from a run folder: whatever somebody has done to it, one line says which file and which field."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import networks
import pytest
from commands import cli
from places import GOLDEN
from run_folders import CHECKPOINT, DEEP, copied, fit, one_line, put

import subcompress
from subcompress import format
from subcompress.training import run, schemas, workers
from subcompress.training.probe import Probe

WRONG = {
    "a list": "[]",
    "a number": "3",
    "nothing": "",
    "null": "null",
    "half": '{"a": ',
    "deep": DEEP,
    "deep objects": '{"a":' * 100_000,
    "a deep field": '{"recipe": ' + "[" * 500 + "]" * 500 + "}",
    "twice": '{"a": 1, "a": 2}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "another": '{"a": 1}',
    "a large number": '{"a": ' + "9" * 5_000 + "}",
}


READERS = {run.COMMAND: schemas.command, run.JOURNAL: schemas.journal, run.SUMMARY: schemas.summary}
"""What `fit` reads the files with. It takes a tenth of a second to come to them: so most cases are read without it."""


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", READERS)
def test_files_of_another_shape(name, what, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    wrong = WRONG[what]
    (folder / name).write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
    one_line(lambda: fit(folder) if what in ("half", "deep") else READERS[name](folder / name, "fit again"), name)
    if name == run.SUMMARY:
        one_line(lambda: subcompress.pack(folder, tmp_path / "x"), name)
        one_line(lambda: subcompress.report(folder), name)


@pytest.mark.parametrize("name", [run.COMMAND, run.JOURNAL, run.SUMMARY, CHECKPOINT])
def test_folders_in_place_of_files(name, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    one_line(lambda: fit(folder), name, "is not a file")
    if name == CHECKPOINT:  # its folder is ours
        assert fit(folder, restart=True).d == 40
    else:
        one_line(lambda: fit(folder, restart=True), name, "cannot be removed")


def test_files_in_place_of_folders(stopped, finished, tmp_path):
    folder = copied(stopped, tmp_path)
    (folder / run.PROBES).write_text("")
    one_line(lambda: fit(folder), run.PROBES, "cannot be made")
    for name in (workers.WORKERS, workers.CLAIMS):
        (folder / name).write_text("")
        one_line(lambda: fit(folder), name, "cannot be written")
        (folder / name).unlink()


def test_a_restart_discards_what_is_damaged(finished, tmp_path):
    folder = copied(finished, tmp_path)
    for name in (run.COMMAND, run.JOURNAL, run.SUMMARY):
        (folder / name).write_text(DEEP)
    assert fit(folder, epochs=1, restart=True).d == 40


def changed(path: Path, change) -> None:
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


FIELDS = [
    (run.COMMAND, ("recipe", "lr"), 1e9, "recipe: lr"),
    (run.COMMAND, ("recipe", "bits"), "4", "recipe: bits: expected int, got str"),
    (run.COMMAND, ("recipe", "bits"), ..., "recipe: object missing required field bits"),
    (run.COMMAND, ("recipe", "a\n\x9b\u202e" + "x" * 999), 2, "unknown field a???xxx"),
    (run.JOURNAL, ("a\nb",), 2, "journal.json"),
    (run.COMMAND, ("recipe", "wings"), 2, "recipe: object contains unknown field wings"),
    (run.COMMAND, ("machine", "threads"), -1, "machine.threads: expected int >= 1, got -1"),
    (run.COMMAND, ("goal",), ..., "missing required field goal"),
    (run.COMMAND, ("goal", "d"), [], "goal.d: expected int | null, got array"),
    (run.COMMAND, ("earlier",), [{"seeds": 1}], "earlier[0]: object missing required field trainings"),
    (run.JOURNAL, ("moves",), 3, "expected object, got int"),
    (run.JOURNAL, ("moves", "rate"), "fast", "moves: rate"),
    (run.JOURNAL, ("moves", "rate"), math.nan, "moves: rate"),
    (run.JOURNAL, ("moves", "sizes"), {"0.weight": 1}, "moves: sizes[...]: expected array, got int"),
    (run.JOURNAL, ("moves", "sizes"), {"else.weight": [1.0]}, "moves: sizes: 0.weight: expected 1 numbers, got 0"),
    (run.JOURNAL, ("moves", "still"), {"0.weight": [1 << 50, "eJw="]}, "moves: still: 0.weight: expected"),
    (run.JOURNAL, ("moves", "unread"), ["0.weight"], "unread: 0.weight is not in still"),
    (run.JOURNAL, ("moves", "smoothness"), ..., None),
    (run.JOURNAL, ("moves", "wings"), 1, "moves: object contains unknown field wings"),
    (run.JOURNAL, ("d40-s0",), {"d": 40}, "d40-s0: object missing required field seed"),
    (run.JOURNAL, ("d40-s0-died",), {"epochs": 1, "seconds": "a", "note": ""}, "d40-s0-died: seconds"),
    (run.JOURNAL, ("d40-s0",), asdict(Probe(41, 0, 0.5, (0.5,), 1, 1.0)), "d40-s0: d: expected 40, got 41"),
    (run.JOURNAL, ("d40-s0",), asdict(Probe(40, 1, 0.5, (0.5,), 1, 1.0)), "d40-s0: seed: expected 0, got 1"),
    (run.JOURNAL, ("d40-s0",), asdict(Probe(40, 0, 0.5, ("a",), 1, 1.0)), "d40-s0: curve[0]"),
    (run.JOURNAL, ("d40-s0",), asdict(Probe(40, 0, 0.5, (0.5,), 1, 1.0, lr=-1.0)), "d40-s0: lr"),
    (run.JOURNAL, ("d40-s0",), asdict(Probe(40, 0, 0.5, (0.5,), 1, 1.0)), "is missing or is not a file"),
]


@pytest.mark.parametrize(("name", "path", "value", "words"), FIELDS)
def test_fields(name, path, value, words, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    changed(folder / name, put(*path, value=value))
    if words is None:  # what an older version wrote
        assert fit(folder).d == 40
    else:
        read = lambda: READERS[name](folder / name, "fit again")  # noqa: E731
        one_line(lambda: (read(), fit(folder)), "" if "is missing" in words else name, words)


SUMMARIES = [
    (("fit",), ..., "missing required field fit"),
    (("fit",), [], "fit: expected object, got array"),
    (("fit", "d"), "40", "fit: d: expected int, got str"),
    (("fit", "trainings"), ..., "fit: object missing required field trainings"),
    (("fit", "trainings"), [3], "fit: trainings[0]: expected object, got int"),
    (("fit", "frontier"), [{"bytes": 1, "value": 0.5, "training": 7}], "frontier: no training has the number 7"),
    (("fit", "wings"), 1, "fit: object contains unknown field wings"),
    (("recipe", "lr"), 1e9, "recipe: lr"),
    (("recipe", "epochs"), 1.5, "recipe: epochs"),
    (("origin", "model"), ["lenet"], "origin.model: expected str | null, got array"),
    (("origin", "base"), 3, "origin.base"),
    (("date",), ..., "missing required field date"),
    (("versions", "torch"), 2, "versions"),
]


@pytest.mark.parametrize(("path", "value", "words"), SUMMARIES)
def test_fields_of_a_summary(path, value, words, finished, tmp_path):
    folder = copied(finished, tmp_path)
    changed(folder / run.SUMMARY, put(*path, value=value))
    for call in (
        lambda: subcompress.pack(folder, tmp_path / "net.safetensors"),
        lambda: subcompress.report(folder),
        lambda: run.load(folder),
        lambda: run.fit_of(folder),
        lambda: fit(folder, epochs=1),
    ):
        one_line(call, run.SUMMARY, words)
    told = cli("compare", folder)
    assert told.exit_code == 1
    assert words in told.stderr


def test_a_summary_of_before_some_fields_is_read(finished, tmp_path):
    folder = copied(finished, tmp_path)
    for name in ("warnings", "within"):
        changed(folder / run.SUMMARY, put("fit", name, value=...))
    assert run.fit_of(folder).warnings == ()


def test_a_probe_file_of_another_network(finished, tmp_path):
    folder = copied(finished, tmp_path)
    (folder / run.SUMMARY).unlink()
    probe = folder / run.PROBES / "d40-s0.safetensors"
    kept = probe.read_bytes()
    shutil.copy(GOLDEN / "lenet.safetensors", probe)
    one_line(
        lambda: fit(folder, epochs=1), "d40-s0.safetensors belongs to another network (the file holds conv1.weight"
    )
    probe.write_bytes(kept[:-5])
    one_line(lambda: fit(folder, epochs=1))
    record = format.from_bytes(kept)[0]
    other = subcompress.Subspace.of(networks.CASES["batch norm"].make(), d=39, seed=0)
    other.round(4)
    format.save(other.record(), probe)
    one_line(lambda: fit(folder, epochs=1), "belongs to another training")
    format.save(record, probe)
    assert fit(folder, epochs=1).d == 40


def test_a_command_of_before_groups_is_read(stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    held = json.loads((folder / run.COMMAND).read_text())
    del held["begun"]
    flat = held["recipe"] | held["machine"] | held["goal"] | held.get("limits", {})
    flat |= {"network": held["network"]["start"], "code": held["network"]["code"], "data": held["network"]["data"]}
    (folder / run.COMMAND).write_text(json.dumps(flat))
    assert fit(folder).d == 40
    assert json.loads((folder / run.COMMAND).read_text()) == held


def test_an_origin_that_could_not_be_read_again(tmp_path):
    one_line(lambda: fit(tmp_path / "run", origin={"model": 3}), "origin: model: expected str | null, got int")
    assert not (tmp_path / "run").exists()


def test_a_journal_of_a_former_version_is_read(small_run, tmp_path):
    """Its trainings did not say yet whether they were short."""
    shutil.copytree(small_run, tmp_path / "run")
    path = tmp_path / "run" / run.JOURNAL
    held = json.loads(path.read_text())
    lacking = {key: {k: v for k, v in entry.items() if k != "short"} for key, entry in held.items()}
    assert lacking != held
    path.write_text(json.dumps(lacking))
    (state,) = subcompress.runs([tmp_path / "run"])
    assert (state.state, state.problem) == ("finished", "")
