"""Where a PyTorch key becomes a JAX path, and a PyTorch array a JAX one.

A module is walked attribute by attribute. An attribute keeps its name and its axes
unless `LAYOUT` says otherwise, so modules of one's own need no entry where their
attributes are named as in PyTorch.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynconv_jax.layers import BatchNorm, DynamicConv, KernelWarehouse
from dynconv_jax.scheduled import Scheduled

# From the number of axes to the PyTorch array's axes, as positions in the JAX array.
Axes = Callable[[int], tuple[int, ...]]


def same(ndim: int) -> tuple[int, ...]:
    """Leaves the axes as they are."""
    return tuple(range(ndim))


def channels_first(ndim: int) -> tuple[int, ...]:
    """(*k, I, O) → (O, I, *k); without spatial axes the transpose (I, O) → (O, I)."""
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def stacked_channels_first(ndim: int) -> tuple[int, ...]:
    """(K, *k, I, O) → (K, O, I, *k)."""
    return (0, ndim - 1, ndim - 2, *range(1, ndim - 2))


def _router_name(layer: nnx.Module) -> str:
    """A router of the layer's own has its names on the layer, a given one does not."""
    return "" if getattr(layer, "owns_router", False) else "router"


# JAX module: {JAX attribute: (PyTorch name, axes)}. An empty name leaves the level out.
LAYOUT: dict[type, dict[str, tuple[str | Callable[[nnx.Module], str], Axes]]] = {
    nnx.Linear: {"kernel": ("weight", channels_first)},
    nnx.Conv: {"kernel": ("weight", channels_first)},
    nnx.Embed: {"embedding": ("weight", same)},
    nnx.GroupNorm: {"scale": ("weight", same)},
    nnx.LayerNorm: {"scale": ("weight", same)},
    nnx.RMSNorm: {"scale": ("weight", same)},
    nnx.Sequential: {"layers": ("", same)},
    BatchNorm: {
        "scale": ("weight", same),
        "mean": ("running_mean", same),
        "var": ("running_var", same),
    },
    DynamicConv: {
        "kernel": ("weight", stacked_channels_first),
        "router": (_router_name, same),
    },
    KernelWarehouse: {"cells": ("cells", stacked_channels_first)},
}


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One array of a module, under its PyTorch key."""

    variable: nnx.Variable
    axes: Axes
    optional: bool

    def to_torch(self) -> np.ndarray:
        value = np.asarray(self.variable[...])
        if isinstance(self.variable, Scheduled):
            # PyTorch keeps it in float64. Where JAX has only float32, the shortest
            # decimal that names it restores a T such as 0.6 exactly.
            exact = [float(str(entry)) for entry in value.flat]
            return np.array(exact).reshape(value.shape).copy()
        if np.issubdtype(value.dtype, np.integer):  # PyTorch counts in int64
            return value.astype(np.int64)
        # In C order, as a copy: files and `torch.from_numpy` want it so.
        return np.array(value.transpose(self.axes(value.ndim)), order="C")

    # `get_value()`, not `[...]`, from here on: an abstract module holds no arrays.
    @property
    def is_abstract(self) -> bool:
        return isinstance(self.variable.get_value(), jax.ShapeDtypeStruct)

    @property
    def torch_shape(self) -> tuple[int, ...]:
        shape = self.variable.get_value().shape
        return tuple(shape[axis] for axis in self.axes(len(shape)))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.variable.get_value().dtype)

    def loses(self, value: np.ndarray) -> bool:
        """Whether the module's dtype cannot hold every value of the array's dtype."""
        if isinstance(self.variable, Scheduled):
            return not jnp.issubdtype(value.dtype, jnp.floating)
        if np.issubdtype(self.dtype, np.integer):
            return bool(np.any(value.astype(self.dtype) != value))
        return not np.can_cast(value.dtype, self.dtype)

    def load(self, value: np.ndarray) -> None:
        value = value.transpose(np.argsort(self.axes(value.ndim))).astype(self.dtype)
        old = self.variable.get_value()
        # An array that nobody placed stays so, free to follow others to their devices.
        is_placed = getattr(old, "committed", self.is_abstract)
        self.variable.set_value(
            jax.device_put(value, old.sharding if is_placed else None)
        )


def _walk(part: Any, prefix: str, layout: Mapping) -> Iterator[tuple[str, _Leaf]]:
    """Yields the PyTorch key of every array below `part`; shared ones once per path."""
    if isinstance(part, (list, tuple, nnx.List)):
        attributes = {str(index): item for index, item in enumerate(part)}
    elif isinstance(part, (dict, nnx.Dict)):
        attributes = {str(name): item for name, item in part.items()}
    elif isinstance(part, nnx.Pytree):  # modules among them
        attributes = vars(part)
    else:
        return
    for attribute, value in attributes.items():
        if attribute.startswith("_"):
            continue
        name, axes = layout.get(attribute, (attribute, same))
        if callable(name):
            name = name(part)
        key = f"{prefix}{name}"
        if isinstance(value, (nnx.RngState, nnx.Intermediate)):
            continue
        if isinstance(value, nnx.Variable):
            optional = (
                isinstance(value, Scheduled) or attribute == "num_batches_tracked"
            )
            yield key, _Leaf(value, axes, optional)
        else:
            yield from _walk(value, f"{key}." if name else prefix, _layout_of(value))


def _layout_of(part: Any) -> dict:
    for cls in type(part).__mro__:
        if cls in LAYOUT:
            return LAYOUT[cls]
    return {}


def _leaves(module: nnx.Module) -> list[tuple[str, _Leaf]]:
    return list(_walk(module, "", _layout_of(module)))


def torch_variables(module: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns the variables of `module` by PyTorch key; a shared one has several keys.

    Example:
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> torch_variables(layer)["fc1.weight"] is layer.router.fc1.kernel
        True
    """
    return {key: leaf.variable for key, leaf in _leaves(module)}


