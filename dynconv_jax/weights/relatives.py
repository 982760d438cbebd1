"""Published networks that are close to those here, but that none here computes.

A row says by which keys one is known, and what is other in it: a checkpoint of it is
refused in these words, and not as one of the network that it resembles.
"""

from collections.abc import Callable
from typing import NamedTuple

from dynconv_jax.weights.shapes import Shapes


class Relative(NamedTuple):
    """A network that no network here computes.

    Attributes:
        title: Its name in words.
        holds: Whether a checkpoint is of it.
        other: What is other in it, and what there is in its place.
    """

    title: str
    holds: Callable[[Shapes], bool]
    other: str


def _is_efficientat_mn(shapes: Shapes) -> bool:
    is_mobilenet = {"features.0.1.weight", "features.1.block.0.1.weight"} <= {*shapes}
    heads = "classifier.5.weight", "classifier.subspace_proj.weight"
    return is_mobilenet and (
        any(".conc_se_layers." in key for key in shapes)
        or any(head in shapes for head in heads)
    )


RELATIVES = (
    Relative(
        "a MobileNetV3 of EfficientAT (`mn`)",
        _is_efficientat_mn,
        "its gates are linear layers and a sigmoid (`conc_se_layers`), and its head is "
        "not torchvision's (`classifier.3`), so that no network here computes it; of "
        "EfficientAT those called `dymn` are known",
    ),
)


def relative_of(shapes: Shapes) -> Relative | None:
    """Returns the row that a checkpoint is of, if any.

    Example:
        >>> relative_of({"fc.weight": (10, 8)}) is None
        True
    """
    return next((each for each in RELATIVES if each.holds(shapes)), None)
