"""The transposed dynamic convolution layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dynconv_torch.functional.geometry import PaddingLike
from dynconv_torch.functional.transpose import dynamic_conv_transpose
from dynconv_torch.functional.transpose_geometry import TransposeGeometry
from dynconv_torch.layers.dynamic_conv import DynamicConvNd


class DynamicConvTransposeNd(DynamicConvNd):
    """What the transposed dynamic convolutions of all ranks share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: PaddingLike = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: int | Sequence[int] = 1,
        num_experts: int = 4,
        reduction: int = 4,
        temperature: float = 1.0,
        router: Callable[[Tensor], Tensor] | None = None,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        top_k: int | None = None,
        router_dropout: float = 0.0,
        router_noise: float = 0.0,
    ):
        """Builds the layer.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension: how many times larger the
                output is.
            padding: What is cropped from the full output: an int, or one int or
                (low, high) pair per spatial dimension. A negative number appends zeros.
            output_padding: How much larger the output is at the high end: an int, or
                one per spatial dimension, smaller than the stride or the dilation.
            groups: g; it must divide C and O.
            bias: Whether every expert has a bias, mixed as the kernels are.
            dilation: An int, or one per spatial dimension.
            num_experts: K, as in `DynamicConv2d`, as all of the following.
            reduction: The router's hidden layer has max(1, C // reduction) units.
            temperature: The router's initial temperature.
            router: A router of one's own, (B, C, *S) → (B, K).
            implementation: How to compute it, `"auto"`, `"loop"`, `"grouped"`,
                `"patches"` or `"experts"`.
            device: Where the parameters are.
            dtype: The dtype of the parameters.
            top_k: How many experts the router keeps for a sample; None keeps all.
            router_dropout: The dropout rate of the router's hidden layer.
            router_noise: The standard deviation of the noise on the router's logits in
                training.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        self.output_padding = output_padding  # `create_geometry` reads it
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            num_experts,
            reduction,
            temperature,
            router,
            implementation,
            device,
            dtype,
            top_k=top_k,
            router_dropout=router_dropout,
            router_noise=router_noise,
        )

    def create_geometry(self, *sizes: Any, **options: Any) -> TransposeGeometry:
        """Creates the geometry, and keeps its output padding."""
        geometry = TransposeGeometry.create(
            *sizes, output_padding=self.output_padding, **options
        )
        self.output_padding = geometry.output_padding
        return geometry

    def apply_experts(self, *operands: Any, **options: Any) -> Tensor:
        """Computes the layer, from the arguments of `dynamic_conv_transpose`."""
        return dynamic_conv_transpose(
            *operands, output_padding=self.output_padding, **options
        )

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        parts = super().extra_repr()
        if self.output_padding != (0,) * self.rank:
            parts += f", output_padding={self.output_padding}"
        return parts


class DynamicConvTranspose1d(DynamicConvTransposeNd):
    """A 1-D transposed convolution whose kernel is mixed per sample from K experts.

    Takes the place of `torch.nn.ConvTranspose1d`; see `DynamicConvTranspose2d`.

    Example:
        >>> DynamicConvTranspose1d(3, 8, 4, 2, padding=1)(torch.ones(2, 3, 5)).shape
        torch.Size([2, 8, 10])
    """

    rank = 1


class DynamicConvTranspose2d(DynamicConvTransposeNd):
    """A 2-D transposed convolution whose kernel is mixed per sample from K experts.

    Takes the place of `torch.nn.ConvTranspose2d`, with its argument names. The experts
    of Yang et al., "CondConv", NeurIPS 2019, and Chen et al., "Dynamic Convolution",
    CVPR 2020, in a transposed convolution, which neither paper has.

    Attributes:
        weight: The experts, shape (K, C, O/g, *kernel_size).
        bias: Their biases, shape (K, O), or None.
        fc1: The router's first linear layer; with `fc2` and `temperature` it is the
            layer's own, unless a router was given. `routing` answers its attention.
        router: The router given, if one was.

    Example:
        >>> layer = DynamicConvTranspose2d(8, 3, 4, stride=2, padding=1)
        >>> features = torch.ones(2, 8, 5, 4)
        >>> layer(features).shape
        torch.Size([2, 3, 10, 8])
        >>> layer.routing(features).shape
        torch.Size([2, 4])
    """

    rank = 2


class DynamicConvTranspose3d(DynamicConvTransposeNd):
    """A 3-D transposed convolution whose kernel is mixed per sample from K experts.

    Takes the place of `torch.nn.ConvTranspose3d`; see `DynamicConvTranspose2d`.

    Example:
        >>> DynamicConvTranspose3d(3, 8, 2, stride=2)(torch.ones(2, 3, 4, 4, 4)).shape
        torch.Size([2, 8, 8, 8, 8])
    """

    rank = 3
