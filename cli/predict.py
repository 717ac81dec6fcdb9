"""subcompress predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from subcompress.errors import SubcompressError
from subcompress.remote.references import HF
from subcompress_cli.help import FIT, Command, option
from subcompress_cli.options import INPUT, base_option, device_option, json_option, model_option, print_json, say
from subcompress_cli.streams import answer

if TYPE_CHECKING:
    import subcompress
    from subcompress.onnx.network import Network
    from subcompress_cli.finding import Place


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@option(
    "--input",
    "given",
    metavar="X",
    help="The input: a text; a .csv, .tsv or .jsonl file with a column text; an image or a folder of images; or a "
    ".npy array.",
    group=FIT,
)
@option(
    "--generate",
    "prompt",
    metavar="PROMPT",
    help="Let the language model of FILE continue PROMPT, with the most likely token at each step.",
    group=FIT,
)
@option(
    "--chat", is_flag=True, help="Treat PROMPT as a user's message and apply the tokenizer's chat template.", group=FIT
)
@option(
    "--max-new-tokens",
    type=int,
    default=64,
    show_default=True,
    metavar="N",
    help="The most tokens that --generate adds.",
    group=FIT,
)
@model_option("The network of FILE. Needed only if neither its tensors nor its base show which network it is.")
@base_option()
@device_option("The device to compute on.")
@json_option
def predict(
    file: Path,
    given: str | None,
    prompt: str | None,
    chat: bool,
    max_new_tokens: int,
    model_name: str | None,
    base: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Run the network of FILE on an input: print a label and its probability, a label for each token, or generated
    text.

    Inputs are prepared as FILE says, and with the tokenizer or image processor of --model hf:DIR_OR_ID or of the base.
    """
    import subcompress

    if (given is None) == (prompt is None):
        raise SubcompressError("predict needs either --input X or --generate PROMPT: give one of them")
    from subcompress_cli.finding import network_for

    network = network_for(file, model_name, base)
    if model_name is None:
        say(f"the network is {network.name}")
    module, place = network.module, _tokenizer_place(network, file, base)
    if prompt is not None:
        tokenizer = _tokenizer(place, f"--generate {prompt!r}")
        options: dict[str, Any] = {"base": base, "max_new_tokens": max_new_tokens, "chat": chat, "device": device}
        (text,) = subcompress.generate(file, prompt, module, tokenizer, **options)
        print_json({"prompt": prompt, "text": text}) if as_json else answer(text)
        return
    assert given is not None
    found = subcompress.predict(file, given, module, base=base, device=device, **_helpers(given, file, place))
    if as_json:
        print_json([p.to_json() for p in found])
        return
    for p in found:
        answer(_line(p, alone=len(found) == 1))


def _line(p: subcompress.Prediction, alone: bool) -> str:
    """What is said of one input; alone: its name needs no saying."""
    if p.tokens:
        said = " ".join(f"{token.strip()}/{label}" for token, label, _ in p.tokens)
    elif p.label is None:
        said = " ".join(f"{v:.6g}" for v in p.values)
    else:
        said = f"{p.label} {p.probability:.4f}"
    name = " ".join(p.input.split())
    return said if alone else f"{name[:60]}{'...' if len(name) > 60 else ''}: {said}"


def _tokenizer_place(network: Network, file: Path, base: str | None) -> Place | None:
    """The place of the tokenizer: that of a network of transformers, else that of the base."""
    from subcompress_cli import texts
    from subcompress_cli.finding import place_of_base

    return texts.place_of(network.name) if network.name.startswith(HF) else place_of_base(file, base)


def _tokenizer(place: Place | None, what: str) -> Any:
    """Raises SubcompressError without a place, and for one without a tokenizer."""
    from subcompress.data import pretrained

    if place is None:
        raise SubcompressError(
            f"{what} needs a tokenizer, and the file names none: give --model hf:DIR_OR_ID, or --base with the "
            "folder of its base"
        )
    return pretrained.load_tokenizer(place[0], revision=place[1])


def _helpers(given: str, file: Path, place: Place | None) -> dict[str, Any]:
    """The tokenizer for texts, or the image processor for images that the file does not prepare."""
    from subcompress import format
    from subcompress.api.predict import IMAGES
    from subcompress.data import pretrained

    path = Path(given)
    kind = path.suffix.lower()
    if kind == ".npy":
        return {}
    if kind in IMAGES or (len(given) < 1024 and path.is_dir()):
        if format.contents(file).facts.mean or place is None:
            return {}
        return {"processor": pretrained.load_processor(place[0], revision=place[1])}
    return {"tokenizer": _tokenizer(place, "a text")}
