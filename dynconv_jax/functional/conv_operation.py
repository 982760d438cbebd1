"""A convolution between three arrays, of which two give the third.

inputs (N, *S, C)      kernel (*k, C/g, O)      outputs (N, *S', O)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from dynconv_jax.functional.conv_geometry import ConvGeometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.sharding import type_like, zeros_like
from dynconv_jax.functional.windows import pad_spatial

# With so few channels XLA's convolution is slower on a CPU than a product of windows.
FEW_CHANNELS = 4

_ROLES = ("inputs", "kernel", "outputs")


@dataclasses.dataclass(frozen=True)
class ConvOperation:
    """Which of the three arrays is computed from the two others, and how.

    Attributes:
        result: `"outputs"` is the convolution, `"inputs"` its transpose in the inputs
            and `"kernel"` that in the kernel.
        geometry: The convolution, its padding as numbers.
        spatial: The spatial size of the inputs.
        numerics: The numerical options.
        is_stacked: Whether all three arrays have one more axis in front, over which
            there are so many convolutions.
        kernel_dtype: Only of the result `"kernel"`: in what it is summed and returned,
            where that is wider than its operands; None is their dtype.
    """

    result: str
    geometry: ConvGeometry
    spatial: tuple[Any, ...]
    numerics: Numerics
    is_stacked: bool = False
    kernel_dtype: Any = None

    @property
    def operands(self) -> tuple[str, str]:
        """The arrays that it is computed from, in their order."""
        first, second = (role for role in _ROLES if role != self.result)
        return first, second

    def transposed(
        self,
        convolve: Callable[[jax.Array, jax.Array], jax.Array],
        first: jax.Array,
        second: jax.Array,
        *,
        has_rule: bool = False,
    ) -> jax.Array:
        """Computes the result by a function from inputs and kernel to outputs.

        Args:
            convolve: The function, whose transpose it is.
            first: The first of the operands.
            second: The second.
            has_rule: Whether the function has a gradient rule of its own.
        """
        if self.result == "outputs":
            return convolve(first, second)
        stack, geometry = first.shape[: self.is_stacked], self.geometry
        if self.result == "inputs":  # which lie on devices as the outputs do
            images = second.shape[self.is_stacked]
            shape = (*stack, images, *self.spatial, geometry.in_features)
            of_wanted = functools.partial(_swapped, convolve, first)
        else:
            shape = (*stack, *geometry.kernel_shape)
            of_wanted = functools.partial(convolve, first)
        axes = len(shape) - geometry.rank - (1 if self.result == "inputs" else 2)
        dtype = first.dtype
        if self.kernel_dtype is not None:
            # A product that rounds a wide operand has a rule for the gradient of it.
            dtype, has_rule = self.kernel_dtype, True
        if has_rule:
            zeros = zeros_like(second, shape, dtype, axes)
            return jax.vjp(of_wanted, zeros)[1](second)[0]
        wanted = type_like(second, shape, dtype, axes)
        return jax.linear_transpose(of_wanted, wanted)(second)[0]

    def __call__(self, first: jax.Array, second: jax.Array) -> list[jax.Array]:
        """Computes the result by XLA's convolution, for arrays that are not stacked."""
        if self.kernel_dtype is not None:
            return [self._wide_kernel_gradient(first, second)]

        def convolve(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
            return conv_by_xla(inputs, kernel, self.geometry, self.numerics)

        return [self.transposed(convolve, first, second)]

    def _wide_kernel_gradient(self, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
        """Computes the gradient of a kernel as a convolution of another dtype.

        Channels are its samples and samples its channels, and the cotangent of the
        outputs, spread by the strides, is its kernel. JAX's own rule has no dtype for
        the sums.
        """
        geometry, spatial = self.geometry, "DHW"[-self.geometry.rank :]
        pads, dilation = geometry.pads(self.spatial), geometry.input_dilation
        padded = pad_spatial(inputs, pads, dilation=dilation)
        crops = [
            # What no window reached.
            (0, (taps - 1) * dilation + (size - 1) * stride + 1 - whole)
            for taps, dilation, size, stride, whole in zip(
                geometry.kernel_size,
                geometry.kernel_dilation,
                outputs.shape[1:-1],
                geometry.strides,
                padded.shape[1:-1],
                strict=True,
            )
        ]
        return lax.conv_general_dilated(
            padded,
            outputs,
            window_strides=geometry.kernel_dilation,
            padding=crops,
            rhs_dilation=geometry.strides,
            dimension_numbers=(f"C{spatial}N", f"I{spatial}O", f"{spatial}NC"),
            batch_group_count=geometry.feature_group_count,
            precision=self.numerics.precision,
            preferred_element_type=self.kernel_dtype,
        )


def _swapped(convolve, kernel, inputs):
    return convolve(inputs, kernel)


def channels_last(rank: int) -> tuple[str, str, str]:
    """Returns how arrays lie whose channels are last, as XLA's convolution asks it."""
    spatial = "DHW"[-rank:]
    return f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"


def conv_by_xla(
    inputs: jax.Array, kernel: jax.Array, geometry: ConvGeometry, numerics: Numerics
) -> jax.Array:
    """Convolves inputs (N, *S, C) with a kernel (*k, C/g, O) by XLA's convolution."""
    pads, dilation = geometry.pads(inputs.shape[1:-1]), geometry.input_dilation
    if not all(isinstance(size, int) for size in inputs.shape[1:-1]):
        # Where it learns the size only when it runs, XLA crops wrongly.
        inputs = pad_spatial(inputs, pads, dilation=dilation)
        pads, dilation = ((0, 0),) * geometry.rank, (1,) * geometry.rank
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=geometry.strides,
        padding=pads,
        lhs_dilation=dilation,
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=channels_last(geometry.rank),
        feature_group_count=geometry.feature_group_count,
        precision=numerics.precision,
        preferred_element_type=numerics.preferred_element_type,
    )
