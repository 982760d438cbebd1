"""`"scan"`: a few samples at a time, and their windows gathered again for the gradient.

What a step works on stays in cache, and the memory of a step is used again by the next.
Only the inputs are kept for the backward pass. A loop over the samples gathers a batch
that is sharded over devices, so it is for one device, or for `jax.shard_map`.
"""

from collections.abc import Callable

import jax
from jax import lax


def map_samples(
    function: Callable[..., jax.Array],
    arrays: tuple[jax.Array | None, ...],
    chunk: int,
) -> jax.Array:
    """Maps a function over the leading axis, `chunk` entries at a time.

    Args:
        function: Of one entry of each array.
        arrays: All with the same leading axis. A None is passed on as it is.
        chunk: How many entries a step takes; the last step takes what is left.

    Returns:
        The results, stacked.
    """
    # A loop shares nothing with the forward pass, so no barrier has to keep it apart.
    rematerialised = jax.checkpoint(function, prevent_cse=False)
    return lax.map(lambda entry: rematerialised(*entry), arrays, batch_size=chunk)
