"""The dynamic convolution layers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dynconv_torch.functional.choice import check_implementation
from dynconv_torch.functional.dynamic import dynamic_conv
from dynconv_torch.functional.geometry import Geometry, PaddingLike, positive_int
from dynconv_torch.routing import Router


class _DynamicConvNd(Router):
    """What the dynamic convolutions of all ranks share.

    The layer is its own router, by inheritance, because published checkpoints name the
    router's linear layers as the layer's own (`fc1.weight`, not `router.fc1.weight`).
    With a router given, none of that is built, and the given one is `self.router`.
    """

    rank: int
    bias: nn.Parameter | None

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
        reduction: int = 4,
        temperature: float = 1.0,
        router: Callable[[Tensor], Tensor] | None = None,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        top_k: int | None = None,
        router_dropout: float = 0.0,
    ):
        """Builds the layer.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension.
            padding: `"same"` (with a stride of 1), `"valid"`, an int, or one int or
                (low, high) pair per spatial dimension.
            dilation: An int, or one per spatial dimension.
            groups: g; it must divide C and O.
            bias: Whether every expert has a bias, mixed as the kernels are.
            num_experts: K.
            reduction: The router's hidden layer has max(1, C // reduction) units.
            temperature: The router's initial temperature.
            router: A router of one's own, (B, C, *S) → (B, K), in place of `reduction`,
                `temperature`, `top_k` and `router_dropout`; one router may serve
                several layers.
            implementation: How to compute it, `"auto"`, `"loop"`, `"grouped"` or
                `"experts"`; see `dynconv_torch.dynamic_conv`.
            device: Where the parameters are.
            dtype: The dtype of the parameters. The router computes in float32 at least.
            top_k: How many experts the router keeps for a sample; None keeps all.
            router_dropout: The dropout rate of the router's hidden layer.

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
        if router is None:
            super().__init__(
                in_channels,
                num_experts,
                reduction=reduction,
                temperature=temperature,
                top_k=top_k,
                dropout=router_dropout,
                device=device,
                dtype=dtype,
            )
        else:
            nn.Module.__init__(self)
        self.in_channels = geometry.in_channels
        self.out_channels = geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = geometry.padding
        self.dilation = geometry.dilation
        self.groups = geometry.groups
        self.num_experts = positive_int("num_experts", num_experts)
        self.implementation = implementation
        self.owns_router = router is None
        if router is not None:
            self.router = self._check_router(router)

        def experts(*shape: int) -> nn.Parameter:
            stack = torch.empty(self.num_experts, *shape, device=device, dtype=dtype)
            return nn.Parameter(stack)

        self.weight = experts(*geometry.weight_shape)
        self.register_parameter("bias", experts(self.out_channels) if bias else None)
        self.reset_parameters()

    def _check_router(
        self, router: Callable[[Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        if isinstance(router, _DynamicConvNd):
            raise TypeError(
                f"`router` (a {type(router).__name__}) is a layer; give one `Router` "
                "to both layers"
            )
        if isinstance(router, Router):
            for name in ("in_channels", "num_experts"):
                if getattr(router, name) != getattr(self, name):
                    raise ValueError(
                        f"`router` has `{name}` (={getattr(router, name)}), the layer "
                        f"has {getattr(self, name)}; they must be equal"
                    )
        elif not callable(router):
            raise TypeError(
                f"`router` (={router!r}) must be callable: (B, C, *S) -> (B, K)"
            )
        return router

    def reset_parameters(self) -> None:
        """Draws the experts from N(0, 0.02²) and zeroes their biases."""
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def routing(self, x: Tensor) -> Tensor:
        """Returns the attention over the experts.

        Args:
            x: Shape (B, C, *S), or (C, *S).

        Returns:
            Shape (B, K), or (K,); the built-in router's rows sum to 1.

        Raises:
            ValueError: If the input does not fit the layer.
        """
        if self._is_unbatched(x):
            return self._route(x[None])[0]
        return self._route(x)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, *S), or (C, *S) for one sample without a batch.
            attention: Shape (B, K), or (K,) for one sample, from elsewhere; None asks
                the layer's router.

        Returns:
            Shape (B, O, *S_out), or (O, *S_out).

        Raises:
            ValueError: If the input or the attention does not fit the layer.
        """
        is_unbatched = self._is_unbatched(x)
        if attention is not None:
            expected = (*x.shape[: -self.rank - 1], self.num_experts)
            if attention.shape != expected:
                raise ValueError(
                    f"`attention` (shape {tuple(attention.shape)}) must be (batch, "
                    f"num_experts), without batch for one sample: {expected}"
                )
        if is_unbatched:
            attention = None if attention is None else attention[None]
            return self.forward(x[None], attention)[0]
        return dynamic_conv(
            x,
            self._route(x) if attention is None else attention,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            implementation=self.implementation,
        )

    def _route(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.owns_router else self.router(x)

    def _is_unbatched(self, x: Tensor) -> bool:
        channel_axis = x.ndim - self.rank - 1
        if channel_axis not in (0, 1) or x.shape[channel_axis] != self.in_channels:
            raise ValueError(
                f"`x` (shape {tuple(x.shape)}) must be (batch, in_channels, *spatial) "
                f"or (in_channels, *spatial) with {self.rank} spatial dimension(s) and "
                f"`in_channels` (={self.in_channels})"
            )
        return channel_axis == 0

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
        if self.owns_router and self.top_k is not None:
            parts.append(f"top_k={self.top_k}")
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


class DynamicConv1d(_DynamicConvNd):
    """A 1-D convolution whose kernel is mixed, for every sample, from K experts.

    Takes the place of `torch.nn.Conv1d`; see `DynamicConv2d`.

    Example:
        >>> DynamicConv1d(3, 8, 3, padding="same")(torch.ones(2, 3, 10)).shape
        torch.Size([2, 8, 10])
    """

    rank = 1


class DynamicConv2d(_DynamicConvNd):
    """A 2-D convolution whose kernel is mixed, for every sample, from K experts.

    Takes the place of `torch.nn.Conv2d`, with its argument names. Yang et al.,
    "CondConv", NeurIPS 2019; Chen et al., "Dynamic Convolution", CVPR 2020, section 3.

    Attributes:
        weight: The experts, shape (K, O, C/g, *kernel_size).
        bias: Their biases, shape (K, O), or None.
        fc1: The router's first linear layer; with `fc2` and `temperature` it is the
            layer's own, unless a router was given. `routing` answers its attention.
        router: The router given, if one was.

    Example:
        >>> layer = DynamicConv2d(3, 8, 3, stride=2, padding=1)
        >>> images = torch.ones(2, 3, 9, 7)
        >>> layer(images).shape
        torch.Size([2, 8, 5, 4])
        >>> layer.routing(images).shape
        torch.Size([2, 4])
    """

    rank = 2


class DynamicConv3d(_DynamicConvNd):
    """A 3-D convolution whose kernel is mixed, for every sample, from K experts.

    Takes the place of `torch.nn.Conv3d`; see `DynamicConv2d`.

    Example:
        >>> DynamicConv3d(3, 8, 1, stride=2)(torch.ones(2, 3, 4, 4, 4)).shape
        torch.Size([2, 8, 2, 2, 2])
    """

    rank = 3
