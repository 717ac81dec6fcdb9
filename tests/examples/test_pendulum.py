"""The inverted pendulum of examples/inverted_pendulum.py: its evolution and its file, and where MuJoCo is, the pole."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from places import EXAMPLES

from subcompress import format
from subcompress.rebuild.expand import expand, expand_checked

PATH = EXAMPLES / "inverted_pendulum.py"


def load() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("inverted_pendulum", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["inverted_pendulum"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


pendulum = load()


def test_network_has_the_papers_562_weights():
    assert sum(p.numel() for p in pendulum.network().parameters()) == 562


@pytest.mark.parametrize("d", [1, 2, 4, 8])
def test_evolution_finds_the_minimum_of_a_quadratic(d):
    target, stretch = np.linspace(-1, 2, d), 4.0 ** np.arange(d) / 4.0 ** (d / 2)

    def loss(z):
        return float((stretch * (z - target) ** 2).sum())

    evolution = pendulum.evolve(loss, np.zeros(d), 1.0, 10, np.random.default_rng(0))
    found = [next(evolution) for _ in range(50 + 30 * d)][-1]
    assert found.lowest < 1e-6
    np.testing.assert_allclose(found.mean, target, atol=1e-2)


def test_evolution_repeats_itself():
    def means():
        evolution = pendulum.evolve(lambda z: float(z @ z), np.ones(4), 1.0, 8, np.random.default_rng(3))
        return [next(evolution).mean for _ in range(5)]

    np.testing.assert_array_equal(means(), means())


@pytest.mark.parametrize("d", [1, 4, 8])
def test_file_holds_the_policy_that_was_tried(tmp_path, d):
    space = pendulum.Space.of(d, 7)
    z = np.linspace(-3, 3, d) if d > 1 else np.array([2.5])
    record = space.record(z, 8)
    size = format.save(record, tmp_path / "net.safetensors")
    assert size < 180
    read, _ = format.read(tmp_path / "net.safetensors")
    rebuilt = expand_checked(read)
    assert {k: tuple(v.shape) for k, v in rebuilt.items()} == {
        k: tuple(v.shape) for k, v in pendulum.network().state_dict().items()
    }
    A = read.groups[0].operator.A
    rounded = space.state(read.groups[0].coordinates / A)
    for name, tensor in rebuilt.items():
        assert torch.equal(tensor, expand(read, "numpy")[name])
        torch.testing.assert_close(tensor, rounded[name], rtol=2**-7, atol=1e-6)  # scales are rounded to bfloat16


def test_without_gymnasium_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(PATH), run_name="__main__")
    assert "pip install '.[rl]'" in str(e.value)
    assert "\n" not in str(e.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_four_coordinates_balance_the_pole(tmp_path):
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    environment = pendulum.Pendulum()
    record = pendulum.search(pendulum.Space.of(4, 0), environment, 4, 0, 150)
    format.save(record, tmp_path / "net.safetensors")
    rebuilt = expand_checked(format.read(tmp_path / "net.safetensors")[0])
    assert environment.rewards(rebuilt, pendulum.TESTING, 20).mean() >= pendulum.SOLVED
