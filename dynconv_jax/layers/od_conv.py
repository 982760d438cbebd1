"""ODConv: attention along all four dimensions of the kernel space."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.checks import check_choice
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.numerics import scale_channels
from dynconv_jax.functional.pooling import spatial_mean
from dynconv_jax.gating import Temperature, attend, record_attention, record_softmax
from dynconv_jax.initializers import INITS, Init, kaiming_fan_out
from dynconv_jax.layers.attention_norm import attention_norm, normalise
from dynconv_jax.layers.expert_conv import ExpertConv, ExpertOptions
from dynconv_jax.layers.pooled_linear import PooledLinear
from dynconv_jax.scheduled import HoldsScheduled


class Attentions(NamedTuple):
    """The four attentions of an `ODConv`; an absent one is None, and counts as 1.

    Attributes:
        channel: Shape (B, C), the weights of the input channels.
        filter: Shape (B, O), those of the filters; absent where each channel has one.
        spatial: Shape (B, *k), those of the taps; absent where there is one.
        kernel: Shape (B, K), those of the experts; absent where there is one.
    """

    channel: jax.Array
    filter: jax.Array | None
    spatial: jax.Array | None
    kernel: jax.Array | None


class ODAttention(HoldsScheduled):
    """The router of `ODConv`: one trunk, and a head for each attention.

        h = relu(norm(fc · mean over *S of x))    (B, A)    A = max(C // r, min_hidden)
        channel, filter, spatial = sigmoid((head · h + b) / T)
        kernel = softmax((head · h + b) / T)

    All of it is computed in float32 at least.

    Attributes:
        fc: The linear layer C → A, without bias.
        bn: The norm of the trunk, if it is `"batch"`; `ln`, if it is `"layer"`.
        channel_fc: The head A → C; `filter_fc` A → O, `spatial_fc` A → taps and
            `kernel_fc` A → K are None where they are absent.
        temperature: T, a scalar `Temperature`; write it with `set_temperature`.

    Example:
        >>> attention = ODAttention(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((2, 9, 7, 3))).spatial.shape
        (2, 3, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, ...],
        *,
        feature_group_count: int = 1,
        num_experts: int = 4,
        reduction: int = 16,
        min_hidden: int = 16,
        norm: str = "batch",
        temperature: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        head_inits: Mapping[str, Initializer] = MappingProxyType({}),
        rngs: nnx.Rngs,
    ):
        """Builds the router; `ODConv` explains the arguments.

        What initialises the kernel of a head, other than Kaiming-normal by fan-out, is
        in `head_inits`, by its name, such as `"channel"`.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        positive_int("reduction", reduction)
        positive_int("min_hidden", min_hidden)
        Temperature.check(temperature)
        self.kernel_size = kernel_size
        self.norm = norm
        self.dtype = dtype
        hidden = max(in_features // reduction, min_hidden)
        rank, taps = len(kernel_size), math.prod(kernel_size)
        shared: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        linear: dict[str, Any] = dict(rank=rank, precision=precision, **shared)

        def head(name: str, size: int, is_present: bool = True) -> PooledLinear | None:
            init = head_inits.get(name, kaiming_fan_out)
            if not is_present:
                return None
            return PooledLinear(hidden, size, kernel_init=init, **linear)

        self.fc = PooledLinear(
            in_features, hidden, use_bias=False, kernel_init=kaiming_fan_out, **linear
        )
        trunk_norm = attention_norm(norm, hidden, **shared)
        if norm == "batch":
            self.bn = trunk_norm
        elif norm == "layer":
            self.ln = trunk_norm
        self.channel_fc = head("channel", in_features)
        has_filters = not feature_group_count == in_features == out_features
        self.filter_fc = head("filter", out_features, has_filters)
        self.spatial_fc = head("spatial", taps, taps > 1)
        self.kernel_fc = head("kernel", num_experts, num_experts > 1)
        self.temperature = Temperature.create(temperature)

    def __call__(self, inputs: jax.Array) -> Attentions:
        """Returns the attentions for inputs (B, *S, C).

        Raises:
            ValueError: In training with `norm="batch"`, if there is one sample.
        """
        return self._of_pooled(spatial_mean(inputs, self.dtype))

    def _of_pooled(self, pooled: jax.Array) -> Attentions:
        """Returns the attentions for pooled inputs (B, C)."""
        trunk_norm = getattr(self, "bn", getattr(self, "ln", None))
        hidden = self._activate(normalise(trunk_norm, self.fc(pooled)))

        def gate(head: PooledLinear | None, name: str) -> jax.Array | None:
            if head is None:
                return None
            logits = head(hidden)
            if name == "kernel":
                return self._mixture(logits)
            gates = self._gates(logits)
            record_attention(self, gates, name)
            return gates

        channel = gate(self.channel_fc, "channel")
        taps = gate(self.spatial_fc, "spatial")
        assert channel is not None
        return Attentions(
            channel=channel,
            filter=gate(self.filter_fc, "filter"),
            spatial=None if taps is None else taps.reshape(-1, *self.kernel_size),
            kernel=gate(self.kernel_fc, "kernel"),
        )

    # What a member with other gates has otherwise.
    def _activate(self, hidden: jax.Array) -> jax.Array:
        return jax.nn.relu(hidden)

    def _gates(self, logits: jax.Array) -> jax.Array:
        """Returns the factors of channels, filters or taps."""
        return jax.nn.sigmoid(logits / self.temperature[...].astype(logits.dtype))

    def _mixture(self, logits: jax.Array) -> jax.Array:
        """Returns, and records, the weights of the experts."""
        attention = attend(logits, self.temperature[...])
        record_softmax(self, attention, logits, self.temperature[...])
        return attention


class ODConv(ExpertConv):
    """A convolution whose kernel has an attention along each of its four dimensions.

        y = filter ⊙ conv(channel ⊙ x, Σ_n kernel_n · spatial ⊙ W_n)

    Every sample has weights for its input channels, for the filters, for the taps and
    for the K experts. Takes the place of `nnx.Conv`, with its argument names, for 1, 2
    or 3 spatial dimensions. With one tap and one expert the kernel is
    the same for all samples, and is applied as such. Li et al., "Omni-Dimensional
    Dynamic Convolution", ICLR 2022, section 3.

    Attributes:
        kernel: The experts, shape (K, *kernel_size, C/g, O).
        attention: The `ODAttention`; `attentions` calls it.

    Example:
        >>> layer = ODConv(3, 8, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
        >>> images = jnp.ones((2, 9, 7, 3))
        >>> layer(images).shape
        (2, 5, 4, 8)
        >>> layer.attentions(images).channel.shape, layer.routing(images).shape
        ((2, 3), (2, 4))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        reduction: int = 16,
        min_hidden: int = 16,
        norm: str = "batch",
        temperature: float = 1.0,
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
            reduction: The trunk has max(C // reduction, min_hidden) units.
            min_hidden: How many units the trunk has at least.
            norm: How the trunk is normalised: `"batch"` as published, which needs more
                than one sample in training, `"layer"` or `"none"`.
            temperature: The initial T. Published schedules let it fall from 30 to 1
                over the first 10 epochs; see `set_temperature`.
            init: `"default"` or `"published"`, which are the same here.
            rngs: Where the initial parameters come from.
            **options: The options of `ExpertConv`, as `DynamicConv` explains them. With
                one expert there is no attention over experts; by default each expert is
                drawn Kaiming-normal by fan-out. Biases are mixed as the kernels are and
                weighed by the filters' attention; published layers have none.

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        check_choice("init", init, INITS)
        options.setdefault("kernel_init", kaiming_fan_out)
        super().__init__(
            in_features, out_features, kernel_size, strides, rngs=rngs, **options
        )
        self.attention = ODAttention(
            self.in_features,
            self.out_features,
            self.kernel_size,
            feature_group_count=self.feature_group_count,
            num_experts=self.num_experts,
            reduction=reduction,
            min_hidden=min_hidden,
            norm=norm,
            temperature=temperature,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            rngs=rngs,
        )

    def attentions(self, inputs: jax.Array) -> Attentions:
        """Returns the four attentions.

        Args:
            inputs: Shape (*batch, *S, C).

        Returns:
            Each of shape (*batch, ...), or None where it is absent.

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        flat, batch = self._flatten_batch(inputs)
        return jax.tree.map(
            lambda each: each.reshape(*batch, *each.shape[1:]), self.attention(flat)
        )

    def routing(self, inputs: jax.Array) -> jax.Array:
        """Returns the attention over the experts alone.

        Args:
            inputs: Shape (*batch, *S, C).

        Returns:
            Shape (*batch, K); rows sum to 1.

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        channel, *_, kernel = self.attentions(inputs)
        return jnp.ones_like(channel[..., :1]) if kernel is None else kernel

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (*batch, *S, C), with any number of batch dimensions, also
                none.

        Returns:
            Shape (*batch, *S_out, O).

        Raises:
            ValueError: If the inputs do not fit the layer, or if in training there is
                one sample and `norm="batch"`.
        """
        flat, batch = self._flatten_batch(inputs)
        attentions = self.attention(flat)
        # Promoted before the channels are weighed, not after: bfloat16 inputs beside
        # float32 experts are not to be rounded in between.
        flat, *_ = self.promote_dtype((flat, self.kernel[...], None), dtype=self.dtype)
        # The two act on activations, where XLA fuses them with what reads or writes
        # these; on kernels they would be two more factors of each sample's C·O·k².
        outputs = self._convolve(
            scale_channels(flat, attentions.channel),
            attentions.kernel,
            spatial_attention=attentions.spatial,
        )
        if attentions.filter is not None:
            outputs = scale_channels(outputs, attentions.filter)
        return outputs.reshape(*batch, *outputs.shape[1:])
