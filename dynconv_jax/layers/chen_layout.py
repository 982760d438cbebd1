"""The layout of the widely copied PyTorch port of Chen et al.'s dynamic convolution.

    attention.fc1.weight (H, C, 1, 1)       a 1×1 convolution without bias
    attention.fc2.weight (K, H, 1, 1)       a 1×1 convolution
    attention.fc2.bias (K)                  its bias, which the port's 3-D layer has not
    weight (K, O, C/g, *k), bias (K, O)     the experts

The trailing ones are as many as there are spatial dimensions. It is the layer's own
router under another name; its temperature is in no checkpoint, so that loading one
leaves the temperature as it is.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dynconv_jax.functional.geometry import positive_int

# The keys of a router; in the port's layout the first linear layer has no bias.
REQUIRED = ("fc1.weight", "fc2.weight")
OPTIONAL = ("fc2.bias",)


def chen_options(
    in_features: int, num_experts: int = 4, *, ratio: float = 0.25, rank: int = 2
) -> dict[str, Any]:
    """Returns the options of a `DynamicConv` that loads the port's checkpoints.

    Args:
        in_features: C, the number of input channels.
        num_experts: K.
        ratio: The hidden layer has H = int(C · ratio) + 1 units, or K of images of
            three channels.
        rank: The number of spatial dimensions. With three, where the port's second
            layer has no bias, the router has none either.

    Example:
        >>> from flax import nnx
        >>> from dynconv_jax import DynamicConv
        >>> options = chen_options(16, num_experts=4)
        >>> layer = DynamicConv(16, 8, (3, 3), **options, rngs=nnx.Rngs(0))
        >>> layer.router.fc1.kernel.shape
        (16, 5)
    """
    hidden = num_experts if in_features == 3 else int(in_features * ratio) + 1
    return dict(
        num_experts=num_experts,
        router_hidden_features=hidden,
        router_use_hidden_bias=False,
        router_use_bias=rank != 3,
    )


def chen_hidden(in_features: int, num_experts: int, reduction: int) -> int:
    """Returns the hidden units of the port's router, with a ratio of 1 / reduction.

    Example:
        >>> chen_hidden(64, 4, 4), chen_hidden(3, 4, 4)
        (17, 4)
    """
    in_features = positive_int("in_features", in_features)
    hidden = in_features // positive_int("reduction", reduction) + 1
    return num_experts if in_features == 3 else hidden


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int]]:
    """Yields the prefix and the rank of every dynamic convolution with its router."""
    for key, shape in shapes.items():
        prefix = key.removesuffix("weight")
        is_layer = {key, *(f"{prefix}{name}" for name in REQUIRED)} <= shapes.keys()
        if key == f"{prefix}weight" and len(shape) >= 4 and is_layer:
            yield prefix, len(shape) - 3


def from_chen_layout(
    state_dict: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Renames what is in the port's layout; all else stays as it is.

    Args:
        state_dict: The state dict to load.
        shapes: The keys that the module has, with their shapes.

    Returns:
        A new state dict in the layout of `DynamicConv`.

    Example:
        >>> shapes = {"weight": (4, 8, 16, 3), "fc1.weight": (5, 16)}
        >>> shapes |= {"fc2.weight": (4, 5)}
        >>> state_dict = {"attention.fc1.weight": np.ones((5, 16, 1))}
        >>> from_chen_layout(state_dict, shapes)["fc1.weight"].shape
        (5, 16)
    """
    renamed: dict[str, tuple[str, int]] = {}
    for prefix, rank in _layers(shapes):
        names = (*REQUIRED, *OPTIONAL)
        if not {f"{prefix}{name}" for name in names} & state_dict.keys():
            for name in names:
                axes = rank if name.endswith("weight") else 0
                renamed[f"{prefix}attention.{name}"] = f"{prefix}{name}", axes
    result = {}
    for key, value in state_dict.items():
        target, axes = renamed.get(key, (key, 0))
        shape = tuple(getattr(value, "shape", ()))
        if axes and shape[2:] != (1,) * axes:
            target = key  # not a 1×1 convolution of this rank: left to be refused
        elif axes:
            value = value.reshape(shape[:2])
        result[target] = value
    return result


def to_chen_layout(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state dict whose dynamic convolutions are in the port's layout.

    What `load_torch_state_dict` read from the port comes out bit for bit. The layout
    has no place for temperatures: note them elsewhere.

    Args:
        state_dict: Of a layer or a model.

    Raises:
        ValueError: If a router has a bias in its first linear layer.

    Example:
        >>> shapes = {"weight": (4, 8, 16, 3, 3), "fc1.weight": (5, 16)}
        >>> shapes |= {"fc2.weight": (4, 5), "fc2.bias": (4,)}
        >>> arrays = {key: np.ones(shape) for key, shape in shapes.items()}
        >>> to_chen_layout(arrays)["attention.fc2.weight"].shape
        (4, 5, 1, 1)
    """
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    renamed: dict[str, tuple[str | None, int]] = {}
    for prefix, rank in _layers(shapes):
        if f"{prefix}fc1.bias" in state_dict:
            raise ValueError(
                f"`{prefix}fc1.bias` has no place in this layout, whose first linear "
                "layer has no bias; build the layers with the options that "
                "`chen_options` gives"
            )
        renamed[f"{prefix}temperature"] = None, 0
        for name in (*REQUIRED, *OPTIONAL):
            axes = rank if name.endswith("weight") else 0
            renamed[f"{prefix}{name}"] = f"{prefix}attention.{name}", axes
    result = {}
    for key, value in state_dict.items():
        target, axes = renamed.get(key, (key, 0))
        if target is not None:
            result[target] = value.reshape((*value.shape, *(1,) * axes))
    return result
