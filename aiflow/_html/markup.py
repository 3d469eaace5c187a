"""HTML that reads well on a light page and on a dark one: a title, tables, bars, a row of pictures.

Colours are those of the page around it, so no style sheet is needed. Every text is escaped: names of streams, senders
and receivers come from other machines.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

__all__ = ["Markup", "bar", "block", "bytes_of", "heading", "note", "pictures", "preformatted", "rate_of", "table"]

_LINE = "1px solid rgba(128,128,128,.35)"
_CELL = f"padding:.15em .7em;border:0;border-bottom:{_LINE};vertical-align:middle;"


class Markup(str):
    """A cell that is HTML already."""

    __slots__ = ()


def block(*parts: str) -> str:
    """One output of a cell. Wide tables scroll inside it."""
    return f'<div style="overflow-x:auto;line-height:1.45">{"".join(parts)}</div>'


def heading(title: str, facts: str = "") -> str:
    """A line with the name of the thing in bold, then facts."""
    rest = f" {html.escape(facts)}" if facts else ""
    return f'<div style="margin:.2em 0"><b>{html.escape(title)}</b>{rest}</div>'


def note(text: str) -> str:
    """A line in smaller letters."""
    return f'<div style="margin:.2em 0;font-size:90%;opacity:.75">{html.escape(text)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A table; its first `left` columns are text, and the others numbers."""
    ways = ["left" if column < left else "right" for column in range(len(head))]

    def line(tag: str, cells: Sequence[object]) -> str:
        styled = (
            f'<{tag} style="{_CELL}text-align:{way};white-space:nowrap">'
            f"{cell if isinstance(cell, Markup) else html.escape(str(cell))}</{tag}>"
            for way, cell in zip(ways, cells, strict=True)
        )
        return f"<tr>{''.join(styled)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return (
        '<table style="border-collapse:collapse;margin:.4em 0;font-variant-numeric:tabular-nums">'
        f"<thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
    )


def preformatted(text: str) -> str:
    """Lines as they are, such as the numbers of an array."""
    return f'<pre style="margin:.4em 0;background:none;color:inherit">{html.escape(text)}</pre>'


def bar(share: float) -> Markup:
    """A share from 0 to 1, as a bar and a number; a dash where it is not known."""
    if math.isnan(share):
        return Markup("–")
    percent = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<span style="display:inline-block;width:6em;height:.6em;background:rgba(128,128,128,.25);border-radius:2px">'
        f'<span style="display:block;width:{percent:.1f}%;height:100%;background:#3b82f6;border-radius:2px"></span>'
        f"</span> {percent:.0f} %"
    )


def pictures(shown: Iterable[tuple[str, str]]) -> str:
    """A row of pictures that wraps: (address of the picture, caption)."""
    figures = (
        '<figure style="display:inline-block;margin:.3em .6em .3em 0;text-align:center">'
        f'<img src="{html.escape(address)}" alt="{html.escape(caption)}" style="display:block;border-radius:3px">'
        f'<figcaption style="font-size:85%;max-width:12em;overflow-wrap:anywhere">{html.escape(caption)}</figcaption>'
        "</figure>"
        for address, caption in shown
    )
    return f"<div>{''.join(figures)}</div>"


def bytes_of(nbytes: float) -> str:
    """A number of bytes with three digits: 921 kB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}" if unit != "bytes" else f"{nbytes:.0f} bytes"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def rate_of(bps: float) -> str:
    """A number of bits a second with three digits: 5.28 Gbit/s; a dash where it is not known."""
    if math.isnan(bps):
        return "–"
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bps < 999.5:
            return f"{bps:.3g} {unit}"
        bps /= 1000
    return f"{bps:.4g} Gbit/s"
