"""fit to load: the same file twice, the same weights everywhere, failures that say why."""

from __future__ import annotations

import copy
import json
import math
import re

import pytest
import torch
from torch import nn

import subcompress
from subcompress import SubcompressError, format
from subcompress.rebuild.expand import digest_of, expand
from subcompress.subspace.module import Subspace
from subcompress.training import run
from subcompress.training.judging import DeadRunError, Judge
from subcompress.training.tasks import accuracy_of, guessing_loss
from subcompress_models import MODELS


class Notes(subcompress.Listener):
    """Remembers the note of every epoch, and what is told in between."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def epoch(self, progress: subcompress.Progress) -> None:
        self.heard.append(progress.note)

    def note(self, text: str) -> None:
        self.heard.append(text)


SMALL = {"d": 60, "epochs": 2, "batch_size": 64, "threads": 1}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))


def test_it_learns_and_the_file_holds_what_was_measured(small_run, small_file, digits):
    summary = json.loads((small_run / run.SUMMARY).read_text())["fit"]
    assert summary["test_accuracy"] > 0.8
    net = subcompress.load(small_file, MODELS["lenet"]())
    assert accuracy_of(net, digits.test) == summary["test_accuracy"]
    assert accuracy_of(net, digits.validation) == summary["validation_accuracy"]
    assert abs(subcompress.info(small_file)["test_accuracy"] - summary["test_accuracy"]) < 1e-4


def test_the_same_seed_gives_the_same_file_twice(network, few_digits, tmp_path):
    files = []
    for name in ("a", "b"):
        torch.manual_seed(len(files))  # the caller's random state plays no part
        subcompress.fit(network, few_digits, tmp_path / name, seed=3, **SMALL)
        subcompress.pack(tmp_path / name, tmp_path / f"{name}.safetensors")
        files.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert files[0] == files[1]
    subcompress.fit(network, few_digits, tmp_path / "c", seed=4, **SMALL)
    assert (tmp_path / "c" / run.RECORD).read_bytes() != files[0]


def test_the_callers_model_threads_and_random_state_are_left_alone(network, few_digits, tmp_path):
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    subcompress.fit(network, few_digits, tmp_path / "run", **SMALL)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_what_the_caller_has_switched_on_or_off_changes_nothing(network, few_digits, tmp_path):
    subcompress.fit(network, few_digits, tmp_path / "plain", **SMALL)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            subcompress.fit(network, few_digits, tmp_path / "odd", **SMALL)
    finally:
        torch.set_default_dtype(torch.float32)
    files = [(tmp_path / name / run.RECORD).read_bytes() for name in ("plain", "odd")]
    assert files[0] == files[1]


def test_a_run_of_one_step(network, digits, tmp_path):
    found = subcompress.fit(network, digits, tmp_path / "run", d=9, epochs=1, batch_size=1077)
    assert found.d == 9


def test_many_coordinates_of_many_bits_stay_exact(few_digits, tmp_path):
    """Blocks hold fewer coordinates then; the sum of a block's integers is bounded."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    subcompress.fit(net, few_digits, tmp_path / "run", d=9_000, bits=8, epochs=2, batch_size=64, threads=1)
    group = run.load(tmp_path / "run").groups[0]
    assert group.operator.d == 9_000 > group.operator.m
    assert group.operator.peak(group.coordinates) < 1 << 16


def test_a_run_that_fails_no_longer_counts_as_finished(network, few_digits, tmp_path):
    subcompress.fit(network, few_digits, tmp_path / "run", **SMALL)
    with pytest.raises(SubcompressError, match="failed twice"):
        subcompress.fit(network, few_digits, tmp_path / "run", **{**SMALL, "lr": 1e6})
    with pytest.raises(SubcompressError, match="not a finished run"):
        subcompress.pack(tmp_path / "run", tmp_path / "x.safetensors")


