"""One dynamic convolution: the gradient, in every implementation of both frameworks."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from dynconv_jax import DynamicConv
from dynconv_torch import DynamicConv2d


@dataclasses.dataclass(frozen=True)
class Shape:
    """A square layer with K = 4 experts and its input.

    Attributes:
        batch: B.
        size: Height and width of the input.
        in_features: C.
        out_features: O.
        kernel: The side of the kernel.
        stride: The stride.
    """

    batch: int
    size: int
    in_features: int
    out_features: int
    kernel: int = 3
    stride: int = 1

    def __str__(self) -> str:
        return (
            f"B {self.batch}, {self.size}×{self.size}, "
            f"{self.in_features}→{self.out_features}, {self.kernel}×{self.kernel}, "
            f"stride {self.stride}"
        )

    def inputs(self) -> np.ndarray:
        """Draws a float32 input, channels last."""
        shape = (self.batch, self.size, self.size, self.in_features)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def jax_gradient(shape: Shape, implementation: str) -> Callable[[], object]:
    """Returns a call of forward and backward in JAX, compiled."""
    layer = DynamicConv(
        shape.in_features,
        shape.out_features,
        (shape.kernel, shape.kernel),
        shape.stride,
        padding=shape.kernel // 2,
        implementation=implementation,
        rngs=nnx.Rngs(0),
    )
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def gradient(params, x):
        def loss(params, x):
            return jnp.square(nnx.merge(graphdef, params, rest)(x)).sum()

        return jax.grad(loss, argnums=(0, 1))(params, x)

    x = jnp.asarray(shape.inputs())
    return lambda: jax.block_until_ready(gradient(params, x))


def torch_gradient(shape: Shape, implementation: str) -> Callable[[], object]:
    """Returns a call of forward and backward in PyTorch, eager."""
    layer = DynamicConv2d(
        shape.in_features,
        shape.out_features,
        shape.kernel,
        shape.stride,
        padding=shape.kernel // 2,
        implementation=implementation,
    )
    x = torch.from_numpy(shape.inputs()).movedim(-1, 1).contiguous().requires_grad_()

    def gradient():
        loss = layer(x).square().sum()
        return torch.autograd.grad(loss, [*layer.parameters(), x])

    return gradient
