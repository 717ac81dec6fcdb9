"""predict and generate: what the network of a file says of texts, images and arrays, and how it goes on with a text."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress import format
from subcompress.api.preparing import LENGTH, class_names, mode_of, normalized, opened, pixels_of, takes_images
from subcompress.data.in_memory import to_device
from subcompress.data.language import beginning, chat_text, tokens_of
from subcompress.data.ragged import IDS, Ragged
from subcompress.data.rows import KINDS, fields_of
from subcompress.data.splits import call, without_graph
from subcompress.data.targets import the_outputs
from subcompress.data.texts import MAX_BYTES, pad_of
from subcompress.errors import SubcompressError, explaining, one_line
from subcompress.format.facts import Facts
from subcompress.support.devices import AUTO, choose_device
from subcompress.tensors.layout import DTYPES

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
"""The endings of the names of images."""

BATCH = 32
"""Examples that are computed at a time."""

VALUES = 1 << 28
"""The most numbers in an array that is read."""


@dataclass(frozen=True)
class Prediction:
    """The network's answer for one input.

    Attributes:
        input: The text, the name of the image, or the number of the row.
        label: The class with the largest output; None for values.
        probability: Its probability, by softmax.
        values: The outputs themselves, if they are not scores of classes.
        tokens: For a network that classifies tokens: (token, label, probability) for each token of the text.
    """

    input: str
    label: str | None = None
    probability: float | None = None
    values: tuple[float, ...] = ()
    tokens: tuple[tuple[str, str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set as JSON values."""
        found = {k: v for k, v in asdict(self).items() if v not in (None, ())}
        if self.tokens:
            found["tokens"] = [{"token": t, "label": label, "probability": p} for t, label, p in self.tokens]
        return found


def predict(
    path: str | Path,
    inputs: Any,
    module: nn.Module,
    *,
    base: Any = None,
    tokenizer: Any = None,
    processor: Any = None,
    labels: Sequence[str] | None = None,
    device: str = AUTO,
) -> list[Prediction]:
    """Run the network of a file on inputs and return for each a class with its probability, token classes, or values.

    Inputs are prepared as the facts of the file say. A transformers model needs the tokenizer of its base for texts. It
    needs the image processor of its base for images, if the file does not say how they are prepared.

    Args:
        path: A packed file.
        inputs: A text or a list of texts; the path of a .csv, .tsv or .jsonl file with a column text (and perhaps
            text_pair), of an image, of a folder of images, or of a .npy array; or an array or a tensor, with a batch
            axis, prepared as the network takes it.
        module: The network of the file, into which its weights are loaded.
        base: The base that the file was fine-tuned from, if it has one; see `load`.
        tokenizer: A tokenizer of transformers.
        processor: An image processor of transformers.
        labels: Names of the classes. By default those in the file, otherwise those in the configuration of a
            transformers model, otherwise numbers.
        device: The device to compute on: auto, cpu or cuda. auto chooses CUDA if it works.

    Returns:
        A prediction for each input.

    Raises:
        SubcompressError: The file is damaged, an input cannot be read or prepared, or the network does not take it.
    """
    from subcompress.api.unpack import load

    facts = format.contents(path).facts
    prepared = prepared_inputs(inputs, facts, tokenizer, processor, _context(module))
    module = load(path, module, base=base)
    place = torch.device(choose_device(device).name)
    module.to(place)
    found: list[Prediction] = []
    for names, x in prepared:
        outputs = _outputs(module, to_device(x, place))
        if outputs.ndim == 3 and tokenizer is not None and isinstance(x, dict) and _classifies_tokens(module, outputs):
            classes = _class_names(module, facts, labels, outputs[:, 0])
            found += [_of_tokens(*row, tokenizer, classes) for row in zip(names, outputs, _tokens(x), strict=True)]
            continue
        _require_one_answer(outputs)
        classes = _class_names(module, facts, labels, outputs)
        found += [_prediction(name, row, classes) for name, row in zip(names, outputs, strict=True)]
    return found