def test_a_network_without_a_name_carries_its_layout(network, few_digits, tmp_path):
    subcompress.fit(network, few_digits, tmp_path / "run", **SMALL)
    subcompress.pack(tmp_path / "run", tmp_path / "x.safetensors")
    assert subcompress.info(tmp_path / "x.safetensors")["layout"] is None
    rebuilt = subcompress.load(tmp_path / "x.safetensors", copy.deepcopy(network))
    summary = json.loads((tmp_path / "run" / run.SUMMARY).read_text())["fit"]
    assert accuracy_of(rebuilt, few_digits.test) == summary["test_accuracy"]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_every_precision(network, few_digits, tmp_path, bits):
    subcompress.fit(network, few_digits, tmp_path / "run", bits=bits, **SMALL)
    group = run.load(tmp_path / "run").groups[0]
    top = (1 << (bits - 1)) - 1
    assert group.bits == bits
    assert -top <= group.coordinates.min() < 0 < group.coordinates.max() <= top


def test_a_run_that_dies_is_tried_again_then_refused(network, few_digits, tmp_path):
    with pytest.raises(SubcompressError, match="the training failed twice, at lr 1e\\+06 and 4e\\+05"):
        subcompress.fit(network, few_digits, tmp_path / "run", lr=1e6, **SMALL)
    assert not (tmp_path / "run" / run.SUMMARY).exists()
    with pytest.raises(SubcompressError, match="not a finished run"):
        subcompress.pack(tmp_path / "run", tmp_path / "x.safetensors")


def test_a_run_that_dies_once_is_saved_by_a_smaller_step(network, few_digits, tmp_path, monkeypatch):
    """The first step size diverges, four tenths of one thousandth of it does not."""
    monkeypatch.setattr("subcompress.training.attempts.RETRY", 1e-4)
    notes = Notes()
    found = subcompress.fit(
        network,
        few_digits,
        tmp_path / "run",
        d=60,
        epochs=10,
        threads=1,
        lr=100.0,
        batch_size=32,
        listener=notes,
    )
    assert any("second try, lr 0.01" in n for n in notes.heard)
    assert any(re.search(r"steps the loss is .*: trained again from the start, at lr 0\.01", n) for n in notes.heard)
    assert found.validation_accuracy > 0.3


def losses_seen(rounding: int | None, high: range) -> Judge:
    """A judge of 1,000 steps, of a loss of 0.5 that is worse than guessing in some."""
    judge = Judge(1.0, 1_000)
    judge.rounding = rounding
    for step in range(1, 1_001):
        judge.see(torch.tensor(1.2 if step in high else 0.5), step)
    return judge


def test_a_loss_that_jumps_when_rounding_begins_may_come_back():
    assert losses_seen(500, range(500, 640)).mean() == 0.5
    with pytest.raises(DeadRunError, match="after 550 of 1000 steps"):
        losses_seen(None, range(500, 640))
    with pytest.raises(DeadRunError, match="after 650 of 1000 steps"):  # it had time to come back
        losses_seen(500, range(500, 1_000))


def test_labels_set_what_guessing_costs():
    assert guessing_loss(torch.tensor([0, 1, 2, 3])) == pytest.approx(math.log(4))
    assert guessing_loss(torch.tensor([2, 2])) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"d": 0}, "--d must be between 1 and the model's D = 12730 weights; got 0"),
        ({"d": 10**9}, "--d must be between 1"),
        ({"bits": 1}, "--bits must be one of 2, 3, 4, 5, 6, 7, 8; got 1"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be between 1 and the 1077 examples"),
        ({"batch_size": 5_000}, "--batch-size must be between 1 and the 1077 examples"),
        ({"lr": -1.0}, "--lr must be positive"),
        ({"lr": float("nan")}, "--lr must be positive"),
        ({"seed": -1}, "--seed must be between 0 and 2\\^64 - 1"),
        ({"threads": 0}, "--threads must be between 1 and 1024"),
        ({"threads": 10**11}, "--threads must be between 1 and 1024"),
        ({"lr": 0.0}, "--lr must be positive"),
        ({"device": "cpu:x"}, "--device must be auto, cpu, cuda or cuda:N"),
        ({"device": "cuda"}, "--device cuda needs a GPU"),
        ({"device": "fridge"}, "--device must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_options_that_cannot_be_met(network, digits, tmp_path, options, words):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SubcompressError, match=words):
        subcompress.fit(network, digits, tmp_path / "run", **{**SMALL, **options})
    assert not (tmp_path / "run").exists()


def test_models_that_this_version_does_not_fit(digits, tmp_path):
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False)
    nan = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nan[1].bias.data[3] = float("nan")
    wide = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    wide[1].weight = nn.Parameter(wide[1].weight.detach().to(torch.complex128))
    for module, words in [
        (nn.Flatten(), "no weights to train"),
        (frozen, "no weights to train"),
        (lazy, "run the model once first"),
        (nan, "1.bias holds nan or inf"),
        (wide, "1.weight is torch.complex128"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(784, 5)),
            "labels must be between 0 and 4, because the model has 5 outputs",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(783, 10)), "does not pass through the model"),
    ]:
        with pytest.raises(SubcompressError, match=words):
            subcompress.fit(module, digits, tmp_path / "run", **SMALL)
        assert not (tmp_path / "run").exists()


