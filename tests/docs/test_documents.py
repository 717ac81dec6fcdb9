"""Every code block of the documents is run, or listed in documents.py with the reason why it is not."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_llama
import torch
import yaml
from commands import cli
from documents import (
    CHEAPER,
    DOCUMENTS,
    ELSEWHERE,
    NOT_RUN,
    PYTHON_TOUR,
    TINY,
    TOUR,
    blocks,
    changed,
    lines,
    python,
)
from places import ROOT
from serving import serving, traced_here

from subcompress import Data
from subcompress.data import DATA, Split, digits, mnist
from subcompress.subspace import measuring
from subcompress_cli import main
from subcompress_models import MODELS

SOURCES = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")} - {"runs", "build"}
"""Folders of this repository that a command of the documents must not write into."""

REQUESTS = ("curl ", "python3 ")
"""What follows `subcompress serve`, from another terminal."""


@pytest.fixture
def cheap(monkeypatch):
    """A sixth of the digits, and a measurement of few steps before each fit."""
    whole = digits.load()
    parts = [Split(split.x[::6], split.y[::6]) for split in (whole.train, whole.validation, whole.test)]
    monkeypatch.setitem(DATA, "digits", lambda folder=None: Data(*parts, whole.facts))
    monkeypatch.setattr(measuring, "STEPS", 4)
    monkeypatch.setattr(measuring, "LEAST", 4)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Where the commands run: beside `examples`, with a folder of images in MNIST's form."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setattr(mnist, "VALIDATION", 40)
    (tmp_path / "mnist").mkdir()
    for stem, n in (("train", 200), ("t10k", 50)):
        for name, values in (("images-idx3", torch.arange(n * 784).view(n, 28, 28)), ("labels-idx1", torch.arange(n))):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            data = bytes((0, 0, 8, values.ndim)) + sizes + (values % 10).to(torch.uint8).numpy().tobytes()
            (tmp_path / "mnist" / f"{stem}-{name}-ubyte").write_bytes(data)
    return tmp_path


def run(commands: Iterable[str], cheap: bool = False) -> None:
    """cheap: trainings are too short to learn anything, which `fit` says by its exit status, and keeps the file. From
    the stand-in for MNIST there is nothing to learn."""
    for command in dict.fromkeys(commands):
        name, *arguments = shlex.split(command)
        assert name == "subcompress", command
        result = cli(*arguments)
        learns = not (cheap or "mnist" in command) or name_of(command) != "fit"
        kept = not learns and "is kept: subcompress pack" in result.stderr
        assert result.exit_code == 0 or kept, (command, result.output)


def name_of(command: str) -> str:
    return shlex.split(command)[1]


def execute(code: str, name: str) -> None:
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


def commands_of_the_tour(table: tuple[tuple[str, str], ...]) -> list[str]:
    """All but the server and the requests to it."""
    found = [changed(line, table, ((r"\bDIR\b", "mnist"),)) for d in ("README.md", TOUR) for line in lines(d)]
    return [line for line in found if not line.startswith((*REQUESTS, "subcompress serve"))]


@contextmanager
def a_server_here(command: list[str]) -> Iterator[str]:
    """The address of what `subcompress serve` would serve, in this process."""
    context = main.get_command(None, command[0]).make_context(command[0], command[1:])
    sources, bases = context.params["sources"], context.params["bases"]
    with serving(*sources, trace=traced_here(MODELS["lenet"]()), bases=bases) as client:
        yield f"{client.host}:{client.port}"


@contextmanager
def a_server(command: list[str]) -> Iterator[str]:
    """The address of a server in a process of its own."""
    whole = [sys.executable, "-m", "subcompress", *command, "--port", "0"]
    with subprocess.Popen(whole, stdout=subprocess.PIPE, text=True) as process:
        try:
            address, _, rest = process.stdout.readline().removeprefix("http://").partition(": ")
            assert rest == "2 models\n"
            yield address
        finally:
            process.terminate()
        assert process.wait(60) == 0


def ask(server) -> None:
    """Send the requests of the tour to the server that it starts."""
    found = lines(TOUR)
    (command,) = [line for line in found if line.startswith("subcompress serve")]
    asking = [line for line in found if line.startswith(REQUESTS)]
    assert len(asking) == 3
    with server(shlex.split(command)[1:]) as address:
        for line in asking if shutil.which("curl") else asking[1:2]:
            line = line.replace("127.0.0.1:8000", address).replace("python3", shlex.quote(sys.executable))
            done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=True)
        assert not shutil.which("curl") or len(json.loads(done.stdout)["outputs"][0]["data"]) == 10


def test_every_block_is_run_or_listed():
    """And every entry of the lists is in use."""
    seen = set()
    for document in DOCUMENTS:
        for block in blocks(document):
            assert block.language in ("", "text", "python", "yaml"), (document, block.language)
            for line in block.lines if block.language == "" else ():
                known = [e for e in NOT_RUN if line.startswith(e)] + [e for e in ELSEWHERE if e in line]
                seen.update(known)
                assert known or line.startswith(("subcompress ", *REQUESTS)), (document, line)
    assert seen == {*NOT_RUN, *ELSEWHERE}
    run_here = {"README.md", "docs/ONNX.md", "docs/SERVING.md", "docs/TRANSFORMERS.md", "examples/web/README.md"}
    run_here |= {TOUR, PYTHON_TOUR, "docs/guides/own-model.md", "docs/guides/many-machines.md", "docs/guides/peft.md"}
    run_here |= {"docs/guides/language-models.md", "docs/guides/deploy.md"}
    assert {d for d in DOCUMENTS if lines(d) or python(d)} == run_here | {"docs/HUB.md"}


def test_the_tour_and_what_builds_on_it(place, cheap):
    commands = commands_of_the_tour(CHEAPER)
    jobs = [changed(line, CHEAPER) for line in lines("docs/guides/many-machines.md")]
    run([*commands, *jobs, *lines("docs/SERVING.md"), *lines("docs/guides/deploy.md")], cheap=True)
    ask(a_server_here)
    execute(python("docs/ONNX.md"), "ONNX.md")
    made = {p.name for p in place.iterdir()} - {"mnist"}
    assert made & SOURCES == {"examples"}, "a command writes into a folder of this repository"
    assert {line.split()[1] for line in commands} == set(main.list_commands(None)) - {"push", "pull", "serve"}


@pytest.mark.slow
def test_the_tour_unchanged(place):
    run(commands_of_the_tour(()))
    ask(a_server)
    execute(python("README.md"), "README.md")
    execute(python(PYTHON_TOUR), "python.md")
    assert (place / "net.safetensors").stat().st_size < 500
    assert (place / "mine.safetensors").stat().st_size < 500


def test_python_of_the_readme_and_its_tour(place, cheap):
    execute(changed(python("README.md"), CHEAPER), "README.md")
    shutil.rmtree(place / "run")
    execute(changed(python(PYTHON_TOUR), CHEAPER), "python.md")
    execute(python("docs/guides/own-model.md"), "own-model.md")
    assert (place / "net.safetensors").stat().st_size < 500
    assert (place / "mine.safetensors").stat().st_size < 500


@pytest.mark.slow
def test_transformers(tmp_path, monkeypatch, cheap):
    pytest.importorskip("transformers")
    from subcompress.data.pretrained import load_model

    monkeypatch.chdir(tmp_path)
    folder, _ = runpy.run_path(str(ROOT / "examples" / "tiny_bert.py"))["make"](tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    torch.manual_seed(0)
    load_model(folder, labels=2).save_pretrained(folder)
    run((changed(line, TINY, CHEAPER) for line in lines("docs/TRANSFORMERS.md")), cheap=True)
    execute(changed(python("docs/TRANSFORMERS.md"), TINY, CHEAPER), "TRANSFORMERS.md")


@pytest.mark.slow
def test_language_models(tmp_path, monkeypatch, cheap):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    tiny_llama.make(tmp_path / "llama")
    tiny_llama.questions(tmp_path / "questions.jsonl")
    table = ((r"\bDIR\b", "llama"), (r"(--d |d=)2000", r"\g<1>50"))
    run((changed(line, table, CHEAPER) for line in lines("docs/guides/language-models.md")), cheap=True)
    execute(changed(python("docs/guides/language-models.md"), table, CHEAPER), "language-models.md")


@pytest.mark.slow
def test_the_graph_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    run(lines("examples/web/README.md"))
    assert (tmp_path / "examples" / "web" / "digit.onnx").stat().st_size < 8_000


def test_manifests_can_be_read():
    read = [yaml.safe_load(block.text) for document in DOCUMENTS for block in blocks(document, "yaml")]
    found = [each for each in read if each["kind"] == "InferenceService"]
    (job,) = [each for each in read if each["kind"] == "RayJob"]
    assert job["spec"]["entrypoint"].startswith("subcompress fit ")
    assert len(found) == 2
    (container,) = found[1]["spec"]["predictor"]["containers"]
    command, *arguments = container["args"]
    assert main.get_command(None, command).make_context(command, arguments).params["port"] == 8080


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    for document in DOCUMENTS:
        for target in re.findall(r"(?:^|`)make ([\w-]+)", (ROOT / document).read_text("utf-8"), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document):
    text = (ROOT / document).read_text("utf-8")
    assert not re.findall(r"@[A-Z]+@", text)
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / document).parent.joinpath(link).exists(), link
    for path in re.findall(r"`((?:benchmarks|tests|docs|examples)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
