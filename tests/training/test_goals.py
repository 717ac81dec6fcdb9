"""What a fit is told to reach, and what it says of what it reached: behavior that any search has to have."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from commands import cli
from torch import nn

import subcompress
from subcompress import Listener, SubcompressError, TargetMissedError
from subcompress.data import Split
from subcompress.training import run
from subcompress.training.tasks import Task, evaluate
from subcompress_models import MODELS

OPTIONS = {"epochs": 2, "batch_size": 32, "threads": 1}
OWN = """
import networks
from subcompress.data import Split
import subcompress, torch

def load():
    return networks.blobs()

def by_chance():
    x = torch.zeros(256, 1, 12, 12)
    y = torch.randint(0, 4, (256,), generator=torch.Generator().manual_seed(1))
    return subcompress.Data(*[Split(x[a:b], y[a:b]) for a, b in ((0, 128), (128, 192), (192, 256))])

net = networks.mlp
"""


class Heard(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.titles: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def note(self, text):
        self.notes.append(text)

    def run(self, title, epochs):
        self.titles.append(title)

    def step(self, progress):
        self.steps.append((progress.step, progress.steps))
        assert progress.epoch <= progress.epochs
        assert progress.loss > 0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the user's, with a network and data."""
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


@pytest.fixture(scope="module")
def missed(tmp_path_factory: pytest.TempPathFactory, own: Path) -> tuple[Path, object, list[object]]:
    """A search for what cannot be reached: the run folder, and what the command line said with --json."""
    folder = tmp_path_factory.mktemp("missed") / "run"
    command = ["fit", "--model", f"{own}:net", "--data", f"{own}:load", "--min-accuracy", 1, "--epochs", 2]
    command += ["--batch-size", 32, "--threads", 1, "--seeds", 1, "--max-fits", 2, "-o", folder]
    return folder, cli(*command, "--json"), command


# --- a target that is missed ---


def test_the_best_file_of_a_missed_target_is_kept_and_marked(missed, tmp_path):
    folder, result, command = missed
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["reached"] is False
    assert told["target"] == 1
    assert told["failure"] in told["warnings"]
    made = [t["value"] for t in told["trainings"] if t["bytes"]]
    assert told["validation"] == max(made) < 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the target is not reached: ")
    assert last.endswith(
        f"the best file has {told['bytes']} bytes and is kept: subcompress pack {folder} -o net.safetensors"
    )
    assert "warning: the target is not reached" in result.stderr
    again = cli(*command)
    assert again.exit_code == 1
    assert f"{told['bytes']} bytes miss 1:" in again.stdout
    assert "next: " not in again.stdout


