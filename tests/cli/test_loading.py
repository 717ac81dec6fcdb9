"""The user's own code on the command line: what it may be, and one line for whatever it gets wrong."""

from __future__ import annotations

import json
import re

import pytest
from commands import cli

from subcompress_cli.loading import data_of, model_of

GOOD = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

def splits():
    x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return tuple(TensorDataset(x[i : i + 32], y[i : i + 32]) for i in (0, 32, 64))

def loss(module, batch):
    return nn.functional.cross_entropy(module(batch[0]), batch[1])

def error(outputs, y):
    return (outputs.argmax(1) != y).float().mean()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path


def options(model="mine.py:net", data="mine.py:splits", **more):
    given = {"model": model, "data": data, "d": 20, "epochs": 8, "batch-size": 8, "threads": 1, "output": "run", **more}
    return [part for key, value in given.items() for part in (f"--{key}", value)]


def mistake(*args) -> str:
    result = cli("fit", *args)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert result.stderr.strip().endswith(lines[0])
    return lines[0]


def test_their_model_data_loss_and_metric(folder):
    more = {"loss": "mine.py:loss", "metric": "mine.py:error", "epochs": 10, "d": 40}
    result = cli("fit", *options(**more), "--minimize", "--json", "-v")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["metric"] == "error"
    assert 0 <= found["test"] < 0.6
    assert "accuracy" not in json.dumps(found["validation"])
    assert "0.weight F32 [8, 4]: random" in result.stderr
    assert cli("pack", "run", "-o", "net.safetensors").exit_code == 0
    assert cli("unpack", "net.safetensors", "--model", "mine.py:net", "-o", "net.onnx").exit_code == 0
    assert cli("verify", "net.safetensors", "--model", "mine.py:net", "--data", "mine.py:splits").exit_code == 0


def test_a_package_module_may_be_named(folder):
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "nets.py").write_text(GOOD)
    assert cli("fit", *options("package.nets:net", "package.nets:splits")).exit_code == 0


def test_a_reference_operator_fits_and_says_that_it_cannot_be_packed(folder):
    result = cli("fit", *options(operator="dense"))
    assert result.exit_code == 0, result.output
    assert "cannot be packed" in result.stdout
    result = cli("pack", "run", "-o", "net.safetensors")
    assert result.exit_code == 1
    assert "nothing to pack" in result.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def net(): return 1 / 0", r"raised ZeroDivisionError: division by zero \(bad.py:1 in net\)"),
        ("def a(): raise KeyError('x')\ndef net(): a()", r"KeyError: 'x' \(bad.py:2 in net -> bad.py:1 in a\)"),
        ("def net(): pass", "a model factory must return an nn.Module; bad.py:net returned NoneType"),
        ("def net(width): pass", "a factory must need no arguments; bad.py:net needs width"),
        ("net = 3", "bad.py:net is int"),
        ("def other(): pass", "bad.py has no net; it defines other"),
        ("def net(:", r"raised SyntaxError: .*bad.py:1"),
        ("import nonsense_that_is_not_there", "ModuleNotFoundError: No module named 'nonsense_that_is_not_there'"),
        ("from torch import nn\ndef net(): return nn.ReLU()", "no weights to train"),
    ],
)  # fmt: skip
def test_model_factories(folder, code, words):
    import re

    (folder / "bad.py").write_text(code)
    assert re.search(words, line := mistake(*options("bad.py:net"))), line
    assert not (folder / "run").exists()


