"""Static convolutions with the paddings that those of PyTorch lack."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.per_sample import add_bias, conv


class PaddedConvNd(nn.Module):
    """What makes of a convolution of PyTorch one with any padding of a `Geometry`."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, geometry: Geometry, **options: Any):
        """Builds the layer.

        Args:
            geometry: The convolution.
            **options: Whether there is a `bias`; `device` and `dtype`.
        """
        super().__init__(
            geometry.in_channels,
            geometry.out_channels,
            geometry.kernel_size,
            geometry.stride,
            dilation=geometry.dilation,
            groups=geometry.groups,
            **options,
        )
        self.geometry = geometry
        self.padding: Any = geometry.padding  # what `repr` shows

    def forward(self, input: Tensor) -> Tensor:
        """Convolves `input` (B, C, *S), or (C, *S), and adds the bias."""
        if input.ndim == self.geometry.rank + 1:
            return self.forward(input[None])[0]
        output = conv(input, self.weight, self.geometry, self.geometry.groups)
        return add_bias(output, None if self.bias is None else self.bias[None])


class PaddedConv1d(PaddedConvNd, nn.Conv1d):
    """`torch.nn.Conv1d` with any padding of a `Geometry`.

    Example:
        >>> geometry = Geometry.create(3, 8, 4, rank=1, padding=((1, 2),))
        >>> PaddedConv1d(geometry)(torch.ones(2, 3, 9)).shape
        torch.Size([2, 8, 9])
    """


class PaddedConv2d(PaddedConvNd, nn.Conv2d):
    """`torch.nn.Conv2d` with any padding of a `Geometry`; see `PaddedConv1d`."""


class PaddedConv3d(PaddedConvNd, nn.Conv3d):
    """`torch.nn.Conv3d` with any padding of a `Geometry`; see `PaddedConv1d`."""


class SameConv2d(PaddedConv2d):
    """`torch.nn.Conv2d` with the padding `"tf_same"`, for any stride.

    The output has ceil(size / stride) pixels, and the odd zero is on the high side, so
    that the padding depends on the size of the input. In JAX it is `nnx.Conv` with
    `"SAME"`.

    Example:
        >>> SameConv2d(3, 8, 3, stride=2)(torch.ones(2, 3, 9, 8)).shape
        torch.Size([2, 8, 5, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        *,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the layer; the arguments are those of `torch.nn.Conv2d`.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension.
            dilation: An int, or one per spatial dimension.
            groups: g; it must divide C and O.
            bias: Whether there is a bias.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        geometry = Geometry.create(
            in_channels,
            out_channels,
            kernel_size,
            rank=2,
            stride=stride,
            padding="tf_same",
            dilation=dilation,
            groups=groups,
        )
        super().__init__(geometry, bias=bias, device=device, dtype=dtype)
