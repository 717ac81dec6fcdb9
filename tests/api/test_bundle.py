"""The page of a folder that is passed on."""

from __future__ import annotations

import pytest
from records import based_record, lenet_record

from subcompress import format
from subcompress.api.bundle import command, install, page, write_bundle
from subcompress.api.info import info

ON_HUB, LOCAL = {"id": "hub:org/net"}, {"id": "net"}


@pytest.mark.parametrize(
    ("base", "model", "words"),
    [
        (ON_HUB, "hf:/home/me/net,labels=2", "--format transformers -o unpacked"),
        (LOCAL, "hf:org/net", "--base BASE --format transformers -o unpacked"),
        (None, "hf:org/net@v1,labels=2", "--model hf:org/net@v1 --format transformers -o unpacked"),
        (None, "hf:.", "--model hf:DIR --format transformers -o unpacked"),
        (ON_HUB, "own.py:net", "-o dense.safetensors"),
        (None, None, "-o dense.safetensors"),
    ],
)
def test_the_command_is_that_of_the_network(base, model, words):
    assert command(base, {"model": model}) == f"subcompress unpack model.safetensors {words}"
    assert ("transformers" in install({"model": model})) == (model or "").startswith("hf:")


def test_the_base_is_pinned(tmp_path):
    record = based_record()
    write_bundle(format.to_bytes(record), None, tmp_path / "bundle")
    text = (tmp_path / "bundle" / "README.md").read_text("utf-8")
    assert text.startswith("---\nlibrary_name: subcompress\nbase_model: org/name\n---\n")
    assert f"`org/name` on the Hugging Face Hub, commit `{record.base.reference.revision}`" in text
    assert record.digest.hex() in text and record.base.reference.digest.hex() in text


def test_what_was_measured_is_said(tmp_path):
    format.save(lenet_record(), tmp_path / "net.safetensors")
    summary = {"fit": {"metric": "accuracy", "validation": 0.5, "test": 0.25}, "origin": {}}
    text = "\n".join(page(info(tmp_path / "net.safetensors"), summary))
    assert "| validation | 0.5000 |\n| test | 0.2500 |" in text
    assert "## The base" not in text
