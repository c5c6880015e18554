"""What notebooks show of objects: tables and curves as HTML, legible on light and on dark pages alike. Pure."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by all
_FAINT = "rgba(128,128,128,.35)"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 200, 56, 12, 12, 34
_BLOCK = "font-family:sans-serif;font-size:13px;margin:.4em 0"
_CELL = "padding:2px 10px;vertical-align:top;max-width:44em"


def block(*parts: str) -> str:
    """Parts of HTML below each other, the whole as `_repr_html_` returns it."""
    return f'<div style="{_BLOCK}">{"".join(parts)}</div>'


def line(text: str, *, strong: bool = False) -> str:
    """One line of text."""
    inner = html.escape(text)
    return f'<div style="margin:.3em 0">{f"<b>{inner}</b>" if strong else inner}</div>'


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str] = (), strong: int | None = None
) -> str:
    """A table, numbers as `number` writes them at the right of their cells, text at the left; None is an empty cell.

    Args:
        rows: one value for each heading.
        right: headings of columns of text that stands at the right, such as "2 MiB".
        strong: number of the row that stands out.
    """
    rows = list(rows)
    sides = [
        "right;white-space:nowrap" if name in right or any(_is_number(row[place]) for row in rows) else "left"
        for place, name in enumerate(headings)
    ]
    body = []
    for place, row in enumerate(rows):
        weight = ";font-weight:bold" if place == strong else ""
        cells = "".join(
            f'<td style="{_CELL};text-align:{side}">{_shown(value)}</td>'
            for value, side in zip(row, sides, strict=True)
        )
        body.append(f'<tr style="border-top:1px solid {_FAINT};background:none{weight}">{cells}</tr>')
    head = "".join(
        f'<th style="{_CELL};text-align:{side}">{html.escape(name)}</th>'
        for name, side in zip(headings, sides, strict=True)
    )
    return (
        '<table style="color:inherit;font-size:inherit;border-collapse:collapse;font-variant-numeric:tabular-nums;'
        f'margin:.5em 0"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    )


def number(value: float) -> str:
    """A number as people read it: whole ones with commas, others with five digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.5g}"


def curves(epochs: Sequence[int], lines: Mapping[str, Sequence[float]], marked: int) -> str:
    """Values over epochs as SVG, with the epoch `marked` by a dotted line. "" where there is nothing to draw.

    Args:
        epochs: ascending.
        lines: by name, one value for each epoch; what is not finite is left out.
    """
    points = {
        name: [(epoch, float(value)) for epoch, value in zip(epochs, values, strict=True) if math.isfinite(value)]
        for name, values in lines.items()
    }
    heights = [value for path in points.values() for _, value in path]
    if not heights or len(epochs) < 2:
        return ""
    marks = _marks(min(heights), max(heights))
    low, high = marks[0], marks[-1]

    def x(epoch: float) -> float:
        return _LEFT + (epoch - epochs[0]) / (epochs[-1] - epochs[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    floor, text = _HEIGHT - _BOTTOM, 'fill="currentColor" font-size="11" font-family="sans-serif"'
    drawn = []
    for value in marks:
        drawn.append(f'<path d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}" stroke="{_FAINT}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" {text}>{value:.4g}</text>')
    drawn += [
        f'<text x="{x(epoch):.1f}" y="{floor + 15}" text-anchor="middle" {text}>{epoch}</text>'
        for epoch in epochs[:: math.ceil(len(epochs) / 10)]
    ]
    drawn.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 5}" text-anchor="middle" {text}>epoch</text>')
    drawn.append(f'<path d="M{x(marked):.1f} {_TOP}V{floor}" stroke="currentColor" stroke-dasharray="2 3"/>')
    for colour, path in zip(_cycled(len(points)), points.values(), strict=True):
        places = [(f"{x(epoch):.1f}", f"{y(value):.1f}") for epoch, value in path]
        joined = "L".join(" ".join(place) for place in places)
        drawn.append(f'<path d="M{joined}" fill="none" stroke="{colour}" stroke-width="2"/>' if places else "")
        if len(places) <= 40:
            drawn.extend(f'<circle cx="{right}" cy="{down}" r="2.5" fill="{colour}"/>' for right, down in places)
    legend = "".join(
        f'<span style="margin-right:1em"><span style="color:{colour}">&#9632;</span> {html.escape(name)}</span>'
        for colour, name in zip(_cycled(len(points)), points, strict=True)
    )
    picture = f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{"".join(drawn)}</svg>'
    return f'<div style="display:inline-block;vertical-align:top;margin-right:1em"><div>{legend}</div>{picture}</div>'


def once(lines: Mapping[str, Sequence[float]], name: str = "val_loss") -> dict[str, Sequence[float]]:
    """Lines without those that lie on the one of a name: the loss is often a metric, too, such as `val_logloss`."""
    covering = lines.get(name, ())
    return {other: values for other, values in lines.items() if other == name or not _alike(values, covering)}


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-5) or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True)
    )


def _cycled(count: int) -> list[str]:
    return [_COLOURS[place % len(_COLOURS)] for place in range(count)]


def _marks(low: float, high: float) -> list[float]:
    """Round numbers, the same distance apart, from one that is not above `low` to one that is not below `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= 5)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [place * step for place in range(first, last + 1)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, int | float) else html.escape(str(value))
