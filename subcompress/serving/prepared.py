"""Texts and images as inputs: how they become a model's tensors, and its outputs labels and probabilities.

A model takes images if its file says how they are prepared. It takes texts if its inputs are tokens and a tokenizer is
known: that of its base, or of the network that it was traced from. Nothing here imports torch.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from subcompress.api.preparing import LENGTH, TooLargeError, class_names, mode_of, opened, pixels_of, takes_images
from subcompress.errors import SubcompressError, one_line
from subcompress.format.facts import Facts
from subcompress.remote.references import HF, PREFIX, Reference, split_options
from subcompress.serving.engines import Port
from subcompress.serving.networks import Networks, Packed
from subcompress.serving.refusals import RefusedError
from subcompress.serving.tensors import Signature

MOST_PIXELS = 1 << 25
"""The most pixels of an image. They are counted before it is decoded."""

MOST_VALUES = 1 << 24
"""The most values that the texts or images of a request may become. A few bytes can be a large image, and each of many
short texts is padded to the longest one."""

MOST_CHARACTERS = 1 << 20
"""The most characters of a text. The tokenizer reads all of them, even if it keeps only the first tokens."""

FORMATS = ("PNG", "JPEG")

MAX_JSON = 1 << 26
"""The most bytes of a tokenizer or a configuration."""

TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def _bytes_port(name: str, is_file: bool = False) -> Port:
    return Port(name, "BYTES", np.dtype(object), (-1,), "n", is_file=is_file)


LABEL, PROBABILITY = _bytes_port("label"), Port("probability", "FP32", np.dtype(np.float32), (-1,), "n")
TRUNCATED = Port("truncated", "BOOL", np.dtype(np.bool_), (-1,), "n")


@dataclass(frozen=True)
class Ports:
    """A model's own signature, without its engine."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batched: bool


