"""Who is compared with whom: each member of the family with a static net of its budget.

A member and its static counterparts see the same images in the same order. The static
net of the same parameters, or of the same multiply-adds, is as much wider as that
takes; the one of the same time is of the member's width and takes more steps.
"""

import bisect
import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
from flax import nnx

from dynconv_jax import count_multiply_adds, count_parameters, create_model
from dynconv_jax.models.abstract import abstract_module

IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10

# Widths are multiples of 1 / GRID: with them every width of every stage can be met.
GRID = 1024
# How far apart two budgets may be that share a static net, so that fewer are trained.
TOLERANCE = 0.02
# Steps of the same time are multiples of this share of the steps, for the same reason.
SHARE_OF_STEPS = 0.04
# Times that come out further apart are matched again, by the pace of the longer run.
UNEQUAL = 0.05


@dataclasses.dataclass(frozen=True)
class Entrant:
    """What is trained, with every seed: a DynamicNet for a number of steps.

    Attributes:
        conv: What its convolutions are.
        width_mult: How wide it is.
        steps: How many steps it is trained for.
    """

    conv: str
    width_mult: float
    steps: int

    @property
    def name(self) -> str:
        """A name that no other entrant has."""
        return f"{self.conv}-{self.width_mult}-{self.steps}"

    def count(self, budget: str) -> int:
        """Counts its parameters or multiply_adds."""
        return COUNTS[budget](self.conv, self.width_mult)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two entrants of one budget.

    Attributes:
        budget: What both have the same of: parameters, multiply_adds or time.
        member: The member of the family.
        static: Its static counterpart.
    """

    budget: str
    member: Entrant
    static: Entrant


def parameters_of(conv: str, width_mult: float) -> int:
    """Counts the parameters of a DynamicNet for Fashion-MNIST, without building it.

    Example:
        >>> parameters_of("static", 0.25)
        25154
    """
    return count_parameters(_outline(conv, width_mult))


@functools.cache
def multiply_adds_of(conv: str, width_mult: float) -> int:
    """Counts its multiply-adds for one image.

    Example:
        >>> multiply_adds_of("static", 0.25)
        803584
    """
    image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), "float32")
    return count_multiply_adds(_outline(conv, width_mult), image)


@functools.cache
def _outline(conv: str, width_mult: float) -> nnx.Module:
    return abstract_module(
        lambda rngs: create_model(
            "dynamic_net",
            NUM_CLASSES,
            conv=conv,
            in_features=IMAGE_SHAPE[-1],
            width_mult=width_mult,
            rngs=rngs,
        )
    )


# What is counted. Time, the third budget, is measured.
COUNTS: dict[str, Callable[[str, float], int]] = {
    "parameters": parameters_of,
    "multiply_adds": multiply_adds_of,
}


def matching_width(target: int, measure: Callable[[float], int]) -> float:
    """Returns the width whose measure is nearest to a target.

    Args:
        target: What is to be met.
        measure: Answers for a width; it never falls.

    Example:
        >>> matching_width(98148, lambda width: parameters_of("static", width))
        0.4970703125
    """
    widest = GRID
    while measure(widest / GRID) < target:
        widest *= 2
    numbers = range(1, widest + 1)
    place = bisect.bisect_left(numbers, target, key=lambda n: measure(n / GRID))
    near = [n / GRID for n in numbers[max(0, place - 1) : place + 1]]
    return min(near, key=lambda width: abs(measure(width) - target))


def match_costs(members: Sequence[Entrant], base: Entrant) -> list[Comparison]:
    """Compares members with static nets of as many parameters, or multiply-adds.

    Args:
        members: The members of the family.
        base: The static net of their width and steps.
    """
    comparisons = []
    for budget, count in COUNTS.items():
        measure = functools.partial(count, base.conv)
        widths = [base.width_mult]
        for member in members:
            target = member.count(budget)

            def miss(width: float, measure=measure, target=target) -> float:
                return abs(measure(width) / target - 1)

            if miss(min(widths, key=miss)) > TOLERANCE:
                widths.append(matching_width(target, measure))
            static = dataclasses.replace(base, width_mult=min(widths, key=miss))
            comparisons.append(Comparison(budget, member, static))
    return comparisons


def match_times(
    members: Sequence[Entrant],
    base: Entrant,
    seconds: Mapping[Entrant, Sequence[float]],
    *,
    may_train: bool = True,
) -> list[Comparison]:
    """Compares members with the static net, trained for as long as they were.

    Args:
        members: The members of the family.
        base: The static net of their width.
        seconds: How long the training of each took with each seed. A static net of this
            width that took as long as a member is its counterpart.
        may_train: Whether, where there is none, one that is yet to be trained may be,
            for the steps that the pace of the nearest suggests. Else it is the nearest.
    """

    def ratio(static: Entrant, member: Entrant) -> float:
        return statistics.median(seconds[static]) / statistics.median(seconds[member])

    trained = [
        each for each in seconds if dataclasses.replace(each, steps=base.steps) == base
    ]
    quantum = max(1, round(SHARE_OF_STEPS * base.steps))
    comparisons = []
    for member in members:
        static = min(trained, key=lambda each: abs(math.log(ratio(each, member))))
        if may_train and abs(ratio(static, member) - 1) > UNEQUAL:
            steps = static.steps / ratio(static, member)
            steps = max(1, round(steps / quantum)) * quantum
            static = dataclasses.replace(base, steps=steps)
        comparisons.append(Comparison("time", member, static))
    return comparisons


def entrants_of(comparisons: Iterable[Comparison]) -> list[Entrant]:
    """Returns who takes part in comparisons, each once, the members first.

    Example:
        >>> one, two = Entrant("dynamic", 0.25, 9), Entrant("static", 0.5, 9)
        >>> entrants_of([Comparison("parameters", one, two)] * 2) == [one, two]
        True
    """
    comparisons = list(comparisons)
    members = [each.member for each in comparisons]
    return list(dict.fromkeys(members + [each.static for each in comparisons]))
