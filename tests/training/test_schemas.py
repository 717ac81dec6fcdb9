"""What is read from a run folder: whatever somebody has done to it, one line says which file and which field."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import networks
import pytest
import safetensors
import safetensors.torch
import torch
from commands import cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import GOLDEN

import subcompress
from subcompress import Listener, SubcompressError, format
from subcompress.subspace.moves import Moves
from subcompress.training import run, schemas
from subcompress.training.probe import Fit, Probe

OPTIONS = {"d": 40, "epochs": 3, "batch_size": 32, "threads": 1}
DEEP = "[" * 100_000


class Stopping(Listener):
    """Raises in the second epoch: what the first one left lies in the folder."""

    def epoch(self, progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt


def fit(folder: Path, **options):
    case = networks.CASES["batch norm"]
    torch.manual_seed(0)
    return subcompress.fit(case.make(), case.data(), folder, **OPTIONS | options)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run with a journal and a checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("subcompress.training.loop.SAVE_EVERY", -1.0)
        fit(folder, listener=Stopping())
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(folder, epochs=1)
    return folder


def one_line(call, *words: str) -> str:
    """The line that a call is refused with."""
    with pytest.raises(SubcompressError) as e:
        call()
    line = str(e.value)
    assert "\n" not in line
    assert len(line) < 700
    for word in words:
        assert word in line, line
    return line


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


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


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", [run.COMMAND, run.JOURNAL, run.SUMMARY])
def test_files_of_another_shape(name, what, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    wrong = WRONG[what]
    (folder / name).write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
    one_line(lambda: fit(folder), name)
    if name == run.SUMMARY:
        one_line(lambda: subcompress.pack(folder, tmp_path / "x"), name)
        one_line(lambda: subcompress.report(folder), name)


@pytest.mark.parametrize("name", [run.COMMAND, run.JOURNAL, run.SUMMARY, run.CHECKPOINT])
def test_folders_in_place_of_files(name, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    one_line(lambda: fit(folder), name, "is no file")
    one_line(lambda: fit(folder, restart=True), name, "cannot be removed")


def test_files_in_place_of_folders(stopped, finished, tmp_path):
    folder = copied(stopped, tmp_path)
    (folder / run.PROBES).write_text("")
    one_line(lambda: fit(folder), run.PROBES, "cannot be made")
    (folder / run.LOCK).unlink(missing_ok=True)
    (folder / run.LOCK).mkdir()
    one_line(lambda: fit(folder), run.LOCK)


def test_a_restart_discards_what_is_damaged(finished, tmp_path):
    folder = copied(finished, tmp_path)
    for name in (run.COMMAND, run.JOURNAL, run.SUMMARY):
        (folder / name).write_text(DEEP)
    assert fit(folder, epochs=1, restart=True).d == 40


def changed(path: Path, change) -> None:
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


def put(*path, value):
    """Sets a field of nested objects; an ellipsis for a value takes the field away."""

    def change(held):
        for part in path[:-1]:
            held = held[part]
        if value is ...:
            del held[path[-1]]
        else:
            held[path[-1]] = value

    return change


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
    (run.JOURNAL, ("d40-s0",), asdict(Probe(40, 0, 0.5, (0.5,), 1, 1.0)), "is not there or no file"),
]


@pytest.mark.parametrize(("name", "path", "value", "words"), FIELDS)
def test_fields(name, path, value, words, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    changed(folder / name, put(*path, value=value))
    if words is None:  # what an older version wrote
        assert fit(folder).d == 40
    else:
        one_line(lambda: fit(folder), "" if "is not there" in words else name, words)


SUMMARIES = [
    (("fit",), ..., "missing required field fit"),
    (("fit",), [], "fit: expected object, got array"),
    (("fit", "d"), "40", "fit: d: expected int, got str"),
    (("fit", "trainings"), ..., "fit: object missing required field trainings"),
    (("fit", "trainings"), [3], "fit: trainings[0]: expected object, got int"),
    (("fit", "frontier"), [{"bytes": 1, "value": 0.5, "training": 7}], "frontier: there is no training 7"),
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
    one_line(lambda: fit(folder, epochs=1), "d40-s0.safetensors is of another network (the file holds conv1.weight")
    probe.write_bytes(kept[:-5])
    one_line(lambda: fit(folder, epochs=1))
    record = format.from_bytes(kept)[0]
    other = subcompress.Subspace.of(networks.CASES["batch norm"].make(), d=39, seed=0)
    other.round(4)
    format.save(other.record(), probe)
    one_line(lambda: fit(folder, epochs=1), "of another training")
    format.save(record, probe)
    assert fit(folder, epochs=1).d == 40


def forged(folder: Path, meta=None, tensors=None) -> None:
    """The checkpoint again, changed."""
    path = folder / run.CHECKPOINT
    with safetensors.safe_open(path, "pt") as f:
        state, held = json.loads(f.metadata()["state"]), {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    if meta is not None:
        meta(state)
    if tensors is not None:
        tensors(held)
    path.write_bytes(safetensors.torch.save(held, {"state": json.dumps(state)}))


METAS = [
    (("lr",), 1e9, "lr: expected float <= "),
    (("lr",), 0.5, "lr: expected "),
    (("lr",), math.nan, "lr: expected"),
    (("lr",), -1e-3, "lr: expected float >= 0"),
    (("lr",), "0.1", "lr: expected float, got str"),
    (("lr",), ..., "missing required field lr"),
    (("betas",), [0.9], "betas: expected"),
    (("betas",), [0.99, 0.9], "betas: expected"),
    (("step",), 10**9, "step: expected"),
    (("step",), 1, "step: expected"),
    (("step",), -1, "step: expected int >= 0"),
    (("curve",), [0.5] * 9, "curve: expected 1 to 3 values, got 9"),
    (("curve",), 3, "curve: expected array, got int"),
    (("losses",), [], "losses: expected"),
    (("seconds",), math.inf, "seconds"),
    (("settings",), {}, "settings: expected bits, steps, dead"),
    (("settings", "bits"), 4, "settings: bits: got 4 at step"),
    (("settings", "bits"), 0.0, "bits"),
    (("settings", "steps"), [0.1, 0.2], "a step for each of"),
    (("settings", "dead"), -1.0, "a dead zone"),
    (("settings", "dead"), [0.5], "a dead zone"),
    (("wings",), 1, "unknown field wings"),
    (("key",), 3, "key: expected str, got int"),
    (("worst",), ..., "missing required field worst"),
]


@pytest.mark.parametrize(("path", "value", "words"), METAS)
def test_numbers_of_a_checkpoint(path, value, words, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    forged(folder, meta=put(*path, value=value))
    one_line(lambda: fit(folder), run.CHECKPOINT, words, "remove")


TENSORS = [
    ("module.z", ..., "module.z: the tensor is missing"),
    ("module.z", torch.zeros(41), "module.z: expected the shape [40], got [41]"),
    ("module.z", torch.zeros(40, dtype=torch.float64), "module.z: expected torch.float32, got torch.float64"),
    ("optimiser.0.exp_avg", ..., "optimiser.0.exp_avg: the tensor is missing"),
    ("optimiser.0.step", torch.tensor(-7.0), "optimiser: step: expected 0 to"),
    ("optimiser.0.step", torch.tensor(math.nan), "optimiser: step: expected 0 to"),
    ("optimiser.1.step", torch.tensor(1.0), "optimiser.1.step: this training has no such tensor"),
    ("optimiser.0.exp.avg", torch.tensor(1.0), "this training has no such tensor"),
    ("heard", torch.zeros(40), "heard: expected torch.bool"),
    ("heard", ..., "heard: the tensor is missing"),
    ("module.1.running_mean", torch.zeros(1, 2), "expected the shape"),
]


@pytest.mark.parametrize(("name", "value", "words"), TENSORS)
def test_tensors_of_a_checkpoint(name, value, words, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    forged(folder, tensors=put(name, value=value))
    one_line(lambda: fit(folder), run.CHECKPOINT, words, "remove")


@pytest.mark.parametrize("data", [b"", b"x" * 100, (10**9).to_bytes(8, "little") + b"{}"])
def test_a_checkpoint_that_is_none(data, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    (folder / run.CHECKPOINT).write_bytes(data)
    one_line(lambda: fit(folder), run.CHECKPOINT, "is no checkpoint of ours")
    (folder / run.CHECKPOINT).write_bytes(safetensors.torch.save({"z": torch.zeros(3)}))
    one_line(lambda: fit(folder), run.CHECKPOINT, "its state is no JSON of ours")
    (folder / run.CHECKPOINT).unlink()
    assert fit(folder).d == 40  # as the line says


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(value, at=()):
    """Every place in a JSON value."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, inner in parts:
        yield from places(inner, (*at, part))


