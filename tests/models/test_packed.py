"""The files in models/packed/: what the format has promised, they hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from places import PACKED

import subcompress
from subcompress import SubcompressError, format
from subcompress.format import tables
from subcompress_models import MODELS

TABLES = json.loads((Path(format.__file__).parent / "tables.json").read_text())
ON_BASE = sorted((PACKED / "on-base").glob("*.safetensors"))
CARDS = sorted(PACKED.glob("*.json"))


@pytest.fixture(params=CARDS, ids=lambda path: path.stem)
def card(request):
    return json.loads(request.param.read_text())


def test_there_are_some_and_each_has_a_card():
    assert {path.stem for path in CARDS} == {path.stem for path in PACKED.glob("*.safetensors")}
    assert len(CARDS) >= 2


def test_it_is_what_its_card_says(card):
    path = PACKED / card["file"]
    found = subcompress.info(path)
    assert path.stat().st_size == card["bytes"] == found["file_bytes"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    assert found["digest"] == card["digest"]
    assert (found["d"], found["D"], found["bits"]) == (card["d"], card["D"], card["bits"])
    assert found["layout"] == card["model"]
    assert found["test_accuracy"] == pytest.approx(card["test"], abs=6e-4)  # in ONNX Runtime there, in torch here


def test_every_backend_and_the_second_decoder_rebuild_it(card):
    path = PACKED / card["file"]
    verified = subcompress.verify(path)
    assert verified.ok
    assert verified.digest == card["digest"]
    second = oracle.decode(path.read_bytes(), TABLES)
    module = subcompress.load(path, MODELS[card["model"]]())
    for name, tensor in module.state_dict().items():
        assert second.tensors[name][2] == tensor.numpy().tobytes(), name


def test_its_network_gives_what_it_gave(card):
    """Outputs on a fixed input, to the precision that sums in another order leave."""
    shape = format.read(PACKED / card["file"])[0].facts.input_shape
    module = subcompress.load(PACKED / card["file"], MODELS[card["model"]]())
    x = torch.linspace(-1, 2, int(np.prod(shape))).reshape(1, *shape)
    with torch.no_grad():
        found = module(x)[0]
    assert torch.allclose(found, torch.tensor(card["outputs"]), rtol=1e-3, atol=1e-3)


def test_its_layout_is_in_the_table(card):
    record, ledger = format.read(PACKED / card["file"])
    assert tables.name_of(record.layout) == card["model"]
    assert ledger["layout"] == 1


@pytest.mark.parametrize("path", ON_BASE, ids=lambda path: path.stem)
def test_what_stands_on_a_base_says_so(path):
    """Bases are not here: a file names its own, and says all else without it."""
    found = subcompress.info(path)
    assert found["file_bytes"] == path.stat().st_size <= 1061
    assert found["base"]["id"] and len(found["base"]["digest"]) == 32
    assert found["d"] < found["D"] < found["dense_bytes"] // 4
    with pytest.raises(SubcompressError, match=found["base"]["digest"]):
        subcompress.load(path, torch.nn.Linear(2, 2), base={"weight": torch.zeros(2, 2)})
