"""What layers with K expert kernels share: the experts and their convolution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_dtype
from dynconv_torch.functional.choice import check_implementation
from dynconv_torch.functional.dynamic import dynamic_conv
from dynconv_torch.functional.geometry import Geometry, PaddingLike, expert_count
from dynconv_torch.layers.convolution import ConvolutionNd, as_one_kernel


class ExpertConvNd(ConvolutionNd):
    """K expert kernels, and the convolution of each sample with its mixture of them.

    The base of the layers that differ in where the attention comes from. A subclass has
    the attribute `rank`, and calls `build_experts` once `nn.Module` is initialised.

    Attributes:
        weight: The experts, shape (K, O, C/g, *kernel_size).
        bias: Their biases, shape (K, O), or None.
    """

    weight: nn.Parameter

    def build_experts(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: PaddingLike = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        num_experts: int = 4,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Creates the experts; `DynamicConv2d` explains the arguments.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        geometry = self.create_geometry(
            in_channels,
            out_channels,
            kernel_size,
            rank=self.rank,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        check_implementation(implementation)
        check_dtype(dtype)
        self.take_geometry(geometry)
        self.num_experts = expert_count(num_experts)
        self.implementation = implementation

        def experts(*shape: int) -> nn.Parameter:
            stack = torch.empty(self.num_experts, *shape, device=device, dtype=dtype)
            return nn.Parameter(stack)

        self.weight = experts(*geometry.weight_shape)
        self.register_parameter("bias", experts(self.out_channels) if bias else None)
        self.reset_parameters()

    # What a transposed layer has otherwise.
    def create_geometry(self, *sizes: Any, **options: Any) -> Geometry:
        """Creates the layer's geometry, from the arguments of `Geometry.create`."""
        return Geometry.create(*sizes, **options)

    def apply_experts(self, *operands: Any, **options: Any) -> Tensor:
        """Computes the layer, from the arguments of `dynamic_conv`."""
        return dynamic_conv(*operands, **options)

    def reset_parameters(self) -> None:
        """Draws the experts from N(0, 0.02²) and zeroes their biases."""
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def experts(self) -> Tensor:
        """The experts as kernels, shape (K, O, C/g, *kernel_size)."""
        return self.weight

    def convolve(self, x: Tensor, attention: Tensor | None, **options: Any) -> Tensor:
        """Convolves `x` (B, C, *S) with experts mixed by attention (B, K).

        Further options are those of `apply_experts`.
        """
        return self.apply_experts(
            x,
            attention,
            self.experts,
            self.bias,
            **self.geometry_options,
            implementation=self.implementation,
            **options,
        )

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        return f"{super().extra_repr()}, num_experts={self.num_experts}"

    def _apply(self, fn, recurse=True):
        return super()._apply(as_one_kernel(fn, self.weight.shape), recurse)
