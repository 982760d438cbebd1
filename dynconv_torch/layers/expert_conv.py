"""What layers with K expert kernels share: the experts and their convolution."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynconv_torch.functional.choice import check_implementation
from dynconv_torch.functional.dynamic import dynamic_conv
from dynconv_torch.functional.geometry import (
    Geometry,
    PaddingLike,
    is_unbatched,
    positive_int,
)


class ExpertConvNd(nn.Module):
    """K expert kernels, and the convolution of each sample with its mixture of them.

    The base of the layers that differ in where the attention comes from. A subclass has
    the attribute `rank`, and calls `build_experts` once `nn.Module` is initialised.

    Attributes:
        weight: The experts, shape (K, O, C/g, *kernel_size).
        bias: Their biases, shape (K, O), or None.
    """

    rank: int
    weight: nn.Parameter
    bias: nn.Parameter | None

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
        geometry = Geometry.create(
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
        self.in_channels = geometry.in_channels
        self.out_channels = geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = geometry.padding
        self.dilation = geometry.dilation
        self.groups = geometry.groups
        self.num_experts = positive_int("num_experts", num_experts)
        self.implementation = implementation

        def experts(*shape: int) -> nn.Parameter:
            stack = torch.empty(self.num_experts, *shape, device=device, dtype=dtype)
            return nn.Parameter(stack)

        self.weight = experts(*geometry.weight_shape)
        self.register_parameter("bias", experts(self.out_channels) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the experts from N(0, 0.02²) and zeroes their biases."""
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def convolve(
        self,
        x: Tensor,
        attention: Tensor | None,
        spatial_attention: Tensor | None = None,
    ) -> Tensor:
        """Convolves `x` (B, C, *S) with experts mixed by attention (B, K).

        Spatial attention (B, *k) weighs the taps; `dynamic_conv` explains both.
        """
        return dynamic_conv(
            x,
            attention,
            self.weight,
            self.bias,
            spatial_attention=spatial_attention,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            implementation=self.implementation,
        )

    def is_unbatched(self, x: Tensor) -> bool:
        """Whether `x` is one sample without a batch.

        Raises:
            ValueError: If the input does not fit the layer.
        """
        return is_unbatched(x, self.in_channels, self.rank)

    def check_attention(self, attention: Tensor, x: Tensor) -> None:
        """Raises a ValueError unless there is attention for every sample of `x`."""
        expected = (*x.shape[: -self.rank - 1], self.num_experts)
        if attention.shape != expected:
            raise ValueError(
                f"`attention` (shape {tuple(attention.shape)}) must be (batch, "
                f"num_experts), without batch for one sample: {expected}"
            )

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}, stride={self.stride}",
            f"padding={self.padding}",
        ]
        if any(step != 1 for step in self.dilation):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is not None:
            parts.append("bias=True")
        parts.append(f"num_experts={self.num_experts}")
        if self.implementation != "auto":
            parts.append(f"implementation={self.implementation!r}")
        return ", ".join(parts)

    def _apply(self, fn, recurse=True):
        """Shows `fn` the experts as one kernel with K·O outputs.

        A memory format is for tensors of a certain number of dimensions, and the stack
        has one more than a kernel of its rank.
        """
        shape = self.weight.shape

        def apply(tensor: Tensor) -> Tensor:
            if tensor.shape != shape:  # also true of the gradient
                return fn(tensor)
            return fn(tensor.flatten(0, 1)).unflatten(0, shape[:2])

        return super()._apply(apply, recurse)
