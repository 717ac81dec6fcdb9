"""report: one self-contained page of a finished run, for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subcompress import format
from subcompress.api.compare import JSON, Comparison, read_comparison
from subcompress.peers.charts import comparison_chart, curves_chart, frontier_chart
from subcompress.support.files import write_bytes
from subcompress.training import run
from subcompress.training.probe import Fit

TEMPLATE = "report.html.j2"


def report(run_folder: str | Path, output: str | Path | None = None) -> Path:
    """Write one HTML page about a run. It needs no other file, and shows what `compare` left in the folder too.

    Args:
        run_folder: A folder that `fit` wrote.
        output: The page to write. By default `report.html` in the run folder.

    Returns:
        The path of the page.

    Raises:
        SubcompressError: The folder is no finished fit.
    """
    path = Path(run_folder)
    fit, summary = run.fit_of(path), run.summary(path)
    target = Path(output) if output is not None else path / "report.html"
    write_bytes(target, _page(path, fit, summary).encode())
    return target


def _page(path: Path, fit: Fit, summary: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    ledger, dense = _ledger(path) if fit.bytes else ({}, 0)
    compared = _compared(path, fit)
    environment = Environment(loader=PackageLoader("subcompress"), autoescape=True, undefined=StrictUndefined)
    environment.filters["thousands"] = lambda n: f"{n:,}"
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
        charts={
            "frontier": Markup(frontier_chart(fit).svg()) if fit.bytes else None,
            "curves": Markup(curves_chart(fit).svg()),
            "comparison": Markup(comparison_chart(compared.ordered, compared.metric).svg()) if compared else None,
        },
        compared=compared,
    )


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
    return " on ".join(names) or "a network of one's own"


def _commands(path: Path, summary: dict[str, Any]) -> list[str]:
    """What was given, and what makes a file of it."""
    given = summary["origin"].get("command")
    return [*([given] if given else []), f"subcompress pack {path} -o net.safetensors", f"subcompress compare {path}"]


__all__ = ["report"]
