"""Where a PyTorch key becomes a JAX path, and a PyTorch array a JAX one.

A module is walked attribute by attribute. An attribute keeps its name and its axes
unless `LAYOUT` says otherwise, so modules of one's own need no entry where their
attributes are named as in PyTorch.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynconv_jax.layers import (
    BatchNorm,
    CondConv,
    DynamicConv,
    DynamicConvTranspose,
    KernelWarehouse,
    ODConv,
    PooledLinear,
    WarehouseConv,
)
from dynconv_jax.scheduled import Scheduled
from dynconv_jax.weights.arrangements import (
    Arrangement,
    channels_first,
    pointwise,
    same,
    stacked_channels_first,
    stacked_flattened,
    stacked_transposed,
)
from dynconv_jax.weights.chen_layout import from_chen_layout, to_chen_layout


def _router_name(layer: nnx.Module) -> str:
    """A router of the layer's own has its names on the layer, a given one does not."""
    return "" if getattr(layer, "owns_router", False) else "router"


# JAX module: {JAX attribute: (PyTorch name, arrangement)}. An empty name leaves the
# level out.
LAYOUT: dict[type, dict[str, tuple[str | Callable[[nnx.Module], str], Arrangement]]] = {
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
    PooledLinear: {"kernel": ("weight", pointwise)},
    ODConv: {"kernel": ("weight", stacked_channels_first)},
    CondConv: {"kernel": ("weight", stacked_flattened)},
    DynamicConv: {
        "kernel": ("weight", stacked_channels_first),
        "router": (_router_name, same),
    },
    DynamicConvTranspose: {
        "kernel": ("weight", stacked_transposed),
        "router": (_router_name, same),
    },
    KernelWarehouse: {"cells": ("cells", stacked_channels_first)},
}


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One array of a module, under its PyTorch key."""

    variable: nnx.Variable
    arrangement: Arrangement
    owner: Any
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
        return np.array(self.arrangement.to_torch(value, self.owner), order="C")

    # `get_value()`, not `[...]`, from here on: an abstract module holds no arrays.
    @property
    def is_abstract(self) -> bool:
        return isinstance(self.variable.get_value(), jax.ShapeDtypeStruct)

    @property
    def torch_shape(self) -> tuple[int, ...]:
        # One bit, seen as an array of the shape.
        stand_in = np.broadcast_to(False, self.variable.get_value().shape)
        return self.arrangement.to_torch(stand_in, self.owner).shape

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
        value = self.arrangement.from_torch(value, self.owner).astype(self.dtype)
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
        name, arrangement = layout.get(attribute, (attribute, same))
        if callable(name):
            name = name(part)
        key = f"{prefix}{name}"
        if isinstance(value, (nnx.RngState, nnx.Intermediate)):
            continue
        if isinstance(value, nnx.Variable):
            optional = (
                isinstance(value, Scheduled) or attribute == "num_batches_tracked"
            )
            yield key, _Leaf(value, arrangement, part, optional)
        else:
            yield from _walk(value, f"{key}." if name else prefix, _layout_of(value))


def _layout_of(part: Any) -> dict:
    for cls in type(part).__mro__:
        if cls in LAYOUT:
            return LAYOUT[cls]
    return {}


def _leaves(module: nnx.Module) -> list[tuple[str, _Leaf]]:
    return list(_walk(module, "", _layout_of(module)))


def _check_warehouses(module: nnx.Module, leaves: list[tuple[str, _Leaf]]) -> None:
    """Refuses a module with layers of a warehouse that is not part of it."""
    owners = {id(leaf.owner) for _, leaf in leaves}
    for path, part in nnx.iter_modules(module):
        if isinstance(part, WarehouseConv) and id(part.warehouse) not in owners:
            where = ".".join(map(str, path))
            raise ValueError(
                f"the {type(module).__name__} does not hold the warehouse of "
                f"{f'its layer {where}' if where else 'its kernel'}, so that the cells "
                "would be lost; keep the warehouse as an attribute of the model"
            )


def torch_variables(module: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns the variables of `module` by PyTorch key; a shared one has several keys.

    Example:
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> torch_variables(layer)["fc1.weight"] is layer.router.fc1.kernel
        True
    """
    return {key: leaf.variable for key, leaf in _leaves(module)}


