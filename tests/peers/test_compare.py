"""compare: every peer is measured or says why not; report: one page that holds all of it."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import torch
from commands import cli
from torch import nn

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.api.compare import Comparison
from subcompress.data import DATA, augment_of
from subcompress.peers import PEERS, Bench, SkippedError
from subcompress.peers.tiny import Convolutions, Hidden, Pooled, Rounded, Separable, _width
from subcompress.training import run
from subcompress.training.loop import TrainOptions
from subcompress.training.tasks import Task
from subcompress_models import MODELS

OF_PEFT = ("unilora", "vera")
"""Peers whose library takes as long to import as all others to measure."""


@pytest.fixture(scope="module")
def digits(few_digits):
    """What the command line knows by that name in these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "digits", lambda folder=None: few_digits)
        yield few_digits


@pytest.fixture(scope="module")
def fitted(digits, tmp_path_factory):
    """A run of the command line, whose names compare finds again."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    options = "--bytes 250 --epochs 2 --batch-size 32 --seeds 1 --threads 1 --augment shift"
    done = cli("fit", "--model", "lenet", "--data", "digits", *options.split(), "-o", folder)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def compared(fitted):
    peers = ",".join(name for name in PEERS if name not in OF_PEFT)
    done = cli("compare", fitted, "--peers", peers, "--threads", 1, "--json")
    assert done.exit_code == 0, done.output
    shutil.copytree(fitted, fitted.parent / "compared")
    return Comparison.from_json(json.loads(done.stdout))


@pytest.fixture(scope="module")
def bench(fitted, digits):
    record = run.load(fitted)
    recipe = TrainOptions(2, 1.0, batch_size=32)
    folder = fitted / "bench"
    folder.mkdir()
    return Bench(MODELS["lenet"](), digits, Task.of(), record, 250, 1.0, recipe, folder)


@pytest.mark.parametrize("name", [name for name in PEERS if name not in OF_PEFT])
def test_every_peer_is_measured_or_says_why_not(compared, fitted, name):
    measured_or_skipped(name, compared, fitted)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_PEFT)
def test_every_peer_of_peft_is_measured_or_says_why_not(compared, fitted, name, tmp_path):
    copy = shutil.copytree(fitted, tmp_path / "run")
    done = cli("compare", copy, "--peers", name, "--threads", 1, "--json")
    assert done.exit_code == 0, done.output
    measured_or_skipped(name, Comparison.from_json(json.loads(done.stdout)), copy)


def measured_or_skipped(name, compared, fitted):
    if name in compared.skipped:
        assert name in ("lora", *OF_PEFT, "nncodec")
        assert name == "lora" or "install" in compared.skipped[name] or "import" in compared.skipped[name]
        return
    held = json.loads((fitted / "compare" / "compare.json").read_text())["found"][name]["rows"]
    for row in held:
        assert row["bytes"] > 0
        assert 0 <= row["value"] <= 1
        assert row["seconds"] > 0


def test_rows_are_whole_files_on_disk(compared, fitted):
    sizes = {path.stat().st_size for path in (fitted / "compare").rglob("*")}
    assert all(row.bytes in sizes for row in compared.rows)
    ours = compared.rows[0]
    assert ours.bytes == subcompress.pack(fitted, fitted / "net.safetensors") <= 250
    assert ours.value == run.fit_of(fitted).test
    by_name = {row.name: row for row in compared.rows}
    for name in ("tiny network, 4 bits", "float32 subspace (Li et al., PRANC)"):
        assert 0.6 * ours.bytes < by_name[name].bytes <= ours.bytes
    assert by_name["4-bit weights"].bytes < by_name["dense, ONNX"].bytes / 3
    assert by_name["ONNX Runtime int8"].bytes < by_name["dense, ONNX"].bytes / 2
    assert by_name["dense, gzip -9"].bytes < by_name["dense, safetensors"].bytes
    assert abs(by_name["4-bit weights"].value - by_name["dense, safetensors"].value) < 0.1


def test_the_same_command_does_not_measure_twice(fitted, compared, digits):
    heard = []

    class Heard(Listener):
        def run(self, title, epochs):
            heard.append(title)

    peers = [name for name in PEERS if name not in (*compared.skipped, *OF_PEFT)]
    data, options = replace(digits, augment=augment_of("shift")), {"threads": 1, "listener": Heard()}
    again = subcompress.compare(fitted, MODELS["lenet"](), data, peers=peers, **options)
    assert heard == []
    assert again.rows == compared.rows
    subcompress.compare(fitted, MODELS["lenet"](), digits, peers=["float-subspace"], **options)
    assert len(heard) == 1 and re.fullmatch(r"float32 subspace, d = 3\d", heard[0])


def test_the_tables_and_plots(fitted, compared):
    text = compared.markdown()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2].startswith("| 1 | **subcompress** | ")
    assert {row.count("|") for row in rows} == {8}
    assert all(f"Skipped: {name}" in text for name in compared.skipped)
    for name in ("compare.png", "compare.md", "compare.json"):
        assert (fitted / name).stat().st_size > 100


def test_what_compare_refuses(fitted, digits, tmp_path):
    def refused(words, folder=fitted, model=None, **options):
        with pytest.raises(SubcompressError, match=words):
            subcompress.compare(folder, model or MODELS["lenet"](), digits, **options)

    refused("not a finished run", folder=tmp_path)
    refused("--peers takes ours", peers=["magic"])
    refused("the model", model=MODELS["mlp"]())
    refused("judged by accuracy, but this comparison by loss", metric="loss")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(fitted, unfinished)
    (unfinished / run.SUMMARY).unlink()
    refused("it was not finished; the same `subcompress fit` continues", folder=unfinished)
    with pytest.raises(SubcompressError, match="it was not finished"):
        subcompress.report(unfinished)
    assert "it was not finished" in cli("compare", unfinished).stderr
    (unfinished / run.SUMMARY).write_text(json.dumps({"dim": {}}))
    with pytest.raises(SubcompressError, match="holds a run of `dim`"):
        subcompress.report(unfinished)


@pytest.mark.slow
def test_a_network_without_a_graph_of_one_input(tmp_path):
    """A loss of the user's own on a dict of inputs: judged in torch, what needs images is skipped."""
    import networks

    case = networks.CASES["dict"]
    torch.manual_seed(0)
    net = case.make()
    subcompress.fit(net, case.data(), tmp_path / "run", d=40, epochs=2, batch_size=32, threads=1, **case.options)
    found = subcompress.compare(tmp_path / "run", case.make(), case.data(), threads=1, **case.options)
    assert {"tiny", "int8", "int4"} <= set(found.skipped)
    assert [row.name for row in found.rows][:2] == ["subcompress", "float32 subspace (Li et al., PRANC)"]
    assert all(math.isfinite(row.value) for row in found.rows)
    assert "in torch" in found.rows[0].note


