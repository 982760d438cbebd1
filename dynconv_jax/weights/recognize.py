"""What is this state dict of? From keys and shapes to the names of a model and a layer.

The batch norms name a network: their keys and widths depend neither on the convolution
nor on the number of classes or of image channels. Keys that only one member of the
family has name the convolution.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.registry import MODELS, create_model
from dynconv_jax.weights.torch_layout import torch_shapes

Shapes = Mapping[str, tuple[int, ...]]

_NORM = ".running_mean"

# What a key ends with, the number of axes of its array (None: any), and what has it.
_SIGNS: tuple[tuple[str, set[int] | None, str], ...] = (
    (r"attention\.(channel|filter|spatial|kernel)_fc\.weight", None, "ODConv"),
    (r"attention\.norm1?\.running_mean", None, "KernelWarehouse"),
    (
        r"attention\.fc1\.weight",
        {3, 4, 5},
        "Dynamic Convolution (Chen et al.) in the layout of its public PyTorch port",
    ),
    (r"fc_(phi|scale)\.weight", None, "Dynamic Convolution Decomposition"),
    (r"routing_fn\.weight", {2}, "CondConv"),
)


def describe(state_dict: Mapping[str, Any]) -> str:
    """Returns what a state dict looks like, or an empty string.

    Args:
        state_dict: Arrays by PyTorch key.

    Example:
        >>> import numpy as np
        >>> describe({"layer1.0.conv1.attention.channel_fc.weight": np.ones((8, 4))})
        'a network or layer with ODConv'
    """
    shapes = {
        key: tuple(getattr(value, "shape", ())) for key, value in state_dict.items()
    }
    models, layers = recognize_models(shapes), recognize_layers(shapes)
    if not models and not layers:
        return ""
    name = " or ".join(models) or "a network or layer"
    return f"{name} with {' and '.join(layers)}" if layers else name


def recognize_models(shapes: Shapes) -> list[str]:
    """Returns the registered models that the shapes fit best; none if none fits.

    The convolutions may be of any kind, and the number of classes and of image channels
    is free. Several are named where they differ in nothing that is there.

    Args:
        shapes: Of the arrays of a state dict, by PyTorch key.

    Example:
        >>> net = abstract_module(lambda rngs: create_model("resnet18", 7, rngs=rngs))
        >>> recognize_models(torch_shapes(net))
        ['resnet18']
    """
    norms = _norms(shapes)
    if not norms:
        return []
    scores: dict[str, int] = {}
    for name in MODELS:
        if name.startswith("tf_"):  # its arrays are those of the name without it
            continue
        known = _shapes_of(name)
        if _fits(norms, known):
            scores[name] = sum(shapes.get(key) == known[key] for key in known)
    best = max(scores.values(), default=0)
    return [name for name, score in scores.items() if score == best]


def recognize_layers(shapes: Shapes) -> list[str]:
    """Returns which members of the family have keys in a state dict.

    Args:
        shapes: Of the arrays of a state dict, by PyTorch key.

    Example:
        >>> recognize_layers({"weight": (4, 8, 3, 3, 3), "routing_fn.weight": (4, 3)})
        ['CondConv']
    """
    found = []
    for ending, axes, name in _SIGNS:
        pattern = re.compile(rf"(^|\.){ending}$")
        if any(
            pattern.search(key) and (axes is None or len(shape) in axes)
            for key, shape in shapes.items()
        ):
            found.append(name)
    if any(_is_dynamic_conv(shapes, key) for key in shapes):
        found.append("DynamicConv")
    return found


def _is_dynamic_conv(shapes: Shapes, key: str) -> bool:
    """Whether the key is of the experts of a layer with the router's names on it."""
    prefix, dot, last = key.rpartition(".")
    router = shapes.get(f"{prefix}{dot}fc2.weight", ())
    return last == "weight" and len(shapes[key]) > 3 and router[:1] == shapes[key][:1]


@functools.cache
def _shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return torch_shapes(abstract_module(lambda rngs: create_model(name, rngs=rngs)))


def _norms(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes.items() if key.endswith(_NORM)}


def _fits(norms: Shapes, known: Shapes) -> bool:
    """Whether the norms are those of a known model, with others only inside layers."""
    expected = _norms(known)
    if any(norms.get(key) != shape for key, shape in expected.items()):
        return False
    layers = tuple(key.removesuffix("weight") for key in known if key[-7:] == ".weight")
    return all(key.startswith(layers) for key in norms if key not in expected)
