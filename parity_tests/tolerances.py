"""The one table of tolerances, and the comparison of arrays by it.

It knows neither framework, so that tests of one need not have the other.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far two results may be apart, and why.

    Attributes:
        relative: The largest difference, as a share of the largest magnitude of the
            expected array.
        reason: Where differences of that size come from.
    """

    relative: float
    reason: str


# The one table of tolerances.
TOLERANCES = {
    "float64": Tolerance(
        1e-10,
        "sums of up to 1e4 terms in another order, at 1e-16 a term: far above rounding "
        "and far below any mistake in a formula. This tier finds the bugs",
    ),
    "float32": Tolerance(
        2e-5,
        "the same sums at 6e-8 a term, passed through batch norm's division and a few "
        "layers",
    ),
    "bfloat16": Tolerance(
        2e-2,
        "eight bits: 4e-3 for each rounding of an activation, a few of them in a row",
    ),
    "int8": Tolerance(
        1e-1,
        "linear layers quantized to eight bits, 4e-3 of the largest weight and as much "
        "of the largest feature, up to four in a row and then a softmax",
    ),
    "curve": Tolerance(
        1e-3,
        "the losses of tens of float32 steps whose sums over the batch are in another "
        "order: each step multiplies the rounding of those before it",
    ),
}

# How many of 256 levels a pixel may be off: one, where a file's own coding or
# two roundings in a row come between, and half of one where it is rounded once.
ONE_LEVEL = 1
HALF_LEVEL = 0.51

# A gradient that is the small difference of large terms (a router whose softmax is
# saturated) carries their rounding. A gradient is therefore never measured against less
# than this share of the largest magnitude among all gradients of the module.
GRADIENT_FLOOR = 1e-4

# The gradients of a float32 pair that agrees in float64 differ by rounding alone, and a
# gradient that is zero but for rounding may have as much of it as the largest.
ROUNDING_FLOOR = 1.0


class ParityError(AssertionError):
    """The two modules do not compute the same; the message says what and where."""


def assert_close(
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    dtype: str,
    floor: float = 0.0,
) -> None:
    """Compares named arrays by the table of tolerances.

    Args:
        actual: Arrays by name.
        expected: Arrays by name; the names must be the same.
        dtype: The row of `TOLERANCES`.
        floor: Measure no array against less than this share of the largest magnitude
            among all expected arrays.

    Raises:
        ParityError: If names or shapes differ, a value is not finite in one array only,
            or values are too far apart. For every array that fails it gives the worst
            index, both values, the relative error and the tolerance.

    Example:
        >>> one, two = np.array([1.0, 2.0]), np.array([1.0, 2.1])
        >>> assert_close({"output": two}, {"output": one}, dtype="float64")
        Traceback (most recent call last):
        parity_tests.tolerances.ParityError: 1 of 1 arrays differ:
          output[1] is 2.1, expected 2.0: relative error 5.0e-02, tolerance 1.0e-10
    """
    if actual.keys() != expected.keys():
        raise ParityError(
            f"names differ: missing {sorted(expected.keys() - actual.keys())}, "
            f"unexpected {sorted(actual.keys() - expected.keys())}"
        )
    tolerance = TOLERANCES[dtype].relative
    least = _least(expected, floor)
    failures = []
    for name, reference in expected.items():
        array = np.asarray(actual[name])
        reference = np.asarray(reference)
        if array.shape != reference.shape:
            failures.append(f"{name} has shape {array.shape}, not {reference.shape}")
            continue
        if array.size == 0:
            continue
        error = _relative_errors(array, reference, least)
        worst = np.unravel_index(error.argmax(), error.shape)
        if error[worst] > tolerance:
            index = f"[{', '.join(map(str, worst))}]" if worst else ""
            values = float(array[worst]), float(reference[worst])
            failures.append(
                f"{name}{index} is {values[0]}, expected {values[1]}: "
                f"relative error {error[worst]:.1e}, tolerance {tolerance:.1e}"
            )
    if failures:
        raise ParityError(
            f"{len(failures)} of {len(expected)} arrays differ:\n  "
            + "\n  ".join(failures)
        )


def worst_error(
    actual: Mapping[str, Any], expected: Mapping[str, Any], *, floor: float = 0.0
) -> float:
    """Returns how far named arrays are apart, as `assert_close` measures it.

    Args:
        actual: Arrays by name.
        expected: Arrays by name.
        floor: As in `assert_close`.

    Returns:
        The largest relative error of all; infinity if names or shapes differ, or a
        value is not finite in one array only.

    Example:
        >>> worst_error({"output": np.array([1.5])}, {"output": np.array([2.0])})
        0.25
    """
    if actual.keys() != expected.keys():
        return np.inf
    least = _least(expected, floor)
    worst = 0.0
    for name, reference in expected.items():
        array, reference = np.asarray(actual[name]), np.asarray(reference)
        if array.shape != reference.shape:
            return np.inf
        errors = _relative_errors(array, reference, least)
        worst = max(worst, float(errors.max(initial=0.0)))
    return worst


def _least(expected: Mapping[str, Any], floor: float) -> float:
    """Returns what no array is measured against less than."""
    tiny = float(np.finfo(float).tiny)
    if not floor:
        return tiny
    scales = (_scale(np.asarray(array, np.float64)) for array in expected.values())
    return max(floor * max(scales, default=0.0), tiny)


def _scale(array: np.ndarray) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def _relative_errors(
    array: np.ndarray, reference: np.ndarray, least: float
) -> np.ndarray:
    """Returns the error of each value, infinite where one of the two alone is a NaN."""
    array, reference = (np.asarray(each, np.float64) for each in (array, reference))
    same = (array == reference) | (np.isnan(array) & np.isnan(reference))
    scale = max(_scale(reference), least)
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(array - reference) / scale)
    return np.where(np.isnan(error), np.inf, error)
