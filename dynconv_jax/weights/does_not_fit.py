"""What is said of a state dict that does not fit a module."""

from collections.abc import Iterable

from dynconv_jax.weights.recognize import Match, Problem
from dynconv_jax.weights.wrappers import in_one_line

# What may be wrong, the most telling first: of one, of several.
_KINDS = {
    "wrong shape": "wrong shapes",
    "wrong dtype": "wrong dtypes",
    "wrong value": "wrong values",
    "key under another prefix": "keys under another prefix",
    "missing key": "missing keys",
    "unexpected key": "unexpected keys",
}
# How many of a kind a refusal names before it counts the rest.
_NAMED = 8


class DoesNotFit(ValueError):
    """A state dict does not fit a module; the message says in what, and what it is of.

    Attributes:
        problems: Each by its kind and in words that name the key, the most telling
            first.
        match: What the state dict is of, as far as that is known.
    """

    def __init__(
        self,
        name: str,
        problems: Iterable[Problem],
        hints: Iterable[str] = (),
        match: Match | None = None,
    ):
        """Puts the message together.

        Args:
            name: The class of the module.
            problems: In any order.
            hints: What else to say, each a line.
            match: What the state dict is of.
        """
        self.problems = _most_telling_first(problems)
        self.match = match
        super().__init__("\n".join([_refusal(name, self.problems), *hints]))


def _most_telling_first(problems: Iterable[Problem]) -> list[Problem]:
    """Orders what is wrong by its kind, weights before statistics."""
    kinds = [*_KINDS]

    def rank(problem: tuple[str, str]) -> tuple[int, bool]:
        kind, text = problem
        return kinds.index(kind), not text.split()[0].rstrip(",").endswith("weight")

    return sorted(problems, key=rank)


def _refusal(name: str, problems: list[Problem]) -> str:
    """Returns what is wrong: how many of which kind, and the first of each."""
    totals, lines = [], []
    for kind, several in _KINDS.items():
        texts = [text for each, text in problems if each == kind]
        if not texts:
            continue
        totals.append(f"{len(texts)} {several if len(texts) > 1 else kind}")
        shown = 1 if "prefix" in kind else _NAMED  # one prefix tells all
        lines += [f"{kind}: {in_one_line(text)}" for text in texts[:shown]]
        if len(texts) > shown:
            lines.append(f"and {len(texts) - shown} more {several}")
    told = "".join(f"\n  {line}" for line in lines)
    return (
        f"{', '.join(totals)}: the state dict does not fit the {name}, which is "
        f"unchanged:{told}"
    )
