"""From logits to attention: softmax, temperature, the k largest.

    a = softmax(z / T)               (B, K)    rows sum to 1

And what a router records of it, for losses and diagnostics.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float

from dynconv_jax.scheduled import Scheduled


class Temperature(Scheduled):
    """The temperature of a softmax or sigmoid; `set_temperature` writes it."""

    name = "temperature"
    requirement = (
        "one positive finite number, in float32 too: the logits are divided by it"
    )
    setter = "set_temperature"

    @classmethod
    def accepts(cls, value: float) -> bool:
        """Whether `value` is positive and finite.

        What float32 has only as a subnormal number counts as 0, which XLA makes of it.
        """
        return float(jnp.finfo(jnp.float32).tiny) <= value < math.inf


class Attention(nnx.Intermediate):
    """The attention that a router answered; `nnx.capture` of this type records it."""


class Gating(nnx.Intermediate):
    """What a router's softmax was made from; recorded beside the `Attention`."""


class RouterOutput(NamedTuple):
    """What a router answered, and what the losses on it need.

    Attributes:
        attention: Shape (B, K), the weights of the experts.
        probabilities: Shape (B, K), the whole softmax, where `top_k` has cut it to the
            attention; else None.
        logits: Shape (B, K), what the softmax was taken of: divided by the temperature,
            in training with dropout and noise. None if there is no softmax.
    """

    attention: jax.Array
    probabilities: jax.Array | None = None
    logits: jax.Array | None = None


def record_attention(
    module: nnx.Module, attention: jax.Array, name: str = "attention"
) -> None:
    """Records what `module` answered, where `nnx.capture` is listening."""
    # Outside of `nnx.capture`, sowing would add to the module's state.
    if hasattr(module, "__captures__"):
        module.sow(Attention, name, attention)


def record_softmax(
    module: nnx.Module,
    attention: jax.Array,
    logits: jax.Array,
    temperature: ArrayLike,
    top_k: int | None = None,
) -> None:
    """Records what `attend` made of logits, and what the losses on it need."""
    record_attention(module, attention)
    if hasattr(module, "__captures__"):
        scaled = _cool(logits, temperature)
        module.sow(Gating, "logits", scaled)
        if not _keeps_all(logits, top_k):
            module.sow(Gating, "probabilities", jax.nn.softmax(scaled, axis=-1))


def _cool(logits: jax.Array, temperature: ArrayLike) -> jax.Array:
    return logits / jnp.asarray(temperature).astype(logits.dtype)


def _keeps_all(logits: jax.Array, top_k: int | None) -> bool:
    return top_k is None or top_k == logits.shape[-1]


def _are_largest(logits: jax.Array, count: int) -> jax.Array:
    """Returns which logits (..., K) are among the `count` largest of their row.

    Of equal ones the first are, and NaN is larger than all, so that it is seen.
    """
    # Not by lax.top_k, which gathers a sharded batch; and which ones they are has no
    # gradient, to which JAX gives another sharding.
    logits = lax.stop_gradient(logits)
    descending = -jnp.where(jnp.isnan(logits), jnp.inf, logits)
    return jnp.argsort(jnp.argsort(descending, axis=-1), axis=-1) < count


def attend(
    logits: Float[jax.Array, "*samples experts"],
    temperature: ArrayLike = 1.0,
    top_k: int | None = None,
) -> Float[jax.Array, "*samples experts"]:
    """Turns logits into attention: softmax(logits / temperature) over the k largest.

    The weight of a single expert kept is 1, whatever its logit: nothing to learn from.
    So the gradient that reaches it goes on to its probability before the cut, as if
    that were the weight (a straight-through estimator). Fedus et al., "Switch
    Transformers", JMLR 2022, section 2.1, weigh by that probability itself; here rows
    sum to 1, and kernels keep their scale when experts are dropped.

    Args:
        logits: The logits of each sample.
        temperature: A positive scalar; large values even the attention out. With one
            that is a hundredth of what logits differ by, or less, the softmax is 0 and
            1 to the last digit, and no gradient passes.
        top_k: How many experts to keep. The others get exactly 0 and what is computed
            from the attention gives them no gradient, and those kept sum to 1; among
            equal logits the first ones are kept. With 1, logits of the others have a
            gradient by the probability of the one kept. None keeps all.

    Returns:
        The weights of the experts; those of a sample sum to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> attend(jnp.array([[0.0, 0.0, -1.0]]), top_k=2).tolist()
        [[0.5, 0.5, 0.0]]
    """
    scaled = _cool(logits, temperature)
    if _keeps_all(logits, top_k):
        return jax.nn.softmax(scaled, axis=-1)
    assert top_k is not None
    is_kept = _are_largest(logits, top_k)
    if top_k == 1:
        whole = jnp.where(is_kept, jax.nn.softmax(scaled, axis=-1), 0)
        return is_kept.astype(whole.dtype) + (whole - lax.stop_gradient(whole))
    return jax.nn.softmax(jnp.where(is_kept, scaled, -jnp.inf), axis=-1)