DATA = """
import torch
from torch.utils.data import TensorDataset, Dataset, IterableDataset
x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
good = TensorDataset(x, y)
class Raises(Dataset):
    def __len__(self): return 64
    def __getitem__(self, i):
        if i == 40: raise OSError("disk is gone")
        return x[i], y[i]
class Nan(Raises):
    def __getitem__(self, i): return x[i] * (float("nan") if i == 40 else 1), y[i]
class Ragged(Raises):
    def __getitem__(self, i): return torch.zeros(4 + i % 2), y[i]
class Stream(IterableDataset):
    def __iter__(self): return iter(())
class Single(Raises):
    def __getitem__(self, i): return x[i]
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(): return good, good", "returned tuple of 2: return three datasets"),
        ("def f(): return 7", "returned int"),
        ("def f(): return TensorDataset(x[:0], y[:0]), good, good", "the train split is empty"),
        ("def f(): return good, TensorDataset(x[:0], y[:0]), good", "the validation split is empty"),
        ("def f(): return good, good, TensorDataset(x, y + 5)", "labels must be between 0 and 2.* the test split has"),
        ("def f(): return TensorDataset(x, y - 1), good, good", "the train split has -1"),
        ("def f(): return TensorDataset(x / 0, y), good, good", "example 0 of the train split holds nan or inf"),
        ("def f(): return Nan(), good, good", "an example holds nan or inf"),
        ("def f(): return Raises(), good, good", "OSError: disk is gone"),
        ("def f(): return Ragged(), good, good", "stack expects each tensor to be equal size"),
        ("def f(): return Stream(), good, good", "map-style torch Dataset"),
        ("def f(): return Single(), good, good", "pairs .x, y.; the train split yields Tensor"),
        ("def f(): return [1, 2], good, good", "pairs .x, y.; the train split yields int"),
        ("def f(): return TensorDataset(x[:, :2], y), good, good", "does not pass through the model"),
        ("def f(): open('/nowhere/at/all')", r"FileNotFoundError: .*\(bad.py:\d+ in f\)"),
    ],
)
def test_data_factories(folder, code, words):
    import re

    (folder / "bad.py").write_text(DATA + code)
    assert re.search(words, line := mistake(*options(data="bad.py:f"))), line


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(m, b): return (m(b[0]) * float('nan')).sum()", "before training; f gave nan"),
        ("def f(m, b): return m(b[0])", r"a loss must be a real scalar tensor; f gave a \(\d, 3\) tensor"),
        ("def f(m, b): return 3.0", "f gave a float"),
        ("def f(m, b): return m(b[0]).sum().detach()", "the loss f does not depend on the weights"),
        ("def f(m): return 3.0", "takes others"),
        ("def f(m, b): return m(b[0]).sum() + nothing", "raises NameError in .* mode: name 'nothing' is not defined"),
        ("f = 3", "bad.py:f is int"),
    ],
)  # fmt: skip
def test_losses(folder, code, words):
    import re

    (folder / "bad.py").write_text(code)
    assert re.search(words, line := mistake(*options(loss="bad.py:f"))), line


def test_a_metric_that_is_no_number(folder):
    (folder / "bad.py").write_text("def f(outputs, y): return float('nan')")
    assert "the metric f gives nan on the validation split" in mistake(*options(metric="bad.py:f"))


def test_a_model_that_raises_only_while_it_is_trained(folder):
    (folder / "bad.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))"
    )
    line = mistake(*options("bad.py:net", **{"batch-size": 1}))
    assert "raises ValueError in training mode: Expected more than 1 value per channel" in line


def test_memory_that_runs_out_says_what_would_fit(folder):
    (folder / "big.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Big(nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.l = nn.Linear(4, 3)\n"
        "    def forward(self, x):\n        torch.empty(len(x) ** 8 * 10**9); return self.l(x)\n"
        "def net(): return Big()\n"
    )
    line = mistake(*options("big.py:net", d=10))
    assert "memory ran out with --batch-size 8" in line
    assert "--batch-size 4 takes about half" in line


def test_options_that_do_not_go_together(folder):
    assert "does not use --data-dir" in mistake(*options(), "--data-dir", "x")
    assert "got --d and --target" in mistake(*options(), "--target", "0.5")
    assert "--model: no such file: " in mistake(*options("nowhere.py:net"))
    assert "cannot be imported: No module named 'nowhere'" in mistake(*options("nowhere.mod:net"))
    assert "file.py:name or package.module:name" in mistake(*options("mine.py:"))


def test_what_their_code_draws_depends_on_the_seed(folder):
    """Unseeded splits and starts are the same when the command is given again, so that it goes on."""
    code = (
        "import random, numpy as np, torch\nfrom torch import nn\n"
        "from torch.utils.data import TensorDataset, random_split\n"
        "x, y = torch.tensor(np.random.randn(64, 4)).float(), torch.randint(0, 3, (64,))\n"
        "def load(): return random_split(TensorDataset(x, y), [32, 16, 16])\n"
        "def net(): return nn.Sequential(nn.Linear(4, random.randint(5, 50)), nn.ReLU(), nn.LazyLinear(3))\n"
    )
    found = []
    for name in ("a", "b"):
        (folder / f"{name}.py").write_text(code)
        data, net = data_of(f"{name}.py:load"), model_of(f"{name}.py:net", 5)
        found.append((data.train.indices, data.train[3][0].tolist(), net[0].out_features))
    assert found[0] == found[1]
    assert model_of("a.py:net", 6)[0].weight.sum() != model_of("a.py:net", 5)[0].weight.sum()


def test_a_factory_that_exits_is_one_line(folder):
    (folder / "bad.py").write_text("import sys\ndef net(): sys.exit(3)")
    assert "raised SystemExit: 3" in mistake(*options("bad.py:net"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "lenett"}, r"^error: --model takes one of [^\n]*; got 'lenett': did you mean lenet or lenet5\?$"),
        ({"data": "digit"}, r"^error: --data takes one of [^\n]*; got 'digit': did you mean digits\?$"),
    ],
)
def test_names_that_are_none(folder, given, words):
    assert re.match(words, mistake(*options(**given)))