# --- the module whose only parameter is z ---


def test_subspace_has_one_parameter_and_reaches_every_module():
    net = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3))
    subspace = Subspace.of(net, 9)
    assert [name for name, _ in subspace.named_parameters()] == ["z"]
    subspace.eval()
    assert not any(m.training for m in subspace.modules())
    assert torch.equal(subspace(torch.ones(2, 6)), subspace(torch.ones(2, 6)))
    subspace(torch.ones(2, 6)).sum().backward()
    assert subspace.z.grad is not None
    assert subspace.z.grad.abs().sum() > 0


def test_start_has_the_usual_spread():
    net = MODELS["lenet"]()
    weights = Subspace.of(net, 100).weights()
    for name, p in net.named_parameters():
        if p.numel() > 1_000:
            assert float(weights[name].detach().std()) == pytest.approx(float(p.detach().std()), rel=0.1)


def test_only_the_layout_must_match(small_file):
    with pytest.raises(SubcompressError, match=r"holds conv1.weight F32 \[6, 1, 5, 5\], which the model lacks"):
        subcompress.load(small_file, MODELS["mlp"]())
    wide = MODELS["lenet"]()
    wide.fc3 = nn.Linear(84, 11)
    with pytest.raises(
        SubcompressError, match=r"fc3.weight F32 \[10, 84\], but the model has fc3.weight F32 \[11, 84\]"
    ):
        subcompress.load(small_file, wide)
    extra = MODELS["lenet"]()
    extra.fc4 = nn.Linear(2, 2)
    with pytest.raises(SubcompressError, match=r"the model has fc4.weight F32 \[2, 2\], which the file lacks"):
        subcompress.load(small_file, extra)


def test_importing_starts_nothing():
    import subprocess
    import sys

    code = "import sys, subcompress; sys.exit(bool({'onnxruntime', 'onnx', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_info_reads_without_expanding(small_file):
    found = subcompress.info(small_file)
    assert found["d"] == 200
    assert found["file_bytes"] == small_file.stat().st_size == sum(found["ledger"].values())
    assert found["digest"] == format.read(small_file)[0].digest.hex()


@pytest.mark.slow
def test_the_demo_reaches_95_percent_in_under_350_bytes(digits, tmp_path):
    found = subcompress.fit(MODELS["lenet"], digits, tmp_path / "run", d=500, epochs=40, batch_size=32, threads=1)
    assert found.test_accuracy > 0.95
    assert subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors") < 350
    assert subcompress.verify(tmp_path / "net.safetensors").ok


@pytest.mark.slow
def test_one_thread_and_two_rebuild_the_same_file_after_training(digits, tmp_path):
    """Training may differ with the threads; what a file expands to may not."""
    for threads in (1, 2):
        subcompress.fit(MODELS["mlp"](), digits, tmp_path / "run", d=300, epochs=5, batch_size=32, threads=threads)
        record = run.load(tmp_path / "run")
        truth = record.digest
        for n in (1, 2):
            torch.set_num_threads(n)
            assert all(digest_of(record, expand(record, name)) == truth for name in ("numpy", "torch"))


