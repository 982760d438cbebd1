"""How the axes of an array lie in PyTorch, and how in JAX."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Arrangement(NamedTuple):
    """How an attribute's array lies in PyTorch; the two undo one another.

    Where one PyTorch array holds several attributes, a tuple of their arrays stands in
    the place of the JAX array.

    Attributes:
        to_torch: (JAX array, the module that has it) → PyTorch array.
        from_torch: (PyTorch array, the module that has it) → JAX array.

    Example:
        >>> column = Arrangement(
        ...     lambda array, module: array.reshape(-1, 1),
        ...     lambda array, module: array.reshape(-1),
        ... )
        >>> column.to_torch(np.zeros(3), None).shape
        (3, 1)
    """

    to_torch: Callable[[Any, Any], np.ndarray]
    from_torch: Callable[[np.ndarray, Any], Any]


def permuted(axes: Callable[[int], tuple[int, ...]]) -> Arrangement:
    """Permutes axes.

    Args:
        axes: From the number of axes to the PyTorch array's, as positions in the JAX
            array.

    Example:
        >>> last_first = permuted(lambda ndim: (ndim - 1, *range(ndim - 1)))
        >>> last_first.to_torch(np.zeros((5, 3, 8)), None).shape
        (8, 5, 3)
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

# (K, *k, C/g, O) → (1, 1, K, O·C/g·k), as in DyMN's checkpoints.
stacked_in_one_group = Arrangement(
    lambda kernel, layer: _flattened_to_torch(kernel, layer)[None, None],
    lambda weight, layer: _flattened_from_torch(weight[0, 0], layer),
)


def _opposed_to_torch(kernel: np.ndarray, layer: Any) -> np.ndarray:
    rank = kernel.ndim - 2
    if layer.transpose_kernel:  # (*k, O, I), which JAX flips itself
        return kernel.transpose(rank + 1, rank, *range(rank))
    return np.flip(kernel, tuple(range(rank))).transpose(rank, rank + 1, *range(rank))


def _opposed_from_torch(weight: np.ndarray, layer: Any) -> np.ndarray:
    spatial = tuple(range(2, weight.ndim))
    if layer.transpose_kernel:
        return weight.transpose(*spatial, 1, 0)
    return np.flip(weight, spatial).transpose(*spatial, 0, 1)


# (*k, I, O), correlated with the input by JAX, convolved by PyTorch → (I, O, *k).
opposed = Arrangement(_opposed_to_torch, _opposed_from_torch)


def _dense_to_torch(kernel: np.ndarray, layer: Any) -> np.ndarray:
    return kernel.reshape(-1, math.prod(layer.out_features)).T


def _dense_from_torch(weight: np.ndarray, layer: Any) -> np.ndarray:
    return weight.T.reshape(*layer.in_features, *layer.out_features)


# (*I, *O) → (O, I), of a linear layer whose features are on several axes.
dense = Arrangement(_dense_to_torch, _dense_from_torch)
# (*O) → (O).
flat = Arrangement(
    lambda bias, layer: bias.reshape(-1),
    lambda bias, layer: bias.reshape(layer.out_features),
)
# () → (1,), as PyTorch has a number that all channels share.
single = Arrangement(
    lambda array, _: array.reshape(1), lambda array, _: array.reshape(())
)
# (C) → (1, C, 1, 1), what scales the channels of images.
on_channels = Arrangement(
    lambda array, _: array.reshape(1, -1, 1, 1), lambda array, _: array.reshape(-1)
)
# Nothing in JAX, a count of 0 in PyTorch.
nothing = Arrangement(lambda arrays, _: np.zeros((), np.int64), lambda array, _: ())


def stacked_rows(names: tuple[str, ...], arrangement: Arrangement) -> Arrangement:
    """Lays the arrays of several parts of a module below one another.

    Args:
        names: The attributes of the module that the parts are; all have as many rows.
        arrangement: Of each part.
    """

    def parts(layer: Any) -> list:
        return [getattr(layer, name) for name in names]

    return Arrangement(
        lambda arrays, layer: np.concatenate(
            [
                arrangement.to_torch(array, part)
                for array, part in zip(arrays, parts(layer), strict=True)
            ]
        ),
        lambda array, layer: tuple(
            arrangement.from_torch(rows, part)
            for rows, part in zip(
                np.split(array, len(names)), parts(layer), strict=True
            )
        ),
    )
