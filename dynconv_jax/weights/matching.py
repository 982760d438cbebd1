"""What a dynamic model and its static counterpart have in common."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynconv_jax.functional import Geometry
from dynconv_jax.layers import KernelWarehouse, WarehouseLinear
from dynconv_jax.routing import Router, SigmoidRouter
from dynconv_jax.scheduled import Scheduled
from dynconv_jax.weights.names import keys_to_ignore
from dynconv_jax.weights.torch_layout import leaves_of

# What belongs to several layers of a model.
SHARED = (Router, SigmoidRouter, KernelWarehouse)

Path = tuple[Any, ...]
# The name, the variable of the dynamic model, and that of the static one.
Common = tuple[str, nnx.Variable, nnx.Variable]


class Write(NamedTuple):
    """A value, and where it is to go.

    Attributes:
        variable: The variable.
        value: Its new value, or that of a part of it.
        index: Which part.
    """

    variable: nnx.Variable
    value: jax.Array
    index: Any = ...

    def apply(self) -> None:
        """Writes the value, in the dtype of the variable."""
        old = self.variable[...]
        self.variable[...] = old.at[self.index].set(self.value.astype(old.dtype))

    def misfit(self, path: Path, taker: str) -> list[str]:
        """Says that the dtype of the variable cannot hold that of the value, if so.

        Args:
            path: Of the layer.
            taker: What has the variable.
        """
        given, held = self.value.dtype, self.variable[...].dtype
        if np.can_cast(given, held):
            return []
        return [
            f"{path_name(path)}: the trained {given} does not fit the {taker}'s "
            f"{held}; build it with `param_dtype`"
        ]


def variables_to_ignore(
    model: nnx.Module, static: nnx.Module, ignore: Iterable[str]
) -> set[int]:
    """Returns which variables of two models an argument `ignore` names, by `id`.

    Args:
        model: The one.
        static: The other.
        ignore: The names, of PyTorch's keys.

    Raises:
        ValueError: If a name means nothing in either.
    """
    ignore = tuple(ignore)
    if not ignore:  # of whose parts some may have no keys
        return set()
    leaves = [*leaves_of(model), *leaves_of(static)]
    ignored = keys_to_ignore(ignore, {key for key, _ in leaves})
    return {id(v) for key, leaf in leaves if key in ignored for v in leaf.variables}


def match_models(
    model: nnx.Module,
    static: nnx.Module,
    family: tuple[type, ...],
    ignored: Collection[int] = (),
) -> tuple[dict[Path, tuple[Any, Any]], list[Common], list[str]]:
    """Pairs what two models have in common.

    Args:
        model: The dynamic one.
        static: The static one.
        family: The classes of the layers that stand for convolutions.
        ignored: Variables of either, by `id`, that need no other. A part with no others
            is left out whole.

    Returns:
        By path a layer of the family and what is in its place, a convolution, or of a
        `WarehouseLinear` a linear layer; the name, the variable of `model` and that of
        `static` for all else; and what does not fit.
    """
    sources = dict(nnx.iter_modules(static))
    parts = dict(nnx.iter_modules(model))
    pairs: dict[Path, tuple[Any, Any]] = {}
    problems: list[str] = []
    inside: list[Path] = []  # of layers and routers: not to be looked for in `static`
    for path, part in parts.items():
        if path and isinstance(parts.get(path[:-1]), family):
            inside.append(path)  # of a layer, which stands for it
        elif ignored and _is_ignored(part, ignored):
            inside.append(path)
        elif isinstance(part, family):
            inside.append(path)
            source = sources.get(path)
            kind = nnx.Linear if isinstance(part, WarehouseLinear) else nnx.Conv
            if not isinstance(source, kind):
                found = "nothing" if source is None else f"a {type(source).__name__}"
                problems.append(
                    f"{path_name(path)}: the static model has {found} there"
                )
            elif difference := _difference(part, source):
                problems.append(f"{path_name(path)}: {difference}")
            else:
                pairs[path] = part, source
        elif isinstance(part, SHARED):
            inside.append(path)
        elif isinstance(part, nnx.BatchNorm):
            epsilon = getattr(sources.get(path), "epsilon", part.epsilon)
            if epsilon != part.epsilon:
                problems.append(
                    f"{path_name(path)}: `epsilon` is {epsilon} in the static model, "
                    f"{part.epsilon} here"
                )

    def rest(module: nnx.Module, outside: list[Path]) -> dict[Path, nnx.Variable]:
        return {
            path: part
            for path, part in nnx.iter_graph(module)
            if isinstance(part, nnx.Variable)
            and not isinstance(part, (nnx.RngState, nnx.Intermediate, Scheduled))
            and not any(path[: len(each)] == each for each in outside)
            and id(part) not in ignored
        }

    ours, theirs = rest(model, inside), rest(static, list(pairs))
    for path in sorted(ours.keys() ^ theirs.keys(), key=str):
        other = (
            "the static model has none" if path in ours else "only in the static model"
        )
        problems.append(f"{path_name(path)}: {other}")
    shared = [
        (path_name(path), ours[path], theirs[path]) for path in ours if path in theirs
    ]
    return pairs, shared, problems


def _is_ignored(part: Any, ignored: Collection[int]) -> bool:
    """Whether a part has variables with keys, and all of them are ignored."""
    held = [
        each
        for path, each in nnx.iter_graph(part)
        if isinstance(each, (nnx.Param, nnx.BatchStat))
        and not any(str(name).startswith("_") for name in path)  # of other parts
    ]
    return bool(held) and all(id(variable) in ignored for variable in held)


def refuse(problems: list[str], what: str) -> None:
    """Raises a ValueError that lists the problems, if there are any.

    Args:
        problems: One a line.
        what: What cannot be done because of them, and that nothing was.
    """
    if problems:
        raise ValueError(f"{what}:\n  " + "\n  ".join(problems))


def misfit(name: str, source: nnx.Variable, target: nnx.Variable) -> list[str]:
    """Says in what way the target cannot take the value of the source, if any."""
    old, new = target.get_value(), source.get_value()
    if old.shape == new.shape and np.can_cast(new.dtype, old.dtype):
        return []
    return [
        f"{name}: {new.dtype}{list(new.shape)} does not fit "
        f"{old.dtype}{list(old.shape)}"
    ]


def copy_values(pairs: Iterable[tuple[nnx.Variable, nnx.Variable]]) -> None:
    """Copies the value of each first variable to the second, in the dtype of that."""
    for source, target in pairs:
        # A copy: the two models must not share arrays that a step may donate.
        target.set_value(jnp.array(source.get_value(), target.get_value().dtype))


def _difference(layer: Any, source: Any) -> str | None:
    """Says in what a trained layer differs from one of the family, if in anything."""
    if isinstance(layer, WarehouseLinear):
        geometry = layer.conv.share.geometry
        shape, given = geometry.kernel_shape[1:], source.kernel[...].shape
        return None if given == shape else _wrong_shape(given, shape)
    width = layer.in_features // layer.feature_group_count
    shape = (*layer.kernel_size, width, layer.out_features)
    if source.kernel[...].shape != shape:
        return _wrong_shape(source.kernel[...].shape, shape)
    if source.mask is not None:
        return "the trained layer has a `mask`; multiply its kernel by that, for good"
    if np.any(np.asarray(source.input_dilation) != 1):
        return f"the trained layer has `input_dilation` (={source.input_dilation})"
    try:
        ours, theirs = _geometry(layer), _geometry(source)
    except ValueError as error:  # such as "CIRCULAR"
        return f"of the trained layer, {error}"
    for name in ("strides", "kernel_dilation", "feature_group_count"):
        if getattr(ours, name) != getattr(theirs, name):
            return (
                f"`{name}` is {getattr(theirs, name)} in the trained layer, "
                f"{getattr(ours, name)} here"
            )
    # Whether "SAME" is the same as numbers depends, with a stride, on the size.
    first = max(ours.extent)
    for size in range(first, first + 2 * max(ours.strides)):
        spatial = (size,) * ours.rank
        if ours.pads(spatial) != theirs.pads(spatial):
            return (
                f"`padding` is {theirs.padding} in the trained layer, {ours.padding} "
                f"here, which differ on an input of {spatial}"
            )
    return None


def _wrong_shape(given: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return f"the trained kernel has the shape {given}, this layer needs {shape}"


def _geometry(layer: Any) -> Geometry:
    return Geometry.create(
        layer.in_features,
        layer.out_features,
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        kernel_dilation=layer.kernel_dilation,
        feature_group_count=layer.feature_group_count,
    )


def path_name(path: Path) -> str:
    """Returns a path as messages have it."""
    return ".".join(map(str, path)) or "the layer"
