"""Batch norm folded into the experts: exact, for deployment.

In evaluation a batch norm multiplies each channel and adds to it. After a convolution
the factor goes into every expert's output channel, and what is added is the same for
all samples, whatever the attention.
"""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax.checks import check_module
from dynconv_jax.layers import AdaptiveConv, DecomposedConv
from dynconv_jax.layers.expert_conv import ExpertConv


class ChannelShift(nnx.Module):
    """Adds a number to each channel: what a folded batch norm leaves.

    Attributes:
        bias: Shape (C,).

    Example:
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


_WATCHED = (nnx.Conv, nnx.BatchNorm, ExpertConv, DecomposedConv)


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
    will do. A batch norm stays where it is if it takes its input from anything but the
    one call of one convolution that no other batch norm follows, from a
    `WarehouseConv`, whose cells are other layers' too, or from a layer that demodulates
    its kernel. What the copy computes is
    compared with the model on random inputs.

    Args:
        module: A model, whose copy is for evaluation only; it is not changed.
        *args: Of a call of the model, such as a batch of images; only shapes and dtypes
            count, so `jax.ShapeDtypeStruct`s will do.
        **kwargs: Of that call.

    Returns:
        The copy. A folded batch norm has become a `ChannelShift`.

    Raises:
        ValueError: If no batch norm can be folded, or the outputs of a convolution go
            elsewhere besides into its batch norm.

    Example:
        >>> from dynconv_jax import DynamicConvBlock
        >>> block = DynamicConvBlock(3, 8, rngs=nnx.Rngs(0))
        >>> folded = fold_batch_norm(block, jnp.ones((1, 9, 7, 3)))
        >>> type(folded.bn).__name__
        'ChannelShift'
    """
    check_module("module", module)
    evaluated = nnx.view(
        module, deterministic=True, use_running_average=True, raise_if_not_found=False
    )
    graphdef, state = nnx.split(evaluated)
    # Arrays of its own: the model may donate its own to a step.
    folded = nnx.merge(graphdef, jax.tree.map(jnp.array, state))
    pairs = _pairs(folded, args, kwargs)
    parts = dict(nnx.iter_modules(folded))
    shifts: dict[int, ChannelShift] = {}
    for norm_path, conv_path in pairs.items():
        norm: Any = parts[norm_path]
        factor = jax.lax.rsqrt(norm.var[...] + norm.epsilon)
        if norm.scale is not None:
            factor = factor * norm.scale[...]
        shift = -norm.mean[...] * factor
        if norm.bias is not None:
            shift = shift + norm.bias[...]
        scale_outputs(parts[conv_path], factor)
        shifts[id(norm)] = ChannelShift(shift, norm.dtype)
    if not shifts:
        raise ValueError(
            f"`module` (a {type(module).__name__}) has no batch norm that takes its "
            "input from a convolution of its own; is it folded already?"
        )
    _replace(folded, shifts)
    _check(evaluated, folded, args, kwargs)
    return folded


def _check(before: Any, after: Any, args: Any, kwargs: Any) -> None:
    """Raises a ValueError unless two models compute the same for random inputs."""

    def draw(leaf: Any) -> Any:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            return jnp.zeros(shape, dtype)
        return jax.random.normal(jax.random.key(0), shape, dtype)

    args, kwargs = jax.tree.map(draw, (args, kwargs))
    for old, new in zip(
        jax.tree.leaves(before(*args, **kwargs)),
        jax.tree.leaves(after(*args, **kwargs)),
        strict=True,
    ):
        # Far above rounding, far below the effect of a whole batch norm.
        coarse = 64 * float(jnp.finfo(old.dtype).eps) ** 0.5
        largest = float(jnp.abs(old).max(initial=0))
        if float(jnp.abs(old - new).max(initial=0)) > coarse * largest:
            raise ValueError(
                "`module` computes something else with its batch norms folded: the "
                "outputs of one of its convolutions go elsewhere, too"
            )


@functools.singledispatch
def scale_outputs(layer: Any, factor: jax.Array) -> None:
    """Multiplies the output channels of a convolution by `factor` (O,), in place.

    Those of a `WarehouseConv` cannot be: its cells are other layers' too.
    """
    raise TypeError(f"`layer` (a {type(layer).__name__}) is no convolution")


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


def _is_demodulated(part: Any) -> bool:
    return isinstance(part, AdaptiveConv) and part.demodulate


def _pairs(module: nnx.Module, args: Any, kwargs: Any) -> dict[tuple, tuple]:
    """Returns by batch norm the convolution that it takes its input from, by paths."""
    graphdef, state = nnx.split(module)
    calls: dict[tuple, list[tuple[int, int]]] = {}
    kept: list[Any] = []  # alive, so that no two have one identity

    def watch(state: Any, args: Any, kwargs: Any) -> Any:
        watched: Any = nnx.merge(graphdef, state)
        watchers: dict[int, nnx.Module] = {}
        for path, part in nnx.iter_modules(watched):
            # What a demodulated layer answers is not linear in its kernel.
            is_foldable = isinstance(part, _WATCHED) and not _is_demodulated(part)
            if path and is_foldable:

                def record(inputs: Any, outputs: Any, path: tuple = path) -> None:
                    kept.extend((inputs, outputs))
                    calls.setdefault(path, []).append((id(inputs), id(outputs)))

                watchers[id(part)] = _Watched(part, record)
        _replace(watched, watchers)
        return watched(*args, **kwargs)

    jax.eval_shape(watch, state, args, kwargs)
    norms, sources = {}, {}
    for path, part in nnx.iter_modules(module):
        if len(calls.get(path, ())) == 1:
            inputs, outputs = calls[path][0]
            if isinstance(part, nnx.BatchNorm):
                norms[path] = inputs
            else:
                sources[outputs] = path
    followers = collections.Counter(norms.values())
    return {
        path: sources[inputs]
        for path, inputs in norms.items()
        if inputs in sources and followers[inputs] == 1
    }


def _replace(module: nnx.Module, replacements: dict[int, Any]) -> None:
    """Puts others in the place of modules, by identity, wherever they are held."""
    for _, owner in list(nnx.iter_modules(module)):
        if isinstance(owner, _Watched):
            continue
        held: Any = vars(owner).items()
        if isinstance(owner, nnx.List):
            held = enumerate(owner)
        for name, part in list(held):
            if id(part) not in replacements:
                continue
            if isinstance(owner, nnx.List):
                owner[name] = replacements[id(part)]
            else:
                setattr(owner, name, replacements[id(part)])