@dataclass(frozen=True)
class Prepared:
    """The signature of a model that takes texts or images: one input, and outputs before the model's own.

    by_number: names of classes in a configuration; length: tokens that the network takes, None for any number.
    """

    name: str
    own: Ports
    facts: Facts
    by_number: dict[Any, Any] = field(default_factory=dict)
    tokenizer: Any = None
    length: int | None = None
    pad: int = 0
    batched = True

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The texts or the images."""
        return (_bytes_port(self.name, is_file=self.tokenizer is None),)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Labels and probabilities if the model has classes, then whether a text was cut, then its own outputs."""
        said = (LABEL, PROBABILITY) if self.has_classes else ()
        return (*said, *((TRUNCATED,) if self.tokenizer is not None else ()), *self.own.outputs)

    @property
    def has_classes(self) -> bool:
        """Whether the first output is a number for each of several classes."""
        shape = self.own.outputs[0].shape
        return len(shape) == 2 and shape[1] != 1 and self.own.outputs[0].datatype in ("FP32", "FP16", "FP64")

    def feeds(self, given: np.ndarray) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Return the model's inputs for texts or images, and outputs that are known already: whether each text was cut.

        Raises RefusedError, 400, for what cannot be prepared.
        """
        if self.tokenizer is None:
            return self._of_images(list(given)), []
        return self._of_texts(list(given))

    def answers(self, known: list[np.ndarray], values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return all outputs. known: from `feeds`; values: the model's own outputs."""
        if not self.has_classes:
            return [*known, *values]
        rows = values[0].astype(np.float64)
        p = np.exp(rows - rows.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        best = p.argmax(1)
        names = class_names(rows.shape[1], self.by_number, self.facts) or ["0"]
        labels = np.array([names[i] for i in best], object)
        return [labels, p[np.arange(len(p)), best].astype(np.float32), *known, *values]

    def _of_images(self, given: Sequence[bytes]) -> dict[str, np.ndarray]:
        _require_few(len(given), math.prod(self.facts.input_shape))
        mode, found = mode_of(self.facts), []
        for i, data in enumerate(given):
            name = "the image" if len(given) == 1 else f"image {i}"
            try:
                image = opened(io.BytesIO(data), mode, name, most=MOST_PIXELS, formats=FORMATS)
            except TooLargeError as e:
                raise RefusedError(400, str(e)) from e
            except SubcompressError as e:
                raise RefusedError(
                    400, f"{name} must be a PNG or a JPEG; the {len(data)} bytes given are neither"
                ) from e
            found.append(pixels_of(image, self.facts))
        port = self.own.inputs[0]
        return {port.name: np.stack(found).astype(port.dtype)}

    def _of_texts(self, given: Sequence[str]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        if any(len(text) > MOST_CHARACTERS for text in given):
            raise RefusedError(400, f"a text may have at most {MOST_CHARACTERS} characters; one has more: cut it")
        _require_few(len(given), len(self.own.inputs))
        found = [self.tokenizer.encode(text) for text in given]
        longest = max(len(tokens.ids) for tokens in found)
        if self.length is not None:
            longest = self.length
        if not longest:
            raise RefusedError(400, "the texts have no tokens: write some words")
        _require_few(len(found), longest * len(self.own.inputs))
        shape = len(found), longest
        feeds = {p.name: np.full(shape, self.pad if p.name == "input_ids" else 0, p.dtype) for p in self.own.inputs}
        for i, tokens in enumerate(found):
            values = zip(TOKENS, (tokens.ids, tokens.attention_mask, tokens.type_ids), strict=True)
            for name, row in values:
                if name in feeds:
                    feeds[name][i, : len(row)] = row
        return feeds, [np.array([bool(tokens.overflowing) for tokens in found])]


def _require_few(examples: int, values: int) -> None:
    """Raise RefusedError, 400, if the examples together have more than MOST_VALUES."""
    if examples * values > MOST_VALUES:
        raise RefusedError(
            400,
            f"a request may have at most {MOST_VALUES} values; {examples} x {values} are more: send fewer at once",
        )


def prepared(file: Packed | None, engine: Signature, networks: Networks) -> Prepared | str:
    """Return how texts or images are prepared for a model, or in a line why they are not.

    It may download the tokenizer of a base on the Hub.
    """
    if file is None:
        return "an .onnx file does not say how texts or images are prepared"
    own = Ports(engine.inputs, engine.outputs, engine.batched)
    if not own.outputs or len(own.outputs[0].shape) > 2:
        return "its first output is neither a class nor a value for each example"
    port = own.inputs[0] if own.inputs else None
    if port is not None and takes_images(file.facts) and len(own.inputs) == 1:
        if not own.batched or tuple(port.shape[1:]) != tuple(file.facts.input_shape):
            return f"an image becomes {list(file.facts.input_shape)}, but the network takes {port}"
        channels, known = file.facts.input_shape[0], {len(file.facts.mean), len(file.facts.std)}
        if channels not in (1, 3) or not known <= {1, channels}:
            return f"its file has a mean for {len(file.facts.mean)} of {channels} channels, and images have 1 or 3"
        return Prepared("image", own, file.facts)
    names = {p.name for p in own.inputs}
    takes_tokens = "input_ids" in names and names <= {*TOKENS} and all(len(p.shape) == 2 for p in own.inputs)
    if not (own.batched and takes_tokens):
        return "its file does not say how texts or images are prepared for it"
    try:
        return _of_texts(file, own, networks)
    except SubcompressError as e:
        return f"its tokenizer is not known: {e}"


def _of_texts(file: Packed, own: Ports, networks: Networks) -> Prepared:
    """Raises SubcompressError if there is no tokenizer."""
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise SubcompressError("texts need the package tokenizers: pip install 'subcompress[serve]'") from e
    place = _place(file, networks)
    text = place.read("tokenizer.json")
    settings, config = place.json("tokenizer_config.json"), place.json("config.json")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as e:  # of Rust, without a class of its own
        raise SubcompressError(f"the tokenizer.json of {place} cannot be read ({one_line(e)})") from e
    limits = [settings.get("model_max_length"), config.get("max_position_embeddings"), config.get("n_positions")]
    known = [n for n in limits if isinstance(n, int) and 1 < n < 1 << 20]
    length = next((p.shape[1] for p in own.inputs if p.shape[1] > 0), None)
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(known, default=LENGTH) if length is None else length)
    pads = (_word(settings.get("pad_token")), _word(settings.get("eos_token")))
    numbers = (tokenizer.token_to_id(word) for word in pads if word)
    pad = next((n for n in numbers if n is not None), 0)
    labels = config.get("id2label")
    by_number = labels if isinstance(labels, dict) else {}
    return Prepared("text", own, file.facts, by_number, tokenizer, length, pad)


def _word(given: Any) -> str:
    """A special token, which a configuration gives as text or as an object with it; empty for anything else."""
    found = given.get("content") if isinstance(given, dict) else given
    return found if isinstance(found, str) else ""


@dataclass(frozen=True)
class _Place:
    """A folder or a repository on the Hub, from which a tokenizer and a configuration are read."""

    where: Path | Reference

    def __str__(self) -> str:
        return str(self.where)

    def read(self, name: str) -> str:
        """Return a file's text. Raises SubcompressError."""
        from subcompress.remote.transport import Hub
        from subcompress.support.files import read_bytes

        path = self.where / name if isinstance(self.where, Path) else Hub().download(self.where, name)
        return read_bytes(path, MAX_JSON).decode("utf-8", "replace")

    def json(self, name: str) -> dict[str, Any]:
        """Return a file's object, an empty one where there is none."""
        with suppress(SubcompressError, ValueError, RecursionError):
            found = json.loads(self.read(name))
            return found if isinstance(found, dict) else {}
        return {}


def _place(file: Packed, networks: Networks) -> _Place:
    """Return where the network of a file came from, otherwise its base. Raises SubcompressError if both are unknown."""
    network = networks.network(file)
    if network.startswith(HF):
        name, _ = split_options(network)
        if (folder := Path(name).expanduser()).is_dir():
            return _Place(folder)
        return _Place(Reference.of(name))
    source = None if file.base is None else networks.bases.of(file.base, file.nbytes)[1]
    if source is not None and not source.startswith(PREFIX):
        path = Path(source)
        return _Place(path if path.is_dir() else path.parent)
    if source is None and file.base is not None and file.base.source.startswith(PREFIX):
        source = file.base.where
    if source is None:
        raise SubcompressError("give the folder of its base with --base, or --model hf:DIR_OR_ID")
    return _Place(Reference.of(source))
