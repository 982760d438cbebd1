"""What no kernel of Pallas can compute, for whichever chip it is written."""

from collections.abc import Sequence
from typing import Any

from dynconv_jax.functional.geometry import Geometry


def every_kernel_refuses(
    geometry: Geometry, shape: Sequence[Any], device_count: int
) -> str | None:
    """Says why the kernels for any chip cannot compute a dynamic convolution.

    Args:
        geometry: The convolution.
        shape: The shape (B, *S, C) of the inputs.
        device_count: Over how many devices the batch may be spread, where the program
            is left to XLA's partitioner; inside `jax.shard_map` it is 1.

    Returns:
        The reason, to be read behind the form's name; None where some may.

    Example:
        >>> every_kernel_refuses(Geometry.create(8, 8, (3,)), (2, 9, 8), 1)
        'is for 2 spatial dimensions, not 1'
    """
    if geometry.rank != 2:
        return f"is for 2 spatial dimensions, not {geometry.rank}"
    if not all(isinstance(size, int) for size in shape):
        return f"must know all sizes, not {', '.join(map(str, shape))}"
    if device_count > 1:
        return (
            "is a kernel that XLA cannot divide over devices; call it inside "
            "`jax.shard_map`"
        )
    groups = geometry.feature_group_count
    if groups > 1 and not geometry.in_features == geometry.out_features == groups:
        return (
            "is for dense convolutions, or depthwise with as many outputs as inputs, "
            f"not for {groups} groups of {geometry.in_features}→"
            f"{geometry.out_features} channels"
        )
    return None
