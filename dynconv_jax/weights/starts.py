"""What makes each layer of the family compute what a static convolution does.

A function of `static_start` for each class; a layer whose class has none is no part of
the family.
"""

import functools
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynconv_jax.functional.tiling import assemble_kernels
from dynconv_jax.layers import (
    AdaptiveConv,
    CondConv,
    ContextConv,
    DecomposedConv,
    DynamicConv,
    DynamicConvTranspose,
    FDConv,
    FrequencyDynamicConv,
    ModulatedConv,
    ODConv,
    WarehouseConv,
    WarehouseLinear,
)
from dynconv_jax.layers.expert_conv import ExpertConv
from dynconv_jax.routing import Router, SigmoidRouter
from dynconv_jax.weights.matching import Write


class NoExactStart(ValueError):
    """A layer cannot compute what a static convolution does; the message says why."""


@functools.singledispatch
def static_start(layer: Any, source: Any, model: nnx.Module) -> list[Write]:
    """Returns what to write where, so that a layer computes what `source` does.

    Args:
        layer: A layer of the family.
        source: A trained convolution of the same geometry, or linear layer.
        model: The model that the layer is in.

    Raises:
        NoExactStart: If nothing makes it so.
    """
    raise NoExactStart("no exact start is known for this kind of layer")


def family() -> tuple[type, ...]:
    """Returns the classes that have a start, or are refused with a reason."""
    return tuple(each for each in static_start.registry if each is not object)


def _equal_experts(
    layer: Any, source: nnx.Conv, scale: float = 1.0, bias_scale: float = 1.0
) -> list[Write]:
    """Gives every expert the trained kernel and bias, times their scales."""
    kernel = source.kernel[...] * scale
    shape = layer.kernel[...].shape
    written = [Write(layer.kernel, jnp.broadcast_to(kernel, shape))]
    if layer.bias is not None:
        shape = layer.bias[...].shape
        zeros = jnp.zeros_like(layer.bias[...])
        trained = zeros if source.bias is None else source.bias[...] * bias_scale
        written.append(Write(layer.bias, jnp.broadcast_to(trained, shape)))
    else:
        _refuse_bias(source)
    return written


def sigmoid_routers(model: nnx.Module) -> list[SigmoidRouter]:
    """Returns the routers of `CondConv` in a model."""
    return [
        part for _, part in nnx.iter_modules(model) if isinstance(part, SigmoidRouter)
    ]


def _refuse_bias(source: nnx.Conv) -> None:
    if source.bias is not None:
        raise NoExactStart("the trained layer has a bias, this one none (`use_bias`)")


@static_start.register
def _(layer: ExpertConv, source: nnx.Conv, model: nnx.Module) -> list:
    raise NoExactStart("no exact start is known for this kind of layer")


@static_start.register
def _(layer: DynamicConv, source: nnx.Conv, model: nnx.Module) -> list:
    if not isinstance(layer.router, Router):
        raise NoExactStart(
            f"its router, a {type(layer.router).__name__}, may answer weights that do "
            "not sum to 1"
        )
    return _equal_experts(layer, source)


@static_start.register
def _(layer: FrequencyDynamicConv, source: nnx.Conv, model: nnx.Module) -> list:
    return _equal_experts(layer, source)


@static_start.register
def _(layer: ContextConv, source: nnx.Conv, model: nnx.Module) -> list:
    return _equal_experts(layer, source)


@static_start.register
def _(layer: CondConv, source: nnx.Conv, model: nnx.Module) -> list:
    if not sigmoid_routers(model):
        raise NoExactStart(
            "its attention comes from outside, and nothing here makes it sum to 1; "
            "start the whole block or model"
        )
    if layer.num_experts == 1:
        raise NoExactStart("the sigmoid of a single expert never answers 1")
    return _equal_experts(layer, source)


def router_start(router: SigmoidRouter) -> list[Write]:
    """Returns what makes the weights of a router sum to 1 always, and differ."""
    assert router.bias is not None
    kernel = jnp.zeros_like(router.kernel[...])
    # Sigmoids of these are half to one and a half times 1/K, and sum to 1.
    spread = jnp.linspace(-0.5, 0.5, router.num_experts, dtype=kernel.dtype)
    weights = (1 + spread) / router.num_experts
    logits = jnp.log(weights) - jnp.log1p(-weights)
    return [Write(router.kernel, kernel), Write(router.bias, logits)]


@static_start.register
def _(layer: DynamicConvTranspose, source: nnx.Conv, model: nnx.Module) -> list:
    raise NoExactStart("a transposed convolution does not start from one that is not")


@static_start.register
def _(layer: ODConv, source: nnx.Conv, model: nnx.Module) -> list:
    attention = layer.attention
    gates = [
        head
        for head in (attention.channel_fc, attention.filter_fc, attention.spatial_fc)
        if head is not None
    ]
    # A sigmoid of 0 is one half, and so is each gate; halves are exact. A bias meets
    # the gate of the filters only.
    of_bias = 1.0 if attention.filter_fc is None else 2.0
    experts = _equal_experts(layer, source, 2.0 ** len(gates), of_bias)
    return [*experts, *_zeros(gates)]


