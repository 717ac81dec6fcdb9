"""What the network of a run gets right and wrong: a confusion matrix, and a few examples of each kind.

All of it is of the validation split. The test split is read once, by `fit`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subcompress.api.load import load_record
from subcompress.data import Data
from subcompress.data.in_memory import IGNORED, InMemory, tensors_in
from subcompress.data.ragged import Ragged
from subcompress.data.splits import as_data, batches, size
from subcompress.data.targets import as_classes, counts, prepare_labels
from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts
from subcompress.subspace.copying import copied
from subcompress.subspace.unwrapping import fitting
from subcompress.support.tables import png_address
from subcompress.training import run, schemas
from subcompress.training.tasks import Task

MOST_EXAMPLES = 10_000
"""The most examples that are used, the first ones of the validation split. More take long and change little."""

MOST_CLASSES = 20
"""The most classes in a confusion matrix, which must stay readable."""

SHOWN = 8
"""The number of right answers that are shown, and of wrong ones."""

BATCH = 256

LINE = 160
"""The most characters of a text that are shown."""

SMALL, LARGE = 96, 192
"""Pixels along the longer side of a picture: smaller ones are enlarged to the first, larger ones are reduced."""


@dataclass(frozen=True)
class Example:
    """One answer. truth, answer: names of classes; sure: the probability of the answer; image: the address of a PNG,
    or text: a line; both are empty if neither can be shown."""

    truth: str
    answer: str
    sure: float
    image: str = ""
    text: str = ""


@dataclass(frozen=True)
class Examined:
    """What was found. examples: how many were asked, of `split` in the validation split; classes: their names;
    counts: a row for each true class, a column for each answer; right, wrong: a few examples, none where the inputs
    are neither images nor texts."""

    examples: int
    split: int
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    right: tuple[Example, ...]
    wrong: tuple[Example, ...]

    @property
    def has_matrix(self) -> bool:
        """Whether there are few enough classes for a matrix."""
        return len(self.classes) <= MOST_CLASSES

    @property
    def share(self) -> float:
        """Right answers, of all."""
        return sum(row[i] for i, row in enumerate(self.counts)) / max(1, sum(map(sum, self.counts)))


def examine(
    path: Path,
    model: nn.Module | Callable[[], nn.Module],
    data: Any,
    base: Any = None,
) -> Examined | None:
    """Ask the network of a finished run for the classes of its validation split. None if it tells no classes apart.

    Raises SubcompressError if the network or the data are not at hand, or are not those of the run.
    """
    found = as_data(data() if callable(data) else data)
    held = schemas.command(path / run.COMMAND, run.AGAIN)
    if held is not None:
        found = prepare_labels(found, held["recipe"]["loss"])
        if held["network"]["data"] != found.digest():
            raise SubcompressError("these are not the data of the run: give the data that it was trained on")
    module = _network(path, model, base)
    answers = _answers(module, found)
    return None if answers is None else _examined(found, *answers)


def _network(path: Path, model: nn.Module | Callable[[], nn.Module], base: Any) -> nn.Module:
    """The network with the weights of the run's file. A module that is given stays as it was."""
    record, fit = run.load(path, base), run.fit_of(path)
    if isinstance(model, nn.Module):
        module = copied(model, "cpu")
    else:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(fit.seed)
            module = model()
    return load_record(record, fitting(module, record.layout))


def _answers(module: nn.Module, data: Data) -> tuple[Tensor, Tensor] | None:
    """Outputs (N, C) and labels (N,) of the validation split; None if the network or the data have others."""
    split, task = data.validation, Task.of()
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    asked = torch.arange(min(MOST_EXAMPLES, size(split)))
    step = split.swept(BATCH)[1] if isinstance(split, InMemory) else BATCH
    outputs, labels = [], []
    for batch in batches(split, step, device, asked, seed=0):
        out = task.outputs_for_metric(module, batch)
        y = as_classes(out, batch[1])
        if not (isinstance(out, Tensor) and isinstance(y, Tensor)):
            return None
        if out.ndim != 2 or out.shape[1] < 2 or y.shape != out.shape[:1] or not counts(y):
            return None
        outputs.append(out.detach().float().cpu())
        labels.append(y.cpu())
    found, y = torch.cat(outputs), torch.cat(labels)
    outside = (y != IGNORED) & ((y < 0) | (y >= found.shape[1]))
    return None if bool(outside.any()) else (found, y)


