"""The options of a layer that the shapes of its weights tell.

They are those of `FDConv` and `FrequencyDynamicConv`. What no shape tells are
temperatures, the axis of the one and the groups of the other.
"""

from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]


def fd_conv_options(shapes: Shapes) -> dict[str, Any]:
    """Returns the options of the `FDConv`s in a state dict; none if there are none.

    Args:
        shapes: Of the arrays of a layer or a network, by PyTorch key.

    Raises:
        ValueError: If its layers differ in them.

    Example:
        >>> fd_conv_options(
        ...     {
        ...         "conv.dft_weight": (2, 96, 49, 2),
        ...         "conv.KSM_Global.kernel_fc.weight": (128, 16, 1, 1),
        ...         "conv.KSM_Global.bn.weight": (16,),
        ...     }
        ... )
        {'num_experts': 64, 'num_spectra': 2, 'norm': 'batch'}
    """
    found = []
    for prefix, (spectra, *_) in _layers(shapes, "dft_weight"):
        rows = shapes.get(f"{prefix}KSM_Global.kernel_fc.weight", (1,))[0]
        norm = _norm(shapes, f"{prefix}KSM_Global.")
        found.append(dict(num_experts=rows // spectra, num_spectra=spectra, norm=norm))
    return _only(found)


def frequency_dynamic_options(shapes: Shapes) -> dict[str, Any]:
    """Returns the options of the `FrequencyDynamicConv`s in a state dict.

    Args:
        shapes: Of the arrays of a layer or a network, by PyTorch key.

    Raises:
        ValueError: If its layers differ in them.

    Example:
        >>> frequency_dynamic_options(
        ...     {
        ...         "cnn.conv1.attention.conv1d2.weight": (4, 8, 1),
        ...         "cnn.conv1.attention.bn.weight": (8,),
        ...     }
        ... )
        {'num_experts': 4, 'norm': 'batch'}
    """
    return _only(
        [
            dict(num_experts=experts, norm=_norm(shapes, f"{prefix}attention."))
            for prefix, (experts, *_) in _layers(shapes, "attention.conv1d2.weight")
        ]
    )


def _layers(shapes: Shapes, ending: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (key.removesuffix(ending), shape)
        for key, shape in shapes.items()
        if key == ending or key.endswith(f".{ending}")
    ]


def _norm(shapes: Shapes, prefix: str) -> str:
    names = {"bn": "batch", "ln": "layer"}
    found = (names[each] for each in names if f"{prefix}{each}.weight" in shapes)
    return next(found, "none")


def _only(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what all layers have."""
    if any(each != found[0] for each in found):
        raise ValueError(
            f"the layers of the state dict differ in their options: {found}"
        )
    return found[0] if found else {}
