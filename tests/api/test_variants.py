"""Many files on one module: switched in place, never half."""

from __future__ import annotations

from pathlib import Path

import networks
import pytest
import torch
from torch import Tensor, nn
from trained import loaded, net, refusal, same, sized

import subcompress
from subcompress.api.variants import Variants
from subcompress.base import BaseTensors


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory) -> dict[str, Path]:
    """Of the base's head moved, kept, new and of another size; of random coordinates."""
    folder, found = tmp_path_factory.mktemp("variants"), {}
    for i, (name, act_on, outputs) in enumerate(
        [("norms", "norms", 4), ("heads", "heads", 4), ("six", "biases", 6), ("nine", "norms", 9), ("all", "all", 4)]
    ):
        module = net(seed=i)
        if outputs != 4:
            module[8] = nn.Linear(72, outputs)
        sub = subcompress.Subspace.of(module, 20, base=trained, act_on=act_on, seed=i)
        with torch.no_grad():
            sub.z.normal_(generator=torch.Generator().manual_seed(i))
        sub.round(4)
        subcompress.pack(sub, folder / name)
        found[name] = folder / name
    return found


@pytest.mark.parametrize("kind", ["mapping", "the module itself", "another head"])
def test_switching_gives_what_loading_gives_in_any_order(trained, files, kind):
    module = sized(6 if kind == "another head" else 4)
    if kind == "the module itself":
        module.load_state_dict(trained)
    variants = Variants(module, module if kind == "the module itself" else trained)
    truth = {name: loaded(path, trained) for name, path in files.items()}
    for name, path in files.items():
        variants.add(name, path)
    assert list(variants) == list(files)
    assert all(isinstance(data, bytes) and len(data) < 500 for data in variants.values())
    order = [a for one in files for other in files for a in (one, other)]
    for name in order:
        found = variants.use(name).state_dict()
        assert variants.use(name) is module
        assert all(same(found[n], t) for n, t in truth[name].items()), name
        assert not module.training
    x = networks.blobs().test.x
    assert variants.use("nine")(x).shape == (32, 9)
    assert variants.use("six")(x).shape == (32, 6)
    again = BaseTensors(trained, "x").digest
    assert again == variants.base.digest


def test_variants_refuse_what_is_not_theirs(trained, files, tmp_path):
    variants = Variants(net(), trained)
    other = BaseTensors({n: t + 1 if t.is_floating_point() else t for n, t in trained.items()}, "other")
    sub = subcompress.Subspace.of(net(), 20, base=other)
    with torch.no_grad():
        sub.z.normal_()
    sub.round(4)
    subcompress.pack(sub, tmp_path / "other")
    line = refusal(variants.add, "other", tmp_path / "other")
    assert other.digest.hex() in line
    assert variants.base.digest.hex() in line
    sub = subcompress.Subspace.of(net(), 20)
    sub.round(4)
    subcompress.pack(sub, tmp_path / "alone")
    assert "is not a fine-tune" in refusal(variants.add, "alone", tmp_path / "alone")
    assert "none yet" in refusal(variants.use, "norms")
    (tmp_path / "damaged").write_bytes(files["norms"].read_bytes()[:-1])
    refusal(variants.add, "damaged", tmp_path / "damaged")
    assert not variants
    stranger = Variants(net("mlp"), trained)
    stranger.add("norms", files["norms"])
    before = {n: t.clone() for n, t in stranger.module.state_dict().items()}
    assert "which the module lacks" in refusal(stranger.use, "norms")
    assert all(same(t, before[n]) for n, t in stranger.module.state_dict().items())


def test_a_switch_that_fails_half_way_is_made_good(trained, files, monkeypatch):
    variants = Variants(net(), trained)
    for name in ("norms", "all", "heads"):
        variants.add(name, files[name])
    variants.use("norms")

    def dies(record, state):
        expand_changed(record, state)
        raise KeyboardInterrupt

    from subcompress.rebuild.expand import expand_changed

    with monkeypatch.context() as m:
        m.setattr("subcompress.api.variants.expand_changed", dies)
        with pytest.raises(KeyboardInterrupt):
            variants.use("all")
    assert variants.name is None
    truth = loaded(files["heads"], trained)
    assert all(same(t, truth[n]) for n, t in variants.use("heads").state_dict().items())
    variants.add("heads", files["norms"])
    truth = loaded(files["norms"], trained)
    assert all(same(t, truth[n]) for n, t in variants.use("heads").state_dict().items())


def test_idle_variants_hold_no_tensors(trained, files):
    import gc

    variants = Variants(net(), trained)

    def held() -> int:
        gc.collect()
        return sum(1 for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter))

    before = held()
    for i in range(10):
        variants.add(f"v{i}", files["all"])
    assert held() == before


def test_tied_variants(tmp_path):
    base = {n: t.clone() for n, t in net("transformer").state_dict().items() if n != "decoder.weight"}
    variants, truth = Variants(net("transformer", 8), base), {}
    for i, act_on in enumerate(["embeddings", "norms", "all", "biases"]):
        sub = subcompress.Subspace.of(net("transformer", 5), 20, base=base, act_on=act_on, seed=i)
        with torch.no_grad():
            sub.z.normal_(generator=torch.Generator().manual_seed(i))
        sub.round(4)
        subcompress.pack(sub, tmp_path / act_on)
        variants.add(act_on, tmp_path / act_on)
        truth[act_on] = subcompress.load(tmp_path / act_on, net("transformer", 9), base=base).state_dict()
    for name in [*truth, *reversed(truth), "embeddings", "biases"]:
        module = variants.use(name)
        assert module.decoder.weight is module.embed.weight
        assert all(same(t, truth[name][n]) for n, t in module.state_dict().items()), name
