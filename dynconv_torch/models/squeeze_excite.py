"""Squeeze-and-excitation: what networks share whose checkpoints name it otherwise.

Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, section 3.
"""

from collections.abc import Callable

from torch import Tensor, nn

from dynconv_torch.functional.numerics import at_least_float32
from dynconv_torch.models.convolutions import Convolutions
from dynconv_torch.models.images import global_average_pool

Activation = Callable[[Tensor], Tensor]


def squeeze_convs(
    channels: int, hidden_channels: int, make: Convolutions
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Returns two 1×1 convolutions, `channels` → `hidden_channels` → `channels`."""

    def conv(in_channels: int, out_channels: int) -> nn.Conv2d:
        layer = nn.Conv2d(in_channels, out_channels, 1, **make.shared)
        nn.init.normal_(layer.weight, std=(2 / out_channels) ** 0.5)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        return layer

    return conv(channels, hidden_channels), conv(hidden_channels, channels)


def excite(
    x: Tensor,
    reduce: nn.Module,
    expand: nn.Module,
    activation: Activation,
    gate: Activation,
) -> Tensor:
    """Scales every channel by a gate that sees the mean of all channels.

    Args:
        x: Shape (B, channels, H, W).
        reduce: The convolution from the means to the hidden units.
        expand: That from the hidden units to the gates.
        activation: What is between them.
        gate: What makes gates of logits, in float32 at least.
    """
    pooled = global_average_pool(x)[..., None, None]
    logits = expand(activation(reduce(pooled)))
    gates = gate(logits.to(at_least_float32(logits.dtype)))
    return x * gates.to(x.dtype)
