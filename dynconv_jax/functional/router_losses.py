"""Losses on what routers do: how unevenly experts are used, how large logits are."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from dynconv_jax.functional.checks import check_arrays
from dynconv_jax.functional.numerics import at_least_float32


def load_balance_loss(
    attention: Shaped[jax.Array, "*samples experts"],
    probabilities: Shaped[jax.Array, "*samples experts"] | None = None,
) -> Float[jax.Array, ""]:
    """Measures how unevenly a batch uses the experts, so that training evens it out.

        K · Σ_i f_i · P_i

    f_i is the share of expert i in the choices of the samples, and P_i its share in
    their probabilities; the gradient goes through P. It is 1 where all experts are used
    alike and K where one has all. Add it to the loss with a small weight; the source
    has 0.01. Fedus et al., "Switch Transformers", JMLR 2022, section 2.2, equation 4.

    Args:
        attention: The weights of the experts. A sample chooses the one with the largest
            weight, or, if `probabilities` are given, those with any: each of k kept
            counts 1/k.
        probabilities: The whole softmax where `top_k` has cut it to the attention, as
            `capture_routers` returns it: an expert that no sample keeps has a gradient
            only there. None: the attention is whole. Of sigmoids, whose rows do not sum
            to 1, P_i is the share in the sum of all.

    Returns:
        The loss.

    Raises:
        TypeError: If one is no array, but a model perhaps.
        ValueError: If the two differ in shape, or there is no axis of experts.

    Example:
        >>> import jax.numpy as jnp
        >>> kept = jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> whole = jnp.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])
        >>> float(load_balance_loss(kept, whole))
        1.5
    """
    _check_routed(attention=attention, probabilities=probabilities)
    if probabilities is not None and probabilities.shape != attention.shape:
        raise ValueError(
            f"`probabilities` (shape {probabilities.shape}) must have the shape "
            f"of `attention`, {attention.shape}"
        )
    num_experts, wide = attention.shape[-1], at_least_float32(attention.dtype)
    if probabilities is None:
        largest = attention.argmax(axis=-1)
        chosen = jax.nn.one_hot(largest, num_experts, dtype=wide)
        probabilities = attention
    else:
        kept = (attention != 0).astype(wide)
        chosen = kept / jnp.maximum(kept.sum(axis=-1, keepdims=True), 1)
    samples = tuple(range(attention.ndim - 1))
    importance = probabilities.astype(wide).mean(axis=samples)
    shares = importance / importance.sum()
    return num_experts * jnp.sum(chosen.mean(axis=samples) * shares)


def router_z_loss(
    logits: Shaped[jax.Array, "*samples experts"],
) -> Float[jax.Array, ""]:
    """Measures how large the logits of a router are, so that its softmax stays soft.

    The mean of logsumexp(logits)². Add it to the loss with a small weight; the source
    has 0.001. Zoph et al., "ST-MoE: Designing Stable and Transferable Sparse Expert
    Models", 2022, section 3.3, equation 5.

    Args:
        logits: What the softmax is taken of, that is, divided by the temperature, as
            `capture_routers` returns it.

    Returns:
        The loss.

    Raises:
        TypeError: If it is no array, but a model perhaps.
        ValueError: If there is no axis of experts.

    Example:
        >>> import jax.numpy as jnp
        >>> float(router_z_loss(jnp.array([[0.0], [2.0]])))
        2.0
    """
    _check_routed(logits=logits)
    wide = logits.astype(at_least_float32(logits.dtype))
    return jnp.square(jax.nn.logsumexp(wide, axis=-1)).mean()


def _check_routed(**arrays: Any) -> None:
    """Refuses what no router answers, and says what does."""
    try:
        check_arrays(optional=("probabilities",), **arrays)
    except TypeError as error:
        raise TypeError(
            f"{error}; `capture_routers(model, inputs)` returns it of each router"
        ) from None
    for name, value in arrays.items():
        if value is not None and value.ndim == 0:
            raise ValueError(
                f"`{name}` (shape ()) must be (..., num_experts), of each sample"
            )
