"""A static convolution that pads as TensorFlow does."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.per_sample import conv


class SameConv2d(nn.Conv2d):
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
        super().__init__(
            in_channels,
            out_channels,
            geometry.kernel_size,  # pyright: ignore[reportArgumentType]
            geometry.stride,  # pyright: ignore[reportArgumentType]
            dilation=geometry.dilation,  # pyright: ignore[reportArgumentType]
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.geometry = geometry
        self.padding = "tf_same"  # what `repr` shows

    def forward(self, input: Tensor) -> Tensor:
        """Convolves `input` (B, C, H, W), or (C, H, W), and adds the bias."""
        output = conv(input, self.weight, self.geometry, self.groups)
        return output if self.bias is None else output + self.bias[:, None, None]
