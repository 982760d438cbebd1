"""Squeeze-and-excitation: what networks share whose checkpoints name it otherwise.

Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, section 3.
"""

from collections.abc import Callable

import jax
from flax import nnx

from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.initializers import kaiming_fan_out
from dynconv_jax.models.convolutions import Convolutions
from dynconv_jax.models.images import global_average_pool

Activation = Callable[[jax.Array], jax.Array]


def squeeze_convs(
    features: int, hidden_features: int, make: Convolutions
) -> tuple[nnx.Conv, nnx.Conv]:
    """Returns two 1×1 convolutions, `features` → `hidden_features` → `features`."""

    def conv(in_features: int, out_features: int) -> nnx.Conv:
        return nnx.Conv(
            in_features,
            out_features,
            (1, 1),
            kernel_init=kaiming_fan_out,
            **make.shared,
        )

    return conv(features, hidden_features), conv(hidden_features, features)


def excite(
    inputs: jax.Array,
    reduce: nnx.Conv,
    expand: nnx.Conv,
    activation: Activation,
    gate: Activation,
) -> jax.Array:
    """Scales every channel by a gate that sees the mean of all channels.

    Args:
        inputs: Shape (B, H, W, features).
        reduce: The convolution from the means to the hidden units.
        expand: That from the hidden units to the gates.
        activation: What is between them.
        gate: What makes gates of logits, in float32 at least.
    """
    pooled = global_average_pool(inputs)[:, None, None]
    logits = expand(activation(reduce(pooled)))
    gates = gate(logits.astype(at_least_float32(logits.dtype)))
    return inputs * gates.astype(inputs.dtype)