@pytest.mark.slow
def test_adapters_say_what_they_need(bench):
    without = Bench(nn.Conv2d(1, 2, 3), *[getattr(bench, f) for f in list(bench.__dataclass_fields__)[1:]])
    pytest.importorskip("peft", reason="peft is not installed")
    with pytest.raises(SkippedError, match="no"):
        PEERS["unilora"](without)


@pytest.mark.parametrize("make", [Convolutions, Pooled, Separable, Hidden])
@pytest.mark.parametrize("size", [300, 1000])
def test_the_widest_tiny_network_that_fits(make, size):
    width = _width(make, (1, 28, 28), 10, size)
    if make is Hidden and size == 300:
        assert width == 0
        return
    torch.manual_seed(0)
    small = Rounded(make((1, 28, 28), 10, width))
    assert small.module(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    small.begin()
    assert 0.6 * size < len(small.packed(size)) <= size
    for p in small.parameters():
        assert len(p.unique()) <= 15


def test_a_tiny_network_is_trained_with_rounded_weights():
    torch.manual_seed(0)
    net, x = Rounded(Pooled((1, 8, 8), 3, 4)), torch.rand(5, 1, 8, 8)
    with net.materialized() as module:
        exact = module(x)
    net.begin()
    with net.materialized() as module:
        trained = module(x)
        trained.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not torch.equal(exact, trained)
    net.packed(10**6)
    assert torch.allclose(net.module(x), trained, atol=1e-6)  # what was trained is what is packed


def test_the_page_holds_everything(fitted, compared):
    path = subcompress.report(fitted.parent / "compared")
    assert path == fitted.parent / "compared" / "report.html"
    page = path.read_text()
    assert page.count("<svg") in (2, 3)  # the frontier of one or two files is a table
    for row in compared.rows:
        assert row.name in page
    for text in ("subcompress fit --model lenet", "--augment shift", "weights digest", f"torch {torch.__version__}"):
        assert text in page, text
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)  # nothing to fetch: it travels alone
    assert "{{" not in page