def _examined(data: Data, outputs: Tensor, y: Tensor) -> Examined:
    n, names = outputs.shape[1], data.facts.labels
    classes = names if len(names) == n else tuple(map(str, range(n)))
    said, known = outputs.argmax(1), y != IGNORED
    table = torch.bincount(y[known] * n + said[known], minlength=n * n).view(n, n)
    sure = _probabilities(outputs).amax(1)
    right, wrong = (known & (said == y)).nonzero()[:, 0], (known & (said != y)).nonzero()[:, 0]
    even = torch.linspace(0, len(right) - 1, min(SHOWN, len(right))).long()
    surest = sure[wrong].argsort(descending=True, stable=True)[:SHOWN]

    def shown(rows: Tensor) -> tuple[Example, ...]:
        pictures = _pictures(data, rows)
        return tuple(
            Example(classes[int(y[i])], classes[int(said[i])], float(sure[i]), image, text)
            for i, (image, text) in zip(rows, pictures, strict=False)
        )

    counted = tuple(tuple(row) for row in table.tolist())
    return Examined(len(y), size(data.validation), classes, counted, shown(right[even]), shown(wrong[surest]))


def _probabilities(outputs: Tensor) -> Tensor:
    """The softmax of logits or logarithms; probabilities unchanged."""
    sums = outputs.sum(1)
    given = bool((outputs >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
    return outputs if given else outputs.softmax(1)


def _pictures(data: Data, rows: Tensor) -> list[tuple[str, str]]:
    """For each of those rows of the validation split, the address of an image, or a line of text; none of others."""
    if not len(rows):
        return []
    split = data.validation
    if isinstance(split, Ragged):
        words = split.words
        return [] if words is None else [("", _line(words(split.tokens(int(i))))) for i in rows]
    x, _ = next(batches(split, len(rows), order=rows, seed=0))
    images = _images(x)
    return [] if images is None else [(png_address(_png(pixels(image, data.facts))), "") for image in images]


def _images(x: Any) -> Tensor | None:
    """(N, C, H, W) of one or three channels, where that is the one input."""
    found = list(tensors_in(x))
    if len(found) != 1 or found[0].ndim != 4:
        return None
    images = found[0] if found[0].shape[1] in (1, 3) else found[0].movedim(3, 1)
    return images if images.shape[1] in (1, 3) and min(images.shape[2:]) >= 4 else None


def pixels(image: Tensor, facts: Facts) -> Tensor:
    """(C, H, W) of a network's input -> uint8 to look at: as the facts say, else by the range of its values."""
    image = image.detach().float().cpu()
    if len(facts.mean) == len(facts.std) == len(image):
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (facts.mean, facts.std))
        image = image * std + mean
    else:
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 255:
            image = (image - low) / ((high - low) or 1.0)
        elif high > 1:
            image = image / 255
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _png(image: Tensor) -> bytes:
    """(C, H, W) uint8 -> a PNG of a size that can be read."""
    from PIL import Image

    array = image.movedim(0, 2).numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    times = -(-SMALL // max(picture.size))
    if times > 1:
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    picture.thumbnail((LARGE, LARGE))
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return data.getvalue()


def _line(text: str) -> str:
    """A text in one line, cut where it is long."""
    words = " ".join(text.split())
    return words if len(words) <= LINE else words[: LINE - 1].rstrip() + "…"


def short(name: str, most: int = 14) -> str:
    """A name that fits the head of a column."""
    return name if len(name) <= most else name[: most - 1] + "…"


__all__ = ["Examined", "Example", "examine", "short"]