def test_a_loop_of_ones_own_gives_the_same_outputs_from_the_file(digits, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
    sub = subcompress.Subspace.of(net, d=80)
    assert [name for name, _ in sub.named_parameters()] == ["z"]
    with pytest.raises(SubcompressError, match="call round"):
        subcompress.pack(sub, tmp_path / "mine.safetensors")
    optimizer = torch.optim.Adam(sub.parameters(), lr=sub.plan.lr)
    losses = []
    for step in range(120):
        if step == 60:
            sub.round(bits=6)
        x, y = digits.train[torch.randint(len(digits.train), (32,))]
        with sub.materialized() as module:
            assert type(module) is nn.Sequential
            loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    subcompress.pack(sub, tmp_path / "mine.safetensors", digits.facts)
    rebuilt = subcompress.load(tmp_path / "mine.safetensors", copy.deepcopy(net))
    sub.eval()
    with torch.no_grad():
        a, b = sub(digits.test.x), rebuilt(digits.test.x)
    assert (a.argmax(1) == b.argmax(1)).float().mean() > 0.97  # scales and statistics are rounded in the file


def test_references_train_and_cannot_be_packed(network):
    sub = subcompress.Subspace.of(network, d=20, operator="fastfood")
    sub.round(4)
    with pytest.raises(
        SubcompressError, match="Fastfood is an operator for comparisons, which is not exact on every device"
    ):
        sub.record()


class Asking(nn.Module):
    """Asks for its own parameters, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1).to(next(self.parameters()).device))


def test_a_loss_sees_the_parameters_of_the_network(digits, tmp_path):
    seen = []

    def decayed(module, batch):
        seen.append([name for name, _ in module.named_parameters()])
        penalty = sum(p.square().sum() for p in module.parameters())
        return nn.functional.cross_entropy(module(batch[0]), batch[1]) + 1e-3 * penalty

    subcompress.fit(Asking(), digits, tmp_path / "run", loss=decayed, metric="accuracy", **SMALL)
    assert all(sorted(names) == ["frozen", "layer.bias", "layer.weight"] for names in seen)
    sub = subcompress.Subspace.of(Asking(), d=20)
    assert [name for name, _ in sub.named_parameters()] == ["z"]
    with sub.materialized() as module:
        assert all(p.requires_grad for name, p in module.named_parameters() if name != "frozen")
    assert [name for name, _ in sub.named_parameters()] == ["z"]


def test_a_new_command_leaves_no_old_record(network, digits, tmp_path):
    subcompress.fit(network, digits, tmp_path / "run", **SMALL)
    subcompress.fit(network, digits, tmp_path / "run", operator="sparse", **SMALL)
    with pytest.raises(SubcompressError, match="nothing to pack"):
        subcompress.pack(tmp_path / "run", tmp_path / "x.safetensors")


def test_outputs_and_values_of_other_shapes_are_not_stretched(tmp_path):
    x = torch.randn(64, 3)
    data = subcompress.Data(*[subcompress.Split(x, x[:, 0])] * 3)
    with pytest.raises(SubcompressError, match=r"the same shape; got \(64, 2\) and \(64,\)"):
        subcompress.fit(nn.Linear(3, 2), data, tmp_path / "run", d=3, loss="mse", epochs=1, batch_size=8)


def test_python_takes_three_data_sets_and_says_what_it_does_not_take(few_digits, tmp_path):
    options = {"d": 50, "epochs": 1, "batch_size": 32, "threads": 1}
    triple = (few_digits.train, few_digits.validation, few_digits.test)
    assert subcompress.fit(MODELS["lenet"](), triple, tmp_path / "run", **options).d == 50
    assert subcompress.fit(MODELS["lenet"], triple, tmp_path / "factory", **options).d == 50
    with pytest.raises(SubcompressError, match=r"fit takes an nn.Module, or a factory of one; got str"):
        subcompress.fit("lenet", triple, tmp_path / "other", **options)
    with pytest.raises(SubcompressError, match=r"Data or \(train, validation, test\); got a function: call it"):
        subcompress.fit(MODELS["lenet"](), lambda: triple, tmp_path / "other", **options)
