"""FDYCNN: the convolutions of the FDY-CRNN, for the detection of sounds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from dynconv_jax.functional.checks import check_arrays, check_choice, check_rate
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.initializers import torch_linear
from dynconv_jax.layers.frequency_dynamic_conv import FrequencyDynamicConv
from dynconv_jax.layers.given_attention import apply, route
from dynconv_jax.models.convolutions import Convolutions
from dynconv_jax.models.dynamic_net import scaled_widths
from dynconv_jax.models.grad_checkpointing import Checkpointing
from dynconv_jax.models.images import avg_pool, global_average_pool
from dynconv_jax.models.layer_groups import LayerGroups

# The channels of each block, and by what it pools frames and frequencies.
WIDTHS = (32, 64, 128, 256, 256, 256, 256)
POOLINGS = ((2, 2), (2, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2))

ACTIVATIONS = ("cg", "glu")


class ChannelGate(nnx.Module):
    """Gates of channels: x · sigmoid(linear(x)), or linear(x) · sigmoid(x).

    Attributes:
        linear: The linear layer over the channels.
        activation: `"cg"` (context gating), the first, or `"glu"`.

    Example:
        >>> gate = ChannelGate(4, rngs=nnx.Rngs(0))
        >>> gate(jnp.ones((2, 9, 7, 4))).shape
        (2, 9, 7, 4)
    """

    def __init__(self, features: int, activation: str = "cg", **options: Any):
        """Builds the gate.

        Args:
            features: The number of channels.
            activation: One of `ACTIVATIONS`.
            **options: `dtype`, `param_dtype` and `rngs`.
        """
        self.linear = torch_linear(features, features, **options)
        self.activation = activation

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the gate to (B, frames, frequencies, C)."""
        mixed = self.linear(inputs)
        if self.activation == "glu":
            return mixed * jax.nn.sigmoid(inputs)
        return inputs * jax.nn.sigmoid(mixed)


class SoundBlock(nnx.Module):
    """Convolution → batch norm → gates → dropout → average pooling.

    Attributes:
        conv: The convolution, which may take its attention from outside.
        norm: The batch norm.
        gate: The `ChannelGate`.
        dropout: The dropout.
        index: Which block of its network it is, from 0.
        pooling: By what it pools frames and frequencies.
    """

    def __init__(
        self,
        conv: Any,
        norm: Any,
        gate: ChannelGate,
        dropout: nnx.Dropout,
        index: int,
        pooling: tuple[int, int],
    ):
        """Takes the parts of the block."""
        self.conv = conv
        self.norm = norm
        self.gate = gate
        self.dropout = dropout
        self.index = index
        self.pooling = pooling

    def __call__(
        self, inputs: jax.Array, attention: jax.Array | None = None
    ) -> jax.Array:
        """Applies the block to (B, frames, frequencies, C)."""
        outputs = self.gate(self.norm(apply(self.conv, inputs, attention)))
        return avg_pool(self.dropout(outputs), self.pooling)


