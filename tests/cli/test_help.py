"""Help in groups, choices as choices, completion that answers at once, and pages that cannot fall behind the code."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from commands import cli
from documents import TOUR
from places import ROOT

import subcompress
from subcompress.api.dim import SHUFFLES
from subcompress.api.formats import FORMATS
from subcompress.data import AUGMENTS, DATA
from subcompress.data.pretrained import TASKS
from subcompress.format.record import Factored
from subcompress.hub import GRAPHS
from subcompress.native.compiled import KINDS
from subcompress.operators import EXACT, OPERATORS
from subcompress.peers import PEERS
from subcompress.rebuild.dense import FLOATS
from subcompress.search.executors import EXECUTORS
from subcompress.search.knobs import KNOBS
from subcompress.serving.triton import BACKENDS, MAX_BATCH
from subcompress.subspace.acting import ROLES
from subcompress.subspace.plan import AUTO
from subcompress.subspace.starts import STRUCTURED
from subcompress.support.names import DEFAULT_ROLES as DEFAULT
from subcompress.training.loop import PRECISIONS
from subcompress.training.optimizers import OPTIMIZERS
from subcompress.training.tasks import LOSSES, METRICS
from subcompress_cli import COMMANDS, SECTIONS, choices, main
from subcompress_cli.help import GROUPS, OTHER, Command
from subcompress_models import MODELS

REGISTRIES = {
    "MODELS": MODELS,
    "DATA": DATA,
    "AUGMENTS": AUGMENTS,
    "LOSSES": LOSSES,
    "METRICS": METRICS,
    "EXACT": EXACT,
    "EXECUTORS": EXECUTORS,
    "KNOBS": KNOBS,
    "OPERATORS": OPERATORS,
    "OPTIMIZERS": OPTIMIZERS,
    "PRECISIONS": PRECISIONS,
    "DTYPES": FLOATS,
    "STRUCTURED": STRUCTURED,
    "SHUFFLES": SHUFFLES,
    "ROLES": ROLES,
    "RANKS": [Factored(1, (), sketched).kind for sketched in (False, True)],
    "PEERS": PEERS,
    "GRAPHS": GRAPHS,
    "FORMATS": FORMATS,
    "FOLDERS": [name for name, found in FORMATS.items() if not found.suffix],
    "TRITON_BACKENDS": BACKENDS,
    "VECTORS": KINDS,
    "TASKS": TASKS,
}


def command_of(name: str) -> click.Command:
    return main.get_command(click.Context(main), name)


def test_choices_are_the_registries():
    """The command line names them without importing what they are made of."""
    for name, registry in REGISTRIES.items():
        assert sorted(getattr(choices, name)) == sorted(registry), name
    assert (choices.AUTO, choices.ACT_ON, choices.MAX_BATCH) == (AUTO, DEFAULT, MAX_BATCH)
    known = {name for name in vars(choices) if name.isupper()}
    assert known == {*REGISTRIES, "AUTO", "ACT_ON", "MAX_BATCH"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name):
    command, shown = command_of(name), cli(name, "--help")
    assert shown.exit_code == 0
    assert isinstance(command, Command)
    first = command.help.split("\n\n")[0]
    assert first.endswith(".") and first[0].isupper(), "a full sentence"
    assert f"subcompress {name} " in (ROOT / TOUR).read_text("utf-8") or name == "doctor"
    for option in (p for p in command.params if isinstance(p, click.Option)):
        assert option.group in GROUPS and option.group != OTHER, option.name
        assert re.match(r"[A-Z0]", option.help) and "." in option.help, (option.name, option.help)
        assert f"\n{option.group}:\n" in shown.stdout


def test_commands_by_workflow():
    shown = cli("--help").stdout
    titles = [shown.index(f"\n{title}:\n") for title in SECTIONS]
    assert titles == sorted(titles)
    for name in COMMANDS:
        summary = command_of(name).get_short_help_str(120)
        assert summary.endswith(".") and not summary.endswith("..."), summary


def test_old_spellings_work_and_are_not_shown():
    shown = cli("fit", "--help").stdout
    assert "--optimizer [adam|eigen]" in shown and "--optimiser" not in shown
    needed = ["--model", "lenet", "--data", "digits", "-o", "run"]
    for spelling in ("--optimizer", "--optimiser"):
        context = command_of("fit").make_context("fit", [*needed, spelling, "eigen"])
        assert context.params["optimizer"] == "eigen"
    result = cli("fit", *needed, "--optimizer", "sgd")
    assert result.exit_code == 2 and "'adam', 'eigen'" in result.stderr


def completed(*words: str) -> list[str]:
    found = BashComplete(main, {}, "subcompress", "_X").get_completions(list(words[:-1]), words[-1])
    return [item.value for item in found]


def test_completion():
    assert completed("") == list(COMMANDS)
    assert completed("fit", "--opt") == ["--optimizer"]
    assert completed("fit", "--optimizer", "e") == ["eigen"]
    assert completed("fit", "--model", "le") == ["lenet", "lenet5"]
    assert completed("fit", "--model", "mine.py") == ["mine.py"]


def test_help_and_completion_import_nothing_heavy():
    """They answer in well under half a second: by what they import, not by a clock."""
    code = (
        "import sys, subcompress_cli, click\n"
        "for name in subcompress_cli.COMMANDS:\n"
        "    subcompress_cli.main.get_command(None, name)\n"
        "heavy = {'torch', 'numpy', 'onnx', 'huggingface_hub', 'rich', 'matplotlib', 'starlette'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_reference_of_the_command_line_is_fresh():
    folder = ROOT / "docs" / "reference"
    spec = importlib.util.spec_from_file_location("command_line", folder / "command_line.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (folder / "command-line.md").read_text("utf-8") == module.page(), "python docs/reference/command_line.py"


def test_the_reference_of_python_is_whole():
    text = (ROOT / "docs" / "reference" / "python.md").read_text("utf-8")
    assert sorted(re.findall(r"^::: subcompress\.(\w+)$", text, re.M)) == sorted(subcompress.__all__)


def test_every_measured_table_is_on_a_page():
    pages = "".join(p.read_text("utf-8") for p in (ROOT / "docs" / "results").glob("*.md"))
    files = (path for path in (ROOT / "benchmarks" / "results").iterdir() if path.is_file())
    for path in sorted(files):  # a folder holds the rows of a table
        named = f'--8<-- "benchmarks/results/{path.name}"' if path.suffix == ".md" else f"(plots/{path.name})"
        assert named in pages, path.name


def test_questions_are_about_messages_that_exist():
    """Text of the sources, with the ends of strings that a message is put together of removed."""
    places = [p for folder in ("subcompress", "cli") for p in (ROOT / folder).rglob("*.py")]
    sources = "".join(re.sub(r'"\s*\n\s*f?"', "", p.read_text("utf-8")) for p in places)
    for message in re.findall(r"^### `(.+)`$", (ROOT / "docs" / "faq.md").read_text("utf-8"), re.M):
        assert message in sources, message


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md") if "plots" not in p.parts}
    assert set(re.findall(r": ([\w/-]+\.md)$", text, re.M)) == pages
    assert Path(ROOT / "docs" / "results" / "plots").resolve() == ROOT / "benchmarks" / "results"
