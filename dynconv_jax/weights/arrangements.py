"""How the axes of an array lie in PyTorch, and how in JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Arrangement(NamedTuple):
    """How an attribute's array lies in PyTorch; the two undo one another.

    Attributes:
        to_torch: (JAX array, the module that has it) → PyTorch array.
        from_torch: (PyTorch array, the module that has it) → JAX array.
    """

    to_torch: Callable[[np.ndarray, Any], np.ndarray]
    from_torch: Callable[[np.ndarray, Any], np.ndarray]


def permuted(axes: Callable[[int], tuple[int, ...]]) -> Arrangement:
    """Permutes axes.

    Args:
        axes: From the number of axes to the PyTorch array's, as positions in the JAX
            array.
    """
    return Arrangement(
        lambda array, _: array.transpose(axes(array.ndim)),
        lambda array, _: array.transpose(np.argsort(axes(array.ndim))),
    )


same = permuted(lambda ndim: tuple(range(ndim)))
# (*k, I, O) → (O, I, *k); without spatial axes the transpose (I, O) → (O, I).
channels_first = permuted(lambda ndim: (ndim - 1, ndim - 2, *range(ndim - 2)))
# (K, *k, I, O) → (K, O, I, *k).
stacked_channels_first = permuted(
    lambda ndim: (0, ndim - 1, ndim - 2, *range(1, ndim - 2))
)


def _transposed_to_torch(kernel: np.ndarray, layer: Any) -> np.ndarray:
    experts, *size, width, outputs = kernel.shape
    groups, rank = layer.feature_group_count, len(size)
    split = kernel.reshape(experts, *size, width, groups, outputs // groups)
    # (K, *k, C/g, g, O/g) → (K, g, C/g, O/g, *k)
    order = (0, rank + 2, rank + 1, rank + 3, *range(1, rank + 1))
    inputs = groups * width
    return split.transpose(order).reshape(experts, inputs, outputs // groups, *size)


def _transposed_from_torch(weight: np.ndarray, layer: Any) -> np.ndarray:
    experts, inputs, outputs, *size = weight.shape
    groups = layer.feature_group_count
    split = weight.reshape(experts, groups, inputs // groups, outputs, *size)
    # (K, g, C/g, O/g, *k) → (K, *k, C/g, g, O/g)
    order = (0, *range(4, split.ndim), 2, 1, 3)
    width = inputs // groups
    return split.transpose(order).reshape(experts, *size, width, groups * outputs)


# (K, *k, C/g, O) → (K, C, O/g, *k), as transposed convolutions of PyTorch have it.
stacked_transposed = Arrangement(_transposed_to_torch, _transposed_from_torch)
# (I, O) → (O, I, 1, ...), the weight of a 1×1 convolution.
pointwise = Arrangement(
    lambda kernel, layer: kernel.T.reshape(*kernel.T.shape, *(1,) * layer.rank),
    lambda weight, layer: weight.reshape(weight.shape[:2]).T,
)


def _flattened_to_torch(kernel: np.ndarray, layer: Any) -> np.ndarray:
    ordered = stacked_channels_first.to_torch(kernel, layer)
    return ordered.reshape(len(kernel), -1)


def _flattened_from_torch(weight: np.ndarray, layer: Any) -> np.ndarray:
    width = layer.in_features // layer.feature_group_count
    ordered = weight.reshape(-1, layer.out_features, width, *layer.kernel_size)
    return stacked_channels_first.from_torch(ordered, layer)


# (K, *k, C/g, O) → (K, O·C/g·k), as CondConv's checkpoints have it.
stacked_flattened = Arrangement(_flattened_to_torch, _flattened_from_torch)
