"""Networks to test: twins with lively weights, and lists of what is dynamic in them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.torch_layout import torch_shapes
from parity_tests.parity import as_torch, assert_parity, channels_first


def enliven(
    net: torch.nn.Module,
    images: np.ndarray,
    rng: np.random.Generator,
    *,
    biases: float = 1.0,
) -> None:
    """Draws the batch norms of a network, and fits their statistics to the images.

    So activations neither explode nor vanish, however deep the network, and no mean is
    zero but for rounding, as it would be behind a layer that is linear in inputs of
    mean zero.

    Args:
        net: The network, changed in place.
        images: Channels last.
        rng: Draws the parameters and disturbs the statistics.
        biases: The standard deviation of the norms' biases.
    """
    norms = _batch_norms(net)
    with torch.no_grad():
        for norm in norms:
            shape = tuple(norm.weight.shape)
            norm.weight.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, shape)))
            norm.bias.copy_(torch.from_numpy(rng.normal(size=shape) * biases))
        fit_statistics(net, images)
        for norm in norms:
            disturbance = rng.uniform(0.7, 1.4, tuple(norm.weight.shape))
            norm.running_var.mul_(torch.from_numpy(disturbance))
            norm.num_batches_tracked.fill_(int(rng.integers(1, 100)))


def fit_statistics(net: torch.nn.Module, images: np.ndarray) -> None:
    """Sets the running statistics of a network to those of the images.

    In a deep network what disturbs them is multiplied from layer to layer, until logits
    are in the millions and gradients are the rounding of those.

    Args:
        net: The network, in training from then on.
        images: Channels last.
    """
    norms = _batch_norms(net)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(as_torch(channels_first(images)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _batch_norms(net: torch.nn.Module) -> list[Any]:
    kinds = torch.nn.BatchNorm1d, torch.nn.BatchNorm2d
    return [part for part in net.modules() if isinstance(part, kinds)]


def twins(
    jax_net: Callable[..., Any],
    torch_net: Callable[..., Any],
    images: np.ndarray,
    rng: np.random.Generator,
    *arguments: Any,
    conv: tuple[Any, Any] = (None, None),
    **options: Any,
) -> tuple[nnx.Module, torch.nn.Module]:
    """Builds a network in both frameworks, in float64, the JAX one abstract.

    Args:
        jax_net: Builds the JAX network.
        torch_net: Builds the PyTorch network.
        images: Channels last; what the network is to see.
        rng: Draws the parameters.
        *arguments: Of both.
        conv: What builds the dynamic convolutions of either.
        **options: Further options of both.
    """
    ours = abstract_module(
        lambda rngs: jax_net(
            *arguments,
            conv=conv[0],
            param_dtype=jnp.float64,
            rngs=rngs,
            **options,
        )
    )
    theirs = torch_net(*arguments, conv=conv[1], dtype=torch.float64, **options)
    enliven(theirs, images, rng)
    return ours, theirs


def assert_networks_agree(
    jax_net: nnx.Module, torch_net: torch.nn.Module, images: np.ndarray
) -> None:
    """Asserts that two networks compute the same, and have the same gradients.

    The gradients of training alone: those of evaluation are the same of its layers,
    for which they are compared too, and take as long.
    """
    assert_parity(jax_net, torch_net, images, gradients_in=("train",))


def abstract(name: str, *arguments: Any, **options: Any) -> Any:
    """Builds a network of JAX by name, without values."""
    return abstract_module(
        lambda rngs: dynconv_jax.create_model(name, *arguments, rngs=rngs, **options)
    )


def on_meta(name: str, *arguments: Any, **options: Any) -> Any:
    """Builds a network of the twin by name, without values."""
    return dynconv_torch.create_model(name, *arguments, device="meta", **options)


def shapes_of(net: nnx.Module | torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network of either framework by PyTorch's keys."""
    if isinstance(net, torch.nn.Module):
        return {key: tuple(value.shape) for key, value in net.state_dict().items()}
    return torch_shapes(net)


def dynamic_layers(net: nnx.Module | torch.nn.Module) -> list[str]:
    """Returns the names of the dynamic convolutions, as PyTorch writes them."""
    if isinstance(net, torch.nn.Module):
        kind = dynconv_torch.DynamicConv2d
        return sorted(n for n, part in net.named_modules() if isinstance(part, kind))
    kind = dynconv_jax.DynamicConv
    paths = [path for path, part in nnx.iter_modules(net) if isinstance(part, kind)]
    names = [".".join(str(part) for part in path) for path in paths]
    return sorted(name.replace("layers.", "") for name in names)


class RoutedConv(dynconv_jax.DynamicConv):
    """A dynamic convolution that has no router, as those that blocks route."""

    needs_attention = True

    def __init__(self, *arguments, num_experts: int = 3, **options):
        """Builds the layer."""
        super().__init__(
            *arguments, num_experts=num_experts, router=no_router, **options
        )


class RoutedConv2d(dynconv_torch.DynamicConv2d):
    """The twin of `RoutedConv`."""

    needs_attention = True

    def __init__(self, *arguments, num_experts: int = 3, **options):
        """Builds the layer."""
        super().__init__(
            *arguments, num_experts=num_experts, router=no_router, **options
        )


def no_router(inputs: Any) -> Any:
    """Says that the attention was to come from outside."""
    raise AssertionError("the layer was not given the attention of its block")


class LinearRouter(nnx.Linear):
    """The sigmoid of a linear layer of the pooled inputs."""

    def __call__(self, inputs, out_sharding=None):
        """Returns the attention (B, K)."""
        return jax.nn.sigmoid(super().__call__(inputs.mean(axis=(1, 2))))


class LinearRouter2d(torch.nn.Linear):
    """The twin of `LinearRouter`."""

    def forward(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the attention (B, K)."""
        return torch.sigmoid(super().forward(x.mean((2, 3))))
