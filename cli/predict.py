"""subcompress predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from subcompress.errors import SubcompressError
from subcompress_cli.help import FIT, Command, option
from subcompress_cli.options import INPUT, base_option, device_option, json_option, model_option, print_json, say
from subcompress_cli.streams import answer

if TYPE_CHECKING:
    from torch import nn

    import subcompress


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@option(
    "--input",
    "given",
    metavar="X",
    help="What to look at: a text; a .csv, .tsv or .jsonl file with a column text; an image or a folder of some; or a "
    ".npy array.",
    group=FIT,
)
@option(
    "--generate",
    "prompt",
    metavar="PROMPT",
    help="Let the language model of FILE go on with this text, with the most likely token at each step.",
    group=FIT,
)
@option("--chat", is_flag=True, help="Give PROMPT as a message, as the tokenizer's chat template writes it.", group=FIT)
@option(
    "--max-new-tokens",
    type=int,
    default=64,
    show_default=True,
    metavar="N",
    help="Tokens that --generate adds at most.",
    group=FIT,
)
@model_option("The network of FILE, if it is none of the named ones and none of the base's.")
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
    """Say what the network of FILE makes of an input: a label and its probability, a label for each token, or generated
    text.

    Inputs are prepared as FILE says, and by the tokenizer or image processor of --model hf:DIR_OR_ID or of the base.
    """
    import subcompress

    if (given is None) == (prompt is None):
        raise SubcompressError("predict takes one of --input X and --generate PROMPT: give one of them")
    module, place = _network(file, model_name, base)
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


def _network(file: Path, model_name: str | None, base: str | None) -> tuple[nn.Module, tuple[str, str | None] | None]:
    """The network of a file, and the place of its tokenizer where it is one of transformers: of --model, else a named
    one, else what the base's configuration makes. Raises SubcompressError where there is none."""
    from subcompress_cli import texts
    from subcompress_cli.finding import known_name, network_for
    from subcompress_cli.loading import model_of

    if model_name is not None:
        place = texts.place_of(model_name) if model_name.startswith(texts.HF) else _place_of_base(file, base)
        return network_for(file, model_name, base), place
    from subcompress import format
    from subcompress.data import pretrained

    layout = format.read(file, base)[0].layout
    if known_name(layout) is not None:
        return network_for(file, None, base), None
    if (place := _place_of_base(file, base)) is None:
        raise SubcompressError(
            f"{file.name} is of a network that is not known by its tensors, and no base with a config.json is at hand: "
            "give --model, or the folder of its base with --base"
        )
    where, revision = place
    if (task := pretrained.task_of(layout, where, revision=revision)) is None:
        raise SubcompressError(
            f"{file.name} has other tensors than any network of its base {where}: give --model hf:{where},task=..."
        )
    at = f"@{revision}" if revision else ""
    say(f"the network is that of {where}, for {task}")
    return model_of(f"{texts.HF}{where}{at},task={task}", layout=layout), place


def _place_of_base(file: Path, base: str | None) -> tuple[str, str | None] | None:
    """The folder of the base, or its id and commit on the Hub, where there is one with a configuration."""
    from subcompress import format
    from subcompress.remote.references import PREFIX, Reference

    known = format.contents(file).base
    name = base or (known.where if known is not None and known.source.startswith(PREFIX) else None)
    if name is None:
        return None
    if name.startswith(PREFIX):
        found = Reference.of(name)
        return found.id, found.revision
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    return (str(folder), None) if (folder / "config.json").is_file() else None


def _tokenizer(place: tuple[str, str | None] | None, what: str) -> Any:
    """Raises SubcompressError without a place, and for one without a tokenizer."""
    from subcompress.data import pretrained

    if place is None:
        raise SubcompressError(
            f"{what} goes through a tokenizer, and the file names none: give --model hf:DIR_OR_ID, or --base with the "
            "folder of its base"
        )
    return pretrained.load_tokenizer(place[0], revision=place[1])


def _helpers(given: str, file: Path, place: tuple[str, str | None] | None) -> dict[str, Any]:
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
