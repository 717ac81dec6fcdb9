"""A folder with a packed file and a page for its recipient: what the file is, and the commands that rebuild it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from subcompress.api.formats import check_place
from subcompress.api.formats.base import Format
from subcompress.api.info import info
from subcompress.base import HUB
from subcompress.format.versions import about as versions
from subcompress.remote import CARD, FILE
from subcompress.remote.references import HF
from subcompress.support.files import atomic_folder
from subcompress.training import run

CLONE = "In a clone of the repository of subcompress, with Python 3.11 or newer:"


def write_bundle(data: bytes, source: Path | None, folder: Path) -> None:
    """Write a packed file and its page to a new or empty folder, whole or not at all.

    source: the run folder that the file is of, for what was measured. Raises SubcompressError.
    """
    check_place(Format("bundle", "", lambda *_: {}), folder)
    summary = None if source is None else run.summary(source)
    with atomic_folder(folder) as new:
        (new / FILE).write_bytes(data)
        (new / CARD).write_text("\n".join(page(info(new / FILE), summary)), "utf-8")


def page(about: dict[str, Any], summary: dict[str, Any] | None) -> Iterator[str]:
    """Yield the lines of the page. about: what `info` tells of the file; summary: what its run says of itself."""
    base = about["base"]
    origin = (summary or {}).get("origin", {})
    yield from _front_matter(base)
    yield f"# A network in {about['file_bytes']:,} bytes\n"
    start = "a seed" if base is None else "the weights of a public base"
    yield (
        f"`{FILE}` holds {about['d']:,} small integers. From {start} and these, *subcompress* rebuilds all "
        f"{about['dense_bytes']:,} bytes of weights, the same bits on every machine.\n"
    )
    yield from _base(base)
    yield from _measured(summary)
    yield "## Rebuild it\n"
    yield f"{CLONE}\n"
    yield f"```\n{install(origin)}\n```\n"
    yield "Then, in this folder:\n"
    yield f"```\n{command(base, origin)}\n```\n"
    if _is_transformers(origin):
        yield f"Or ask it without a folder of weights:\n\n```\n{asked(base, origin)}\n```\n"
    yield (
        f"The command checks the weights against the digest in the file, `{about['digest']}`, and writes nothing if "
        f"they differ. {_packed_with()}"
    )
    yield ""


def install(origin: dict[str, Any]) -> str:
    """The command that installs what rebuilds the network."""
    return "pip install '.[transformers]'" if _is_transformers(origin) else "pip install ."


def command(base: dict[str, Any] | None, origin: dict[str, Any]) -> str:
    """The command that rebuilds the network: a folder for one of transformers, else dense weights."""
    words = [f"subcompress unpack {FILE}"]
    if base is not None and not base["id"].startswith(HUB):
        words.append("--base BASE")
    if not _is_transformers(origin):
        return " ".join([*words, "-o dense.safetensors"])
    if base is None:
        words.append(f"--model {_network(origin)}")
    return " ".join([*words, "--format transformers -o unpacked"])


def asked(base: dict[str, Any] | None, origin: dict[str, Any]) -> str:
    """The command that answers for one text."""
    words = [f"subcompress predict {FILE}"]
    if base is None:
        words.append(f"--model {_network(origin)}")
    elif not base["id"].startswith(HUB):
        words.append("--base BASE")
    causal = "task=causal-lm" in str(origin.get("model"))
    return " ".join([*words, '--generate "..."' if causal else '--input "..."'])


def _is_transformers(origin: dict[str, Any]) -> bool:
    return str(origin.get("model") or "").startswith(HF)


def _network(origin: dict[str, Any]) -> str:
    """The --model of a network without a base; a folder of this machine is called DIR."""
    place = str(origin["model"]).partition(",")[0]
    return f"{HF}DIR" if Path(place.removeprefix(HF)).expanduser().exists() else place


def _front_matter(base: dict[str, Any] | None) -> Iterator[str]:
    yield "---\nlibrary_name: subcompress"
    if base is not None and base["id"].startswith(HUB):
        yield f"base_model: {base['id'].removeprefix(HUB)}"
    yield "---\n"


def _base(base: dict[str, Any] | None) -> Iterator[str]:
    """The base, pinned."""
    if base is None:
        return
    yield "## The base\n"
    if base["id"].startswith(HUB):
        where = f"`{base['id'].removeprefix(HUB)}` on the Hugging Face Hub"
        how = "It is fetched when the weights are rebuilt."
    else:
        where, how = (
            f"`{base['id']}`",
            (
                "Its name does not say where it can be found: pass it on with this folder, and give its path as BASE "
                "below."
            ),
        )
    commit = f", commit `{base['revision']}`" if base["revision"] else ""
    yield f"The file was trained on {where}{commit}, whose tensors have the digest `{base['digest']}`. {how}\n"


def _measured(summary: dict[str, Any] | None) -> Iterator[str]:
    """What the run measured."""
    if summary is None or "fit" not in summary:
        return
    fit = summary["fit"]
    yield "## What it reaches\n"
    yield "| split | " + str(fit["metric"]) + " |\n|---|---:|"
    yield f"| validation | {fit['validation']:.4f} |\n| test | {fit['test']:.4f} |\n"


def _packed_with() -> str:
    """Which version packed the file, where it is installed."""
    known = versions()["versions"].get("subcompress")
    return "" if known is None else f"It was packed with subcompress {known}."