def to_torch_state_dict(
    module: nnx.Module, *, layout: Literal["dynconv", "chen"] = "dynconv"
) -> dict[str, np.ndarray]:
    """Returns the state of `module` under PyTorch's keys, in PyTorch's layout.

    Nothing is lost: dtypes are kept (bfloat16 as `ml_dtypes.bfloat16`), and what is
    loaded into an equal module comes out bit for bit. A module whose parameters hold
    gradients gives the gradients under the same keys. Random state is left out.

    Args:
        module: A layer or a model.
        layout: `"dynconv"`, the keys of `dynconv_torch`; or `"chen"`, where every
            `DynamicConv` is as the checkpoints of Chen et al.'s port have it (see
            `chen_options`), without its temperature.

    Returns:
        NumPy arrays by key, in the order of the module's attributes.

    Raises:
        ValueError: If the layout is not known, or cannot hold a router; or if the
            warehouse of a layer is no part of the module.

    Example:
        >>> layer = DynamicConv(3, 8, (5, 3), rngs=nnx.Rngs(0))
        >>> state_dict = to_torch_state_dict(layer)
        >>> state_dict["weight"].shape, state_dict["fc2.weight"].shape
        ((4, 8, 3, 5, 3), (4, 1))
    """
    if layout not in ("dynconv", "chen"):
        raise ValueError(f"`layout` (={layout!r}) must be 'dynconv' or 'chen'")
    leaves = _leaves(module)
    _check_warehouses(module, leaves)
    state_dict = {key: leaf.to_torch() for key, leaf in leaves}
    return to_chen_layout(state_dict) if layout == "chen" else state_dict


def torch_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that `to_torch_state_dict` would give, also if abstract.

    Example:
        >>> layer = nnx.eval_shape(lambda: DynamicConv(3, 8, (5, 3), rngs=nnx.Rngs(0)))
        >>> torch_shapes(layer)["weight"]
        (4, 8, 3, 5, 3)
    """
    return {key: leaf.torch_shape for key, leaf in _leaves(module)}


def load_torch_state_dict(
    module: nnx.Module, state_dict: Mapping[str, np.ndarray]
) -> None:
    """Loads a PyTorch state dict into `module`, in place, strictly.

    Parameters keep the dtype of the module; a value of a narrower dtype is widened, one
    that the module's dtype cannot hold is refused. Temperatures, whatever else a
    schedule moves, and `num_batches_tracked` may be absent and then keep their values.
    Arrays keep their sharding. The layout of Chen et al.'s port (see `chen_options`) is
    recognised.

    Args:
        module: A layer or a model; an abstract one (`nnx.eval_shape`) becomes real.
        state_dict: NumPy arrays by PyTorch key, such as
            `{key: value.numpy() for key, value in torch_module.state_dict().items()}`.

    Raises:
        ValueError: If a key is missing or unexpected, or a value has the wrong shape
            or a dtype that does not fit, or a temperature is not positive. All are
            listed in the one error, with the name of the model that the state dict is
            of, if that is known; the module is unchanged. Also if the warehouse of a
            layer is no part of the module.

    Example:
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> twin = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(1))
        >>> load_torch_state_dict(twin, to_torch_state_dict(layer))
        >>> bool((twin.kernel[...] == layer.kernel[...]).all())
        True
    """
    leaves = _leaves(module)
    _check_warehouses(module, leaves)
    known = {key: leaf.torch_shape for key, leaf in leaves}
    given, state_dict = state_dict, from_chen_layout(state_dict, known)
    # What is wrong is told of the keys that the user knows.
    given_key = dict(zip(state_dict, given, strict=True))
    problems = [
        f"unexpected key: {name}" for key, name in given_key.items() if key not in known
    ]
    accepted: dict[int, tuple[str, _Leaf, np.ndarray]] = {}
    for key, leaf in leaves:
        if key not in state_dict:
            if not leaf.optional or leaf.is_abstract:
                problems.append(f"missing key: {key}, of shape {leaf.torch_shape}")
            continue
        name = given_key[key]
        try:
            value = np.asarray(state_dict[key])
        except (TypeError, RuntimeError) as error:
            problems.append(f"{name} is not a NumPy array: {error}")
            continue
        if value.shape != leaf.torch_shape:
            problems.append(
                f"wrong shape: {name} has {value.shape}, the module {leaf.torch_shape}"
            )
        elif leaf.loses(value):
            problems.append(
                f"wrong dtype: {name} is {value.dtype}, which the module's "
                f"{leaf.dtype} cannot hold; cast the value, or build the module with "
                "`param_dtype`"
            )
        elif isinstance(leaf.variable, Scheduled) and (
            reason := leaf.variable.refusal(value, leaf.dtype)
        ):
            problems.append(f"wrong value: {name} is {value}; it {reason}")
        else:
            first_key, _, first = accepted.setdefault(
                id(leaf.variable), (key, leaf, value)
            )
            if first.tobytes() != value.tobytes():
                problems.append(
                    f"{given_key[first_key]} and {name} are one array of the module, "
                    "but differ"
                )
    if problems:
        from dynconv_jax.weights.recognize import describe  # it reads the layout

        description = describe(given)
        looks = f"\nThe state dict looks like {description}." if description else ""
        if any(key != name for key, name in given_key.items()):
            looks += "\nBuild the layer with `chen_options`, for its layout."
        raise ValueError(
            f"the state dict does not fit the {type(module).__name__}, which is "
            "unchanged:\n  " + "\n  ".join(problems) + "\nKeys follow the names of "
            "attributes; modules that name them otherwise than PyTorch need a row in "
            f"`dynconv_jax.weights.torch_layout.LAYOUT`{looks}"
        )
    for _, leaf, value in accepted.values():
        leaf.load(value)
