"""Bases whose tensors are called otherwise, lie in several files, have other rows, or cannot be used."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import oracle
import oracle_lists
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from records import TABLES, of_bytes, plain_base
from torch import nn

import subcompress
from subcompress import SubcompressError, format
from subcompress.api.variants import Variants
from subcompress.base import BaseTensors, attach_base, open_base, weights_files
from subcompress.base.changes import Changes, split_changes
from subcompress.tensors.layout import DTYPES, array_of, raw_bytes


class Net(nn.Module):
    def __init__(self, rows: int = 20, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(rows, 8)
        self.features = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.enc, self.LayerNorm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.LayerNorm(self.enc(self.features(self.embed(x).mean(1)))))


torch.manual_seed(0)
HELD = {name: torch.randn_like(t) for name, t in Net().state_dict().items()}


def called(*pairs: tuple[str, str], prefix: str = "") -> dict[str, torch.Tensor]:
    """The base with other names."""
    found = {}
    for name, tensor in HELD.items():
        for old, new in pairs:
            name = name.replace(old, new)
        found[prefix + name] = tensor
    return found


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(SubcompressError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def wrapped() -> nn.Module:
    module = Net()
    module.features = nn.DataParallel(module.features)
    return module


NORMS = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


@pytest.mark.parametrize(
    ("held", "make", "changes"),
    [
        (HELD, Net, ""),
        (called(("features.", "features.module.")), Net, "module>"),
        (called(("enc.", "enc._orig_mod."), ("head.", "head._orig_mod.")), Net, "_orig_mod>"),
        (called(("head.", "head._orig_mod."), prefix="module."), Net, "_orig_mod>"),
        (called(("features.0", "features.0._checkpoint_wrapped_module")), Net, "_checkpoint_wrapped_module>"),
        (called(*NORMS), Net, "LayerNorm.gamma>LayerNorm.weight,LayerNorm.beta>LayerNorm.bias"),
        (HELD, wrapped, "features>features.module"),
        (called(("enc.", "enc._orig_mod.")), wrapped, "features>features.module,enc._orig_mod>enc"),
    ],
)
def test_names_come_together_whatever_wraps_them(held, make, changes):
    module = make()
    standing = attach_base(BaseTensors(held, "base"), module)
    assert str(standing.reference.changes) == changes
    assert (standing.reference.source, standing.reference.where) == ("base", "base")
    assert standing.reference.unused == ()
    state = standing.loaded(module).state_dict()
    assert all(torch.equal(t, HELD[name.replace("features.module.", "features.")]) for name, t in state.items())
    assert bool(standing.base.notes) == bool(changes)


def test_exact_names_win_over_a_prefix_and_over_wrappers():
    prefixed = {name if name.startswith("head") else f"backbone.{name}": t for name, t in HELD.items()}
    standing = attach_base(BaseTensors(prefixed, "base"), Net())
    assert (str(standing.reference.changes), standing.reference.unused) == ("^.backbone>^", ())
    both = HELD | {"head._orig_mod.weight": HELD["head.weight"] + 1, "module.head.bias": HELD["head.bias"] + 1}
    standing = attach_base(BaseTensors(both, "base"), Net())
    assert not standing.reference.changes
    assert torch.equal(standing.tensor("head.weight"), HELD["head.weight"])


def test_a_part_that_only_looks_like_a_wrapper_stays():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.module = Net(), nn.Linear(3, 3)

    held = {n.replace("net.enc", "net.module.enc"): t for n, t in Outer().state_dict().items()}
    standing = attach_base(BaseTensors(held, "base"), Outer())
    assert (str(standing.reference.changes), standing.reference.unused) == ("net.module>net", ())


def test_a_name_that_is_new_and_unused_is_an_error():
    line = refusal(attach_base, BaseTensors(HELD | {"head.weight": HELD["head.weight"].to(torch.int8)}, "base"), Net())
    assert "the base's head.weight and the model's head.weight" in line
    assert "(I8 there, F32 here)" in line
    twice = called(("head.weight", "head.module.weight")) | {"head._orig_mod.weight": HELD["head.weight"]}
    assert "lacks it: head.weight" in refusal(
        attach_base, BaseTensors(twice | {"head.bias": HELD["head.bias"]}, "base"), Net()
    )
    other = {n: t for n, t in HELD.items() if not n.startswith("head")} | {"head.weight": torch.ones(6, 8)}
    assert {"head.weight", "head.bias"}.isdisjoint(
        s.name for s in attach_base(BaseTensors(other, "base"), Net()).layout
    )


@pytest.mark.parametrize("rows", [24, 10])
def test_rows_that_are_there_are_kept_and_the_rest_starts_from_a_seed(rows):
    class Tied(Net):
        def __init__(self, rows):
            super().__init__(rows)
            self.decoder, self.more = nn.Linear(8, rows), nn.Linear(8, rows, bias=False)
            self.decoder.weight = self.embed.weight

    held = {name: torch.randn_like(t) for name, t in Tied(20).state_dict().items()}
    held["decoder.weight"] = held["embed.weight"]
    found = [attach_base(BaseTensors(held, "base"), Tied(rows)) for _ in range(2)]
    assert found[0].base.digest == found[1].base.digest
    state = found[0].loaded(Tied(rows)).state_dict()
    for name in ("embed.weight", "decoder.weight", "decoder.bias", "more.weight"):
        kept = min(rows, 20)
        assert torch.equal(state[name][:kept], held[name][:kept])
        assert name == "decoder.bias" or rows == 10 or 0.5 < float(state[name][20:].std() / held[name].std()) < 2
    assert len(found[0].base.notes) == 4
    told = "rows 20 to 23 start from a seed" if rows == 24 else "the last 10 are left out"
    assert all(told in line for line in found[0].base.notes)


def _packed(base, model, path: Path) -> Path:
    space = subcompress.Subspace.of(model, 8, base=base)
    with torch.no_grad():
        space.z.copy_(torch.linspace(-1, 1, 8))
    space.round(4)
    subcompress.pack(space, path)
    return path


@pytest.mark.parametrize(
    ("held", "rows"),
    [(called(("enc.", "enc._orig_mod."), *NORMS), 20), (HELD, 24), (called(("enc.", "enc.module.")), 7)],
)
def test_a_file_on_a_changed_base_needs_the_base_alone(held, rows, tmp_path):
    raw = tmp_path / "base.safetensors"
    safetensors.torch.save_file({n: t.clone() for n, t in held.items()}, raw)
    file = _packed(raw, Net(rows), tmp_path / "net.safetensors")
    truth = subcompress.load(file, Net(rows), base=raw).state_dict()
    assert torch.equal(truth["features.0.weight"], HELD["features.0.weight"])
    assert not torch.equal(truth["features.0.bias"], HELD["features.0.bias"])
    second = oracle.decode(file.read_bytes(), TABLES, of_bytes(held)).tensors
    assert {n: (s, bytes(raw)) for n, (_, s, raw) in second.items()} == {
        n: (tuple(t.shape), bytes(raw_bytes(t))) for n, t in truth.items()
    }
    told = subcompress.info(file)["base"]
    assert told["id"] == "base.safetensors"
    assert split_changes(f"x#{told['changes']}")[1]
    assert subcompress.verify(file, base=held).ok
    subcompress.unpack(file, tmp_path / "dense.safetensors", base=raw)
    dense = safetensors.torch.load_file(tmp_path / "dense.safetensors")
    variants = Variants(Net(rows), raw)
    variants.add("a", file)
    variants.add("b", file)
    used = variants.use("b").state_dict()
    assert all(torch.equal(t, dense[name]) and torch.equal(t, used[name]) for name, t in truth.items())
    wrong = {n: t + 1 for n, t in held.items()}
    assert "give the former with --base" in refusal(format.read, file, wrong)
    assert "give the former with --base" in refusal(format.read, file, {"a": torch.ones(2)})


PARTS = st.lists(st.sampled_from(["a", "b", "0", "_x"]), min_size=1, max_size=3).map(".".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(PARTS | PARTS.map("^.{}".format), PARTS | st.just("") | st.just("^")), max_size=3),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1 << 20)), max_size=3),
    st.lists(PARTS, unique=True, max_size=8),
)
def test_changes_are_what_their_text_says(renames, rows, names):
    changes = Changes(tuple(renames), tuple(rows))
    assert split_changes(f"a#b#{changes}" if changes else "a#b") == ("a#b", changes)
    found = changes.names(names)
    assert len(set(found.values())) == len(names)
    assert all(found.values())
    held = {name: ("U8", (), bytes([i])) for i, name in enumerate(sorted(names))}
    arrays = {name: np.array(i, np.uint8) for i, name in enumerate(sorted(names))}
    assert oracle_lists.changed(f"a#b#{changes}", held) == {
        name: ("U8", (), x.tobytes()) for name, x in changes.applied(arrays).items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_what_the_text_of_the_format_says(dtype):
    base = plain_base([("a", dtype, (6, 3)), ("b", dtype, (6,)), ("c", dtype, (0, 3)), ("d", dtype, ())])
    if dtype == "F32":
        base["e"] = torch.full((3, 2), torch.nan)
    arrays = {name: array_of(t) for name, t in base.items()}
    for rows in (0, 4, 9):
        changes = Changes((("b", "z"),), tuple((i, rows) for i in range(len(base))))
        expected = {name: (x.shape, x.tobytes()) for name, x in changes.applied(arrays).items()}
        found = oracle_lists.changed(f"x#{changes}", of_bytes(base))
        assert {name: (shape, raw) for name, (_, shape, raw) in found.items()} == expected


def test_a_name_with_the_mark_in_it_is_a_name():
    for name in ("a#b", "a#", "#1:2", "hub:o/n#x", "a#1:", "a#b,1:2"):
        assert split_changes(name) == (name, Changes())
        assert oracle_lists.changed(name, {"b": ("U8", (1,), b"0")}) == {"b": ("U8", (1,), b"0")}


# --- several files ---


def shards(folder: Path, suffix: str = "safetensors", index: bool = True) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    names, where = sorted(HELD), {}
    for i in range(2):
        file = f"model-{i + 1:05}-of-00002.{suffix}"
        part = {n: HELD[n] for n in names[i::2]}
        where |= dict.fromkeys(part, file)
        if suffix == "safetensors":
            safetensors.torch.save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    if index:
        text = json.dumps({"metadata": {}, "weight_map": where})
        (folder / f"model.{suffix}.index.json").write_text(text)
    return where


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_a_base_in_several_files_is_one(tmp_path, suffix, index):
    digest = BaseTensors(HELD, "x").digest
    shards(tmp_path / "base", suffix, index)
    assert open_base(tmp_path / "base").digest == digest
    assert len(weights_files(tmp_path / "base")) == 2 + index
    if index:
        assert open_base(tmp_path / "base" / f"model.{suffix}.index.json").digest == digest
    else:
        (tmp_path / "base" / f"model-00002-of-00002.{suffix}").unlink()
        assert "no model-00002-of-00002" in refusal(open_base, tmp_path / "base")


def test_indexes_that_are_wrong_are_refused(tmp_path):
    where = shards(tmp_path)
    index, first = tmp_path / "model.safetensors.index.json", sorted(where)[0]
    other = next(file for file in where.values() if file != where[first])

    def said(data: object) -> str:
        index.write_text(data if isinstance(data, str) else json.dumps({"weight_map": data}))
        return refusal(open_base, tmp_path)

    assert f"says that {first} is in {other}, which lacks it" in said(where | {first: other})
    assert "says that more is in" in said(where | {"more": other})
    assert "names model-00003.safetensors, which is not in" in said(where | {first: "model-00003.safetensors"})
    for odd in ("", "[]", "{}", json.dumps({"weight_map": [1]}), json.dumps({"weight_map": {}})):
        assert "has no weight_map" in said(odd)
    for file in ("../x", "/etc/passwd", "", "..", 3, "a\\b"):
        assert "in the same folder" in said(where | {first: file})
    (tmp_path / other).unlink()
    assert f"names {other}, which is not in" in said(where)
    for i in range(2):
        (tmp_path / f"{i}.index.json").write_text("{}")
    index.unlink()
    assert "has several (0.index.json, 1.index.json)" in refusal(open_base, tmp_path)


# --- what was saved around the tensors ---


@pytest.mark.parametrize(
    "saved",
    [
        {"net": HELD, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3},
        {"checkpoint": {"params": HELD, "step": torch.tensor(3)}},
        {"ema": HELD, "rng_state": torch.zeros(8, dtype=torch.uint8), "step": torch.tensor(1)},
        {"model": HELD, "ema": {n: t + 1 for n, t in HELD.items()}},
        {"module": HELD},
        HELD | {"more": {"x": torch.ones(3)}},
    ],
)
def test_the_one_mapping_that_holds_tensors_is_found(saved):
    assert open_base(saved).digest == BaseTensors(HELD, "x").digest


def test_several_mappings_that_hold_tensors_are_named():
    assert "holds several state dicts, net, inner.ema, and a base is one: save one" in refusal(
        open_base, {"net": HELD, "inner": {"ema": HELD}}
    )


def test_the_real_reason_is_told_in_a_line(tmp_path):
    for i, (odd, words) in enumerate(((argparse.Namespace(lr=1), "argparse.Namespace"), (np.float64(1), "scalar"))):
        torch.save({"state_dict": HELD, "args": odd}, path := tmp_path / f"{i}.pt")
        line = refusal(open_base, path)
        assert f"{words}, which is not a tensor: save the state dict alone" in line
        assert "weights_only=True" in line
    for odd, words in (
        (torch.zeros(4, 8).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.zeros(4, 8).to_sparse(), "sparse_coo"),
        (np.zeros((4, 8), np.float32), "a NumPy ndarray"),
    ):
        line = refusal(attach_base, open_base(HELD | {"head.weight": odd}), Net())
        assert f"a state dict is {words}; a base may hold" in line
        assert words in refusal(open_base, {"head.weight": odd})
    safetensors.torch.save_file(HELD | {"head.weight": HELD["head.weight"].to(torch.float8_e5m2)}, tmp_path / "a")
    assert "is F8_E5M2; a base may hold" in refusal(attach_base, open_base(tmp_path / "a"), Net())
    assert "head.weight" not in attach_base(open_base(tmp_path / "a"), Net(), ("head.*",))