def to_torch_state_dict(module: nnx.Module) -> dict[str, np.ndarray]:
    """Returns the state of `module` under PyTorch's keys, in PyTorch's layout.

    Nothing is lost: dtypes are kept (bfloat16 as `ml_dtypes.bfloat16`), and what is
    loaded into an equal module comes out bit for bit. A module whose parameters hold
    gradients gives the gradients under the same keys. Random state is left out.

    Args:
        module: A layer or a model.

    Returns:
        NumPy arrays by key, in the order of the module's attributes.

    Example:
        >>> layer = DynamicConv(3, 8, (5, 3), rngs=nnx.Rngs(0))
        >>> state_dict = to_torch_state_dict(layer)
        >>> state_dict["weight"].shape, state_dict["fc2.weight"].shape
        ((4, 8, 3, 5, 3), (4, 1))
    """
    return {key: leaf.to_torch() for key, leaf in _leaves(module)}


def load_torch_state_dict(
    module: nnx.Module, state_dict: Mapping[str, np.ndarray]
) -> None:
    """Loads a PyTorch state dict into `module`, in place, strictly.

    Parameters keep the dtype of the module; a value of a narrower dtype is widened, one
    that the module's dtype cannot hold is refused. Temperatures, whatever else a
    schedule moves, and `num_batches_tracked` may be absent and then keep their values.
    Arrays keep their sharding.

    Args:
        module: A layer or a model; an abstract one (`nnx.eval_shape`) becomes real.
        state_dict: NumPy arrays by PyTorch key, such as
            `{key: value.numpy() for key, value in torch_module.state_dict().items()}`.

    Raises:
        ValueError: If a key is missing or unexpected, or a value has the wrong shape
            or a dtype that does not fit, or a temperature is not positive. All are
            listed in the one error, and the module is unchanged.

    Example:
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> twin = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(1))
        >>> load_torch_state_dict(twin, to_torch_state_dict(layer))
        >>> bool((twin.kernel[...] == layer.kernel[...]).all())
        True
    """
    leaves = _leaves(module)
    known = {key for key, _ in leaves}
    problems = [f"unexpected key: {key}" for key in state_dict if key not in known]
    accepted: dict[int, tuple[str, _Leaf, np.ndarray]] = {}
    for key, leaf in leaves:
        if key not in state_dict:
            if not leaf.optional or leaf.is_abstract:
                problems.append(f"missing key: {key}, of shape {leaf.torch_shape}")
            continue
        try:
            value = np.asarray(state_dict[key])
        except (TypeError, RuntimeError) as error:
            problems.append(f"{key} is not a NumPy array: {error}")
            continue
        if value.shape != leaf.torch_shape:
            problems.append(
                f"wrong shape: {key} has {value.shape}, the module {leaf.torch_shape}"
            )
        elif leaf.loses(value):
            problems.append(
                f"wrong dtype: {key} is {value.dtype}, which the module's {leaf.dtype} "
                "cannot hold; cast the value, or build the module with `param_dtype`"
            )
        elif isinstance(leaf.variable, Scheduled) and not all(
            map(leaf.variable.accepts, value.flat)
        ):
            problems.append(
                f"wrong value: {key} is {value}; it must be {leaf.variable.requirement}"
            )
        else:
            first_key, _, first = accepted.setdefault(
                id(leaf.variable), (key, leaf, value)
            )
            if first.tobytes() != value.tobytes():
                problems.append(
                    f"{first_key} and {key} are one array of the module, but differ"
                )
    if problems:
        raise ValueError(
            f"the state dict does not fit the {type(module).__name__}, which is "
            "unchanged:\n  " + "\n  ".join(problems) + "\nKeys follow the names of "
            "attributes; modules that name them otherwise than PyTorch need a row in "
            "`dynconv_jax.weights.torch_layout.LAYOUT`"
        )
    for _, leaf, value in accepted.values():
        leaf.load(value)