def generate(
    path: str | Path,
    prompts: str | Sequence[str],
    module: nn.Module,
    tokenizer: Any,
    *,
    base: Any = None,
    max_new_tokens: int = 64,
    chat: bool = False,
    device: str = AUTO,
) -> list[str]:
    """Let the language model of a file continue texts, with the most likely token at each step.

    Args:
        path: A packed file.
        prompts: A text, or several.
        module: The network of the file: a transformers model with a method `generate`. The weights are loaded into it.
        tokenizer: The tokenizer of the model.
        base: The base that the file was fine-tuned from, if it has one; see `load`.
        max_new_tokens: The most tokens to add. The text ends earlier if the model ends it.
        chat: Whether to write each prompt as a user's message in the tokenizer's chat template.
        device: As for `predict`.

    Returns:
        What was added to each prompt, as text.

    Raises:
        SubcompressError: The file is damaged, the network generates nothing, or a prompt is too long.
    """
    from subcompress.api.unpack import load

    if not callable(getattr(module, "generate", None)):
        raise SubcompressError(
            f"{type(module).__name__} cannot generate text, only a transformers language model can: give --model "
            "hf:DIR,task=causal-lm"
        )
    if max_new_tokens < 1:
        raise SubcompressError(f"--max-new-tokens must be at least 1; got {max_new_tokens}")
    context = _context(module)
    given = [_prompt(tokenizer, text, chat) for text in ([prompts] if isinstance(prompts, str) else prompts)]
    for ids in given:
        if context is not None and len(ids) + max_new_tokens > context:
            raise SubcompressError(
                f"the prompt has {len(ids)} tokens, and --max-new-tokens asks for {max_new_tokens} more, but "
                f"the network takes {context}: shorten the prompt, or ask for fewer"
            )
    module = load(path, module, base=base)
    place = torch.device(choose_device(device).name)
    module.to(place)
    return [_continued(module, tokenizer, ids, max_new_tokens, place) for ids in given]


def _prompt(tokenizer: Any, text: str, chat: bool) -> list[int]:
    """The tokens of a prompt. Raises SubcompressError for an empty one."""
    if chat:
        ids = tokens_of(tokenizer, chat_text(tokenizer, [{"role": "user", "content": text}], "the prompt", prompt=True))
    else:
        ids = [*beginning(tokenizer), *tokens_of(tokenizer, text)]
    if not ids:
        raise SubcompressError("the prompt is empty: write some words")
    return ids


def _continued(module: Any, tokenizer: Any, ids: list[int], most: int, place: torch.device) -> str:
    """The text that the network adds."""
    x = torch.tensor([ids], device=place)
    config = getattr(module, "generation_config", None)
    if config is not None and config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    with torch.no_grad(), _refusing("the network"):
        found = module.generate(
            input_ids=x,
            attention_mask=torch.ones_like(x),
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=pad_of(tokenizer),
        )
        return str(tokenizer.decode(found[0, len(ids) :].tolist(), skip_special_tokens=True)).strip()


def _refusing(what: str) -> AbstractContextManager[None]:
    """Turn what the network, or what prepares its inputs, raises into one line."""
    return explaining(lambda e: f"{what} does not take this input: {type(e).__name__}: {one_line(e, 160)}")


def _context(module: nn.Module) -> int | None:
    """Tokens that a network of transformers takes at most."""
    config = getattr(module, "config", None)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 1 else None


def _outputs(module: nn.Module, x: Any) -> Tensor:
    """The outputs for a batch, on the CPU."""
    with _refusing("the network"):
        return the_outputs(without_graph(lambda: call(module, x)), "predict").float().cpu()


