"""The transposed dynamic convolution layer."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
from flax import nnx

from dynconv_jax.functional.transpose import dynamic_conv_transpose
from dynconv_jax.functional.transpose_geometry import TransposeGeometry
from dynconv_jax.layers.dynamic_conv import DynamicConv
from dynconv_jax.layers.expert_conv import ExpertOptions


class DynamicConvTranspose(DynamicConv):
    """A transposed convolution whose kernel is mixed, for every sample, from K experts.

    It enlarges images as `torch.nn.ConvTranspose2d` does, for 1, 2 or 3 spatial
    dimensions, and differs from `nnx.ConvTranspose` in two ways. `padding` in numbers
    has PyTorch's meaning: what is cropped from the full output. And the kernel is
    flipped, as in PyTorch: an input spreads to the outputs by the kernel as it lies
    there, so that an expert is a kernel of `nnx.ConvTranspose` flipped along all
    spatial axes. `"SAME"` and `"VALID"` mean the same in both.

    The experts of Yang et al., "CondConv", NeurIPS 2019, and Chen et al., "Dynamic
    Convolution", CVPR 2020, in a transposed convolution, which neither paper has. It
    computes only products with inputs, none with inserted zeros.

    Attributes:
        kernel: The experts, shape (K, *kernel_size, C/g, O).
        bias: Their biases, shape (K, O), or None.
        router: What answers the attention; `routing` calls it.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = DynamicConvTranspose(8, 3, (4, 4), 2, padding=1, rngs=nnx.Rngs(0))
        >>> features = jnp.ones((2, 5, 4, 8))
        >>> layer(features).shape
        (2, 10, 8, 3)
        >>> layer.routing(features).shape
        (2, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        output_padding: int | Sequence[int] = 0,
        reduction: int = 4,
        temperature: float = 1.0,
        top_k: int | None = None,
        router_dropout: float = 0.0,
        router_noise: float = 0.0,
        router: Callable[[jax.Array], jax.Array] | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[ExpertOptions],
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: A tuple of 1, 2 or 3 ints; its length is the rank.
            strides: An int, or one per spatial dimension: how many times larger the
                output is.
            output_padding: How much larger still the output is at the high end, as in
                `torch.nn.ConvTranspose2d`: an int, or one per spatial dimension,
                smaller than the stride or the dilation.
            reduction: As in `DynamicConv`, as all of the following.
            temperature: The router's initial temperature.
            top_k: How many experts the router keeps for a sample; None keeps all.
            router_dropout: The dropout rate of the router's hidden layer.
            router_noise: The standard deviation of the noise on the router's logits in
                training.
            router: A router of one's own in place of the five options above.
            rngs: Where the initial parameters come from.
            **options: The other options of `DynamicConv`; `padding` as
                `dynconv_jax.dynamic_conv_transpose` has it, `"SAME"` by default.

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        self.output_padding = output_padding  # `_create_geometry` reads it
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            reduction=reduction,
            temperature=temperature,
            top_k=top_k,
            router_dropout=router_dropout,
            router_noise=router_noise,
            router=router,
            rngs=rngs,
            **options,
        )

    def _create_geometry(self, *sizes: Any, **options: Any) -> TransposeGeometry:
        """Creates the geometry, and keeps its output padding."""
        geometry = TransposeGeometry.create(
            *sizes, output_padding=self.output_padding, **options
        )
        self.output_padding = geometry.output_padding
        return geometry

    def _apply_experts(self, *operands: Any, **options: Any) -> jax.Array:
        """Computes the layer, from the arguments of `dynamic_conv_transpose`."""
        return dynamic_conv_transpose(
            *operands, output_padding=self.output_padding, **options
        )
