"""The dynamic convolution layers."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice
from dynconv_torch.functional.geometry import PaddingLike
from dynconv_torch.initializers import INITS, Init
from dynconv_torch.layers.chen_layout import chen_hidden, from_chen_layout
from dynconv_torch.layers.convolution import check_rows
from dynconv_torch.layers.expert_conv import ExpertConvNd
from dynconv_torch.routing import Router


class DynamicConvNd(ExpertConvNd, Router):
    """What the dynamic convolutions of all ranks share.

    The layer is its own router, by inheritance, because published checkpoints name the
    router's linear layers as the layer's own (`fc1.weight`, not `router.fc1.weight`).
    With a router given, none of that is built, and the given one is `self.router`.
    """

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
        router: Callable[[Tensor], Tensor] | Literal["chen"] | None = None,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        top_k: int | None = None,
        router_dropout: float = 0.0,
        router_noise: float = 0.0,
        router_hidden_channels: int | None = None,
        router_hidden_bias: bool = True,
        router_bias: bool = True,
        init: Init = "default",
    ):
        """Builds the layer.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension.
            padding: `"same"` (with a stride of 1), `"valid"`, `"tf_same"` (for any
                stride, as TensorFlow pads), an int, or one int or (low, high) pair per
                spatial dimension.
            dilation: An int, or one per spatial dimension.
            groups: g; it must divide C and O.
            bias: Whether every expert has a bias, mixed as the kernels are.
            num_experts: K.
            reduction: The router's hidden layer has max(1, C // reduction) units.
            temperature: The router's initial temperature.
            router: A router of one's own, (B, C, *S) → (B, K), in place of `reduction`,
                `temperature`, `top_k` and what begins with `router_`; one router may
                serve several layers. Or `"chen"`, that of the port of Chen et al.:
                C // reduction + 1 hidden units, or K of three channels, without a bias;
                see `chen_options`.
            implementation: How to compute it, `"auto"`, `"loop"`, `"grouped"`,
                `"patches"` or `"experts"`; see `dynconv_torch.dynamic_conv`.
            device: Where the parameters are.
            dtype: The dtype of the parameters. The router computes in float32 at least.
            top_k: How many experts the router keeps for a sample; None keeps all.
            router_dropout: The dropout rate of the router's hidden layer.
            router_noise: The standard deviation of the noise on the router's logits in
                training.
            router_hidden_channels: The units of the router's hidden layer, in place of
                what `reduction` gives.
            router_hidden_bias: Whether the router's first linear layer has a bias.
            router_bias: Whether its second has one.
            init: `"published"` draws each expert from U(±√(6 / fan_in)) and the
                router's layers from N(0, 2 / fan_out) with biases of 0, as Chen et
                al.'s port does in one and two dimensions; `"default"` the experts from
                N(0, 0.02²) and the router as `torch.nn.Linear`.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        check_choice("init", init, INITS)
        if isinstance(router, str) and router == "chen":
            router = None
            router_hidden_channels = chen_hidden(in_channels, num_experts, reduction)
            router_hidden_bias = False
            router_bias = self.rank != 3
        if router is None:
            Router.__init__(
                self,
                in_channels,
                num_experts,
                reduction=reduction,
                temperature=temperature,
                top_k=top_k,
                dropout=router_dropout,
                noise_std=router_noise,
                hidden_channels=router_hidden_channels,
                hidden_bias=router_hidden_bias,
                bias=router_bias,
                init=init,
                device=device,
                dtype=dtype,
            )
        else:
            nn.Module.__init__(self)
        self._init = init
        self.build_experts(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation),
            *(groups, bias, num_experts, implementation, device, dtype),
        )
        self.owns_router = router is None
        if router is not None:
            self.router = self._check_router(router)

    def reset_parameters(self) -> None:
        """Draws the experts, as `init` says, and zeroes their biases."""
        super().reset_parameters()
        if self._init == "published":
            for expert in self.weight.data:
                nn.init.kaiming_uniform_(expert)

    def _check_router(
        self, router: Callable[[Tensor], Tensor] | str
    ) -> Callable[[Tensor], Tensor]:
        if isinstance(router, DynamicConvNd):
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
                f"`router` (={router!r}) must be callable: (B, C, *S) -> (B, K), or "
                "'chen'"
            )
        return router

    def routing(self, x: Tensor) -> Tensor:
        """Returns the attention over the experts.

        Args:
            x: Shape (B, C, *S), or (C, *S).

        Returns:
            Shape (B, K), or (K,); the built-in router's rows sum to 1.

        Raises:
            ValueError: If the input does not fit the layer.
        """
        if self.is_unbatched(x):
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
        is_unbatched = self.is_unbatched(x)
        if attention is not None:
            size = "num_experts", self.num_experts
            check_rows("attention", attention, self.batch_of(x), *size)
        if is_unbatched:
            attention = None if attention is None else attention[None]
            return self.forward(x[None], attention)[0]
        return self.convolve(x, self._route(x) if attention is None else attention)

    def _route(self, x: Tensor) -> Tensor:
        return Router.forward(self, x) if self.owns_router else self.router(x)

    def _load_from_state_dict(self, state_dict, prefix, *reports):
        """Loads also what is in the layout of `chen_layout.py`."""
        if self.owns_router:
            shapes = {
                prefix + name: tuple(parameter.shape)
                for name, parameter in self.named_parameters()
            }
            renamed = from_chen_layout(state_dict, shapes)
            state_dict.clear()
            state_dict.update(renamed)
        super()._load_from_state_dict(state_dict, prefix, *reports)

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        parts = ExpertConvNd.extra_repr(self)
        if self.owns_router and self.top_k is not None:
            parts += f", top_k={self.top_k}"
        return parts


class DynamicConv1d(DynamicConvNd):
    """A 1-D convolution whose kernel is mixed, for every sample, from K experts.

    Takes the place of `torch.nn.Conv1d`; see `DynamicConv2d`.

    Example:
        >>> DynamicConv1d(3, 8, 3, padding="same")(torch.ones(2, 3, 10)).shape
        torch.Size([2, 8, 10])
    """

    rank = 1


class DynamicConv2d(DynamicConvNd):
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


class DynamicConv3d(DynamicConvNd):
    """A 3-D convolution whose kernel is mixed, for every sample, from K experts.

    Takes the place of `torch.nn.Conv3d`; see `DynamicConv2d`.

    Example:
        >>> DynamicConv3d(3, 8, 1, stride=2)(torch.ones(2, 3, 4, 4, 4)).shape
        torch.Size([2, 8, 2, 2, 2])
    """

    rank = 3