class FDYCNN(Checkpointing):
    """The convolutional part of the FDY-CRNN, and a linear head.

    Seven blocks of a 3×3 convolution, batch norm, gates of channels and average
    pooling, of which all but the first are frequency dynamic. They halve the frames
    twice and the frequencies seven times, so that of 128 mel bins one is left. Nam et
    al., "Frequency Dynamic Convolution: Frequency-Adaptive Pattern Recognition for
    Sound Event Detection", Interspeech 2022. There a recurrent network of two layers
    follows, for which `features` gives the input; here the mean over frames and a
    linear layer classify whole recordings.

    Attributes:
        block0: The first `SoundBlock`; `block1` to `block6` follow.
        fc: The linear head.

    Example:
        >>> def logits(sounds):
        ...     return FDYCNN(num_classes=10, width_mult=0.25, rngs=nnx.Rngs(0))(sounds)
        >>> jax.eval_shape(logits, jnp.ones((2, 156, 128, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_features: int = 1,
        conv: Callable[..., Any] | None = FrequencyDynamicConv,
        dynamic: str | int = "paper",
        width_mult: float = 1.0,
        activation: str = "cg",
        dropout: float = 0.5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
            num_classes: The number of logits.
            in_features: The number of channels of the spectrograms.
            conv: Builds the dynamic convolutions, with the signature of `nnx.Conv`;
                None makes all static, with biases, as published.
            dynamic: Which convolutions are dynamic: `"paper"` (all but the first),
                `"all"`, `"pointwise"` (none), or an int n from 1 to 6, the last n.
            width_mult: Multiplies all widths.
            activation: How channels are gated: `"cg"` (context gating) or `"glu"`.
            dropout: The rate of the dropout in each block. The keys come from the
                stream `dropout` of `rngs`.
            dtype: The dtype of the computation; None infers it.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer, or `conv` is not callable.
            ValueError: If a value is out of range.
        """
        self.in_features = positive_int("in_features", in_features)
        self.num_classes = positive_int("num_classes", num_classes)
        check_rate("dropout", dropout)
        check_choice("activation", activation, ACTIVATIONS)
        widths = scaled_widths(WIDTHS, width_mult)
        make = Convolutions(
            conv,
            dynamic,
            stages=len(widths) - 1,
            init="pytorch",
            norm_options={"epsilon": 1e-3, "momentum": 0.01},
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        width = in_features
        for index, (features, pooling) in enumerate(zip(widths, POOLINGS, strict=True)):
            layer = make(
                width,
                features,
                3,
                role="body" if index else "stem",
                stage=index,
                static_bias=True,
            )
            block = SoundBlock(
                layer,
                make.norm(features),
                ChannelGate(features, activation, **make.shared),
                # Without dropout there is no random state to carry through every jit.
                nnx.Dropout(dropout, rngs=rngs if dropout else None),
                index,
                pooling,
            )
            setattr(self, f"block{index}", block)
            setattr(self, f"routing_fn{index}", make.router(width, layer))
            width = features
        make.check_used()
        self.fc = torch_linear(width, num_classes, **make.shared)

    def features(self, inputs: jax.Array) -> jax.Array:
        """Returns the features of each frame, as the recurrent network takes them.

        Args:
            inputs: Shape (B, frames, frequencies, in_features).

        Returns:
            Shape (B, frames // 4, frequencies // 128, C).

        Raises:
            ValueError: If the inputs do not fit the network.
        """
        check_sounds(inputs, self.in_features)
        for index in range(len(WIDTHS)):
            block = getattr(self, f"block{index}")
            router = getattr(self, f"routing_fn{index}")
            if router is None:
                inputs = self._call(block, inputs)
            else:
                inputs = block(inputs, route(router, inputs))
        return inputs

    def __call__(
        self, inputs: Float[jax.Array, "batch frames frequencies in_features"]
    ) -> Float[jax.Array, "batch classes"]:
        """Classifies recordings.

        Args:
            inputs: The spectrograms.

        Returns:
            The logits.

        Raises:
            ValueError: If the inputs do not fit the network.
        """
        return self.fc(global_average_pool(self.features(inputs)))

    def _layer_groups(self) -> LayerGroups:
        """Each block, the first as the stem; the head."""
        parts = "conv", "batchnorm", "cg", "glu"
        blocks = [
            (*(f"cnn.{part}{index}" for part in parts), f"routing_fn{index}")
            for index in range(len(WIDTHS))
        ]
        return [*blocks, ("fc",)]


def check_sounds(inputs: jax.Array, in_features: int) -> None:
    """Raises an error unless `inputs` are spectrograms that are large enough."""
    check_arrays(inputs=inputs)
    if inputs.ndim != 4 or inputs.shape[-1] != in_features:
        raise ValueError(
            f"`inputs` (shape {inputs.shape}) must be (batch, frames, frequencies, "
            f"in_features) with `in_features` (={in_features})"
        )
    frames, frequencies = inputs.shape[1:3]
    is_short = isinstance(frames, int) and frames < 4
    if is_short or (isinstance(frequencies, int) and frequencies < 128):
        raise ValueError(
            f"`inputs` (shape {inputs.shape}) must have at least 4 frames and 128 "
            "frequencies, of which the network leaves one each; compute the "
            "spectrograms with more mel bins"
        )
