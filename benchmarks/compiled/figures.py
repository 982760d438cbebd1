"""What follows from the records of a chip: ratios, regrets and their means."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.compiled.jobs import AUTO, REFERENCE, STATIC
from dynconv_jax.functional.pallas.by_platform import form_for

Record = Mapping[str, Any]


def geometric_mean(values: Iterable[float]) -> float | None:
    """Returns the geometric mean; None of nothing.

    Example:
        >>> geometric_mean([2.0, 8.0])
        4.0
    """
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def by_form(records: Iterable[Record], title: str, variant: str) -> dict[str, Record]:
    """Returns the records of one layer or step, by the title of the form."""
    return {
        record["form_title"]: record
        for record in records
        if record["title"] == title and record["variant"] == variant
    }


def titles(records: Iterable[Record], kind: str) -> list[str]:
    """Returns the layers or steps that there are records of, each once."""
    return list(
        dict.fromkeys(each["title"] for each in records if each["kind"] == kind)
    )


def best(forms: Mapping[str, Record]) -> tuple[str, float] | None:
    """Returns the form with the least bound of those compiled, and that bound.

    What `auto` is compiled as counts too; `vmap`, the reference, does not: it is never
    chosen, and of a GPU its bound leaves out what makes it slow. Nor do kernels for
    GPUs, which are offered by name, and bounds that lack something.
    """
    bounds = {
        name: record["bound"]
        for name, record in forms.items()
        if name not in (STATIC, REFERENCE, form_for("gpu"))
        and "bound" in record
        and not record["unknown"]
    }
    if not bounds:
        return None
    name = min(bounds, key=lambda each: (bounds[each], each == AUTO))
    return name, bounds[name]


def over_static(forms: Mapping[str, Record], name: str) -> float | None:
    """Returns the bound of a form as a multiple of the static convolution's."""
    own, static = (forms.get(each, {}).get("bound") for each in (name, STATIC))
    return own / static if own and static else None


def regret(forms: Mapping[str, Record], name: str = AUTO) -> float | None:
    """Returns the bound of `auto`, or a form, as a multiple of the best one's."""
    found, own = best(forms), forms.get(name, {}).get("bound")
    return own / found[1] if found and own else None


def rank_correlation(left: list[float], right: list[float]) -> float | None:
    """Returns Spearman's rank correlation; None where one of the two is constant.

    Example:
        >>> round(rank_correlation([1.0, 2.0, 3.0], [10.0, 30.0, 20.0]), 3)
        0.5
    """
    ranks = [_ranks(left), _ranks(right)]
    means = [sum(each) / len(each) if each else 0.0 for each in ranks]
    centred = [
        [rank - mean for rank in each] for each, mean in zip(ranks, means, strict=True)
    ]
    product = sum(a * b for a, b in zip(*centred, strict=True))
    norm = math.prod(math.sqrt(sum(a * a for a in each)) for each in centred)
    return product / norm if norm else None


def _ranks(values: list[float]) -> list[float]:
    """Returns the rank of each value, the mean of their ranks for equal ones."""
    order = sorted(values)
    return [order.index(each) + (order.count(each) - 1) / 2 for each in values]
