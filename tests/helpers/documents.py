"""The code blocks of the documents, and what the tests change in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from places import ROOT

PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "plots" not in p.parts)

DOCUMENTS = ("README.md", *(p.relative_to(ROOT).as_posix() for p in PAGES), "examples/web/README.md")

TOUR, PYTHON_TOUR = "docs/guides/command-line.md", "docs/guides/python.md"
"""What shows every command, and what shows the Python interface."""

NOT_RUN = {
    "make demo": "test_cli.py looks at the Makefile; the demo has a test of its own",
    "make test": "this is it",
    "export PIP_EXTRA_INDEX_URL=": "installs from the network",
    "pip install '.[transformers]'": "installs from the network",
    "pip install '.[peft]'": "installs from the network",
    'eval "$(_SUBCOMPRESS_COMPLETE=': "is for the start of a shell; test_help.py completes",
    "torchrun ": "starts workers, on several machines too; test_shards.py starts some, and reads these lines",
    "docker run": "takes an image of some gigabytes",
    "docker build": "takes a daemon; deploy/prove_dockerfile.sh runs its steps without one",
    "pip install subcompress": "installs from the network; deploy/prove_install.sh does, without one",
    "kubectl ": "takes a cluster; test_manifests.py checks and builds what it applies",
    "make dist": "is for a release; test_shipping.py runs what it runs",
    "make release-check": "is for a release, and downloads from PyPI",
    "make audit": "asks PyPI",
    "make image-check": "takes root, and Debian's archive",
    'curl -H "Host: $SERVICE_HOSTNAME"': "takes a cluster with KServe",
}
"""Beginnings of the lines that no test runs, and why."""

ELSEWHERE = {"ORG/NAME": "test_hub.py, against a stand-in of the Hub"}
"""What is in the lines that another file runs, and which."""

CHEAPER = (
    (r"--epochs \d+", "--epochs 1"),
    (r"--seeds \d+", "--seeds 1"),
    (r"--min-accuracy \S+", "--min-accuracy 0.01"),
    (r"--d 50,150,450 --repeats 2", "--d 20,60 --repeats 1"),
    (r"--peers \S+", "--peers dense"),
    (r"epochs=20", "epochs=1"),
    (r" --jobs 2", ""),  # processes that have to import torch: tests/search/test_workers.py starts one
    (r"range\(200\)", "range(4)"),
    (r"step == 100", "step == 2"),
)
"""What the default run of the tests replaces, beside the data, of which it takes a part, and graphs, which it traces
once for equal weights (`cheap` in test_documents.py). The slow tests do not."""

TINY = ((r"\bDIR\b", "bert"), (r"(--d |d=)2000", r"\g<1>100"))
"""What both replace where a network of transformers is trained: theirs is tiny."""

UNTRACED = (
    (r"^(subcompress push .*)", r"\1 --onnx none"),
    (r"about=about\)", 'about=about, onnx="none")'),
    (r"push_to_hub\((\S+), model_card", r'push_to_hub(\1, onnx="none", model_card'),
)
"""What the default run replaces in docs/HUB.md: the push of the README traces the graph of the same network."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, empty for commands; its text; the document it is in."""

    language: str
    text: str
    document: str

    @property
    def lines(self) -> list[str]:
        """Without empty ones."""
        return [line for line in self.text.splitlines() if line.strip()]


def blocks(document: str, language: str | None = None) -> list[Block]:
    """Those of a document, of one language where it is given."""
    text = (ROOT / document).read_text("utf-8")
    text = re.sub(r'^--8<-- "(.+)"$', lambda found: (ROOT / found[1]).read_text("utf-8").rstrip(), text, flags=re.M)
    found = [Block(kind, body, document) for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)]
    return [block for block in found if language is None or block.language == language]


def lines(document: str) -> list[str]:
    """The commands of a document that are to be run here, in their order."""
    found = [line for block in blocks(document, "") for line in block.lines]
    return [line for line in found if not line.startswith(tuple(NOT_RUN)) and not any(e in line for e in ELSEWHERE)]


def python(document: str) -> str:
    """The Python of a document, all of it."""
    return "\n".join(block.text for block in blocks(document, "python"))


def changed(text: str, *tables: tuple[tuple[str, str], ...]) -> str:
    """The text with the replacements of these tables."""
    for table in tables:
        for pattern, new in table:
            text = re.sub(pattern, new, text)
    return text
