"""A trained static model made dynamic, without losing its function.

A dynamic model begins best where a trained static one ended: every expert is the
trained kernel, whatever the attention. What is written where is in `starts.py`,
the way back in `collapse.py`.
"""

import math
from collections.abc import Collection, Iterable

import jax
from flax import nnx

from dynconv_jax.checks import check_module
from dynconv_jax.layers import CondConv, DecomposedConv, FDConv, ModulatedConv
from dynconv_jax.weights.matching import (
    Write,
    copy_values,
    match_models,
    misfit,
    path_name,
    refuse,
    variables_to_ignore,
)
from dynconv_jax.weights.names import check_names
from dynconv_jax.weights.starts import (
    NoExactStart,
    family,
    router_start,
    sigmoid_routers,
    static_start,
)


def init_from_static(
    model: nnx.Module,
    static: nnx.Module,
    *,
    noise: float = 0.0,
    rngs: nnx.Rngs | None = None,
    ignore: Iterable[str] = (),
) -> None:
    """Makes a dynamic model compute what a trained static one does, in place.

    Experts become the trained kernel of the layer at the same path; whatever else the
    two have in common is copied. Routers keep their values where any attention will do;
    sigmoids are set to what makes up for them: those over experts to unlike weights
    with the sum 1, or equal experts with equal weights would stay equal for ever.
    Without noise the function is exactly that of the static model, and one training
    step moves all experts, each by its attention.

    Args:
        model: The dynamic model, or a single layer.
        static: The same model with `nnx.Conv` in the place of the dynamic layers, and
            `nnx.Linear` in that of `WarehouseLinear`.
        noise: The standard deviation of what is added to each expert, as a share of
            that of the trained kernel.
        rngs: Where the noise comes from; needed if there is any.
        ignore: What stays as it is in the model, such as `("fc",)` where the static
            model is of other classes. A name is one of PyTorch's keys, or the beginning
            of keys up to a dot; `*` and `?` are those of `fnmatch`.

    Raises:
        TypeError: If one of the two is no module, or `ignore` a string.
        ValueError: If the two do not fit, or a layer has no exact start; all problems
            are listed. Or if a name in `ignore` means nothing in either. The model is
            then unchanged.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> static = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(1))
        >>> init_from_static(layer, static)
        >>> images = jax.numpy.ones((2, 9, 7, 3))
        >>> bool(jax.numpy.allclose(layer(images), static(images), atol=1e-5))
        True
    """
    check_module("model", model)
    check_module("static", static)
    if not 0 <= noise < math.inf:
        raise ValueError(f"`noise` (={noise}) must be 0 or a positive finite number")
    if noise and rngs is None:
        raise ValueError(f"`noise` (={noise}) needs `rngs` to be drawn from")
    check_names("ignore", ignore)
    ignored = variables_to_ignore(model, static, ignore)
    pairs, shared, problems = match_models(model, static, family(), ignored)
    for name, target, value in shared:
        problems.extend(misfit(name, value, target))
    starts: list[list[Write]] = []
    for path, (layer, source) in pairs.items():
        try:
            starts.append(_kept(static_start(layer, source, model), ignored))
        except NoExactStart as error:
            problems.append(f"{path_name(path)} ({type(layer).__name__}): {error}")
            continue
        for write in starts[-1]:
            problems.extend(write.misfit(path, "layer"))
    refuse(
        problems,
        f"the {type(model).__name__} cannot start from the {type(static).__name__}, "
        "and is unchanged",
    )
    copy_values((value, target) for _, target, value in shared)
    if any(isinstance(layer, CondConv) for layer, _ in pairs.values()):
        for router in sigmoid_routers(model):
            for write in _kept(router_start(router), ignored):
                write.apply()
    for (layer, _), start in zip(pairs.values(), starts, strict=True):
        for write in start:
            value = write.value
            # Of the kernels, which alone have so many axes.
            is_static = isinstance(layer, (DecomposedConv, FDConv, ModulatedConv))
            if rngs is not None and noise and value.ndim > 2 and not is_static:
                drawn = jax.random.normal(rngs.params(), value.shape, value.dtype)
                value = value + noise * value.std() * drawn
            write._replace(value=value).apply()


def _kept(writes: Iterable[Write], ignored: Collection[int]) -> list[Write]:
    """Returns what is written into variables that are not ignored."""
    return [write for write in writes if id(write.variable) not in ignored]