def _zeros(parts: Iterable[Any]) -> list[Write]:
    """Makes whatever linear layers and convolutions answer 0."""
    return [
        Write(parameter, jnp.zeros_like(parameter[...]))
        for part in parts
        for parameter in (part.kernel, part.bias)
        if parameter is not None
    ]


@static_start.register
def _(layer: WarehouseConv, source: nnx.Conv, model: nnx.Module) -> list:
    warehouse, share = layer.warehouse, layer.share
    if len(set(share.assigned)) < len(share.assigned) or (
        warehouse.tiling.num_cells in share.assigned
    ):
        raise NoExactStart(
            "it has fewer cells than tiles (a `ratio` below 1), and not every kernel "
            "can be tiled with them"
        )
    # With τ = 1 every tile is its assigned cell. Tiles are laid together linearly, and
    # the transpose of that cuts a kernel into them.
    assigned = jnp.asarray(share.assigned)
    mixture = jax.nn.one_hot(assigned, warehouse.tiling.num_cells)[None]
    cells = jnp.zeros_like(warehouse.cells[...], source.kernel[...].dtype)
    (tiles,) = jax.linear_transpose(
        lambda cells: assemble_kernels(mixture, cells, share, precision="highest")[0],
        cells,
    )(source.kernel[...])
    return [
        Write(warehouse.cells, tiles[assigned], assigned),
        Write(warehouse.assignment, jnp.ones_like(warehouse.assignment[...])),
        *_static_bias(layer.bias, source),
    ]


@static_start.register
def _(layer: WarehouseLinear, source: nnx.Linear, model: nnx.Module) -> list:
    # A convolution of one tap along one axis.
    conv: Any = SimpleNamespace(kernel=source.kernel[...][None], bias=source.bias)
    return static_start(layer.conv, conv, model)


@static_start.register
def _(layer: DecomposedConv, source: nnx.Conv, model: nnx.Module) -> list:
    # Λ of 0 is 1, and without P nothing is added.
    return [
        Write(layer.conv.kernel, source.kernel[...]),
        Write(layer.fc_scale.kernel, jnp.zeros_like(layer.fc_scale.kernel[...])),
        Write(layer.p.kernel, jnp.zeros_like(layer.p.kernel[...])),
        *_static_bias(layer.p.bias, source),
    ]


@static_start.register
def _(layer: FDConv, source: nnx.Conv, model: nnx.Module) -> list:
    trained = source.kernel[...]
    bias = _static_bias(layer.bias, source)
    if layer.kernel is not None:
        return [Write(layer.kernel, trained), *bias]
    attention, local, spectrum = layer.attention, layer.local, layer.spectrum
    assert attention is not None and local is not None and spectrum is not None
    spectra = layer._to_spectra(trained, layer.num_spectra).astype(trained.dtype)
    # Twice the sigmoid of 0 is 1: so is each gate, and bands are weighed alike.
    heads = (
        *(attention.channel_fc, attention.filter_fc),
        *(attention.spatial_fc, attention.kernel_fc),
    )
    gates = [local.conv, *(head for head in heads if head is not None)]
    if layer.modulation is not None:
        gates.extend(layer.modulation.convs)
    return [Write(spectrum, spectra), *bias, *_zeros(gates)]


@static_start.register
def _(layer: ModulatedConv, source: nnx.Conv, model: nnx.Module) -> list:
    _refuse_normalisation(layer)
    return [
        Write(layer.kernel, source.kernel[...] / layer.gain),
        *_even_styles(layer),
        *_static_bias(layer.bias, source),
    ]


@static_start.register
def _(layer: AdaptiveConv, source: nnx.Conv, model: nnx.Module) -> list:
    _refuse_normalisation(layer)
    return [*_equal_experts(layer, source, 1 / layer.gain), *_even_styles(layer)]


def _refuse_normalisation(layer: Any) -> None:
    """Refuses a layer that computes no convolution with its kernel as it is."""
    if layer.demodulate:
        raise NoExactStart(
            "it divides each kernel by its norm; build it with `demodulate=False`"
        )
    if getattr(layer, "magnitude_momentum", None) is not None:
        raise NoExactStart(
            "it divides the inputs by their magnitude; build it without "
            "`magnitude_momentum`"
        )
    if layer.gain == 0:
        raise NoExactStart("its `gain` is 0")


def _even_styles(layer: Any) -> list[Write]:
    """Makes all styles 1, whatever the latents."""
    affine = layer.affine
    return [
        Write(affine.kernel, jnp.zeros_like(affine.kernel[...])),
        Write(affine.bias, jnp.ones_like(affine.bias[...])),
    ]


def _static_bias(bias: nnx.Param | None, source: nnx.Conv) -> list[Write]:
    """Gives a bias that is the same for all samples the trained one."""
    if bias is None:
        _refuse_bias(source)
        return []
    zeros = jnp.zeros_like(bias[...])
    return [Write(bias, zeros if source.bias is None else source.bias[...])]
