"""Checkpoints, masks and comparisons that somebody changed: one line says which file and which field."""

from __future__ import annotations

import json
import math
from pathlib import Path

import networks
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_folders import CHECKPOINT, DEEP, Stopping, copied, fit, one_line, put

import subcompress
from subcompress import SubcompressError
from subcompress.subspace.moves import Moves
from subcompress.training import run, schemas
from subcompress.training.probe import Fit, Probe


def forged(folder: Path, meta=None, tensors=None) -> str:
    """The checkpoint again, changed; its state."""
    path = folder / CHECKPOINT
    with safetensors.safe_open(path, "pt") as f:
        state, held = json.loads(f.metadata()["state"]), {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    if meta is not None:
        meta(state)
    if tensors is not None:
        tensors(held)
    path.write_bytes(safetensors.torch.save(held, {"state": json.dumps(state)}))
    return json.dumps(state)


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
    (("settings", "steps"), [0.1, 0.2], "a positive step for each of"),
    (("settings", "dead"), -1.0, "the dead zone"),
    (("settings", "dead"), [0.5], "the dead zone"),
    (("settings", "usual"), -1, "the usual bytes"),
    (("wings",), 1, "unknown field wings"),
    (("key",), 3, "key: expected str, got int"),
    (("worst",), ..., "missing required field worst"),
]


@pytest.mark.parametrize(("path", "value", "words"), METAS)
def test_numbers_of_a_checkpoint(path, value, words, stopped, tmp_path):
    """Refused by what reads a checkpoint, or else by the training, which knows what goes together."""
    folder = copied(stopped, tmp_path)
    state = forged(folder, meta=put(*path, value=value))
    read = lambda: schemas.checkpoint(state, str(folder / CHECKPOINT), "remove it")  # noqa: E731
    one_line(lambda: (read(), fit(folder)), CHECKPOINT, words, "remove")


TENSORS = [
    ("module.z", ..., "module.z: the tensor is missing"),
    ("module.z", torch.zeros(41), "module.z: expected the shape [40], got [41]"),
    ("module.z", torch.zeros(40, dtype=torch.float64), "module.z: expected torch.float32, got torch.float64"),
    ("optimiser.0.exp_avg", ..., "optimiser.0.exp_avg: the tensor is missing"),
    ("optimiser.0.step", torch.tensor(-7.0), "optimiser: step: expected 0 to"),
    ("optimiser.0.step", torch.tensor(math.nan), "optimiser: step: expected 0 to"),
    ("optimiser.1.step", torch.tensor(1.0), "optimiser.1.step: this training has no tensor of that name"),
    ("optimiser.0.exp.avg", torch.tensor(1.0), "this training has no tensor of that name"),
    ("heard", torch.zeros(40), "heard: expected torch.bool"),
    ("heard", ..., "heard: the tensor is missing"),
    ("module.1.running_mean", torch.zeros(1, 2), "expected the shape"),
    ("curvature", torch.zeros(40, 40), "curvature: expected the shape [1, 40, 40], got [40, 40]"),
    ("curvature", torch.zeros(1, 40, 40), "curvature: not expected at step"),
]


@pytest.mark.parametrize(("name", "value", "words"), TENSORS)
def test_tensors_of_a_checkpoint(name, value, words, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    forged(folder, tensors=put(name, value=value))
    one_line(lambda: fit(folder), CHECKPOINT, words, "remove")


def test_a_training_that_was_stopped_before_it_rounds_knows_the_gradients_it_has_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.loop.SAVE_EVERY", -1.0)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(folder, listener=Stopping(3))
    broken = copied(folder, tmp_path / "broken")
    forged(broken, tensors=put("curvature", value=...))
    one_line(lambda: fit(broken), CHECKPOINT, "curvature: missing at step", "remove")
    fit(folder)
    fit(tmp_path / "whole")
    assert (folder / run.RECORD).read_bytes() == (tmp_path / "whole" / run.RECORD).read_bytes()


@pytest.mark.parametrize("data", [b"", b"x" * 100, (10**9).to_bytes(8, "little") + b"{}"])
def test_a_checkpoint_that_is_none(data, stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    (folder / CHECKPOINT).write_bytes(data)
    one_line(lambda: fit(folder), CHECKPOINT, "is not a checkpoint of subcompress")
    (folder / CHECKPOINT).write_bytes(safetensors.torch.save({"z": torch.zeros(3)}))
    one_line(lambda: fit(folder), CHECKPOINT, "its state is not JSON that subcompress wrote")
    if not data:  # as the line says
        (folder / CHECKPOINT).unlink()
        assert fit(folder).d == 40


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
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        found = read(path, "fix it")
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
