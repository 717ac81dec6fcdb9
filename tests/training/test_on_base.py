"""Fits on a base: what moves is what was named, all else is the base's; and many files on one module."""

from __future__ import annotations

import json
from pathlib import Path

import networks
import pytest
import safetensors.torch
import torch
from commands import cli
from stopping import Stopping, result
from torch import Tensor, nn
from trained import FIT, Notes, net, refusal, same

import subcompress
from subcompress import format
from subcompress.base import BaseTensors, attach_base, open_base
from subcompress.subspace.acting import acted_on
from subcompress.subspace.roles import roles_of
from subcompress.training import run
from subcompress.training.loop import Direct, TrainOptions, train
from subcompress.training.tasks import Task


@pytest.fixture(scope="module")
def base_file(trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    safetensors.torch.save_file(trained, path)
    return path


@pytest.fixture(scope="module")
def small(base_file, tmp_path_factory) -> Path:
    """A file on it, all norms, biases and the head moved."""
    folder = tmp_path_factory.mktemp("small")
    subcompress.fit(net(seed=9), networks.blobs(), folder / "run", base=base_file, **FIT)
    subcompress.pack(folder / "run", folder / "net.safetensors")
    return folder / "net.safetensors"


def moved(path: Path, base: dict[str, Tensor], kind: str = "batch norm") -> set[str]:
    """The tensors that a file makes other than its base has them."""
    state = subcompress.load(path, net(kind, 1), base=base).state_dict()
    return {n for n, t in state.items() if n not in base or not same(t, base[n])}


def test_a_fit_packs_and_comes_back_without_the_base_in_it(trained, base_file, small, tmp_path):
    assert small.stat().st_size < 400
    found = json.loads(cli("info", small, "--json").output)
    assert found["base"] == {"id": "base.safetensors", "revision": "", "digest": BaseTensors(trained, "x").digest.hex()}
    assert found["d"] == 40
    assert f"on the base base.safetensors, digest {found['base']['digest']}" in cli("info", small).output
    out = tmp_path / "dense.safetensors"
    refused = cli("unpack", small, "-o", out)
    assert refused.exit_code == 1
    assert found["base"]["digest"] in refused.stderr
    assert cli("unpack", small, "-o", out, "--base", base_file).exit_code == 0
    assert cli("verify", small, "--base", base_file).exit_code == 0
    dense, loaded = safetensors.torch.load_file(out), subcompress.load(small, net(seed=1), base=trained).state_dict()
    assert dense.keys() == loaded.keys()
    assert all(same(dense[n], loaded[n]) for n in dense)
    assert subcompress.verify(small, base=base_file).ok


def test_a_base_that_nobody_else_can_fetch_is_a_warning(small, tmp_path):
    (warning,) = run.summary(small.parent / "run")["fit"]["warnings"]
    assert "the file will name its base 'base.safetensors'" in warning
    report = subcompress.report(small.parent / "run", tmp_path / "report.html")
    assert "nobody else can fetch it by that name" in Path(report).read_text("utf-8")


def test_a_bundle_says_how_to_rebuild_it(small, tmp_path):
    done = cli("pack", small.parent / "run", "--bundle", tmp_path / "bundle", "--json")
    assert json.loads(done.stdout)["file_bytes"] == small.stat().st_size
    assert (tmp_path / "bundle" / "model.safetensors").read_bytes() == small.read_bytes()
    text = (tmp_path / "bundle" / "README.md").read_text("utf-8")
    assert "trained on `base.safetensors`, whose tensors have the digest" in text
    assert "\npip install .\n" in text
    assert "\nsubcompress unpack model.safetensors --base BASE -o dense.safetensors\n" in text
    refused = cli("pack", small.parent / "run", "--bundle", tmp_path / "bundle")
    assert refused.exit_code == 1 and "holds files: give a new or empty folder" in refused.stderr
    assert "give -o FILE or --bundle DIR" in cli("pack", small.parent / "run").stderr


def test_what_moves_by_default(trained, small):
    parameters = {n for n, _ in net().named_parameters()}
    assert moved(small, trained) == parameters - {"0.weight", "4.weight"}  # and the running statistics are the base's


def test_a_session_runs_a_file_on_a_base(trained, small):
    x = networks.blobs().test.x
    session = subcompress.Session(small, net(seed=1), base=trained, check=True)
    assert torch.allclose(session(x), subcompress.load(small, net(seed=2), base=trained)(x), atol=1e-4)
    assert "--base" in refusal(subcompress.Session, small, net())


@pytest.mark.parametrize(
    ("act_on", "names"),
    [
        ("norms", {"1.weight", "1.bias", "5.weight", "5.bias"}),
        ("heads", {"8.weight", "8.bias"}),
        ("biases", {"4.bias"}),
        ("matrices, 8.bias", {"0.weight", "4.weight", "8.bias"}),
        ("4.*", {"4.weight", "4.bias"}),
    ],
)
def test_what_moves_is_what_was_named(trained, tmp_path, act_on, names):
    space = subcompress.Subspace.of(net(), 4, base=trained, act_on=act_on)
    torch.nn.init.normal_(space.z, generator=torch.Generator().manual_seed(0))
    space.round(4)
    subcompress.pack(space, tmp_path / "net.safetensors")
    assert moved(tmp_path / "net.safetensors", trained) == names


def test_act_on_is_checked(trained, tmp_path):
    for words in ("nothing.*", "norm", "heads,9.weight"):
        line = refusal(subcompress.fit, net(), networks.blobs(), tmp_path / "r", base=trained, act_on=words, **FIT)
        assert "--act-on takes all, norms" in line
    assert "--base" in refusal(subcompress.fit, net(), networks.blobs(), tmp_path / "r", act_on="norms", **FIT)
    assert "no weights to train" in refusal(
        subcompress.fit, net("mlp"), networks.blobs(), tmp_path / "r", base=net("mlp"), act_on="norms", **FIT
    )


def test_statistics_of_the_base_are_used_and_kept_while_it_trains(trained):
    sub = subcompress.Subspace.of(net(seed=5), 30, base=trained)
    x = networks.blobs().train.x
    module = net(seed=6)
    module.load_state_dict(trained)
    assert torch.allclose(sub(x), module.eval()(x), atol=1e-6)
    sub(x).square().mean().backward()
    sub.round(4)
    assert sub.training
    record = sub.record()
    assert record.base is not None
    assert all(same(t, trained[n]) for n, t in sub.module.named_buffers() if "running" in n or "num" in n)


def test_a_subspace_on_a_base_starts_there_and_packs(trained, tmp_path):
    sub = subcompress.Subspace.of(net(seed=5), 30, base=trained, act_on="norms", base_name="hub:org/name")
    for name, w in sub.weights().items():
        assert torch.equal(w.detach(), trained[name])
    with torch.no_grad():
        sub.z.normal_()
    sub.round(4)
    subcompress.pack(sub, tmp_path / "net.safetensors")
    assert format.contents(tmp_path / "net.safetensors").base.name == "hub:org/name"
    loaded = subcompress.load(tmp_path / "net.safetensors", net(), base=trained).state_dict()
    for name, w in sub.weights().items():
        assert torch.allclose(w, loaded[name], atol=1e-3)
        assert not torch.equal(loaded[name], trained[name])


def test_an_interrupted_fit_goes_on_to_the_same_bytes(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.loop.SAVE_EVERY", -1.0)
    args = (net(seed=9), networks.blobs())
    subcompress.fit(*args, tmp_path / "whole", base=trained, **FIT)
    with pytest.raises(KeyboardInterrupt):
        subcompress.fit(*args, tmp_path / "stopped", base=trained, **FIT, listener=Stopping(2))
    other = {"base_name": "another"}
    line = refusal(subcompress.fit, *args, tmp_path / "stopped", base=trained, **other, **FIT)
    assert "unfinished run with other options (its base was a state dict, now another)" in line
    changed = trained | {"8.bias": trained["8.bias"] + 1}
    assert "with other options" in refusal(subcompress.fit, *args, tmp_path / "stopped", base=changed, **FIT)
    subcompress.fit(*args, tmp_path / "stopped", base=trained, **FIT)
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")


# --- what a base lacks ---


def test_a_head_of_another_size_is_new(trained, tmp_path):
    module = net(seed=5)
    module[8] = nn.Linear(72, 6)
    notes = Notes()
    subcompress.fit(module, networks.blobs(), tmp_path / "run", base=trained, **FIT, listener=notes)
    assert any("new, from the seed: 8.bias F32 [6], 8.weight" in n or "8.weight F32 [6, 72]" in n for n in notes.notes)
    assert any("tensors of the base that are not used: 8.bias, 8.weight" in n for n in notes.notes)
    state = subcompress.load(tmp_path / "run" / run.RECORD, module, base=trained).state_dict()
    assert state["8.weight"].shape == (6, 72)
    assert same(state["0.weight"], trained["0.weight"])


def test_an_inner_tensor_that_the_base_lacks_or_has_otherwise(trained, tmp_path):
    args = (net(), networks.blobs(), tmp_path / "run")
    lacking = {n: t for n, t in trained.items() if n != "4.weight"}
    line = refusal(subcompress.fit, *args, base=lacking, **FIT)
    assert "lacks it: 4.weight [8, 8, 3, 3]" in line
    assert "--new '4.weight'" in line
    reshaped = trained | {"4.weight": trained["4.weight"].view(8, 72)}
    assert "has it as [8, 72]: 4.weight [8, 8, 3, 3]" in refusal(subcompress.fit, *args, base=reshaped, **FIT)
    assert "give the base of this network" in refusal(subcompress.fit, *args, base={"w": torch.ones(3)}, **FIT)
    assert "give the base of this network" in refusal(subcompress.fit, *args, base=net("gru"), **FIT)
    assert "--new must name tensors" in refusal(subcompress.fit, *args, base=trained, new=("9.*",), **FIT)
    subcompress.fit(*args, base=lacking, new=("4.weight",), **FIT)
    assert "4.weight" in moved(tmp_path / "run" / run.RECORD, lacking)


def test_new_starts_anew_what_the_base_has(trained, tmp_path):
    standing = attach_base(BaseTensors(trained, "base"), net(), ("8.*",))
    assert {"8.weight", "8.bias"}.isdisjoint(s.name for s in standing.layout)
    done = subcompress.fit(net(), networks.blobs(), tmp_path / "run", base=trained, new=("8.*",), **FIT)
    assert sum(trained[n].numel() for n in ("1.weight", "1.bias", "5.weight", "5.bias", "4.bias")) + 292 == done.D
    info = subcompress.info(tmp_path / "run" / run.RECORD)
    assert info["tensors"] == len(trained)


def test_prefixes_and_dtypes_of_a_base_are_found(trained):
    wrapped = nn.Sequential()
    wrapped.add_module("model", net())
    for held in (
        {f"module.{n}": t for n, t in trained.items()},
        {f"a.b.{n}": t for n, t in trained.items()} | {"pooler.weight": torch.ones(2, 2)},
        {n: t.bfloat16() if t.is_floating_point() else t for n, t in trained.items()},
    ):
        standing = attach_base(BaseTensors(held, "base"), wrapped)
        loaded = standing.loaded(wrapped).state_dict()
        assert len(standing.layout) == len(trained)
        for name, t in trained.items():
            assert torch.allclose(loaded[f"model.{name}"].double(), t.double(), rtol=1e-2)
    mixed = net().bfloat16()
    mixed[8].float()
    assert "one dtype" in refusal(attach_base, BaseTensors(trained, "base"), mixed)


def test_frozen_parameters_of_a_base_stay(trained, tmp_path):
    module = net()
    module[8].requires_grad_(False)
    subcompress.fit(module, networks.blobs(), tmp_path / "run", base=trained, act_on="all", **FIT)
    parameters = {n for n, _ in module.named_parameters()}
    assert moved(tmp_path / "run" / run.RECORD, trained) == parameters - {"8.weight", "8.bias"}


@pytest.mark.parametrize("held", ["embed.weight", "decoder.weight", "both"])
def test_tied_weights_are_one_however_the_base_holds_them(tmp_path, held):
    state = net("transformer").state_dict()
    for name in {"embed.weight", "decoder.weight"} - {held}:
        if held != "both":
            del state[name]
    base = tmp_path / "base.safetensors"
    safetensors.torch.save_file({n: t.clone() for n, t in state.items()}, base)
    truth = net("transformer").state_dict()["embed.weight"]
    for act_on, moves in (("norms", False), ("embeddings", True), ("decoder.*", True), ("embed.weight", True)):
        space = subcompress.Subspace.of(net("transformer", 8), 8, base=base, act_on=act_on)
        torch.nn.init.normal_(space.z, generator=torch.Generator().manual_seed(0))
        space.round(4)
        subcompress.pack(space, tmp_path / "net.safetensors")
        loaded = subcompress.load(tmp_path / "net.safetensors", net("transformer", 9), base=base).state_dict()
        assert same(loaded["embed.weight"], loaded["decoder.weight"])
        assert same(loaded["embed.weight"], truth) != moves, act_on
    assert subcompress.Subspace.of(net("transformer"), 8, base=base).plan.starts[sorted(state)[0]].kind != "random"


def test_a_base_with_two_values_for_tied_weights_is_refused():
    state = net("transformer").state_dict()
    state["decoder.weight"] = state["decoder.weight"] + 1
    assert "the model ties embed.weight and decoder.weight" in refusal(
        attach_base, BaseTensors(state, "base"), net("transformer")
    )


def test_roles():
    roles = roles_of(net("transformer"))
    assert roles["embed.weight"] == roles["decoder.weight"] == "embeddings"
    assert roles["norm.weight"] == roles["encoder.layers.0.norm1.bias"] == "norms"
    assert roles["encoder.layers.0.linear1.bias"] == "biases"
    assert roles["encoder.layers.0.linear2.weight"] == "matrices"
    assert acted_on(net("transformer"), "embeddings", frozenset()) == {"embed.weight", "decoder.weight"}
    assert acted_on(net("mlp"), "norms", frozenset({"4.weight"})) == {"4.weight"}


# --- goals ---


@pytest.mark.slow
def test_a_target_is_searched_on_a_base(trained, tmp_path):
    data, options = networks.blobs(), {k: v for k, v in FIT.items() if k != "d"}
    options |= {"epochs": 3, "seeds": 2, "max_fits": 5}
    found = subcompress.fit(net(), data, tmp_path / "a", base=trained, min_accuracy=0.5, **options)
    assert found.target == 0.5
    assert found.validation >= 0.4
    found = subcompress.fit(net(), data, tmp_path / "b", base=trained, within=200, **options)
    assert found.bytes <= 200
    assert subcompress.pack(tmp_path / "b", tmp_path / "net.safetensors") <= 200
    assert subcompress.verify(tmp_path / "net.safetensors", base=trained).ok


def test_the_command_line_fits_on_a_base(tmp_path):
    base = tmp_path / "base.pt"
    from subcompress_models import MODELS

    torch.manual_seed(0)
    torch.save({"state_dict": MODELS["lenet"]().state_dict()}, base)
    fit = ("fit", "--model", "lenet", "--data", "digits", "--d", 20, "--epochs", 1, "--threads", 1)
    done = cli(*fit, "--base", base, "--act-on", "norms,heads", "--new", "*.bias", "-o", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "net.safetensors"
    assert cli("pack", tmp_path / "run", "-o", out).exit_code == 0
    assert cli("unpack", out, "-o", tmp_path / "dense.safetensors", "--base", base).exit_code == 0
    assert json.loads(cli("verify", out, "--base", base, "--json").output)["ok"]
    assert cli("verify", out).exit_code == 1
    base.rename(tmp_path / "moved.pt")
    assert cli("report", tmp_path / "run").exit_code == 0  # without the base
    (tmp_path / "moved.pt").rename(base)
    assert cli(*fit, "--act-on", "norms", "-o", tmp_path / "r").exit_code == 1
    assert run.load(tmp_path / "run").base is not None  # where it was trained on is remembered


def test_a_base_of_other_dtype_is_as_good(trained, tmp_path):
    half = {n: t.half() if t.is_floating_point() else t for n, t in trained.items()}
    subcompress.fit(net(), networks.blobs(), tmp_path / "run", base=half, **FIT)
    state = subcompress.load(tmp_path / "run" / run.RECORD, net(seed=2), base=half).state_dict()
    assert same(state["0.weight"], half["0.weight"].float())
    assert open_base(half).digest == run.load(tmp_path / "run", half).base.base.digest


def test_a_base_is_not_what_changes_under_a_fit(trained, tmp_path):
    """Tensors at hand are copied; a file that is written over in place is noticed before a file is made on it."""
    module = net(seed=5)
    module.load_state_dict(trained)
    sub = subcompress.Subspace.of(module, 30, base=module)
    with torch.no_grad():
        module[-1].bias.add_(1.0)
        sub.z.normal_()
    sub.round(4)
    subcompress.pack(sub, tmp_path / "net.safetensors")
    assert subcompress.verify(tmp_path / "net.safetensors", base=trained).ok

    path = tmp_path / "base.safetensors"
    safetensors.torch.save_file(trained, path)
    sub = subcompress.Subspace.of(net(seed=5), 30, base=path)
    sub.round(4)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as f:
        f.write(data)
    assert "has changed" in refusal(sub.record)


def test_a_base_without_the_statistics_of_a_norm_is_refused(trained):
    name = next(n for n in trained if n.endswith("running_var"))
    without = {n: t for n, t in trained.items() if n != name}
    assert f"lacks it: {name}" in refusal(attach_base, BaseTensors(without, "b"), net())
    reshaped = trained | {name: torch.ones(1 + len(trained[name]))}
    assert f"has it as [{1 + len(trained[name])}]: {name}" in refusal(attach_base, BaseTensors(reshaped, "b"), net())
    assert name not in attach_base(BaseTensors(without, "b"), net(), new=(name,))


def test_most_of_a_network_is_no_head():
    deep = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    held = deep.state_dict()
    first = BaseTensors({n: t for n, t in held.items() if n.startswith(("0.", "1."))}, "b")
    assert "lacks it: 2.weight" in refusal(attach_base, first, deep)
    assert "5.weight" not in attach_base(BaseTensors({n: t for n, t in held.items() if n < "3"}, "b"), deep)
    assert "2.weight" not in attach_base(first, deep, new=("[2345].*",))


def test_a_base_in_a_folder_is_never_written_over(small, trained, tmp_path):
    folder, linked = tmp_path / "base", tmp_path / "link.safetensors"
    folder.mkdir()
    safetensors.torch.save_file(trained, folder / "model.safetensors")
    linked.symlink_to(folder / "model.safetensors")
    before = (folder / "model.safetensors").read_bytes()
    for output in (folder / "model.safetensors", linked):
        assert "is its base (model.safetensors)" in refusal(subcompress.unpack, small, output, base=folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_steps_in_bfloat16_see_the_weights_as_they_are(digits):
    """Inside another autocast, as `fit` has one: with a cache, every step would use the first step's weights."""
    data, recipe = digits, TrainOptions(3, 2e-3, 32, precision="bf16")
    torch.manual_seed(0)
    direct = Direct(nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)))
    with torch.autocast("cpu", enabled=False):
        assert train(direct, data, Task.of(), recipe).value > 0.75