READERS = {
    run.COMMAND: (schemas.command, lambda held: None),
    run.JOURNAL: (
        schemas.journal,
        lambda held: [Probe.from_json(entry) for entry in held.values() if "value" in entry],
    ),
    run.SUMMARY: (schemas.summary, lambda held: Fit.from_json(held["fit"]) if "fit" in held else None),
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_json_with_anything_anywhere(name, finished, tmp_path, data):
    """A value of another kind at any place, or one more or one less: refused in a line, or read by who needs it."""
    read, use = READERS[name]
    held = json.loads((finished / name).read_text())
    at = data.draw(st.sampled_from([p for p in places(held) if p]))
    action = data.draw(st.sampled_from(["replace", "remove", "add"]))
    owner = held
    for part in at[:-1]:
        owner = owner[part]
    if action == "add" and isinstance(owner, dict):
        owner[data.draw(st.text(max_size=5))] = data.draw(JSON)
    elif action == "remove":
        del owner[at[-1]]
    else:
        owner[at[-1]] = data.draw(JSON)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(held))
    try:
        found = read(path, "mend it")
    except SubcompressError as e:
        assert "\n" not in str(e)
        assert str(path) in str(e)
    else:
        use(found)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 99), st.text(max_size=30)), max_size=3))
def test_masks_of_anything(still):
    held = {"sizes": {}, "still": still, "unread": [], "rate": 0.0, "steps": 0, "seconds": 0.0}
    try:
        Moves.from_json(held)
    except ValueError as e:
        assert "mask" in str(e)


