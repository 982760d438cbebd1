"""Activations whose gradients are those of PyTorch, also where they have kinks."""

import jax
import jax.numpy as jnp


def relu(x: jax.Array) -> jax.Array:
    """Returns max(x, 0); modules that hold it can be pickled, with `jax.nn.relu` not.

    Example:
        >>> relu(jnp.array([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """
    return jax.nn.relu(x)


def relu6(x: jax.Array) -> jax.Array:
    """Returns min(max(x, 0), 6); the gradient at 0 and at 6 is 0, as in PyTorch.

    Example:
        >>> relu6(jnp.array([-1.0, 2.0, 9.0])).tolist()
        [0.0, 2.0, 6.0]
    """
    return jnp.where(x >= 6, jnp.full_like(x, 6), jax.nn.relu(x))


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """Returns min(max(x + 3, 0), 6) / 6; its gradient is that of PyTorch.

    Example:
        >>> hard_sigmoid(jnp.array([-4.0, 0.0, 1.5])).tolist()
        [0.0, 0.5, 0.75]
    """
    return relu6(x + 3) / 6


def hard_swish(x: jax.Array) -> jax.Array:
    """Returns x times its hard sigmoid.

    Howard et al., "Searching for MobileNetV3", ICCV 2019, section 5.2.

    Example:
        >>> hard_swish(jnp.array([0.0, 1.5, 4.0])).tolist()
        [0.0, 1.125, 4.0]
    """
    return x * hard_sigmoid(x)
