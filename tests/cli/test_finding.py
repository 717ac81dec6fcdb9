"""The network of a packed file: one way to find it, for all commands that trace a graph."""

from __future__ import annotations

import pytest
import safetensors.torch
from commands import cli
from records import lenet_on, lenet_record, mixed_record
from torch import nn

from subcompress import SubcompressError, format
from subcompress.api.formats import FORMATS, Format
from subcompress_cli.finding import network_for, network_if_known, networks_of
from subcompress_models import MODELS, LeNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """known.safetensors, of LeNet; other.safetensors, of no network of ours."""
    folder = tmp_path_factory.mktemp("files")
    format.save(lenet_record(), folder / "known.safetensors")
    format.save(mixed_record(), folder / "other.safetensors")
    return folder


def test_a_known_layout_needs_no_name(folder):
    assert isinstance(network_for(folder / "known.safetensors", None).module, LeNet)
    assert isinstance(network_if_known(folder / "known.safetensors", None).module, LeNet)
    assert network_if_known(folder / "other.safetensors", None) is None
    with pytest.raises(
        SubcompressError, match=r"other.safetensors does not show which network it is: give it with --model"
    ):
        network_for(folder / "other.safetensors", None)


def test_a_name_must_fit(folder):
    with pytest.raises(SubcompressError, match=r"the file holds conv1.weight .*, which the network mlp lacks"):
        network_for(folder / "known.safetensors", "mlp")


def test_a_network_is_built_once_for_files_of_one_layout(folder):
    built = {}
    first = network_for(folder / "known.safetensors", "lenet", None, built)
    assert network_for(folder / "known.safetensors", None, None, built) is first


def first_of(layout, models):
    return next(networks_of(layout, models, "a.safetensors"))


def test_of_several_names_the_first_that_fits(capsys):
    layout = lenet_record().layout
    network = first_of(layout, ["mlp", "lenet"])
    assert network.name == "lenet" and isinstance(network.module, LeNet)
    assert first_of(layout, ["mlp"]).name == "lenet"
    assert first_of(layout, ["misspelled"]).name == "lenet"
    assert "--model is not needed for a.safetensors, and cannot be used" in capsys.readouterr().err
    with pytest.raises(SubcompressError, match="got 'misspelled'"):
        first_of(mixed_record().layout, ["misspelled"])


def test_unpack_finds_it_too(folder, tmp_path, monkeypatch):
    given = []

    def write(record, wanted, path):
        given.append(wanted.module)
        return {}

    monkeypatch.setitem(FORMATS, "onnx", Format("onnx", ".onnx", write, default=True))
    result = cli("unpack", folder / "known.safetensors", "-o", tmp_path / "net.onnx")
    assert result.exit_code == 0, result.output
    assert isinstance(given[0], LeNet)
    result = cli("unpack", folder / "other.safetensors", "-o", tmp_path / "other.onnx")
    assert result.exit_code == 1
    assert "does not show which network it is" in result.stderr


def test_on_a_base_the_order_of_the_base_does(tmp_path):
    """Its layout has the order of the base's file, not that of the table."""
    base = {name: t.clone() for name, t in reversed(MODELS["lenet"]().state_dict().items())}
    safetensors.torch.save_file(base, tmp_path / "base.safetensors")
    format.save(lenet_on(base), tmp_path / "delta.safetensors")
    found = network_for(tmp_path / "delta.safetensors", None, str(tmp_path / "base.safetensors"))
    assert isinstance(found.module, nn.Module)
