"""Stacks of convolutions, each with images and a kernel of its own.

They are computed by `conv` under `jax.vmap`, and by what one would write without it:
`jax.vmap` of XLA's convolution, or a loop by `jax.lax.map`.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax

import dynconv_jax

OURS, BY_VMAP, BY_MAP, IN_TORCH = "conv", "jax.vmap", "lax.map", "torch.func"


@dataclasses.dataclass(frozen=True)
class Stack:
    """Models, each with images and a kernel of its own."""

    models: int
    images: int
    side: int
    in_features: int
    out_features: int
    window: int = 3
    strides: int = 1
    groups: int = 1
    ways: tuple[str, ...] = (OURS, BY_VMAP, BY_MAP, IN_TORCH)

    def __str__(self) -> str:
        parts = [
            f"{self.models} models × {self.images} images, {self.side}×{self.side}, "
            f"{self.in_features}→{self.out_features}, {self.window}×{self.window}"
        ]
        parts += [f"strides {self.strides}"] * (self.strides > 1)
        parts += ["depthwise"] * (self.groups > 1)
        return ", ".join(parts)

    def sizes(self) -> dict[str, int]:
        """Returns what makes the same stack again, without the ways."""
        sizes = dataclasses.asdict(self)
        del sizes["ways"]
        return sizes

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of inputs, kernels and outputs, channels last."""
        size = -(-self.side // self.strides)
        return (
            (self.models, self.images, self.side, self.side, self.in_features),
            (
                *(self.models, self.window, self.window),
                *(self.in_features // self.groups, self.out_features),
            ),
            (self.models, self.images, size, size, self.out_features),
        )


# Where XLA's own way takes seconds, or more memory than there is, it is left out.
_NO_VMAP = (OURS, BY_MAP, IN_TORCH)
GOAL = Stack(8, 16, 16, 32, 32)
STACKS = (
    GOAL,
    Stack(8, 16, 16, 32, 32, strides=2),
    Stack(8, 16, 16, 64, 64, window=1),
    Stack(8, 32, 32, 3, 32, ways=_NO_VMAP),
    Stack(4, 16, 28, 64, 64, ways=_NO_VMAP),
    Stack(64, 1, 14, 64, 64, ways=_NO_VMAP),
    Stack(256, 1, 7, 16, 16),
    Stack(8, 16, 14, 96, 96, groups=96, ways=_NO_VMAP),
)


def by_xla(inputs: jax.Array, kernel: jax.Array, strides: int, groups: int) -> Any:
    """Convolves by XLA's convolution, padded as to keep the size."""
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        inputs,
        kernel,
        (strides, strides),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def by_conv(inputs: jax.Array, kernel: jax.Array, strides: int, groups: int) -> Any:
    """Convolves by `dynconv_jax.conv`, padded as to keep the size."""
    pad = (kernel.shape[0] - 1) // 2
    return dynconv_jax.conv(
        inputs, kernel, strides=strides, padding=pad, feature_group_count=groups
    )


def stack_functions(stack: Stack, way: str) -> tuple[Any, Any]:
    """Returns a stack one way: forward, and forward with both gradients."""
    options = dict(strides=stack.strides, groups=stack.groups)
    convolve = functools.partial(by_conv if way == OURS else by_xla, **options)

    def mapped(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        if way == BY_MAP:
            return lax.map(lambda pair: convolve(*pair), (inputs, kernel))
        return jax.vmap(convolve)(inputs, kernel)

    def gradient(inputs: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        outputs, pull = jax.vjp(mapped, inputs, kernel)
        return outputs, pull(cotangent)

    return jax.jit(mapped), jax.jit(gradient)
