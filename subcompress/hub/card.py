"""The card of a repository, README.md: its front matter, which the Hub reads, and its page, which people do.

Ours stands between two marks, and a few keys of the front matter are ours; the rest of a card belongs to its owner.
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

OURS = ("library_name", "base_model", "base_model_relation", "datasets", "metrics", "model-index")
"""Keys of the front matter that say what was measured of one file: what a push wrote there, the next one replaces, and
what others wrote there stays."""

EMPTY = re.compile(r"\s*---[ \t]*(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\r|\n|$)")
"""A front matter without a key, which the client's own pattern takes for one that never ends."""

DATASETS = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
"""What the Hub calls the data that are known by name here."""

LENGTH = 8
"""Of an example's text."""

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
    """What a file does not say of itself. run: the run folder it was packed from; dataset: the Hub's name of the data;
    task: the Hub's name of what it is for, image-classification say; license: as the Hub spells it."""

    run: str | Path | None = None
    dataset: str | None = None
    task: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Measured:
    """values: split -> value of the metric, on the data of that name; recipe: of the training."""

    metric: str
    values: dict[str, float]
    data: str = ""
    dataset: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """What a card says: the repository, what `info` says of the file, SHA-256 and bytes of each file beside it."""

    id: str
    info: dict[str, Any]
    files: dict[str, tuple[str, int]]
    about: About
    measured: Measured | None

    @property
    def task(self) -> str | None:
        """The pipeline tag: as told, else of what labels a picture."""
        shape = self.info["facts"].get("input_shape", ())
        picture = len(shape) == 3 and shape[0] in (1, 3)
        accuracy = self.measured is not None and self.measured.metric.endswith("accuracy")
        return self.about.task or ("image-classification" if picture and accuracy else None)

    @property
    def base(self) -> str | None:
        """The repository whose weights the file adds to, where it does and they lie on the Hub."""
        base = self.info.get("base")
        return Reference.of(base["id"]).id if base and base["id"].startswith(PREFIX) else None


def measured(info: dict[str, Any], about: About) -> Measured | None:
    """What is known of how well the file does: of its run, or what it carries itself, else nothing.

    Raises SubcompressError for a folder that is no run of this file.
    """
    if about.run is None:
        if info["test_accuracy"] is None:
            return None
        return Measured("accuracy", {"test": info["test_accuracy"]}, "", about.dataset)
    from subcompress.training import run  # loads torch, which a file alone does not need

    fit, summary = run.fit_of(about.run), run.summary(about.run)
    if format.parse(run.packed(about.run)).digest.hex() != info["digest"]:
        raise SubcompressError(f"--run is the run that the file was packed from; {about.run} is another's")
    name = data_name(str(summary["origin"].get("data") or ""))
    recipe = {k: v for k, v in sorted(summary["recipe"].items()) if isinstance(v, (int, float, str)) and v != ""}
    values = {"test": fit.test, "validation": fit.validation}
    return Measured(fit.metric, values, name, about.dataset or DATASETS.get(name), recipe)


def measured_before(held: Any) -> Measured | None:
    """What an earlier push noted of the same weights, None where it is not of its form."""
    try:
        values = {str(k): float(v) for k, v in held["values"].items()}
        texts = [held[k] for k in ("metric", "data", "dataset")]
        recipe = {str(k): v for k, v in held["recipe"].items() if isinstance(v, (int, float, str))}
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    if "test" not in values or not all(isinstance(t, str) or t is None for t in texts):
        return None
    return Measured(str(texts[0]), values, texts[1] or "", texts[2], recipe)


def data_name(text: str) -> str:
    """What to call the data of --data: without folders, and without what follows a file of texts."""
    return text.partition(",")[0].rpartition("/")[2]


def own(page: Page) -> dict[str, Any]:
    """What a push writes under the keys of OURS, for the next one to know."""
    return {k: v for k, v in _matter(page).items() if k in OURS}


def write(page: Page, held: str | None, *, anew: bool = False, wrote: dict[str, Any] | None = None) -> str:
    """The card, with what its owner wrote of the one that is there kept. anew: nothing is; wrote: what the push that
    wrote the one that is there noted of `own`.

    Raises SubcompressError where the front matter that is there cannot be read.
    """
    before, text = ({}, "") if held is None or anew else _parts(page.id, held)
    matter = _with_theirs(_matter(page), before, wrote or {})
    theirs = {k: v for k, v in before.items() if k not in (*OURS, *matter)}
    held_tags = before.get("tags")
    held_tags = [held_tags] if isinstance(held_tags, str) else held_tags
    tags = [t for t in held_tags if isinstance(t, str)] if isinstance(held_tags, list) else []
    if page.about.task is None and "pipeline_tag" in matter and isinstance(before.get("pipeline_tag"), str):
        matter["pipeline_tag"] = before["pipeline_tag"]  # its owner knows better than our guess
    matter = {**matter, **theirs, "tags": list(dict.fromkeys([*matter["tags"], *tags]))}
    ours = f"{BEGIN}\n{_text(page)}\n{END}"
    head, _, rest = text.partition(BEGIN[:17])
    marked = END in rest
    text = head + ours + rest.partition(END)[2] if marked else f"{ours}\n\n{text.strip()}".rstrip() + "\n"
    return f"---\n{_yaml(matter).strip()}\n---\n{text}"