def test_what_a_missed_target_leaves_is_a_run_like_any_other(missed, own, tmp_path):
    folder, result, _ = missed
    told, net = json.loads(result.stdout), tmp_path / "net.safetensors"
    assert subcompress.pack(folder, net) == told["bytes"]
    module = subcompress.load(net, networks.mlp())
    assert evaluate(module, networks.blobs().test, Task.of()) == told["test"]
    assert "Below the target." in subcompress.report(folder, tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_a_missed_target_is_compared_and_unpacked_to_onnx(missed, tmp_path):
    compared = subcompress.compare(missed[0], networks.mlp(), networks.blobs(), peers=["ours"], threads=1)
    assert compared.rows[0].bytes == len(run.packed(missed[0]))
    subcompress.pack(missed[0], tmp_path / "net.safetensors")
    subcompress.unpack(tmp_path / "net.safetensors", tmp_path / "net.onnx", networks.mlp().eval())
    assert (tmp_path / "net.onnx").exists()


def test_python_is_told_of_a_missed_target_by_an_error_that_holds_the_fit(missed, tmp_path):
    options = {"target": 1.0, "seeds": 1, "max_fits": 2, **OPTIONS, "epochs": 1}
    for _ in range(2):  # the second time from the folder
        with pytest.raises(TargetMissedError, match=r"the target is not reached: .* is kept: subcompress pack") as e:
            subcompress.fit(networks.mlp, networks.blobs(), tmp_path / "run", **options)
        assert e.value.fit.reached is False
        assert e.value.fit.bytes == len(run.packed(tmp_path / "run"))


def test_a_reference_that_misses_is_told_too(tmp_path):
    options = {"target": 1.0, "seeds": 1, "max_fits": 2, "operator": "dense", **OPTIONS, "epochs": 1}
    with pytest.raises(TargetMissedError, match=r"is kept in .*run") as e:
        subcompress.fit(networks.mlp, networks.blobs(), tmp_path / "run", **options)
    assert e.value.fit.bytes == 0


# --- the baseline ---


def directly(folder: Path, **options: object) -> tuple[subcompress.Fit, Heard]:
    """A fit that may be far below its baseline, so that the first trainings end the search."""
    heard = Heard()
    options = {"max_drop": 0.99, "seeds": 1, **OPTIONS, **options}
    return subcompress.fit(networks.mlp, networks.blobs(), folder, **options, listener=heard), heard


def test_the_step_of_the_baseline_is_searched_on_validation(tmp_path):
    found, heard = directly(tmp_path / "run")
    (line,) = (n for n in heard.notes if "taken: lr" in n)
    values = {float(lr): float(v) for v, lr in re.findall(r"([\d.]+) with lr ([\d.e-]+)", line)}
    assert len(values) >= 3
    assert found.baseline_lr in values
    assert f"taken: lr {found.baseline_lr:g}" in line
    assert found.baseline == pytest.approx(max(values.values()), abs=1e-4)
    assert found.target == pytest.approx(found.baseline - 0.99)
    alone, _ = directly(tmp_path / "alone", baseline_lr=found.baseline_lr)
    assert alone.baseline == found.baseline
    told = found.to_json()
    assert told["baseline_lr"] == found.baseline_lr
    assert subcompress.Fit.from_json(told) == found


def test_short_trainings_choose_the_step_of_the_baseline(tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.settings.LEAST_STEPS", 1)
    monkeypatch.setattr("subcompress.training.fitter.BASELINE_RATES", (1e-7, 4e-3, 1e30))
    found, heard = directly(tmp_path / "run", epochs=4)
    titles = [t for t in heard.titles if "directly" in t]
    assert titles == [
        *(f"trained directly, lr {lr:g}, short" for lr in (1e-7, 4e-3, 1e30)),
        "trained directly, lr 0.004",
    ]
    assert found.baseline_lr == 4e-3
    assert any("(short trainings: " in n and "taken: lr 0.004" in n for n in heard.notes)
    again, heard = directly(tmp_path / "run", epochs=4)
    assert (again.baseline, heard.titles) == (found.baseline, [])


@pytest.mark.slow
def test_short_trainings_that_learn_nothing_choose_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.settings.LEAST_STEPS", 1)
    monkeypatch.setattr("subcompress.training.fitter.BASELINE_RATES", (1e-8, 2e-8))
    _, heard = directly(tmp_path / "run", epochs=4)
    titles = [t for t in heard.titles if "directly" in t]
    names = [f"trained directly, lr {lr:g}" for lr in (1e-8, 2e-8)]
    assert titles == [*(f"{name}, short" for name in names), *names]


def test_a_step_of_the_baseline_is_taken_as_given(tmp_path):
    found, heard = directly(tmp_path / "run", baseline_lr=5e-4)
    assert found.baseline_lr == 5e-4
    assert [t for t in heard.titles if "directly" in t] == ["trained directly, lr 0.0005"]


def test_steps_that_are_tried_count_and_leave_the_search_its_trainings(tmp_path):
    found, heard = directly(tmp_path / "run", max_fits=2)
    assert found.full_fits <= 2
    assert sum("directly" in t for t in heard.titles) == 1
    assert any("leaves no room for other learning rates" in n for n in heard.notes)


def test_a_step_that_diverges_is_no_candidate(tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.fitter.BASELINE_RATES", (2e-3, 1e30))
    found, heard = directly(tmp_path / "run")
    assert found.baseline_lr == 2e-3
    assert any("lr 1e+30" in n and "failed" in n for n in heard.notes)
    with pytest.raises(SubcompressError, match=r"the direct training failed .* --baseline-lr"):
        directly(tmp_path / "other", baseline_lr=1e6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"d": 9, "baseline_lr": 1e-3}, "give it with --max-drop"),
        ({"max_drop": 0.1, "baseline": 0.9, "baseline_lr": 1e-3}, "without --baseline"),
        ({"max_drop": 0.1, "baseline_lr": 0.0}, "--baseline-lr must be positive; got 0"),
        ({"d": 9, "steps": 5, "epochs": 2}, "--epochs and --steps both say how long to train; got 2 and 5"),
        ({"d": 9, "steps": 0}, "--steps must be at least 1; got 0"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, words):
    with pytest.raises(SubcompressError, match=words):
        subcompress.fit(networks.mlp, networks.blobs(), tmp_path / "run", batch_size=32, **options)
    assert not (tmp_path / "run").exists()


# --- so many bytes ---


@pytest.mark.slow
def test_a_file_within_a_budget_is_as_good_as_one_of_the_d_that_takes_as_much(digits, tmp_path):
    """Over three seeds, and neither cut nor much shorter."""
    options, mean = {**OPTIONS, "epochs": 8}, statistics.fmean
    net = MODELS["lenet"]
    within = [
        subcompress.fit(net, digits, tmp_path / f"b{s}", within=250, seeds=1, seed=s, **options) for s in range(3)
    ]
    assert all(0.95 * 250 < f.bytes <= 250 for f in within)
    assert all(p.cut <= 2 for f in within for p in f.probes)
    alike = [subcompress.fit(net, digits, tmp_path / f"d{s}", d=290, seed=s, **options) for s in range(3)]
    assert mean(f.bytes for f in alike) <= 250
    assert mean(f.validation for f in within) > mean(f.validation for f in alike) - 0.03


def test_a_file_that_misses_its_budget_is_made_again_in_fewer_coordinates(digits, tmp_path, monkeypatch):
    """The bits of a coordinate are guessed far too low here, and measured by the first training."""
    monkeypatch.setattr("subcompress.search.budget.GROWN", 0.5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    options = {"within": 260, "seeds": 1, **OPTIONS, "epochs": 2}
    found = subcompress.fit(net, digits, tmp_path / "run", **options)
    first, second = found.probes
    assert first.seed == second.seed
    assert first.d > 1.5 * second.d
    assert first.pressed > 50 and first.cut == 0
    assert second.pressed + second.cut <= 8
    assert found.d == (second if second.value > first.value else first).d


def test_a_file_that_ends_beyond_its_limit_is_cut(digits, tmp_path, monkeypatch):
    """Nothing keeps the coordinates in their room here, once they are rounded."""
    monkeypatch.setattr("subcompress.training.fitter.SNUG", 2.0)
    monkeypatch.setattr("subcompress.training.pressure.STRENGTH", 0.0)
    net, heard = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), Heard()
    options = {"d": 500, "within": 260, "seeds": 1, **OPTIONS, "epochs": 2}
    (probe,) = subcompress.fit(net, digits, tmp_path / "run", **options, listener=heard).probes
    assert probe.bytes <= 260 and probe.cut > 20
    assert any(f"cut by {probe.cut} bytes: " in n and "coordinates made smaller" in n for n in heard.notes)
    assert f"cut by {probe.cut} bytes" in probe.note


def test_a_file_that_is_far_worse_than_an_earlier_epoch_is_told(digits, tmp_path):
    """Few bytes of coordinates hold next to nothing of what was learned."""
    net, heard = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), Heard()
    options = {"d": 500, "within": 150, "seeds": 1, **OPTIONS, "epochs": 6}
    found = subcompress.fit(net, digits, tmp_path / "run", **options, listener=heard)
    words = f"after an earlier epoch and is {found.validation:.4g} in the file: rounding or the limit of bytes costs"
    assert any(words in note for note in heard.notes)
    assert any(words in warning for warning in found.warnings)


# --- how long ---


def test_steps_in_place_of_epochs(tmp_path):
    """192 examples are 6 steps an epoch."""
    data = networks.blobs()
    by_epochs = subcompress.fit(networks.mlp, data, tmp_path / "a", d=50, **OPTIONS)
    by_steps = subcompress.fit(networks.mlp, data, tmp_path / "b", d=50, **OPTIONS | {"epochs": None, "steps": 12})
    assert run.packed(tmp_path / "a") == run.packed(tmp_path / "b")
    assert by_steps.probes[0].curve == by_epochs.probes[0].curve
    heard = Heard()
    for steps, epochs in ((5, 1), (7, 2)):
        options = {**OPTIONS, "epochs": None, "steps": steps}
        found = subcompress.fit(networks.mlp, data, tmp_path / f"{steps}", d=50, **options, listener=heard)
        assert len(found.probes[0].curve) == epochs
        assert run.summary(tmp_path / f"{steps}")["recipe"]["steps"] == steps
        assert any(f"{steps} per fit: about" in n for n in heard.notes)


@pytest.mark.slow
def test_steps_stopped_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.loop.SAVE_EVERY", -1.0)

    class Stops(Listener):
        def epoch(self, progress):
            if progress.epoch == 2:
                raise KeyboardInterrupt

    options = {**OPTIONS, "epochs": None, "steps": 16, "d": 50}
    with pytest.raises(KeyboardInterrupt):
        subcompress.fit(networks.mlp, networks.blobs(), tmp_path / "a", **options, listener=Stops())
    for name in ("a", "b"):
        subcompress.fit(networks.mlp, networks.blobs(), tmp_path / name, **options)
    assert run.packed(tmp_path / "a") == run.packed(tmp_path / "b")


def test_progress_within_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.loop.TELL_EVERY", -1.0)
    heard = Heard()
    options = {**OPTIONS, "epochs": 2}
    subcompress.fit(networks.mlp, networks.blobs(), tmp_path / "run", d=50, **options, listener=heard)
    assert heard.steps == [(i, 12) for i in range(1, 13)]


def test_a_log_without_a_terminal_has_lines_within_an_epoch(own, tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.loop.TELL_EVERY", -1.0)
    command = ["fit", "--model", f"{own}:net", "--data", f"{own}:load", "--d", 50, "--steps", 12, "--batch-size", 32]
    quiet = cli(*command, "--threads", 1, "-o", tmp_path / "quiet")
    assert "step 3/12" not in quiet.stderr
    monkeypatch.setattr("subcompress_cli.progress.EVERY", 0.0)
    told = cli(*command, "--threads", 1, "-o", tmp_path / "told")
    assert re.search(r"step 3/12, epoch 1/2  loss [\d.]+  \d+ s, \d+ s left", told.stderr)


def estimated(forward: Callable[[int], None], folder: Path) -> float:
    """Milliseconds a step that a fit announces, of a network that does that in each training step."""

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = networks.mlp(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                forward(self.calls)
                self.calls += 1
            return self.net(x)

    heard = Heard()
    subcompress.fit(Slow(), networks.blobs(), folder, d=50, **OPTIONS | {"epochs": 1}, listener=heard)
    (found,) = (re.search(r"a step ([\d.]+) ms", n) for n in heard.notes if "a step" in n)
    return float(found[1])


def test_the_estimate_does_not_hang_on_single_steps(tmp_path):
    """Of a fresh copy the first steps are slow, and so is one of four."""
    assert estimated(lambda n: time.sleep(0.03 if n % 4 == 0 else 0.0), tmp_path / "some") < 20
    assert estimated(lambda n: time.sleep(0.01), tmp_path / "all") > 10


# --- nothing learned ---


def test_a_fit_at_chance_level_fails(own, tmp_path):
    """Inputs that say nothing of the label."""
    command = ["fit", "--model", f"{own}:net", "--data", f"{own}:by_chance", "--d", 5, "--epochs", 1]
    result = cli(*command, "--batch-size", 32, "--threads", 1, "-o", tmp_path / "run", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["learned"] is False
    assert told["reached"] is True
    assert told["failure"] in told["warnings"]
    assert "nothing was learned" in told["failure"]
    assert result.stderr.strip().splitlines()[-1].endswith(f"subcompress pack {tmp_path / 'run'} -o net.safetensors")
    assert "Nothing was learned." in subcompress.report(tmp_path / "run").read_text()


def test_chance_is_told_apart_by_the_size_of_the_split():
    from subcompress.training.fit_warnings import nothing_learned

    task = Task.of()
    assert nothing_learned(task, 0.50, 0.5, 10_000) is not None
    assert nothing_learned(task, 0.504, 0.5, 10_000) is not None
    assert nothing_learned(task, 0.52, 0.5, 10_000) is None
    assert nothing_learned(task, 0.52, 0.5, 100) is not None
    assert nothing_learned(task, 0.52, None, 100) is None
    assert nothing_learned(Task.of("mse"), 0.99, 1.0, 100) is None
    assert nothing_learned(Task.of("mse"), 1.0, 1.0, 100) is not None


def test_a_split_of_ones_own_is_learned(own, tmp_path):
    data = networks.blobs()
    assert isinstance(data.train, Split)
    found = subcompress.fit(networks.mlp, data, tmp_path / "run", d=60, **OPTIONS | {"epochs": 8})
    assert found.learned
    assert found.failure == ""
