"""Routers: from an input to the attention over the experts.

    v = mean over *S of x            (B, C)
    h = relu(v · fc1 + b1)           (B, H)    H = max(1, C // reduction)
    z = h · fc2 + b2                 (B, K)
    a = softmax(z / T)               (B, K)    rows sum to 1

All of it is computed in float32 at least, also under autocast: a bfloat16 layer raises
its inputs, a float64 layer keeps float64.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dynconv_torch.functional.checks import (
    check_choice,
    check_dtype,
    check_positive,
    check_rate,
    check_tensors,
)
from dynconv_torch.functional.geometry import expert_count, positive_int
from dynconv_torch.functional.numerics import call_wide, dtypes_of, without_autocast
from dynconv_torch.functional.pooling import spatial_mean
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.gating import Temperature, attend, record_output, record_softmax
from dynconv_torch.initializers import INITS, Init, kaiming_fan_out
from dynconv_torch.logit_noise import LogitNoise
from dynconv_torch.scheduled import HoldsScheduled, set_scheduled


def _pool(x: Tensor, in_channels: int, *dtypes: torch.dtype) -> Tensor:
    """Returns the mean of `x` (B, C, *S) over *S, once it is seen to fit."""
    shape = sizes_of(x)
    if x.ndim < 2 or shape[1] != in_channels:
        raise ValueError(
            f"`x` (shape {shape}) must be (batch, in_channels, *spatial) "
            f"with `in_channels` (={in_channels})"
        )
    return spatial_mean(x, *dtypes)


class Router(HoldsScheduled):
    """The router of a dynamic convolution.

    Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020,
    section 3.2; the linear layers have biases.

    Attributes:
        fc1: The linear layer C → H.
        fc2: The linear layer H → K.
        temperature: T, a scalar buffer; write it with `set_temperature`.

    Example:
        >>> router = Router(16, num_experts=4, top_k=2)
        >>> attention = router(torch.ones(2, 16, 9, 7))
        >>> attention.shape, int((attention > 0).sum())
        (torch.Size([2, 4]), 4)
    """

    temperature: Tensor

    def __init__(
        self,
        in_channels: int,
        num_experts: int = 4,
        *,
        reduction: int = 4,
        temperature: float = 1.0,
        top_k: int | None = None,
        dropout: float = 0.0,
        noise_std: float = 0.0,
        hidden_channels: int | None = None,
        hidden_bias: bool = True,
        bias: bool = True,
        init: Init = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the router.

        Args:
            in_channels: C, the number of channels of the input.
            num_experts: K, the number of experts to weigh.
            reduction: The hidden layer has H = max(1, C // reduction) units. A ReLU
                may be off for all inputs, and with few units, all may be: then the
                attention is the same for every input, and stays so.
            temperature: The initial T.
            top_k: Keep this many of the largest logits of each sample; None keeps all.
                Experts that are never kept come back by `load_balance_loss` or noise.
            dropout: The share of hidden units dropped in training.
            noise_std: The standard deviation of the `LogitNoise` on z in training.
            hidden_channels: H, in place of what `reduction` gives.
            hidden_bias: Whether the first linear layer has a bias.
            bias: Whether the second has one.
            init: `"published"` draws both layers from N(0, 2 / fan_out), with biases of
                0, as Chen et al.'s port does; `"default"` as `torch.nn.Linear`.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        self.num_experts = expert_count(num_experts)
        self.reduction = positive_int("reduction", reduction)
        Temperature.check(temperature)
        if top_k is not None and positive_int("top_k", top_k) > num_experts:
            raise ValueError(
                f"`top_k` (={top_k}) must not exceed `num_experts` (={num_experts})"
            )
        check_rate("dropout", dropout)
        check_choice("init", init, INITS)
        check_dtype(dtype)
        self.top_k = top_k
        if hidden_channels is None:
            hidden_channels = max(1, in_channels // reduction)
        positive_int("hidden_channels", hidden_channels)
        self.fc1 = nn.Linear(
            in_channels, hidden_channels, hidden_bias, device=device, dtype=dtype
        )
        self.fc2 = nn.Linear(
            hidden_channels, num_experts, bias, device=device, dtype=dtype
        )
        if init == "published":
            for layer in (self.fc1, self.fc2):
                kaiming_fan_out(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.dropout = nn.Dropout(dropout)
        self.noise = LogitNoise(noise_std)
        self.hold_scheduled(Temperature, temperature, self.fc1.weight.device)

    def logits(
        self, x: Shaped[Tensor, "batch in_channels *spatial"]
    ) -> Float[Tensor, "batch experts"]:
        """Returns the logits z of `x`, before the temperature.

        In training, dropout and noise are in them.
        """
        check_tensors(x=x)
        with without_autocast(x.device):
            pooled = _pool(x, self.in_channels, *dtypes_of(self.fc1, self.fc2))
            hidden = self.dropout(F.relu(call_wide(self.fc1, pooled)))
            return self.noise(call_wide(self.fc2, hidden))

    def forward(
        self, x: Shaped[Tensor, "batch in_channels *spatial"]
    ) -> Float[Tensor, "batch experts"]:
        """Returns the attention over the experts.

        Args:
            x: What a layer convolves.

        Returns:
            The weights of the experts; those of a sample sum to 1.

        Raises:
            ValueError: If the input does not have `in_channels` channels.
        """
        gate = self.logits(x), self.temperature, self.top_k
        attention = attend(*gate)
        record_softmax(self, attention, *gate)
        return attention

    def extra_repr(self) -> str:
        """Returns the arguments of the router, for its `repr`."""
        return (
            f"{self.in_channels}, num_experts={self.num_experts}, "
            f"reduction={self.reduction}, top_k={self.top_k}"
        )


class SigmoidRouter(nn.Linear):
    """The router of CondConv: a sigmoid for each expert, on its own.

        a = sigmoid(v · W + b)           (B, K)    v = mean over *S of x

    Yang et al., "CondConv", NeurIPS 2019, section 3.1. It is a `torch.nn.Linear` C → K,
    because published checkpoints name its parameters so (`routing_fn.weight`). The rows
    do not sum to 1, and there is no temperature.

    Example:
        >>> router = SigmoidRouter(16, num_experts=4)
        >>> router(torch.ones(2, 16, 9, 7)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        in_channels: int,
        num_experts: int = 4,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the router.

        Args:
            in_channels: C, the number of channels of the input.
            num_experts: K, the number of experts to weigh.
            device: Where the parameters are.
            dtype: The dtype of the parameters. It computes in float32 at least.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a count is below 1.
        """
        check_dtype(dtype)
        super().__init__(
            positive_int("in_channels", in_channels),
            expert_count(num_experts),
            device=device,
            dtype=dtype,
        )

    @property
    def num_experts(self) -> int:
        """K, the number of experts."""
        return self.out_features

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Shaped[Tensor, "batch in_channels *spatial"]
    ) -> Float[Tensor, "batch experts"]:
        """Returns the attention over the experts.

        Args:
            x: What a layer convolves.

        Returns:
            The weights of the experts, each between 0 and 1.

        Raises:
            ValueError: If the input does not have `in_channels` channels.
        """
        check_tensors(x=x)
        with without_autocast(x.device):
            pooled = _pool(x, self.in_features, self.weight.dtype)
            bias = None if self.bias is None else self.bias.to(pooled.dtype)
            logits = F.linear(pooled, self.weight.to(pooled.dtype), bias)
            attention = torch.sigmoid(logits)
        record_output(self, attention)
        return attention


def iter_routers(module: nn.Module) -> Iterator[tuple[str, Router]]:
    """Yields the path and the router for every router in `module`, each once.

    A layer with a router of its own is that router; one with a router given is not.

    Example:
        >>> from dynconv_torch import DynamicConv2d
        >>> net = torch.nn.Sequential(DynamicConv2d(3, 8, 3))
        >>> [path for path, _ in iter_routers(net)]
        ['0']
    """
    for path, part in module.named_modules():
        if isinstance(part, Router) and hasattr(part, "temperature"):
            yield path, part


def set_temperature(module: nn.Module, value: float | Tensor) -> None:
    """Sets every temperature in `module`, in place.

    Args:
        module: A router, a layer or a whole model.
        value: The new temperature, a positive scalar.

    Raises:
        ValueError: If the value is not positive and finite, or `module` has no router.

    Example:
        >>> from dynconv_torch import DynamicConv2d
        >>> layer = DynamicConv2d(3, 8, 3)
        >>> set_temperature(layer, 30.0)
        >>> float(layer.temperature)
        30.0
    """
    if not set_scheduled(module, Temperature, value):
        raise ValueError(f"`module` (a {type(module).__name__}) contains no router")


def two_slope_temperature(
    epoch: float,
    *,
    start: float = 30.0,
    end: float = 1.0,
    slope: float = 1.0,
    late_slope: float = 0.02,
) -> float:
    """Returns a temperature that falls fast at first, and slowly once it is low.

        max(start − slope · e, 1 + late_slope · ((start − 1) / slope − e), end)

    The two lines meet at 1. Schmid et al., "Dynamic Convolutional Neural Networks as
    Efficient Pre-trained Audio Models" (DyMN), TASLP 2024, on dynamic convolution; the
    defaults are those of the authors' code. `set_temperature` writes the answer.

    Args:
        epoch: e, from 0; it may be a fraction.
        start: The temperature at 0.
        end: The lowest temperature.
        slope: By how much it falls in an epoch at first.
        late_slope: By how much it falls in an epoch below 1.

    Raises:
        ValueError: If a temperature is not positive, or a slope is.

    Example:
        >>> [two_slope_temperature(e) for e in (0, 10, 29, 100)]
        [30.0, 20.0, 1.0, 1.0]
    """
    Temperature.check(start)
    Temperature.check(end)
    check_positive("slope", slope)
    if not 0 <= late_slope < math.inf:
        raise ValueError(
            f"`late_slope` (={late_slope}) must be 0 or a positive finite number"
        )
    late = 1 + late_slope * ((start - 1) / slope - epoch)
    return max(start - slope * epoch, late, end)