def test_the_page_escapes_what_others_wrote(fitted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(fitted, folder, ignore=shutil.ignore_patterns("compare*"))
    summary = json.loads((folder / run.SUMMARY).read_text())
    summary["origin"] = {"command": "<script>alert(1)</script>", "model": "<b>net</b>", "data": "x"}
    (folder / run.SUMMARY).write_text(json.dumps(summary))
    page = subcompress.report(folder, tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "<b>net" not in page


def test_a_comparison_of_another_file_is_not_shown(fitted, compared, tmp_path):
    """Not even of one of the same size; and a run that is trained anew leaves none behind."""
    folder = tmp_path / "run"
    shutil.copytree(fitted, folder)
    (folder / "compare.json").write_text(json.dumps(replace(compared, digest="00").to_json()))
    assert "None yet" in subcompress.report(folder).read_text()
    torch.manual_seed(0)
    options = {"d": 50, "epochs": 1, "batch_size": 32, "threads": 1}
    subcompress.fit(MODELS["lenet"](), subcompress.load_data("digits"), folder, **options)
    assert not {"compare", "compare.json", "compare.md", "compare.png", "report.html"} & {
        path.name for path in folder.iterdir()
    }


def test_a_training_that_was_cut_off_is_done_again(fitted, bench):
    (bench.folder / "direct.pt").write_bytes(b"PK cut off")
    module, seconds = bench.direct
    assert seconds > 0
    assert not module.training
    assert (bench.folder / "direct.pt").stat().st_size > 1000


@pytest.mark.slow
def test_the_float_subspace_pays_for_what_ours_pays_for(tmp_path):
    """Running statistics travel in its file too, and its coordinates are the trained ones."""
    import networks
    import safetensors.torch

    case = networks.CASES["batch norm"]
    torch.manual_seed(0)
    net = case.make()
    subcompress.fit(net, case.data(), tmp_path / "run", d=400, epochs=2, batch_size=32, threads=1)
    found = subcompress.compare(tmp_path / "run", net, case.data(), peers=["float-subspace"], threads=1)
    if "float-subspace" in found.skipped:
        assert "float32 coordinates" in found.skipped["float-subspace"]
        return
    held = safetensors.torch.load_file(tmp_path / "run" / "compare" / "float-subspace.safetensors")
    assert held["z"].abs().sum() > 0
    assert {name for name in net.state_dict() if "running" in name} <= set(held)


def test_a_reference_operator_makes_a_page_but_no_comparison(digits, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    subcompress.fit(net, digits, tmp_path / "run", d=20, operator="dense", epochs=1, batch_size=32, threads=1)
    page = subcompress.report(tmp_path / "run").read_text()
    assert "Where the bytes go" not in page
    assert "Training curves" in page
    with pytest.raises(SubcompressError, match="holds nothing to pack"):
        subcompress.compare(tmp_path / "run", net, digits)
