"""CondConv: a dynamic convolution whose attention comes from outside."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice
from dynconv_torch.functional.geometry import PaddingLike
from dynconv_torch.initializers import INITS, Init
from dynconv_torch.layers.convolution import check_rows
from dynconv_torch.layers.expert_conv import ExpertConvNd


class CondConvNd(ExpertConvNd):
    """What CondConv of all ranks shares.

    Attributes:
        weight: The experts, shape (K, O·(C/g)·k·k); each row is a flattened kernel, as
            in the checkpoints of timm.
        bias: Their biases, shape (K, O), or None.
    """

    needs_attention = True

    def __init__(
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
        *,
        init: Init = "default",
    ):
        """Builds the layer; its parameters are drawn as `torch.nn.Conv2d` draws them.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension.
            padding: `"same"` (for any stride, as TensorFlow pads: the output has
                ceil(size / stride) pixels), `"valid"`, an int, or one int or
                (low, high) pair per spatial dimension.
            dilation: An int, or one per spatial dimension.
            groups: g; it must divide C and O.
            bias: Whether every expert has a bias, mixed as the kernels are.
            num_experts: K.
            implementation: How to compute it, `"auto"`, `"loop"`, `"grouped"`,
                `"patches"` or `"experts"`; see `dynconv_torch.dynamic_conv`.
            device: Where the parameters are.
            dtype: The dtype of the parameters.
            init: `"default"` or `"published"`, which are the same here.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        super().__init__()
        check_choice("init", init, INITS)
        if isinstance(padding, str) and padding.lower() == "same":
            padding = "tf_same"  # what "same" is with a stride of 1, and more
        self.build_experts(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation),
            *(groups, bias, num_experts, implementation, device, dtype),
        )
        self.weight = nn.Parameter(self.weight.detach().flatten(1))

    @property
    def expert_shape(self) -> tuple[int, ...]:
        """The shape (O, C/g, *kernel_size) of one expert."""
        width = self.in_channels // self.groups
        return (self.out_channels, width, *self.kernel_size)

    @property
    def experts(self) -> Tensor:
        """The experts as kernels, shape (K, O, C/g, *kernel_size)."""
        return self.weight.unflatten(1, self.expert_shape)

    def reset_parameters(self) -> None:
        """Draws each expert's kernel and bias from U(±1/√fan_in)."""
        bound = math.prod(self.expert_shape[1:]) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, *S), or (C, *S) for one sample without a batch.
            attention: Shape (B, K), or (K,) for one sample; the weight of each expert.
                It is no option: the default only serves to say so.

        Returns:
            Shape (B, O, *S_out), or (O, *S_out).

        Raises:
            TypeError: If an argument is no tensor, or there is no attention.
            ValueError: If the input or the attention does not fit the layer.
        """
        if attention is None:
            raise TypeError(
                f"`attention` (=None) must be given, for a CondConv{self.rank}d has no "
                "router; make one for its block, `router = SigmoidRouter("
                f"{self.in_channels}, {self.num_experts})`, and call `layer(x, "
                "router(x))`"
            )
        is_unbatched = self.is_unbatched(x)
        size = "num_experts", self.num_experts
        check_rows("attention", attention, self.batch_of(x), *size)
        if is_unbatched:
            return self.convolve(x[None], attention[None])[0]
        return self.convolve(x, attention)


class CondConv1d(CondConvNd):
    """A 1-D convolution with K experts, mixed by an attention that the caller gives.

    See `CondConv2d`.

    Example:
        >>> layer = CondConv1d(3, 8, 3, stride=2, padding="same")
        >>> layer(torch.ones(2, 3, 9), torch.ones(2, 4)).shape
        torch.Size([2, 8, 5])
    """

    rank = 1


class CondConv2d(CondConvNd):
    """A 2-D convolution with K experts, mixed by an attention that the caller gives.

    One `SigmoidRouter` serves all convolutions of a block, so the layer has none. The
    attention need not sum to 1. Yang et al., "CondConv: Conditionally Parameterized
    Convolutions for Efficient Inference", NeurIPS 2019, section 3.

    Attributes:
        weight: The experts, shape (K, O·(C/g)·k·k); each row is a flattened kernel, as
            in the checkpoints of timm.
        bias: Their biases, shape (K, O), or None.

    Example:
        >>> from dynconv_torch.routing import SigmoidRouter
        >>> router, layer = SigmoidRouter(3), CondConv2d(3, 8, 3, padding="same")
        >>> images = torch.ones(2, 3, 9, 7)
        >>> layer(images, router(images)).shape
        torch.Size([2, 8, 9, 7])
    """

    rank = 2


class CondConv3d(CondConvNd):
    """A 3-D convolution with K experts, mixed by an attention that the caller gives.

    See `CondConv2d`.

    Example:
        >>> layer = CondConv3d(3, 8, 1, stride=2, bias=True)
        >>> layer(torch.ones(2, 3, 4, 4, 4), torch.ones(2, 4)).shape
        torch.Size([2, 8, 2, 2, 2])
    """

    rank = 3
