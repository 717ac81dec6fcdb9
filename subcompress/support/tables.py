"""Tables and pictures as HTML, for notebooks. What others wrote is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape


def html_table(rows: Iterable[tuple[object, ...]], head: tuple[object, ...] = ()) -> str:
    """A table with a row for each tuple."""
    lines = [f"<tr>{''.join(f'<th>{escape(str(cell))}</th>' for cell in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def png_address(data: bytes) -> str:
    """A PNG as the address of a picture, which holds all of it."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def html_png(data: bytes, width: int, what: str) -> str:
    """A PNG as an embedded picture of the given width in pixels. what: its description for those who cannot see it."""
    return f'<img src="{png_address(data)}" width="{width}" alt="{escape(what)}">'


__all__ = ["html_png", "html_table", "png_address"]
