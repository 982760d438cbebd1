"""Matrices as pictures: attention by class, and what is mistaken for what.

Small ones are tables, with their numbers in them. Large ones are images of a pixel for
each cell, whose colors let the page shine through, so that they suit a dark one too.
"""

from collections.abc import Sequence

import numpy as np

from train.showing.report.markup import picture, text

MOST_CLASSES = 20  # whose rows are read as numbers
MOST_EXPERTS = 8
MORE, LESS = (224, 122, 31), (126, 91, 200)  # the colors --more and --less of the page


def attention_map(path: str, attention: np.ndarray, class_names: Sequence[str]) -> str:
    """Draws the mean attention of a router by class, (classes, K).

    An expert with more than an even share is of one color, one with less of another;
    their scales do not shrink with the differences, or routers that learned nothing
    would look as if they had.
    """
    classes, experts = attention.shape
    even = float(attention.mean())  # 1 / K, if the attention of an image sums to 1
    more = max(float(attention.max()) - even, abs(even)) or 1.0
    less = max(even - float(attention.min()), abs(even)) or 1.0
    tones = np.where(attention > even, (attention - even) / more, 0)
    tones = np.where(attention < even, (attention - even) / less, tones)
    if classes <= MOST_CLASSES and experts <= MOST_EXPERTS:
        names = [str(expert) for expert in range(experts)]
        body = _table(attention, tones, class_names, names, "{:.2f}")
    else:
        body = _pixels(tones, f"attention of {path} by class and expert")
    return f'<figure class="map"><figcaption>{text(path)}</figcaption>{body}</figure>'


def confusion_map(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Draws how many images of each class were predicted as each, (classes, classes).

    What is right is of one color and what is wrong of another, which is stronger: it is
    what the eye looks for.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    wrong = np.sqrt(shares)  # a few mistakes in a hundred are to be seen
    tones = np.where(np.eye(len(shares), dtype=bool), -0.75 * shares, wrong)
    if len(confusion) <= MOST_CLASSES:
        names = [str(number) for number in range(len(class_names))]
        if len(set(map(str, class_names)) - set(names)):
            named = [
                f"{number} {name}"
                for number, name in zip(names, class_names, strict=True)
            ]
        else:
            named = names
        return _table(confusion, tones, named, names, "{:.0f}", "confusion")
    return f'<figure class="map square">{_pixels(tones, "confusion matrix")}</figure>'


def _table(
    values: np.ndarray,
    tones: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    form: str,
    kind: str = "",
) -> str:
    """Draws a table whose cells are as strong as their tones, from -1 to 1."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>'
        + "".join(
            f'<td style="{_tone(tone)}">{form.format(value) if value else ""}</td>'
            for value, tone in zip(*pair, strict=True)
        )
        + "</tr>"
        for name, *pair in zip(rows, values, tones, strict=True)
    )
    return (
        f'<div class="scroll"><table class="heat {kind}"><thead><tr><td></td>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _tone(tone: float) -> str:
    color = "--more" if tone > 0 else "--less"
    return f"--tone:var({color});--strength:{100 * abs(tone):.0f}%"


def _pixels(tones: np.ndarray, alt: str) -> str:
    pixels = np.empty((*tones.shape, 4), np.uint8)
    pixels[..., :3] = np.where(tones[..., None] > 0, MORE, LESS)
    pixels[..., 3] = np.rint(255 * np.abs(tones))
    return f'<div class="pixels">{picture(pixels, alt)}</div>'
