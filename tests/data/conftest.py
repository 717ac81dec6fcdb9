"""A transformer that is tiny, and texts for it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from places import EXAMPLES

from subcompress.data import pretrained, texts
from subcompress.data.splits import Data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of a tiny BERT without weights, and reviews."""
    pytest.importorskip("transformers")
    folder, texts = runpy.run_path(str(EXAMPLES / "tiny_bert.py"))["make"](tmp_path_factory.mktemp("tiny"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    return folder, texts


@pytest.fixture(scope="module")
def data(tiny) -> Data:
    return texts.load(tiny[1], pretrained.load_tokenizer(tiny[0]))