def _require_one_answer(outputs: Tensor) -> None:
    """Raise SubcompressError for outputs other than (n,) and (n, values)."""
    if outputs.ndim > 2:
        raise SubcompressError(
            f"predict needs outputs of shape (N, C); the network gives {tuple(outputs.shape)}: for "
            "a language model give --generate PROMPT, for others load the file in Python"
        )


def _classifies_tokens(module: nn.Module, outputs: Tensor) -> bool:
    """Whether outputs (n, tokens, C) are of the classes that a network of transformers names, not of its words."""
    return outputs.shape[2] == len(getattr(getattr(module, "config", None), "id2label", None) or {})


def _tokens(x: dict[str, Tensor]) -> Iterator[list[int]]:
    """The tokens of each text, without those that fill up a batch."""
    for ids, mask in zip(x[IDS], x["attention_mask"], strict=True):
        yield ids[mask.bool()].tolist()


def _of_tokens(name: str, row: Tensor, ids: list[int], tokenizer: Any, classes: Sequence[str] | None) -> Prediction:
    """A class for each token of a text, except special tokens."""
    special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    found = []
    for i, p in enumerate(row[: len(ids)].double().softmax(1)):
        if not special[i]:
            best = int(p.argmax())
            found.append((str(tokenizer.decode([ids[i]])), classes[best] if classes else str(best), float(p[best])))
    return Prediction(name, tokens=tuple(found))


def _class_names(
    module: nn.Module, facts: Facts, labels: Sequence[str] | None, outputs: Tensor
) -> Sequence[str] | None:
    """A name for each class; None if the outputs are values. Raises SubcompressError for another number of names."""
    by_number = getattr(getattr(module, "config", None), "id2label", None) or {}
    return class_names(outputs.shape[1] if outputs.ndim == 2 else 1, by_number, facts, labels)


def _prediction(name: str, row: Tensor, names: Sequence[str] | None) -> Prediction:
    if names is None:
        return Prediction(name, values=tuple(row.reshape(-1).tolist()))
    p = row.double().softmax(0)
    best = int(p.argmax())
    return Prediction(name, names[best], float(p[best]))


Batch = tuple[list[str], "Tensor | dict[str, Tensor]"]


def prepared_inputs(
    inputs: Any, facts: Facts, tokenizer: Any = None, processor: Any = None, context: int | None = None
) -> list[Batch]:
    """Inputs in batches, each with a name for every input. Raises SubcompressError for what cannot be prepared."""
    if isinstance(inputs, (np.ndarray, Tensor)):
        return _of_array(torch.as_tensor(inputs), facts, "the array")
    if isinstance(inputs, (str, Path)):
        path = Path(inputs)
        kind = path.suffix.lower()
        if kind == ".npy":
            return _of_array(_array(path), facts, str(path))
        if kind in IMAGES or _is_folder(path):
            return _of_images(_images_in(path), facts, processor)
        if kind in KINDS:
            return _of_texts(list(_texts_in(path)), tokenizer, context)
        inputs = [str(inputs)]
    return _of_texts([(text, None) for text in inputs], tokenizer, context)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a text that is too long for a name
        return False


def _texts_in(path: Path) -> Iterator[tuple[str, str | None]]:
    """Texts of a file and the second one of each, where it has some. Raises SubcompressError."""
    try:
        rows = list(fields_of(path, MAX_BYTES))
    except csv.Error as e:
        raise SubcompressError(f"{path} cannot be read: {one_line(e)}") from e
    for line, row in rows:
        if not isinstance(row.get("text"), str):
            raise SubcompressError(
                f"{path}, line {line}: the texts must be in a column text; the file has {', '.join(row)[:200]}"
            )
        yield row["text"], row.get("text_pair")