def test_a_mask_does_not_grow_beyond_its_length():
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(1 << 24))).decode()
    with pytest.raises(ValueError, match="a mask of 8 values is 1 bytes"):
        Moves.from_json({"sizes": {}, "still": {"a": (8, bomb)}, "unread": [], "rate": 0, "steps": 0, "seconds": 0})


def test_comparisons_of_another_shape(finished, tmp_path):
    folder = copied(finished, tmp_path)
    for text, words in (
        ("[]", "expected object, got array"),
        ('{"rows": 3}', "compare.json"),
        (DEEP, "nested too deep"),
    ):
        (folder / "compare.json").write_text(text)
        one_line(lambda: subcompress.report(folder), "compare.json", words)
    (folder / run.PEERS).mkdir()
    case = networks.CASES["batch norm"]
    for held in (
        [],
        {"key": {}},
        {"key": {}, "found": {"ours": {"rows": [{"name": 1}]}}},
        {"key": {}, "found": {"ours": {}}},
    ):
        (folder / run.PEERS / "compare.json").write_text(json.dumps(held))
        call = lambda: subcompress.compare(folder, case.make(), case.data(), peers=[], threads=1)  # noqa: E731
        one_line(call, "compare.json")


def test_a_command_of_before_groups_is_read(stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    held = json.loads((folder / run.COMMAND).read_text())
    flat = held["recipe"] | held["machine"] | held["goal"] | held.get("limits", {})
    flat |= {"network": held["network"]["start"], "code": held["network"]["code"], "data": held["network"]["data"]}
    (folder / run.COMMAND).write_text(json.dumps(flat))
    assert fit(folder).d == 40
    assert json.loads((folder / run.COMMAND).read_text()) == held


def test_an_origin_that_could_not_be_read_again(tmp_path):
    one_line(lambda: fit(tmp_path / "run", origin={"model": 3}), "origin: model: expected str | null, got int")
    assert not (tmp_path / "run").exists()
