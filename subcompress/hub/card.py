"""The card of a repository, README.md: YAML front matter for the Hub and a page for readers.

The generated part is between two marks, and a few keys of the front matter are generated; the rest is the owner's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from subcompress import format
from subcompress.errors import SubcompressError, one_line
from subcompress.remote import PREFIX, Reference
from subcompress.remote.transport import endpoint

TEMPLATE = "card.md.j2"

BEGIN = "<!-- subcompress: `subcompress push` writes what stands from here to the next mark; the rest is yours -->"
END = "<!-- /subcompress -->"

GENERATED_KEYS = ("library_name", "base_model", "base_model_relation", "datasets", "metrics", "model-index")
"""Generated keys of the front matter. A push replaces what the previous push wrote under them and keeps what others
wrote."""

EMPTY = re.compile(r"\s*---[ \t]*(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\r|\n|$)")
"""An empty front matter, which the pattern of huggingface_hub takes for one that never ends."""

DATASETS = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
"""The built-in data sets -> their names on the Hub."""

EXAMPLE_LENGTH = 8
"""The length of the example input for an axis that varies."""

NUMPY = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool_",
}


@dataclass(frozen=True)
class About:
    """Facts for the model card that the file itself does not state.

    run: the run folder that the file was packed from. dataset: the Hub's ID of the data set. task: the Hub's tag of the
    task, such as image-classification. license: the license as the Hub spells it.
    """

    run: str | Path | None = None
    dataset: str | None = None
    task: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Measured:
    """The measured quality of a file. values: split -> metric; data: the data set; recipe: training options."""

    metric: str
    values: dict[str, float]
    data: str = ""
    dataset: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """The contents of a card. info: the result of `info`; files: SHA-256 and bytes of each other file."""

    id: str
    info: dict[str, Any]
    files: dict[str, tuple[str, int]]
    about: About
    measured: Measured | None

    @property
    def task(self) -> str | None:
        """The pipeline tag: the one given, or image-classification for a classifier of images."""
        shape = self.info["facts"].get("input_shape", ())
        picture = len(shape) == 3 and shape[0] in (1, 3)
        accuracy = self.measured is not None and self.measured.metric.endswith("accuracy")
        return self.about.task or ("image-classification" if picture and accuracy else None)

    @property
    def base(self) -> str | None:
        """The repository of the base on the Hub, None if there is none."""
        base = self.info.get("base")
        return Reference.of(base["id"]).id if base and base["id"].startswith(PREFIX) else None


def measurement_of(info: dict[str, Any], about: About) -> Measured | None:
    """Return the measured quality of the file: that of its run, or the accuracy that it carries, or None.

    Raises SubcompressError for a folder that is not the run of this file.
    """
    if about.run is None:
        if info["test_accuracy"] is None:
            return None
        return Measured("accuracy", {"test": info["test_accuracy"]}, "", about.dataset)
    from subcompress.training import run  # loads torch, which a file alone does not need

    fit, summary = run.fit_of(about.run), run.summary(about.run)
    if format.parse(run.packed(about.run)).digest.hex() != info["digest"]:
        raise SubcompressError(
            f"the file was not packed from the run {about.run}: give --run the run that it was packed from"
        )
    name = data_name(str(summary["origin"].get("data") or ""))
    recipe = {k: v for k, v in sorted(summary["recipe"].items()) if isinstance(v, (int, float, str)) and v != ""}
    values = {"test": fit.test, "validation": fit.validation}
    return Measured(fit.metric, values, name, about.dataset or DATASETS.get(name), recipe)


def previous_measurement(recorded: Any) -> Measured | None:
    """Parse the measurement of the same weights that an earlier push recorded; None if it is malformed."""
    try:
        values = {str(k): float(v) for k, v in recorded["values"].items()}
        texts = [recorded[k] for k in ("metric", "data", "dataset")]
        recipe = {str(k): v for k, v in recorded["recipe"].items() if isinstance(v, (int, float, str))}
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    if "test" not in values or not all(isinstance(t, str) or t is None for t in texts):
        return None
    return Measured(str(texts[0]), values, texts[1] or "", texts[2], recipe)


def data_name(text: str) -> str:
    """Return the display name of --data: without folders and options."""
    return text.partition(",")[0].rpartition("/")[2]


def own_front_matter(page: Page) -> dict[str, Any]:
    """Return what a push writes under GENERATED_KEYS, to be recorded for the next push."""
    return {k: v for k, v in _front_matter(page).items() if k in GENERATED_KEYS}


def write_card(page: Page, existing: str | None, *, anew: bool = False, previous: dict[str, Any] | None = None) -> str:
    """Write the card, keeping what its owner wrote in the existing one.

    existing: the text of the present card; anew: keep nothing; previous: the `own_front_matter` that the last push
    recorded. Raises SubcompressError if the existing front matter cannot be read.
    """
    before, text = ({}, "") if existing is None or anew else _split_card(page.id, existing)
    matter = _merge_front_matter(_front_matter(page), before, previous or {})
    others = {k: v for k, v in before.items() if k not in (*GENERATED_KEYS, *matter)}
    existing_tags = before.get("tags")
    existing_tags = [existing_tags] if isinstance(existing_tags, str) else existing_tags
    tags = [t for t in existing_tags if isinstance(t, str)] if isinstance(existing_tags, list) else []
    if page.about.task is None and "pipeline_tag" in matter and isinstance(before.get("pipeline_tag"), str):
        matter["pipeline_tag"] = before["pipeline_tag"]  # its owner knows better than our guess
    matter = {**matter, **others, "tags": list(dict.fromkeys([*matter["tags"], *tags]))}
    generated = f"{BEGIN}\n{_render(page)}\n{END}"
    head, _, rest = text.partition(BEGIN[:17])
    has_marks = END in rest
    text = head + generated + rest.partition(END)[2] if has_marks else f"{generated}\n\n{text.strip()}".rstrip() + "\n"
    return f"---\n{_yaml(matter).strip()}\n---\n{text}"


def existing_front_matter(page: Page, existing: str | None) -> dict[str, Any]:
    """Return the values under GENERATED_KEYS in a card. Raises SubcompressError as `write_card` does."""
    return (
        {} if existing is None else {k: v for k, v in _split_card(page.id, existing)[0].items() if k in GENERATED_KEYS}
    )


def replaced_lines(page: Page, existing: str | None, previous: dict[str, Any] | None) -> list[str]:
    """Describe, a line each, values of others in the front matter that the new card replaces.

    previous: see `write_card`; None if it is unknown what the last push wrote.
    """
    old, new = existing_front_matter(page, existing), _front_matter(page)
    lines = []
    for key in GENERATED_KEYS:
        if previous is None:
            lost = key in old and old[key] != new.get(key)
        else:
            lost = (
                key in SINGLE_VALUED
                and _values_of_others(old.get(key), previous.get(key)) not in (None, new.get(key))
                and key in new
            )
        if lost:
            shown = one_line(Exception(str(old[key])), 80)
            lines.append(f"{key} in the card of {page.id} was {shown}: it is replaced")
    return lines


SINGLE_VALUED = ("library_name", "base_model_relation")
"""The keys of OURS with one value. The others are lists, in which values that others wrote are kept."""


def _merge_front_matter(matter: dict[str, Any], before: dict[str, Any], previous: dict[str, Any]) -> dict[str, Any]:
    """Return the generated front matter with the values of others under GENERATED_KEYS added."""
    found = dict(matter)
    for key in GENERATED_KEYS:
        others = _values_of_others(before.get(key), previous.get(key))
        if others is None:
            continue
        if key not in matter:
            found[key] = others
        elif key == "model-index":
            found[key] = _models([*matter[key], *_as_list(others)])
        elif key not in SINGLE_VALUED:
            found[key] = _as_list(matter[key]) + [x for x in _as_list(others) if x not in _as_list(matter[key])]
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _values_of_others(value: Any, previous: Any) -> Any:
    """Return the part of a value that the previous push did not write; None if it wrote all."""
    if value == previous or value is None:
        return None
    if not isinstance(value, list):
        return value
    written = [*_as_list(previous), *(r for m in _as_list(previous) for r in _results(m))]
    rest = [x for x in value if x not in written]
    # Of a model's results, those that are not ours.
    rest = [{**m, "results": [r for r in _results(m) if r not in written]} if _results(m) else m for m in rest]
    return [m for m in rest if not (isinstance(m, dict) and m.get("results") == [])] or None


def _results(model: Any) -> list[Any]:
    """Return the results of a model in a model-index."""
    results = model.get("results") if isinstance(model, dict) else None
    return results if isinstance(results, list) else []


def _models(models: list[Any]) -> list[Any]:
    """Merge the models of a model-index by name."""
    found: list[Any] = []
    for model in models:
        name = model.get("name") if isinstance(model, dict) else None
        same = next((m for m in found if name is not None and isinstance(m, dict) and m.get("name") == name), None)
        if same is None:
            found.append(dict(model) if isinstance(model, dict) else model)
        else:
            same["results"] = _results(same) + [r for r in _results(model) if r not in _results(same)]
    return found


def evaluation(page: Page) -> str | None:
    """Return the results in the format of `.eval_results/*.yaml`; None if the Hub does not know the data."""
    found = page.measured
    if found is None or found.dataset is None:
        return None
    entry = {
        "dataset": {"id": found.dataset, "task_id": "default"},
        "value": found.values["test"],
        "notes": f"{found.metric} on the test split, of the rebuilt weights",
    }
    return _yaml([entry])


def _split_card(id: str, card: str) -> tuple[dict[str, Any], str]:
    """Split a card into front matter and text."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    card = card.removeprefix("\ufeff")
    if (empty := EMPTY.match(card)) is not None:
        return {}, card[empty.end() :]
    match = REGEX_YAML_BLOCK.search(card)
    if match is None and card.lstrip().startswith("---\n"):
        raise SubcompressError(f"README.md of {id} has a front matter without an end: fix it, or give --replace-card")
    try:
        matter = yaml.safe_load(match[2]) if match else {}
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise SubcompressError(
            f"the front matter of README.md in {id} is not valid YAML ({one_line(e, 120)}): fix it there, or "
            "give --replace-card"
        ) from e
    if matter is not None and not isinstance(matter, dict):
        raise SubcompressError(
            f"the front matter of README.md in {id} is {type(matter).__name__}, not keys and values: fix it "
            "there, or give --replace-card"
        )
    return matter or {}, card[match.end() :] if match else card


