"""Numbers read off the shapes of arrays, as options of networks and layers.

What is not there, or follows no option, raises `Unread`, which says what it was.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# Of arrays by PyTorch key: those of a checkpoint, or of a layer by the key within it.
Shapes = Mapping[str, tuple[int, ...]]


class Unread(ValueError):
    """No options explain the arrays; the message says which arrays."""


def shape_of(shapes: Shapes, key: str, *ranks: int) -> tuple[int, ...]:
    """Returns the shape of an array that must be there.

    Args:
        shapes: The shapes.
        key: The key.
        *ranks: The numbers of axes that it may have; one or more, if there are none.

    Raises:
        Unread: If it is not there, has other axes, or an axis of no length.

    Example:
        >>> shape_of({"fc.bias": (10,)}, "fc.bias", 1)
        (10,)
    """
    shape = shapes.get(key)
    if shape is None:
        raise Unread(f"{key} is missing")
    if 0 in shape or not shape or (ranks and len(shape) not in ranks):
        raise Unread(f"{key} has the shape {shape}")
    return shape


def one_of(what: str, values: Iterable[int]) -> int:
    """Returns the one value that all layers have.

    Raises:
        Unread: If they differ.

    Example:
        >>> one_of("experts", [4, 4])
        4
    """
    found = sorted(set(values))
    if len(found) != 1:
        raise Unread(f"its layers differ in the number of {what}: {found[:4]}")
    return found[0]


def reduction_of(
    pairs: Iterable[tuple[int, int]], *, floor: int, default: int
) -> int | None:
    """Returns r of H = max(C // r, floor); the default, or else a power of two, if any.

    Args:
        pairs: C and H of each layer.
        floor: The least H.
        default: The r that is preferred.

    Example:
        >>> reduction_of([(64, 16), (512, 32)], floor=16, default=4)
        16
    """
    low, high = 1, math.inf
    for channels, hidden in pairs:
        if hidden < floor:
            return None
        low = max(low, channels // (hidden + 1) + 1)
        if hidden > floor:
            high = min(high, channels // hidden)
    choices = (default, *(2**power for power in range(16)), low)
    return next((each for each in choices if low <= each <= high), None)


def without(defaults: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Returns options but those that are the defaults, or None.

    Example:
        >>> without({"num_experts": 4}, num_experts=4, reduction=2, norm=None)
        {'reduction': 2}
    """
    return {
        name: value
        for name, value in options.items()
        if value is not None and value != defaults.get(name)
    }


def multiplier(fits: Callable[[float], bool], given: int, usual: int) -> float:
    """Returns the number of the fewest decimals by which widths are multiplied.

    Args:
        fits: Whether a number gives all widths.
        given: The largest of the widths.
        usual: What it is with 1.

    Returns:
        A number that fits; or, if none of four decimals does, about the nearest.

    Example:
        >>> multiplier(lambda number: round(256 * number) == 64, 64, 256)
        0.25
    """
    nearest = given / usual
    reach = 8 / usual + nearest / 10  # by how much widths are rounded
    for decimals in range(5):
        scale = 10**decimals
        first = max(1, math.ceil((nearest - reach) * scale))
        last = math.floor((nearest + reach) * scale)
        steps = range(first, min(last, first + 5000) + 1)
        found = [step / scale for step in steps if fits(step / scale)]
        if found:
            return min(found, key=lambda each: abs(each - nearest))
    return round(nearest, 4)


def count(shapes: Shapes, pattern: str, first: int = 0) -> int:
    """Returns how many there are of what keys number in a row.

    Args:
        shapes: Of a checkpoint.
        pattern: A key, with `{}` for the number.
        first: The first number.

    Example:
        >>> count({"0.weight": (8,), "1.weight": (8,)}, "{}.weight")
        2
    """
    number = first
    while pattern.format(number) in shapes:
        number += 1
    return number - first


def ratio_of(counts: Sequence[tuple[int, int]]) -> float:
    """Returns the ratio of warehouses, a whole number or one over a whole number.

    Args:
        counts: Of each warehouse the tiles of its layers, and its cells.

    Raises:
        Unread: If there is none.

    Example:
        >>> ratio_of([(56, 14), (47, 11)])
        0.25
    """
    tiles, cells = max(counts)
    if cells >= tiles > 0:
        ratio, steps = float(cells // tiles), (cells // tiles, 1)
    else:
        # The most tiles tell the most: their cells are floor(tiles / m), or 1.
        blocks = range(1, 65)
        fitting = [m for m in blocks if all(max(1, t // m) == c for t, c in counts)]
        if not fitting:
            raise Unread(f"no ratio makes {cells} cells of {tiles} tiles")
        ratio, steps = 1 / fitting[0], (1, fitting[0])
    if any(max(1, each * steps[0] // steps[1]) != count for each, count in counts):
        raise Unread(f"its warehouses differ in their ratio, as of {counts[:4]}")
    return ratio
