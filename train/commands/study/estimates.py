"""What a few seeds say about all: Student's intervals, and Holm's correction."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of a sample, with its confidence interval.

    Attributes:
        mean: The mean.
        low: The lower end of the interval.
        high: The upper end.
        p_value: How probable so large a mean is, or a larger one, of either sign, if
            that of all seeds is 0.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def is_decided(self) -> bool:
        """Whether the interval leaves 0 out."""
        return not self.low <= 0 <= self.high


def estimate(values: Sequence[float]) -> Estimate:
    """Estimates a mean by Student's t, at a level of 95 %.

    Args:
        values: One for each seed, two at least. For a paired comparison they are the
            differences, seed by seed.

    Example:
        >>> estimate([1.0, 2.0, 3.0]).mean
        2.0
    """
    from scipy.stats import t

    freedom = len(values) - 1
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    if error:
        p_value = 2 * float(t.sf(abs(mean) / error, freedom))
    else:
        p_value = float(mean == 0)
    return Estimate(mean, mean - reach, mean + reach, p_value)


def adjust(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number, as Holm does.

    If those below 0.05 after it are called differences, the chance that even one of
    them is none is at most 0.05.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
    Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> adjust([0.5, 0.01, 0.02])
        [0.5, 0.03, 0.04]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    ranked = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(ranked):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