def _of_texts(texts: Sequence[tuple[str, str | None]], tokenizer: Any, context: int | None) -> list[Batch]:
    """Raises SubcompressError without a tokenizer, and for one that does not take the texts."""
    if tokenizer is None:
        raise SubcompressError(
            "a text needs a tokenizer, and the file has none: give the folder of its base with --base, or "
            "--model hf:DIR_OR_ID"
        )
    length = min(int(getattr(tokenizer, "model_max_length", LENGTH)), context or LENGTH)
    found: list[Batch] = []
    for at in range(0, len(texts), BATCH):
        part = texts[at : at + BATCH]
        pairs = [pair or "" for _, pair in part] if any(pair is not None for _, pair in part) else None
        with _refusing("the tokenizer"):
            given = tokenizer([text for text, _ in part], pairs, truncation=True, max_length=length, verbose=False)
        x = {name: [torch.tensor(v) for v in values] for name, values in given.items()}
        batch, _ = Ragged(x, torch.zeros(len(part)), {IDS: pad_of(tokenizer)})[torch.arange(len(part))]
        if not bool(batch.get("token_type_ids", torch.zeros(1)).any()):
            batch.pop("token_type_ids", None)
        found.append(([text for text, _ in part], batch))
    return found


def _images_in(path: Path) -> list[Path]:
    """The image, or the images of a folder by name. Raises SubcompressError if there is none."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
    if not found:
        raise SubcompressError(f"{path} holds no images ({', '.join(IMAGES[:3])} ...): check the folder")
    return found


def _of_images(paths: Sequence[Path], facts: Facts, processor: Any) -> list[Batch]:
    """Raises SubcompressError if neither the file nor a processor says how an image is prepared."""
    known = takes_images(facts)
    if not known and processor is None:
        raise SubcompressError(
            "neither the file nor the image processor of its base says how to prepare an image: give the "
            "folder of its base with --base, or --model hf:DIR_OR_ID, or the prepared numbers as .npy"
        )
    found: list[Batch] = []
    for at in range(0, len(paths), BATCH):
        part = paths[at : at + BATCH]
        names = [str(p) if len(paths) == 1 else p.name for p in part]
        if known:
            images = [pixels_of(opened(p, mode_of(facts), str(p)), facts) for p in part]
            found.append((names, torch.from_numpy(np.stack(images))))
            continue
        with _refusing("the image processor"):
            x = processor(images=[opened(p, "RGB", str(p)) for p in part], return_tensors="pt")
        found.append((names, {k: v for k, v in x.items() if isinstance(v, Tensor)}))
    return found


def _array(path: Path) -> Tensor:
    """Read the array in a file. Raises SubcompressError if there is none or if it is too large."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if mapped.size > VALUES:
            raise SubcompressError(f"an array may have at most {VALUES} numbers; {path} has {mapped.size}: cut it")
        return torch.from_numpy(np.array(mapped))
    except SubcompressError:
        raise
    except Exception as e:
        raise SubcompressError(f"{path} cannot be read as an array of numbers: {one_line(e)}; check the path") from e


def _of_array(x: Tensor, facts: Facts, name: str) -> list[Batch]:
    """An array with a batch axis, or of one example. Raises SubcompressError for another shape than the network's."""
    shape = tuple(facts.input_shape)
    if shape and tuple(x.shape) == shape:
        x = x[None]
    if not x.ndim or not len(x) or (shape and tuple(x.shape[1:]) != shape):
        raise SubcompressError(
            f"an input must have the shape {shape or '(N, ...)'}, possibly with a batch axis before it; {name} "
            f"has {tuple(x.shape)}"
        )
    if x.dtype == torch.uint8 and facts.mean and x.ndim == 4:
        x = torch.from_numpy(normalized(x.numpy(), facts))
    wanted = _dtype_of(facts)
    names = [str(i) for i in range(len(x))]
    return [(names[at : at + BATCH], x[at : at + BATCH].to(wanted)) for at in range(0, len(x), BATCH)]


def _dtype_of(facts: Facts) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, DTYPES.get(facts.input_dtype or "F32", np.dtype(np.float32)))).dtype


__all__ = ["Prediction", "generate", "predict", "prepared_inputs"]
