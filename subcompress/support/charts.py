"""The common style of all plots: one pair of axes, with the names of lines and points written beside them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from subcompress.errors import SubcompressError

# Okabe and Ito's palette, told apart by color-blind readers too.
OURS, OTHER, TARGET, INK, QUIET = "#D55E00", "#0072B2", "#009E73", "#333333", "#8c8c8c"
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#333333", "#8c8c8c")
DASHED = (0, (6, 2))

PLACES = ((7, 0), (-7, 0), (0, 7), (0, -7), (6, 6), (-6, 6), (6, -6), (-6, -6), (7, 14), (-7, 14), (7, -14), (-7, -14))
"""The places of a point's name, in points of type from the middle of the point. The first free one is used."""


class Chart:
    """One pair of axes. Draw into `axes`, name things with `name_line` and `name_point`, end with `svg` or `png`.

    Args:
        x: What the horizontal axis shows.
        y: What the vertical axis shows.
        size: Width and height in inches.
        font: Size of the letters in points.

    Raises:
        SubcompressError: matplotlib is not installed.
    """

    def __init__(self, x: str, y: str, size: tuple[float, float] = (5.0, 3.4), font: float = 9.0) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as e:
            raise SubcompressError("a plot needs matplotlib, which is not installed: pip install matplotlib") from e

        self.font = font
        self.figure = Figure(figsize=size, facecolor="none", layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes: Any = self.figure.add_subplot(facecolor="none")
        self._lines: list[tuple[float, str, str]] = []
        self._points: list[tuple[float, float, str, bool]] = []
        self._paths: list[tuple[Sequence[float], Sequence[float]]] = []
        self._style(x, y)

    def _style(self, x: str, y: str) -> None:
        self.axes.set_xlabel(x, color=INK, fontsize=self.font + 0.5, parse_math=False)
        self.axes.set_ylabel(y, color=INK, fontsize=self.font + 0.5, parse_math=False)
        self.axes.grid(color="#dddddd", linewidth=0.6)
        self.axes.set_axisbelow(True)
        self.axes.tick_params(which="both", labelsize=self.font, labelcolor=INK, color=QUIET)
        for side, spine in self.axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(QUIET)

    def level(self, value: float, name: str, color: str, dashes: Any = "-") -> None:
        """A horizontal line across the axes, with its name at the right."""
        self.axes.axhline(value, color=color, linestyle=dashes, linewidth=1.2, zorder=2)
        self.name_line(value, name, color)

    def name_line(self, value: float, name: str, color: str) -> None:
        """Write a name at the right of the axes, at the height of a value. Names that would overlap move apart."""
        self._lines.append((value, name, color))

    def name_point(self, x: float, y: float, name: str, bold: bool = False) -> None:
        """Write a name beside a point. An empty name keeps the names of others off the point."""
        self._points.append((x, y, name, bold))

    def keep_free(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        """Keep the names of points off a line."""
        self._paths.append((xs, ys))

    def log_bytes(self, sizes: Sequence[int]) -> None:
        """Make the horizontal axis a logarithmic one of bytes, with ticks where numbers are read."""
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        room = max(1.2, (max(sizes) / min(sizes)) ** 0.12)
        self.axes.set_xscale("log")
        self.axes.set_xlim(min(sizes) / room, max(sizes) * room)
        narrow = max(sizes) < 30 * min(sizes)
        self.axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0) if narrow else (1.0,)))
        self.axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        self.axes.xaxis.set_minor_formatter(NullFormatter())

    def svg(self) -> str:
        """For a page: no prolog, no date, text as text."""
        text = self._written("svg", metadata={"Date": None, "Creator": None}).decode()
        return text[text.index("<svg") :]

    def png(self, dpi: int = 300) -> bytes:
        """On white: 1,500 pixels wide at the usual size."""
        return self._written("png", dpi=dpi, facecolor="white", metadata={"Software": None})

    def _written(self, kind: str, **options: Any) -> bytes:
        import matplotlib

        data = io.BytesIO()
        with matplotlib.rc_context(
            {"svg.fonttype": "none", "svg.hashsalt": "subcompress", "font.family": "sans-serif"}
        ):
            self._write_lines()
            self._write_points()
            self.figure.savefig(data, format=kind, **options)
        return data.getvalue()

    def _write_lines(self) -> None:
        """Names of lines stand outside of the axes, where no curve passes; a short stroke leads to each."""
        from matplotlib.lines import Line2D

        named, self._lines = sorted(self._lines), []
        if not named:  # to lay out the figure takes as long as to write it
            return
        self.figure.draw_without_rendering()
        line = 1.3 * self.font * self.figure.dpi / 72 / self.axes.get_window_extent().height
        bottom, top = self.axes.get_ylim()
        wanted = [(value - bottom) / (top - bottom) for value, _, _ in named]
        heights = [line * (text.count("\n") + 1.2) for _, text, _ in named]
        across = self.axes.transAxes
        for y, at, (_, text, color) in zip(wanted, apart(wanted, heights), named, strict=True):
            stroke = Line2D([1.0, 1.035], [y, at], color=color, linewidth=1.2, transform=across, clip_on=False)
            self.axes.add_line(stroke)
            style: dict[str, Any] = {"va": "center", "fontsize": self.font, "color": INK, "parse_math": False}
            self.axes.text(1.045, at, text, transform=across, **style)

    def _write_points(self) -> None:
        """Each name goes to the first place where it covers no point and no other name, or to the least crowded."""
        from matplotlib.transforms import Bbox

        named, self._points = self._points, []
        if not named:
            return
        self.figure.draw_without_rendering()
        frame, point = self.axes.get_window_extent(), self.figure.dpi / 72
        middles = [(*self.axes.transData.transform((x, y)), 4 * point) for x, y, _, _ in named]
        middles += [(x, y, 1.5 * point) for xs, ys in self._paths for x, y in self._along(xs, ys)]
        taken = [Bbox.from_bounds(x - r, y - r, 2 * r, 2 * r) for x, y, r in middles]
        for x, y, text, bold in named:
            if not text:
                continue
            tried = [(self._at(x, y, text, bold, place), place) for place in PLACES]
            crowds = [_crowd(box, taken, frame) for box, _ in tried]
            box, place = tried[crowds.index(min(crowds))]
            taken.append(box)
            self._name(x, y, text, bold, place)

    def _along(self, xs: Sequence[float], ys: Sequence[float]) -> Iterator[tuple[float, float]]:
        """Places on a line, close to each other, in dots of the figure."""
        corners = [self.axes.transData.transform((x, y)) for x, y in zip(xs, ys, strict=True)]
        for (x, y), (u, v) in pairwise(corners):
            parts = 1 + int(max(abs(u - x), abs(v - y)) * 72 / self.figure.dpi / 3)
            yield from ((x + (u - x) * i / parts, y + (v - y) * i / parts) for i in range(parts))

    def _at(self, x: float, y: float, text: str, bold: bool, place: tuple[int, int]) -> Any:
        """The box that a name would fill."""
        drawn = self._name(x, y, text, bold, place)
        box = drawn.get_window_extent(self.canvas.get_renderer())
        drawn.remove()
        return box

    def _name(self, x: float, y: float, text: str, bold: bool, place: tuple[int, int]) -> Any:
        across, up = place
        options: dict[str, Any] = {
            "textcoords": "offset points",
            "ha": "left" if across > 0 else "right" if across else "center",
            "va": "bottom" if up > 0 else "top" if up else "center",
            "fontsize": self.font,
            "weight": "bold" if bold else "normal",
            "color": INK,
            "parse_math": False,
        }
        return self.axes.annotate(text, (x, y), place, **options)


def _crowd(box: Any, taken: Sequence[Any], frame: Any) -> float:
    """How much a box is in the way of others, and how far it leaves the frame."""
    from matplotlib.transforms import Bbox

    shared = [Bbox.intersection(box, other) for other in taken]
    over = sum(s.width * s.height for s in shared if s is not None)
    inside = Bbox.intersection(box, frame)
    return float(over + box.width * box.height - (inside.width * inside.height if inside is not None else 0.0))


def apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Middles of names of those heights, in [0, 1], as near to `wanted` (ascending) as not overlapping allows."""
    at = list(wanted)
    for _ in range(200):
        for i in range(len(at) - 1):
            push = ((heights[i] + heights[i + 1]) / 2 - (at[i + 1] - at[i])) / 2
            if push > 0:
                at[i], at[i + 1] = at[i] - push, at[i + 1] + push
        at = [min(max(y, h / 2), 1 - h / 2) for y, h in zip(at, heights, strict=True)]
    return at


__all__ = ["CYCLE", "DASHED", "INK", "OTHER", "OURS", "QUIET", "TARGET", "Chart", "apart"]
