"""A misspelled name is met with those that may have been meant."""

from __future__ import annotations

import networks
import pytest
from commands import cli

import subcompress
from subcompress import SubcompressError
from subcompress.rebuild.backends import backend_of
from subcompress.support.suggestions import close_matches, suggestion
from subcompress.training.tasks import Task


def test_near_names():
    known = ("lenet", "lenet5", "mlp", "AUROC")
    assert close_matches("lennet", known) == ["lenet", "lenet5"]
    assert close_matches("auroc", known) == ["AUROC"]
    assert suggestion("LENET5", known) == ": did you mean lenet5 or lenet?"
    assert suggestion("vgg", known) == ""
    assert suggestion("x" * 10**6, known) == ""


@pytest.mark.parametrize(
    ("args", "words", "status"),
    [
        (["unpak", "x"], "No such command 'unpak': did you mean unpack", 2),
        (["fit", "--modl", "x"], "--model", 2),
        (["fit", "--model", "lenett", "--data", "digits", "--d", 9, "-o", "r"], "did you mean lenet or lenet5?", 1),
        (["fit", "--model", "lenet", "--data", "digit", "--d", 9, "-o", "r"], "did you mean digits?", 1),
        (["fit", "--model", "networks:mpl", "--data", "digits", "--d", 9, "-o", "r"], "did you mean mlp?", 1),
        (["fit", "--model", "hf:x,labls=3", "--data", "digits", "--d", 9, "-o", "r"], "did you mean labels?", 1),
    ],
)
def test_the_command_line(args, words, status):
    done = cli(*args)
    assert done.exit_code == status
    assert words in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"operator": "hadamrd"}, "did you mean hadamard or haar?"),
        ({"optimiser": "adm"}, "did you mean adam?"),
        ({"precision": "bf61"}, "did you mean bf16?"),
        ({"loss": "cross-entrpy"}, "did you mean cross-entropy?"),
        ({"metric": "acuracy"}, "did you mean accuracy"),
    ],
)
def test_options(options, words, tmp_path):
    case = networks.CASES["mlp"]
    with pytest.raises(SubcompressError) as e:
        subcompress.fit(case.make(), case.data(), tmp_path / "run", **{"d": 9, "epochs": 1, "batch_size": 32} | options)
    assert words in str(e.value)


def test_the_library():
    for call, words in (
        (lambda: subcompress.load_data("digts"), "did you mean digits?"),
        (lambda: subcompress.compare("run", None, None, peers=["dens"]), "did you mean dense"),
        (lambda: backend_of("nunpy"), "did you mean numpy?"),
        (lambda: subcompress.Session("x.onnx", device="cdua"), "did you mean cuda?"),
        (lambda: Task.of("mes"), "did you mean mse?"),
    ):
        with pytest.raises(SubcompressError) as e:
            call()
        assert words in str(e.value)
