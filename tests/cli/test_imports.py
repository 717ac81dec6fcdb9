"""What commands and modules import: reading and rebuilding need no torch."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from click.testing import CliRunner
from golden_files import BASES, TRUTH
from places import GOLDEN

import subcompress
import subcompress_cli
from subcompress import hub
from subcompress.support import names

HEAVY = ("torch", "onnx", "onnxruntime", "huggingface_hub", "transformers", "matplotlib", "subcompress.training.loop")
"""What reading and rebuilding do without."""


def without(code: str, *arguments: object) -> str:
    """What code prints in a fresh interpreter, after which none of HEAVY is imported."""
    code += f"\nimport sys\nassert not (held := [m for m in {HEAVY!r} if m in sys.modules]), held\n"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- without torch ---

REBUILD = """
import hashlib, json, sys
from pathlib import Path
import subcompress
import subcompress_cli
from subcompress import SubcompressError, format, info
from subcompress.format import codec
from subcompress.operators import kernels
from subcompress.rebuild import arrays
folder, bases, native = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True"
if not native:
    kernels.library = codec.library = lambda: None
for name, truth in json.loads((folder / "golden.json").read_text("utf-8")).items():
    file, base = folder / f"{name}.safetensors", bases / f"{name}.safetensors"
    assert info(file)["file_bytes"] == file.stat().st_size
    record, _ = format.read(file, base if base.exists() else None)
    state = arrays.rebuild(record)
    found = {key: hashlib.sha256(a.tobytes()).hexdigest() for key, a in state.items()}
    assert found == truth["tensors"], name
    assert arrays.rebuild(record, arrays.changed_names(record)[:2])
    print(name, sum(a.nbytes for a in state.values()) == record.layout.nbytes)
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """The golden files' bases, as files."""
    folder = tmp_path_factory.mktemp("bases")
    for name, base in BASES.items():
        safetensors.torch.save_file(base, folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("native", [True, False])
def test_every_golden_file_is_read_and_rebuilt_without_torch(bases, native):
    assert without(REBUILD, GOLDEN, bases, native) == "".join(f"{name} True\n" for name in TRUTH)


def test_what_is_imported_is_what_is_used():
    assert without("import subcompress; print(subcompress.__version__)") == f"{subcompress.__version__}\n"
    without("import subcompress.hub.fetching, subcompress.hub.publishing")
    without("import subcompress.rebuild.streaming, subcompress.rebuild.backends")
    assert without("import subcompress\ntry: subcompress.nothing\nexcept AttributeError as e: print(e)") == (
        "module 'subcompress' has no attribute 'nothing'\n"
    )


HELPED = """
import sys
from subcompress_cli import main
for arguments in ARGUMENTS:
    try:
        main(arguments)
    except SystemExit as e:
        assert not e.code, arguments
"""


def test_help_and_dense_weights_need_no_torch(tmp_path):
    """`--help` of every command, and `unpack` to safetensors."""
    wanted = [["--help"], *([name, "--help"] for name in subcompress_cli.COMMANDS if name != "doctor")]
    wanted.append(["unpack", str(GOLDEN / "lenet.safetensors"), "-o", str(tmp_path / "dense.safetensors")])
    without(HELPED.replace("ARGUMENTS", repr(wanted)))
    assert len(safetensors.torch.load_file(tmp_path / "dense.safetensors")) == 10


def test_completion_needs_no_torch():
    words = "import os\nos.environ |= {'_SUBCOMPRESS_COMPLETE': 'bash_complete', 'COMP_WORDS': 'subcompress fit --op', "
    words += "'COMP_CWORD': '2'}\nfrom subcompress_cli import main\ntry: main(prog_name='subcompress')\n"
    assert "--operator" in without(words + "except SystemExit: pass")


def test_names_are_those_of_the_registries():
    from subcompress import data, operators, peers
    from subcompress.api.formats import FORMATS
    from subcompress.data.texts import SUFFIXES
    from subcompress.subspace import roles
    from subcompress.training import optimizers as optimisers
    from subcompress.training import tasks
    from subcompress_models import MODELS

    places = [data.DATA, data.AUGMENTS, tasks.LOSSES, tasks.METRICS, optimisers.OPTIMIZERS, peers.PEERS, MODELS]
    listed = ["DATA", "AUGMENTS", "LOSSES", "METRICS", "OPTIMIZERS", "PEERS", "MODELS", "OPERATORS", "EXACT"]
    for name, place in zip(listed, [*places, operators.OPERATORS, operators.EXACT], strict=True):
        assert getattr(names, name) == tuple(place)
    assert ("all", *roles.MOVES) == names.ROLES
    assert tuple(FORMATS) == names.FORMATS
    assert tuple(name for name, found in FORMATS.items() if not found.suffix) == names.FOLDERS
    assert names.TEXTS == SUFFIXES


@pytest.mark.parametrize("package", [subcompress, hub], ids=lambda package: package.__name__)
def test_lazy_names_are_those_that_are_listed(package):
    tree = ast.parse(inspect.getsource(package))
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "subcompress.support"
    ]
    typed = {alias.name: node.module for node in imports for alias in node.names if alias.name != "TYPE_CHECKING"}
    assert sorted(typed) == sorted(package.__all__)
    for name, module in typed.items():
        assert name in dir(package)
        assert getattr(package, name) is getattr(sys.modules[module], name)


# --- the command line ---

COMMAND = """
import sys, subcompress_cli
sys.argv = ["subcompress", *sys.argv[1:]]
try:
    subcompress_cli.main()
except SystemExit as e:
    assert not e.code, e.code
"""


def test_a_command_imports_what_it_needs():
    assert without(COMMAND, "--version") == f"subcompress, version {subcompress.__version__}\n"
    assert json.loads(without(COMMAND, "info", GOLDEN / "lenet.safetensors", "--json"))["D"] == 44_426
    without(COMMAND, "pull", "--help")


def test_every_command_is_listed():
    names = subcompress_cli.COMMANDS
    files = [p.stem for p in Path(subcompress_cli.__file__).parent.glob("*.py") if "@click.command" in p.read_text()]
    assert sorted(names) == sorted(files)
    shown = CliRunner().invoke(subcompress_cli.main, ["--help"]).stdout
    for name in names:
        assert re.search(rf"^  {name} +\S", shown, re.MULTILINE), name
    assert "No such command 'nothing'" in CliRunner().invoke(subcompress_cli.main, ["nothing"]).stderr
