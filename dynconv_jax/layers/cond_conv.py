"""CondConv: a dynamic convolution whose attention comes from outside."""

import math
from collections.abc import Sequence
from typing import Unpack

import jax
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax.functional.checks import check_choice
from dynconv_jax.initializers import (
    INITS,
    Init,
    torch_bias_init,
    torch_kernel_init,
)
from dynconv_jax.layers.convolution import flatten_rows
from dynconv_jax.layers.expert_conv import ExpertConv, ExpertOptions


class CondConv(ExpertConv):
    """A convolution with K experts, mixed by an attention that the caller gives.

    One `SigmoidRouter` serves all convolutions of a block, so the layer has none. The
    attention need not sum to 1. Yang et al., "CondConv: Conditionally Parameterized
    Convolutions for Efficient Inference", NeurIPS 2019, section 3.

    In PyTorch's layout a row of the weight (K, O·(C/g)·k·k) is a flattened kernel, as
    in the checkpoints of timm.

    Attributes:
        kernel: The experts, shape (K, *kernel_size, C/g, O).
        bias: Their biases, shape (K, O), or None.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynconv_jax.routing import SigmoidRouter
        >>> router = SigmoidRouter(3, rngs=nnx.Rngs(0))
        >>> layer = CondConv(3, 8, (3, 3), rngs=nnx.Rngs(1))
        >>> images = jnp.ones((2, 9, 7, 3))
        >>> layer(images, router(images)).shape
        (2, 9, 7, 8)
    """

    needs_attention = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        init: Init = "default",
        rngs: nnx.Rngs,
        **options: Unpack[ExpertOptions],
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: A tuple of 1, 2 or 3 ints; its length is the rank.
            strides: An int, or one per spatial dimension.
            init: `"default"` or `"published"`, which are the same here.
            rngs: Where the initial parameters come from.
            **options: The options of `ExpertConv`, as `DynamicConv` explains them. By
                default each expert is drawn as `torch.nn.Conv2d` draws its own: kernel
                and bias from U(±1/√fan_in).

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        check_choice("init", init, INITS)

        def bias_init(key: jax.Array, shape, dtype: DTypeLike = float) -> jax.Array:
            # By the time it is called, the arguments have been checked.
            width = self.in_features // self.feature_group_count
            fan_in = width * math.prod(self.kernel_size)
            return torch_bias_init(fan_in)(key, shape, dtype)

        options.setdefault("kernel_init", torch_kernel_init)
        options.setdefault("bias_init", bias_init)
        super().__init__(
            in_features, out_features, kernel_size, strides, rngs=rngs, **options
        )

    def __call__(
        self, inputs: jax.Array, attention: jax.Array | None = None
    ) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (*batch, *S, C), with any number of batch dimensions, also
                none.
            attention: Shape (*batch, K), the weight of each expert for each sample. It
                is no option: the default only serves to say so.

        Returns:
            Shape (*batch, *S_out, O).

        Raises:
            TypeError: If an argument is no array, or there is no attention.
            ValueError: If the inputs or the attention do not fit the layer.
        """
        if attention is None:
            raise TypeError(
                "`attention` (=None) must be given, for a CondConv has no router; make "
                f"one for its block, `router = SigmoidRouter({self.in_features}, "
                f"{self.num_experts}, rngs=rngs)`, and call `layer(inputs, "
                "router(inputs))`"
            )
        flat, batch = self._flatten_batch(inputs)
        size = "num_experts", self.num_experts
        attention = flatten_rows("attention", attention, batch, *size)
        outputs = self._convolve(flat, attention)
        return outputs.reshape(*batch, *outputs.shape[1:])
