"""The initialisers that PyTorch's layers use, so that training starts alike."""

from typing import Any, Literal, TypeVar

import jax
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import DTypeLike

Arrays = TypeVar("Arrays", bound=tuple)

# How a layer draws its parameters: in the library's way, or in that of its authors.
Init = Literal["default", "published"]
INITS = "default", "published"

# torch.nn.Linear and torch.nn.Conv2d draw their weights from U(±1/√fan_in).
torch_kernel_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# As torch.nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu") draws.
kaiming_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

# As torch.nn.init.kaiming_uniform_(weight) draws.
kaiming_uniform = nnx.initializers.variance_scaling(2.0, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> nnx.Initializer:
    """Returns an initialiser that draws from U(±1/√fan_in), as PyTorch's biases are.

    Args:
        fan_in: The number of inputs that each output sums over.

    Example:
        >>> import jax
        >>> torch_bias_init(4)(jax.random.key(0), (8,)).shape
        (8,)
    """
    bound = fan_in**-0.5

    def init(key: jax.Array, shape, dtype: DTypeLike = float) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def promote_to_widest(
    arrays: Arrays, /, *, dtype: Any = None, inexact: bool = True
) -> Arrays:
    """Promotes arrays as flax does, also where JAX is told to promote none by itself.

    Layers whose inputs were raised to float32, beside narrower parameters, have it as
    their `promote_dtype`.
    """
    with jax.numpy_dtype_promotion("standard"):
        return dtypes.promote_dtype(arrays, dtype=dtype, inexact=inexact)


def torch_linear(in_features: int, out_features: int, **options) -> nnx.Linear:
    """Returns an `nnx.Linear` that draws its parameters as `torch.nn.Linear` does.

    Unless the options say otherwise.

    Args:
        in_features: The number of input features.
        out_features: The number of output features.
        **options: Passed on to `nnx.Linear`.

    Example:
        >>> torch_linear(4, 2, rngs=nnx.Rngs(0)).kernel.shape
        (4, 2)
    """
    usual: dict[str, Any] = dict(
        kernel_init=torch_kernel_init,
        bias_init=torch_bias_init(in_features),
        promote_dtype=promote_to_widest,
    )
    return nnx.Linear(in_features, out_features, **usual | options)
