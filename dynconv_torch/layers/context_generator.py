"""The context generator of DyMN: one look at an input steers all layers of a block."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_dtype
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.functional.numerics import call_wide, dtypes_of, without_autocast
from dynconv_torch.functional.pooling import axis_means
from dynconv_torch.layers.coordinate_attention import check_plane


class Context(NamedTuple):
    """What a `ContextGenerator` answers, in float32 at least.

    Attributes:
        vector: Shape (B, H), for `ContextConv2d` and `DynamicReLU`.
        rows: Shape (B, O, F', 1), logits for each frequency, for `CoordinateGate`.
        columns: Shape (B, O, 1, T'), logits for each point in time.
    """

    vector: Tensor
    rows: Tensor
    columns: Tensor


class ContextGenerator(nn.Module):
    """Means over time and over frequency, made into a context and into gates.

        s = hardswish(joint_norm(joint_conv(means over time, then over frequency)))
        vector = mean of s                        (B, H)
        rows = conv_f(pool(s of the frequencies))
        columns = conv_t(pool(s of the time))

    An input is (B, C, F, T), as a spectrogram is; of an image, rows and columns. With a
    stride of 2 or more the sequences are averaged over windows of 3, so that they fit
    what a convolution with this stride answers. A batch of one trains: the norm is over
    the sequences too. All is computed in float32 at least, also under autocast. Schmid
    et al., "Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio
    Models", TASLP 2024, on context generation.

    Attributes:
        joint_conv: The 1×1 convolution C → H, without bias; `joint_norm` follows.
        conv_f: The 1×1 convolution H → O of the frequencies.
        conv_t: That of the time.

    Example:
        >>> generate = ContextGenerator(4, 16, 8, stride=2)
        >>> vector, rows, columns = generate(torch.ones(2, 4, 9, 7))
        >>> [tuple(each.shape) for each in (vector, rows, columns)]
        [(2, 16), (2, 8, 5, 1), (2, 8, 1, 4)]
    """

    def __init__(
        self,
        in_channels: int,
        context_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the layer.

        Args:
            in_channels: C, the number of input channels.
            context_channels: H, the number of features of the context.
            out_channels: O, the number of channels that the gates are for.
            stride: The step between the windows of the gates, along both axes.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        self.stride = positive_int("stride", stride)
        positive_int("context_channels", context_channels)
        positive_int("out_channels", out_channels)
        check_dtype(dtype)
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        self.joint_conv = nn.Conv2d(
            in_channels, context_channels, 1, bias=False, **options
        )
        self.joint_norm = nn.BatchNorm2d(
            context_channels, eps=1e-3, momentum=0.01, **options
        )
        self.conv_f = nn.Conv2d(context_channels, out_channels, 1, **options)
        self.conv_t = nn.Conv2d(context_channels, out_channels, 1, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the 1×1 convolutions from N(0, 2 / fan_out); their biases become 0."""
        for layer in (self.joint_conv, self.conv_f, self.conv_t):
            nn.init.normal_(layer.weight, std=(2 / layer.out_channels) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Context:
        """Returns the context of `x` (B, C, F, T).

        Raises:
            ValueError: If the input does not fit the layer.
        """
        check_plane(x, self.in_channels)
        height = x.shape[2]
        with without_autocast(x.device):
            means = axis_means(x, *dtypes_of(self))[..., None]
            hidden = call_wide(self.joint_norm, call_wide(self.joint_conv, means))
            hidden = F.hardswish(hidden)
            rows, columns = hidden[:, :, :height], hidden[:, :, height:]
            if self.stride > 1:
                rows, columns = self._pool(rows), self._pool(columns)
            return Context(
                vector=hidden.mean((2, 3)),
                rows=call_wide(self.conv_f, rows),
                columns=call_wide(self.conv_t, columns.transpose(2, 3)),
            )

    def _pool(self, sequence: Tensor) -> Tensor:
        """Averages windows of three; what is beyond the ends counts as 0."""
        return F.avg_pool2d(sequence, (3, 1), (self.stride, 1), (1, 0))
