"""Batch norm folded into the experts: exact, for deployment.

In evaluation a batch norm multiplies each channel and adds to it. After a convolution
the factor goes into every expert's output channel, and what is added is the same for
all samples, whatever the attention.
"""

import functools
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax.layers import DecomposedConv, WarehouseConv
from dynconv_jax.layers.expert_conv import ExpertConv


class ChannelShift(nnx.Module):
    """Adds a number to each channel: what a folded batch norm leaves.

    Attributes:
        bias: Shape (C,).

    Example:
        >>> import jax.numpy as jnp
        >>> ChannelShift(jnp.array([1.0, 2.0]))(jnp.zeros((1, 2))).tolist()
        [[1.0, 2.0]]
    """

    def __init__(self, bias: jax.Array, dtype: DTypeLike | None = None):
        """Keeps the numbers; `dtype` is that of the output, None that of the input."""
        self.bias = nnx.Param(bias)
        self.dtype = dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns inputs (..., C) with the bias added."""
        outputs = inputs + self.bias[...]
        return outputs.astype(self.dtype or inputs.dtype)


_WATCHED = (nnx.Conv, nnx.BatchNorm, ExpertConv, DecomposedConv, WarehouseConv)


class _Watched(nnx.Module):
    """A module that tells of its calls; in all else it is the module."""

    def __init__(self, module: nnx.Module, record: Any):
        self._module = module
        self._record = record

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._module, name)

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> Any:
        outputs = self._module(inputs, *args, **kwargs)  # pyright: ignore[reportCallIssue]
        self._record(inputs, outputs)
        return outputs


def fold_batch_norm(module: nnx.Module, *args: Any, **kwargs: Any) -> nnx.Module:
    """Returns a copy of a model with its batch norms folded into the convolutions.

    Which batch norm follows which convolution is seen by tracing a call, so any model
    will do. A batch norm that takes its input from anything but the one call of one
    convolution stays. What a convolution gives must go into the batch norm and nowhere
    else.

    Args:
        module: A model, whose copy is for evaluation only; it is not changed.
        *args: Of a call of the model, such as a batch of images; nothing is computed,
            so `jax.ShapeDtypeStruct`s will do.
        **kwargs: Of that call.

    Returns:
        The copy. A folded batch norm has become a `ChannelShift`.

    Raises:
        ValueError: If a convolution cannot take the factors, or no batch norm follows a
            convolution.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynconv_jax import DynamicConvBlock
        >>> block = DynamicConvBlock(3, 8, rngs=nnx.Rngs(0))
        >>> folded = fold_batch_norm(block, jnp.ones((1, 9, 7, 3)))
        >>> type(folded.bn).__name__
        'ChannelShift'
    """
    evaluated = nnx.view(
        module, deterministic=True, use_running_average=True, raise_if_not_found=False
    )
    folded = nnx.clone(evaluated)
    pairs = _pairs(folded, args, kwargs)
    if not pairs:
        raise ValueError(
            f"`module` (a {type(module).__name__}) has no batch norm that takes its "
            "input from a convolution; is it folded already?"
        )
    parts = dict(nnx.iter_modules(folded))
    for norm_path, conv_path in pairs.items():
        norm: Any = parts[norm_path]
        factor = jax.lax.rsqrt(norm.var[...] + norm.epsilon)
        if norm.scale is not None:
            factor = factor * norm.scale[...]
        shift = -norm.mean[...] * factor
        if norm.bias is not None:
            shift = shift + norm.bias[...]
        try:
            scale_outputs(parts[conv_path], factor)
        except TypeError as error:
            name = ".".join(map(str, conv_path))
            raise ValueError(f"{name!r} (a {error})") from None
        _replace(folded, norm_path, ChannelShift(shift, norm.dtype))
    return folded


@functools.singledispatch
def scale_outputs(layer: Any, factor: jax.Array) -> None:
    """Multiplies the output channels of a convolution by `factor` (O,), in place.

    Raises:
        TypeError: If the layer has no parameters of its own that could take it.
    """
    raise TypeError(f"{type(layer).__name__}) cannot take the factors of a batch norm")


@scale_outputs.register(nnx.Conv)
@scale_outputs.register(ExpertConv)
def _(layer: Any, factor: jax.Array) -> None:
    for parameter in (layer.kernel, layer.bias):
        if parameter is not None:
            scaled = parameter[...] * factor
            parameter[...] = scaled.astype(parameter[...].dtype)


@scale_outputs.register
def _(layer: DecomposedConv, factor: jax.Array) -> None:
    scale_outputs(layer.conv, factor)
    scale_outputs(layer.p, factor)


@scale_outputs.register
def _(layer: WarehouseConv, factor: jax.Array) -> None:
    raise TypeError(
        "WarehouseConv) shares its cells with other layers, which have other factors"
    )


def _pairs(module: nnx.Module, args: Any, kwargs: Any) -> dict[tuple, tuple]:
    """Returns by batch norm the convolution that it takes its input from, by paths."""
    graphdef, state = nnx.split(module)
    calls: dict[tuple, list[tuple[int, int]]] = {}
    kept: list[Any] = []  # alive, so that no two have one identity

    def watch(state: Any, args: Any, kwargs: Any) -> Any:
        watched = nnx.merge(graphdef, state)
        for path, part in list(nnx.iter_modules(watched)):
            if path and isinstance(part, _WATCHED):

                def record(inputs: Any, outputs: Any, path: tuple = path) -> None:
                    kept.extend((inputs, outputs))
                    calls.setdefault(path, []).append((id(inputs), id(outputs)))

                _replace(watched, path, _Watched(part, record))
        return watched(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    jax.eval_shape(watch, state, args, kwargs)
    norms, sources = {}, {}
    for path, part in nnx.iter_modules(module):
        if len(calls.get(path, ())) == 1:
            inputs, outputs = calls[path][0]
            if isinstance(part, nnx.BatchNorm):
                norms[path] = inputs
            else:
                sources[outputs] = path
    return {
        path: sources[inputs] for path, inputs in norms.items() if inputs in sources
    }


def _replace(module: nnx.Module, path: tuple, part: nnx.Module) -> None:
    """Puts a module in the place of the one at `path`."""
    *above, last = path
    owner: Any = module
    for name in above:
        owner = (
            owner[name]
            if isinstance(owner, (nnx.List, nnx.Dict))
            else getattr(owner, name)
        )
    if isinstance(owner, nnx.List):
        owner[last] = part
    else:
        setattr(owner, last, part)