def there(page: Page, held: str | None) -> dict[str, Any]:
    """What stands under the keys of OURS in a card. Raises SubcompressError as `write` does."""
    return {} if held is None else {k: v for k, v in _parts(page.id, held)[0].items() if k in OURS}


def replaced(page: Page, held: str | None, wrote: dict[str, Any] | None) -> list[str]:
    """Lines on what others wrote in the front matter and a card of this page has no place for. See `write`; wrote: None
    where nobody knows what the last push wrote."""
    before, now = there(page, held), _matter(page)
    lines = []
    for key in OURS:
        if wrote is None:
            lost = key in before and before[key] != now.get(key)
        else:
            lost = key in SINGLE and _theirs(before.get(key), wrote.get(key)) not in (None, now.get(key)) and key in now
        if lost:
            shown = one_line(Exception(str(before[key])), 80)
            lines.append(f"{key} in the card of {page.id} was {shown}: it is written anew")
    return lines


SINGLE = ("library_name", "base_model_relation")
"""Those of OURS that have one value; the others list theirs beside ours."""


def _with_theirs(matter: dict[str, Any], before: dict[str, Any], wrote: dict[str, Any]) -> dict[str, Any]:
    """Our front matter, and under keys of OURS also what others wrote there."""
    found = dict(matter)
    for key in OURS:
        theirs = _theirs(before.get(key), wrote.get(key))
        if theirs is None:
            continue
        if key not in matter:
            found[key] = theirs
        elif key == "model-index":
            found[key] = _models([*matter[key], *_listed(theirs)])
        elif key not in SINGLE:
            found[key] = _listed(matter[key]) + [x for x in _listed(theirs) if x not in _listed(matter[key])]
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _theirs(held: Any, wrote: Any) -> Any:
    """What of a value others wrote; None for nothing."""
    if held == wrote or held is None:
        return None
    if not isinstance(held, list):
        return held
    ours = [*_listed(wrote), *(r for m in _listed(wrote) for r in _results(m))]
    left = [x for x in held if x not in ours]
    # Of a model's results, those that are not ours.
    left = [{**m, "results": [r for r in _results(m) if r not in ours]} if _results(m) else m for m in left]
    return [m for m in left if not (isinstance(m, dict) and m.get("results") == [])] or None


def _results(model: Any) -> list[Any]:
    """Of a model in a model-index."""
    results = model.get("results") if isinstance(model, dict) else None
    return results if isinstance(results, list) else []


def _models(models: list[Any]) -> list[Any]:
    """A model-index in which each name stands once."""
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
    """The results as `.eval_results/*.yaml` has them, None without data that the Hub knows."""
    found = page.measured
    if found is None or found.dataset is None:
        return None
    entry = {
        "dataset": {"id": found.dataset, "task_id": "default"},
        "value": found.values["test"],
        "notes": f"{found.metric} on the test split, of the rebuilt weights",
    }
    return _yaml([entry])


def _parts(id: str, held: str) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    held = held.removeprefix("\ufeff")
    if (empty := EMPTY.match(held)) is not None:
        return {}, held[empty.end() :]
    match = REGEX_YAML_BLOCK.search(held)
    if match is None and held.lstrip().startswith("---\n"):
        raise SubcompressError(f"README.md of {id} begins a front matter and never ends it: mend it, or --replace-card")
    try:
        matter = yaml.safe_load(match[2]) if match else {}
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise SubcompressError(
            f"the front matter of README.md in {id} is no YAML ({one_line(e, 120)}): mend it there, or --replace-card"
        ) from e
    if matter is not None and not isinstance(matter, dict):
        raise SubcompressError(
            f"the front matter of README.md in {id} is {type(matter).__name__}, not keys and values: mend it there, or "
            "--replace-card"
        )
    return matter or {}, held[match.end() :] if match else held


def _matter(page: Page) -> dict[str, Any]:
    """The front matter that is ours, empty keys left out."""
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


def _text(page: Page) -> str:
    """The page."""
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
                    (1, *(k or LENGTH for k in shape)),
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
    """A text of the user's that cannot leave its place in a table or end a mark."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
