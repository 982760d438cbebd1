"""The dynamic convolution layer."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer, PromoteDtypeFn
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.checks import check_arrays, check_choice
from dynconv_jax.functional.geometry import PaddingLike
from dynconv_jax.initializers import INITS, Init, kaiming_uniform
from dynconv_jax.layers.chen_layout import chen_hidden
from dynconv_jax.layers.convolution import flatten_rows
from dynconv_jax.layers.expert_conv import (
    ExpertConv,
    default_bias_init,
    default_kernel_init,
)
from dynconv_jax.routing import Router


class DynamicConv(ExpertConv):
    """A convolution whose kernel is mixed, for every sample, from K experts.

    Takes the place of `nnx.Conv`, with its argument names, for 1, 2 or 3 spatial
    dimensions. Yang et al., "CondConv", NeurIPS 2019; Chen et al., "Dynamic
    Convolution", CVPR 2020, section 3.

    Attributes:
        kernel: The experts, shape (K, *kernel_size, C/g, O).
        bias: Their biases, shape (K, O), or None.
        router: What answers the attention; `routing` calls it.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = DynamicConv(3, 8, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
        >>> images = jnp.ones((2, 9, 7, 3))
        >>> layer(images).shape
        (2, 5, 4, 8)
        >>> layer.routing(images).shape
        (2, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = False,
        num_experts: int = 4,
        reduction: int = 4,
        temperature: float = 1.0,
        top_k: int | None = None,
        router_dropout: float = 0.0,
        router_noise: float = 0.0,
        router_hidden_features: int | None = None,
        router_use_hidden_bias: bool = True,
        router_use_bias: bool = True,
        router: Callable[[jax.Array], jax.Array] | Literal["chen"] | None = None,
        implementation: str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        init: Init = "default",
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: A tuple of 1, 2 or 3 ints; its length is the rank.
            strides: An int, or one per spatial dimension.
            padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per
                spatial dimension.
            kernel_dilation: An int, or one per spatial dimension.
            feature_group_count: g; it must divide C and O.
            use_bias: Whether every expert has a bias, mixed as the kernels are.
            num_experts: K.
            reduction: The router's hidden layer has max(1, C // reduction) units.
            temperature: The router's initial temperature.
            top_k: How many experts the router keeps for a sample; None keeps all.
            router_dropout: The dropout rate of the router's hidden layer.
            router_noise: The standard deviation of the noise on the router's logits in
                training.
            router_hidden_features: The units of the router's hidden layer, in place of
                what `reduction` gives.
            router_use_hidden_bias: Whether the router's first linear layer has a bias.
            router_use_bias: Whether its second has one.
            router: A router of one's own, (B, *S, C) → (B, K), in place of the eight
                options above; one router may serve several layers. Or `"chen"`, that of
                the port of Chen et al.: C // reduction + 1 hidden units, or K of three
                channels, without a bias; see `chen_options`.
            implementation: How to compute it: `"auto"`, `"patches"`, `"rows"`,
                `"scan"`, `"taps"` (depthwise), `"experts"`, `"row_conv"` (for TPUs) or
                `"vmap"`. All compute the same; `dynconv_jax.explain` says what
                `"auto"` chooses.
            dtype: The dtype of the computation; None infers it from the input and the
                parameters. The router computes in float32 at least.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.conv_general_dilated`.
            init: `"published"` draws each expert from U(±√(6 / fan_in)) and the
                router's layers from N(0, 2 / fan_out) with biases of 0, as Chen et
                al.'s port does in one and two dimensions; `"default"` the experts from
                N(0, 0.02²) and the router as `torch.nn.Linear`. `kernel_init` wins over
                both.
            kernel_init: Initialises each expert on its own, from the shape
                (*kernel_size, C/g, O), so that K does not count as receptive field.
            bias_init: Initialises the bias of each expert on its own.
            promote_dtype: As in `nnx.Conv`: takes the tuple (inputs, kernel, bias).
            preferred_element_type: As in `nnx.Conv`.
            kernel_metadata: Metadata of the parameter `kernel`, as in `nnx.Conv`.
            bias_metadata: Metadata of the parameter `bias`, as in `nnx.Conv`.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        check_choice("init", init, INITS)
        if init == "published" and kernel_init is default_kernel_init:
            kernel_init = kaiming_uniform
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            use_bias=use_bias,
            num_experts=num_experts,
            implementation=implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            bias_init=bias_init,
            promote_dtype=promote_dtype,
            preferred_element_type=preferred_element_type,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        if isinstance(router, str) and router == "chen":
            router = None
            router_hidden_features = chen_hidden(in_features, num_experts, reduction)
            router_use_hidden_bias = False
            router_use_bias = len(self.kernel_size) != 3
        self.owns_router = router is None
        if router is None:
            router = Router(
                in_features,
                num_experts,
                reduction=reduction,
                temperature=temperature,
                top_k=top_k,
                dropout_rate=router_dropout,
                noise_std=router_noise,
                hidden_features=router_hidden_features,
                use_hidden_bias=router_use_hidden_bias,
                use_bias=router_use_bias,
                init=init,
                dtype=dtype,
                param_dtype=param_dtype,
                precision=precision,
                rngs=rngs,
            )
        elif isinstance(router, Router):
            for name in ("in_features", "num_experts"):
                if getattr(router, name) != getattr(self, name):
                    raise ValueError(
                        f"`router` has `{name}` (={getattr(router, name)}), the layer "
                        f"has {getattr(self, name)}; they must be equal"
                    )
        elif not callable(router):
            raise TypeError(
                f"`router` (={router!r}) must be callable: (B, *S, C) -> (B, K), or "
                "'chen'"
            )
        self.router = router

    def routing(self, inputs: jax.Array) -> jax.Array:
        """Returns the attention over the experts.

        Args:
            inputs: Shape (*batch, *S, C).

        Returns:
            Shape (*batch, K); the built-in router's rows sum to 1.

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        flat, batch = self._flatten_batch(inputs)
        return self._route(flat).reshape(*batch, self.num_experts)

    def __call__(
        self, inputs: jax.Array, attention: jax.Array | None = None
    ) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (*batch, *S, C), with any number of batch dimensions, also
                none.
            attention: Shape (*batch, K), from elsewhere; None asks the layer's router.

        Returns:
            Shape (*batch, *S_out, O).

        Raises:
            ValueError: If the inputs or the attention do not fit the layer.
        """
        flat, batch = self._flatten_batch(inputs)
        if attention is None:
            attention = self._route(flat)
        else:
            size = "num_experts", self.num_experts
            attention = flatten_rows("attention", attention, batch, *size)
        outputs = self._convolve(flat, attention)
        return outputs.reshape(*batch, *outputs.shape[1:])

    def _route(self, inputs: jax.Array) -> jax.Array:
        attention = self.router(inputs)
        expected = (inputs.shape[0], self.num_experts)
        if jnp.shape(attention) != expected:
            raise ValueError(
                f"`router` (a {type(self.router).__name__}) answered the shape "
                f"{jnp.shape(attention)}; it must be (batch, num_experts) = {expected}"
            )
        check_arrays(attention=attention)
        return attention
