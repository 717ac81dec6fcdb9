"""report: one self-contained page of a finished run, for a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import Dataset

from subcompress import format
from subcompress.api.compare import JSON, Comparison, read_comparison
from subcompress.api.examples import Examined, examine, short
from subcompress.data import Data
from subcompress.errors import SubcompressError
from subcompress.peers.charts import comparison_chart, curves_chart, frontier_chart, has_frontier_chart, made
from subcompress.support.files import write_bytes
from subcompress.training import run
from subcompress.training.probe import Fit

TEMPLATE = "report.html.j2"

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # Python 3.11 makes subclasses of this one only


class Page(_Path):
    """The path of a page, which shows the page in a notebook."""

    def _repr_html_(self) -> str | None:
        """The page in a separate frame, which keeps its style apart; None if the file does not exist."""
        if not self.is_file():
            return None
        held = escape(self.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{held}" style="width: 100%; height: 40rem; border: 1px solid #ddd"></iframe>'


def report(
    run_folder: str | Path,
    output: str | Path | None = None,
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    data: Data | Sequence[Dataset[Any]] | Callable[[], Any] | None = None,
    base: Any = None,
) -> Page:
    """Write one HTML page about a run. It needs no other file, and shows what `compare` left in the folder too.

    With the network and the data of the run, it also shows a confusion matrix of the validation split, and images or
    texts that the network gets right and wrong. Where they do not belong to the run, the page says so in one line.

    Args:
        run_folder: A folder that `fit` wrote.
        output: The page to write. By default `report.html` in the run folder.
        model: The network of the run, or a function without arguments that builds it.
        data: The data of the run, or a function without arguments that loads them.
        base: The base of the run, if it has one. By default the one that it was trained on.

    Returns:
        The path of the page. In a notebook, it shows the page.

    Raises:
        SubcompressError: The folder is no finished fit.
    """
    path = Path(run_folder)
    fit, summary = run.fit_of(path), run.summary(path)
    target = Path(output) if output is not None else path / "report.html"
    examined, why = _examined(path, fit, model, data, base)
    write_bytes(target, _page(path, fit, summary, examined, why).encode())
    return Page(target)


def _examined(path: Path, fit: Fit, model: Any, data: Any, base: Any) -> tuple[Examined | None, str]:
    """What the network gets right and wrong, or why that is not shown; neither where it tells no classes apart."""
    if not fit.bytes:
        return None, ""
    if model is None or data is None:
        return None, "the run does not name its network and its data: give model and data to subcompress.report"
    try:
        return examine(path, model, data, base), ""
    except SubcompressError as e:
        return None, " ".join(str(e).split())


def _page(path: Path, fit: Fit, summary: dict[str, Any], examined: Examined | None, why: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    ledger, dense = _ledger(path) if fit.bytes else ({}, 0)
    compared = _compared(path, fit)
    environment = Environment(loader=PackageLoader("subcompress"), autoescape=True, undefined=StrictUndefined)
    environment.filters["thousands"] = lambda n: f"{n:,}"
    environment.filters["short"] = short
    return environment.get_template(TEMPLATE).render(
        fit=fit,
        title=_title(summary),
        dense=dense,
        ledger=ledger,
        recipe=summary["recipe"],
        commands=_commands(path, summary),
        date=summary["date"],
        machine=summary["machine"],
        versions=summary["versions"],
        charts=_charts(fit, compared),
        files=sorted(made(fit), key=lambda p: p.bytes),
        compared=compared,
        examined=examined,
        why=why,
    )


def _charts(fit: Fit, compared: Comparison | None) -> dict[str, Any]:
    """The plots, each as it stands in the page, None for those that there is nothing to draw for."""
    from markupsafe import Markup

    return {
        "frontier": Markup(frontier_chart(fit).svg()) if has_frontier_chart(fit) else None,
        "curves": Markup(curves_chart(fit).svg()),
        "comparison": Markup(comparison_chart(compared.ordered, compared.metric).svg()) if compared else None,
    }


def _ledger(path: Path) -> tuple[dict[str, int], int]:
    """Bytes of the file by part, and those of the dense weights."""
    found = format.parse(run.packed(path))
    return found.ledger, found.layout.nbytes


def _compared(path: Path, fit: Fit) -> Comparison | None:
    """What `compare` left, where it is of this file."""
    held = read_comparison(path / JSON, "compare again")
    if held is None:
        return None
    found = Comparison.from_json(held)
    return found if found.rows and fit.bytes and found.digest == format.parse(run.packed(path)).digest.hex() else None


def _title(summary: dict[str, Any]) -> str:
    origin = summary["origin"]
    names = [str(origin[k]).rpartition("/")[2] for k in ("model", "data") if origin.get(k)]
    return " on ".join(names) or "a network of your own"


def _commands(path: Path, summary: dict[str, Any]) -> list[str]:
    """What was given, and what makes a file of it."""
    given = summary["origin"].get("command")
    return [*([given] if given else []), f"subcompress pack {path} -o net.safetensors", f"subcompress compare {path}"]


__all__ = ["Page", "report"]
