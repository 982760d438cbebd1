"""Pieces of HTML: text made safe, elements, numbers as people read them."""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np

# From where on numbers are told in which unit.
UNITS = ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


def text(value: object) -> str:
    """Returns any value as text that is safe in HTML."""
    return html.escape(str(value))


def section(title: str, *parts: str, note: str = "") -> str:
    """Returns a section with a heading, and a line below it that explains."""
    explained = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{text(title)}</h2>{explained}{''.join(parts)}</section>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    kind: str = "",
) -> str:
    """Returns a table that scrolls where it is too wide.

    Args:
        head: The HTML of the head's cells; if all are empty, there is no head.
        rows: The HTML of the other cells; the first of each row is its head.
        kind: A CSS class.
    """
    body = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td>{cell}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    heads = f"<thead><tr>{heads}</tr></thead>" if any(head) else ""
    return (
        f'<div class="scroll"><table class="{kind}">'
        f"{heads}<tbody>{body}</tbody></table></div>"
    )


def details(summary: str, *parts: str, is_open: bool = False) -> str:
    """Returns what is shown when its summary is clicked."""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{summary}</summary>{''.join(parts)}</details>"


def picture(pixels: np.ndarray, alt: str, largest: int | None = None) -> str:
    """Returns an image that carries its data.

    Args:
        pixels: (H, W, 1, 3 or 4) uint8.
        alt: What it shows, for those who do not see it.
        largest: The largest side; an image that is larger is scaled down.
    """
    from PIL import Image

    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    if largest is not None:
        image.thumbnail((largest, largest))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{text(alt)}">'


def number(value: float) -> str:
    """Returns a number in at most about five characters.

    Example:
        >>> number(1234567), number(999_600), number(0.00123), number(999.7)
        ('1.23M', '1M', '0.00123', '1,000')
    """
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 100:  # to three digits first: 999.7 is 1,000, not 1e+03
        value = float(f"{value:.3g}")
    for start, unit, letter in UNITS:
        if abs(value) >= start:
            return f"{value / unit:.3g}{letter}"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(share: float, digits: int = 1) -> str:
    """Returns a share in percent."""
    return f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Returns a time as people say it.

    Example:
        >>> duration(4.21), duration(75), duration(7384)
        ('4.2 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