def _front_matter(page: Page) -> dict[str, Any]:
    """Generate the front matter, without empty keys."""
    from huggingface_hub import EvalResult, ModelCardData

    found, name = page.measured, page.id.partition("/")[2]
    results = []
    if found is not None and (found.data or found.dataset):
        results = [
            EvalResult(
                task_type=page.task or "other",
                dataset_type=found.dataset or re.sub(r"\W+", "-", found.data),
                dataset_name=found.data or str(found.dataset),
                dataset_split=split,
                metric_type=found.metric,
                metric_value=round(value, 6),
                metric_name=f"{split} {found.metric}",
            )
            for split, value in found.values.items()
        ]
    data = ModelCardData(
        library_name="subcompress",
        license=page.about.license,
        pipeline_tag=page.task,
        tags=["subcompress", *(["onnx"] if "model.onnx" in page.files else [])],
        base_model=page.base,
        base_model_relation="adapter" if page.base else None,
        datasets=[found.dataset] if found and found.dataset else None,
        metrics=[found.metric] if found else None,
        model_name=name,
        eval_results=results or None,
    )
    matter = data.to_dict()
    matter.pop("model_name", None)
    return matter


def _render(page: Page) -> str:
    """Render the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("subcompress"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"thousands": lambda n: f"{n:,}", "cell": _cell}
    facts = {"labels": [], "mean": [], "std": []} | page.info["facts"]
    inputs = facts.get("inputs") or [["input", facts.get("input_dtype", "F32"), facts.get("input_shape", [])]]
    return (
        environment.get_template(TEMPLATE)
        .render(
            page=page,
            info=page.info,
            facts=facts,
            inputs=[
                (
                    name,
                    NUMPY.get(dtype, "float32"),
                    (1, *(k or EXAMPLE_LENGTH for k in shape)),
                    "ones" if "mask" in name else "zeros",
                )
                for name, dtype, shape in inputs
            ],
            endpoint=endpoint(),
            measured=page.measured,
            base=page.info.get("base"),
            name=page.id.partition("/")[2],
        )
        .strip()
    )


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _cell(value: Any) -> str:
    """Escape a user's text so that it cannot leave a table cell or a mark."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
