"""A dynamic model made static, by fixing its attention."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynconv_jax.checks import check_module
from dynconv_jax.functional.mixing import mix_kernels
from dynconv_jax.functional.tiling import assemble_kernels
from dynconv_jax.layers import (
    AdaptiveConv,
    DynamicConvTranspose,
    ODConv,
    WarehouseConv,
    WarehouseLinear,
)
from dynconv_jax.layers.expert_conv import ExpertConv
from dynconv_jax.layers.od_conv import Attentions
from dynconv_jax.weights.matching import (
    Write,
    copy_values,
    match_models,
    misfit,
    path_name,
    refuse,
)
from dynconv_jax.weights.starts import family


def collapse(
    model: nnx.Module,
    static: nnx.Module,
    attention: Any,
) -> None:
    """Makes a static model of a dynamic one, by fixing the attention, in place.

    Args:
        model: The dynamic model, or a single layer; it is not changed.
        static: The same model with `nnx.Conv` in the place of the dynamic layers, and
            `nnx.Linear` in that of `WarehouseLinear`; it takes their kernels at the
            attention given, and whatever else the two have in common.
        attention: What each layer is to mix by, by the path of the layer or of its
            router: of a layer with experts (K,), the mean over samples of what
            `capture_attention` recorded, say; of an `ODConv` the `Attentions` of one
            sample; of a `WarehouseConv` its mixture (tiles, cells). For a single layer,
            or one attention for all, the value alone.

    Raises:
        ValueError: If the two do not fit, attention is missing, or a layer cannot be
            written as one convolution. All problems are listed, and `static` is
            unchanged.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> static = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=nnx.Rngs(1))
        >>> weights = jnp.array([0.4, 0.3, 0.2, 0.1])
        >>> collapse(layer, static, weights)
        >>> images = jnp.ones((1, 9, 7, 3))
        >>> dynamic = layer(images, weights[None])
        >>> bool(jnp.allclose(static(images), dynamic, atol=1e-5))
        True
    """
    check_module("model", model)
    check_module("static", static)
    pairs, shared, problems = match_models(model, static, family())
    for name, value, target in shared:
        problems.extend(misfit(name, value, target))
    written = []
    for path, (layer, target) in pairs.items():
        given = attention
        if isinstance(attention, Mapping):
            name = path_name(path)
            paths = (name, f"{name}.router", f"{name}.attention")
            if isinstance(layer, WarehouseLinear):
                paths += (f"{name}.conv", f"{name}.conv.attention")
            given = next((attention[each] for each in paths if each in attention), None)
        if given is None:
            problems.append(f"{path_name(path)}: no attention is given for it")
            continue
        try:
            kernel, bias = kernel_at(layer, given)
        except ValueError as error:
            problems.append(f"{path_name(path)} ({type(layer).__name__}): {error}")
            continue
        writes = [Write(target.kernel, kernel)]
        if target.bias is not None:
            none = jnp.zeros_like(target.bias[...])
            writes.append(Write(target.bias, none if bias is None else bias))
        elif bias is not None:
            problems.append(
                f"{path_name(path)}: the static layer has no bias (`use_bias`)"
            )
        for write in writes:
            problems.extend(write.misfit(path, "static layer"))
        written.extend(writes)
    refuse(
        problems,
        f"the {type(model).__name__} cannot become the {type(static).__name__}, "
        "which is unchanged",
    )
    copy_values((value, target) for _, value, target in shared)
    for write in written:
        write.apply()


@functools.singledispatch
def kernel_at(layer: Any, attention: Any) -> tuple[jax.Array, jax.Array | None]:
    """Returns the kernel (*k, C/g, O) and bias (O,) of a layer at one attention.

    Raises:
        ValueError: If it has none, or the attention does not fit.
    """
    raise ValueError(
        "this kind of layer is not one convolution, whatever the attention"
    )


@kernel_at.register
def _(layer: ExpertConv, attention: Any) -> tuple[jax.Array, jax.Array | None]:
    if jnp.shape(attention) != (layer.num_experts,):
        raise ValueError(
            f"`attention` has the shape {jnp.shape(attention)}, not (num_experts,) = "
            f"{(layer.num_experts,)}"
        )
    weights = jnp.asarray(attention)[None]
    # For good, so at full precision wherever it is done.
    mix = functools.partial(mix_kernels, weights, precision="highest")
    return mix(layer.kernel[...])[0], (
        None if layer.bias is None else mix(layer.bias[...])[0]
    )


@kernel_at.register
def _(layer: ODConv, attention: Any) -> tuple[jax.Array, jax.Array | None]:
    if not isinstance(attention, Attentions):
        raise ValueError(
            "`attention` must be the `Attentions` of one sample, such as "
            "`jax.tree.map(lambda each: each.mean(0), layer.attentions(inputs))`"
        )
    for name, size in (
        ("channel", (layer.in_features,)),
        ("filter", (layer.out_features,)),
        ("spatial", layer.kernel_size),
        ("kernel", (layer.num_experts,)),
    ):
        each = getattr(attention, name)
        if each is not None and each.shape != size:
            raise ValueError(
                f"`attention.{name}` has the shape {each.shape}; that of one sample "
                f"has {size}"
            )
    channel, filters, spatial, experts = attention
    if experts is None:
        experts = jnp.ones(1)
    kernel, bias = kernel_at.dispatch(ExpertConv)(layer, experts)
    # A group's filters see its own channels only.
    groups, width = layer.feature_group_count, layer.in_features
    of_groups = channel.reshape(groups, width // groups).T
    kernel = kernel * jnp.repeat(of_groups, layer.out_features // groups, axis=1)
    if spatial is not None:
        kernel = kernel * spatial[..., None, None]
    if filters is not None:
        kernel = kernel * filters
        bias = None if bias is None else bias * filters
    return kernel, bias


@kernel_at.register
def _(layer: AdaptiveConv, attention: Any) -> tuple[jax.Array, None]:
    raise ValueError("its kernel depends on the styles too, whatever the attention")


@kernel_at.register
def _(layer: WarehouseConv, attention: Any) -> tuple[jax.Array, jax.Array | None]:
    expected = (len(layer.share.assigned), layer.warehouse.tiling.num_cells)
    if jnp.shape(attention) != expected:
        raise ValueError(
            f"`attention` has the shape {jnp.shape(attention)}; the mixture of one "
            f"sample has (tiles, cells) = {expected}"
        )
    cells = layer.warehouse.cells[...]
    mixture = jnp.asarray(attention)[None]
    kernel = assemble_kernels(mixture, cells, layer.share, precision="highest")[0]
    return kernel, None if layer.bias is None else layer.bias[...]


@kernel_at.register
def _(layer: WarehouseLinear, attention: Any) -> tuple[jax.Array, jax.Array | None]:
    kernel, bias = kernel_at(layer.conv, attention)
    return kernel[0], bias  # of the one tap


@kernel_at.register
def _(layer: DynamicConvTranspose, attention: Any) -> tuple[jax.Array, None]:
    raise ValueError("`nnx.Conv` does not compute a transposed convolution")
