"""Where a PyTorch key becomes a JAX path, and a PyTorch array a JAX one.

A module is walked attribute by attribute. An attribute keeps its name and its axes
unless `LAYOUT` says otherwise, so modules of one's own need no entry where their
attributes are named as in PyTorch. Where they are not, they get a row:

    >>> class Scale(nnx.Module):
    ...     def __init__(self, features):
    ...         self.gamma = nnx.Param(np.ones(features))
    >>> LAYOUT[Scale] = {"gamma": ("weight", same)}
    >>> list(to_torch_state_dict(Scale(3)))
    ['weight']
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from flax import nnx

from dynconv_jax.checks import check_module
from dynconv_jax.layers import (
    AdaptiveConv,
    BatchNorm,
    CondConv,
    ContextConv,
    DecomposedConv,
    DynamicConv,
    DynamicConvTranspose,
    FDConv,
    FrequencyDynamicConv,
    KernelWarehouse,
    ModulatedConv,
    ODConv,
    PooledLinear,
    WarehouseConv,
)
from dynconv_jax.layers.chen_layout import to_chen_layout
from dynconv_jax.layers.context_conv import ContextAttention
from dynconv_jax.layers.fd_attention import BandModulation
from dynconv_jax.layers.warehouse_layout import to_warehouse_layout
from dynconv_jax.models.convnext import Block
from dynconv_jax.models.fdy_cnn import FDYCNN, WIDTHS, SoundBlock
from dynconv_jax.scheduled import Scheduled
from dynconv_jax.weights.arrangements import (
    channels_first,
    nothing,
    on_channels,
    pointwise,
    same,
    single,
    stacked_channels_first,
    stacked_flattened,
    stacked_in_one_group,
    stacked_transposed,
)
from dynconv_jax.weights.counterparts import (
    NoCounterpart,
    Row,
    attention_row,
    general_row,
    rank_of,
    refused,
    transposed_row,
)
from dynconv_jax.weights.leaf import Leaf


def _router_name(layer: nnx.Module) -> str:
    """A router of the layer's own has its names on the layer, a given one does not."""
    return "" if getattr(layer, "owns_router", False) else "router"


def _sound_block_row(block: SoundBlock) -> Row:
    """The layers of all blocks are side by side, under numbered names."""
    names = {"conv": "conv", "norm": "batchnorm", "gate": block.gate.activation}
    return {
        attribute: (f"{name}{block.index}", same) for attribute, name in names.items()
    }


def _latent_names(layer: nnx.Module) -> Row:
    """Of the two layers that were published, one has other names for Q and P."""
    if getattr(layer, "variant", None) != "mobilenet_v2":
        return {}
    return {"q": ("conv_q", same), "p": ("conv_p", same)}


_TWO_BIASES = refused(
    "PyTorch's cell adds two biases where flax's has one, so that no weights of the "
    "one are those of the other"
)
_NORMALISED = refused(
    "flax normalises the kernel of the layer in place, and PyTorch keeps it apart from "
    "what normalises it"
)
_NO_LORA = refused("`torch.nn` has no low-rank adaptation")

# JAX module: {JAX attribute, or several that one PyTorch array holds, by their paths:
# (PyTorch name, arrangement)}, or what returns that for a module. An empty name leaves
# the level out, None the attribute. A row is of the subclasses, too.
LAYOUT: dict[type, Row | Callable[[Any], Row]] = {
    nnx.Linear: {"kernel": ("weight", channels_first)},
    nnx.LinearGeneral: general_row,
    nnx.Conv: {"kernel": ("weight", channels_first)},
    nnx.ConvTranspose: transposed_row,
    nnx.Embed: {"embedding": ("weight", same)},
    nnx.GroupNorm: {"scale": ("weight", same)},
    nnx.InstanceNorm: {"scale": ("weight", same)},
    nnx.LayerNorm: {"scale": ("weight", same)},
    nnx.RMSNorm: {"scale": ("weight", same)},
    nnx.BatchNorm: {
        "scale": ("weight", same),
        "mean": ("running_mean", same),
        "var": ("running_var", same),
        (): ("num_batches_tracked", nothing),
    },
    nnx.MultiHeadAttention: attention_row,
    nnx.PReLU: {"negative_slope": ("weight", single)},
    nnx.Sequential: {"layers": ("", same)},
    nnx.LSTMCell: _TWO_BIASES,
    nnx.OptimizedLSTMCell: _TWO_BIASES,
    nnx.GRUCell: _TWO_BIASES,
    nnx.SimpleCell: _TWO_BIASES,
    nnx.SpectralNorm: _NORMALISED,
    nnx.WeightNorm: _NORMALISED,
    nnx.LoRA: _NO_LORA,
    nnx.LoRALinear: _NO_LORA,
    nnx.Einsum: refused("no layer of `torch.nn` computes an einsum"),
    BatchNorm: {
        "scale": ("weight", same),
        "mean": ("running_mean", same),
        "var": ("running_var", same),
    },
    ModulatedConv: {"kernel": ("weight", channels_first)},
    PooledLinear: {"kernel": ("weight", pointwise)},
    AdaptiveConv: {"kernel": ("weight", stacked_channels_first)},
    ODConv: {"kernel": ("weight", stacked_channels_first)},
    FrequencyDynamicConv: {"kernel": ("weight", stacked_channels_first)},
    FDConv: {
        "kernel": ("weight", channels_first),
        "spectrum": ("dft_weight", same),
        "attention": ("KSM_Global", same),
        "local": ("KSM_Local", same),
        "modulation": ("FBM", same),
    },
    BandModulation: {"convs": ("freq_weight_conv_list", same)},
    CondConv: {"kernel": ("weight", stacked_flattened)},
    DecomposedConv: _latent_names,
    ContextAttention: {"fc": ("0", same)},
    ContextConv: {
        "kernel": ("weight", stacked_in_one_group),
        "attention": ("residuals", same),
    },
    DynamicConv: {
        "kernel": ("weight", stacked_channels_first),
        "router": (_router_name, same),
    },
    DynamicConvTranspose: {
        "kernel": ("weight", stacked_transposed),
        "router": (_router_name, same),
    },
    Block: {"gamma": ("gamma", on_channels)},
    SoundBlock: _sound_block_row,
    FDYCNN: {f"block{index}": ("cnn", same) for index in range(len(WIDTHS))},
    KernelWarehouse: {"cells": ("cells", stacked_channels_first)},
}


def leaves_of(module: nnx.Module) -> list[tuple[str, Leaf]]:
    """Returns what PyTorch keeps of a module, by key; shared arrays once per path.

    Raises:
        TypeError: If it is no module.
        ValueError: If a part of it has no counterpart in PyTorch, or layers are stacked
            in one; or if the warehouse of a layer is no part of the module.
    """
    check_module("module", module)
    leaves = list(_walk(module, "", (), frozenset()))
    _check_warehouses(module, leaves)
    return leaves


def _walk(
    part: Any, prefix: str, path: tuple[str, ...], taken: frozenset[int]
) -> Iterator[tuple[str, Leaf]]:
    """Yields what is below `part`, except the variables that are taken already."""
    if isinstance(part, (list, tuple, nnx.List)):
        attributes = {str(index): item for index, item in enumerate(part)}
    elif isinstance(part, (dict, nnx.Dict)):
        attributes = {str(name): item for name, item in part.items()}
    elif isinstance(part, nnx.Pytree):  # modules among them
        attributes = vars(part)
    else:
        return
    kind = _kind_of(part)
    try:
        row = _row_of(part, kind)
    except NoCounterpart as error:
        variables = [v for _, v in nnx.iter_graph(part) if isinstance(v, nnx.Variable)]
        if all(id(variable) in taken for variable in variables):
            return
        raise ValueError(
            f"{_called(part, path)} has no counterpart in PyTorch: {error}. Give it a "
            f"row of its own: `LAYOUT[{type(part).__name__}] = {{attribute: (name, "
            "arrangement)}`, with `LAYOUT` of `dynconv_jax`"
        ) from None
    packed = []
    for names, (name, arrangement) in row.items():
        if isinstance(names, str):
            continue
        variables = tuple(_below(part, each) for each in names)
        if all(isinstance(variable, nnx.Variable) for variable in variables):
            leaf = Leaf(variables, True, arrangement, part, not variables)
            packed.append((f"{prefix}{name}", leaf))
            taken = taken.union(map(id, variables))
    yield from (item for item in packed if item[1].variables)
    for attribute, value in attributes.items():
        if attribute.startswith("_"):
            continue
        name, arrangement = row.get(attribute, (attribute, same))
        if callable(name):
            name = name(part)
        if name is None or isinstance(value, (nnx.RngState, nnx.Intermediate)):
            continue
        key, here = f"{prefix}{name}", (*path, attribute)
        if not isinstance(value, nnx.Variable):
            yield from _walk(value, f"{key}." if name else prefix, here, taken)
        elif id(value) not in taken:
            _check_rank(part, attribute, value, kind, path)
            is_scheduled = isinstance(value, Scheduled)
            is_optional = is_scheduled or attribute == "num_batches_tracked"
            yield key, Leaf((value,), False, arrangement, part, is_optional)
    for key, leaf in packed:
        # What holds nothing gives way to an attribute of its name.
        if not leaf.variables and not hasattr(part, key.rpartition(".")[2]):
            yield key, leaf


def _kind_of(part: Any) -> type:
    """Returns the class whose row a module has, or else its own."""
    return next((cls for cls in type(part).__mro__ if cls in LAYOUT), type(part))


def _row_of(part: Any, kind: type) -> Row:
    """Returns the row of a module.

    Raises:
        NoCounterpart: If it has none in PyTorch.
    """
    row = LAYOUT.get(kind, {})
    if kind not in LAYOUT and any(
        isinstance(value, nnx.Variable)
        and not isinstance(value, (nnx.RngState, nnx.Intermediate))
        for value in getattr(part, "__dict__", {}).values()
    ):
        for cls in kind.__mro__:
            if cls.__module__.startswith("flax.nnx.nn."):
                raise NoCounterpart(f"{cls.__name__} of flax has no row in the table")
    return row(part) if callable(row) else row


def _below(part: Any, path: str) -> Any:
    """Returns what is at a dotted path below a module, or None."""
    for name in path.split("."):
        is_sequence = isinstance(part, (list, tuple, nnx.List))
        part = part[int(name)] if is_sequence else getattr(part, name, None)
    return part


def _called(part: Any, path: tuple[str, ...]) -> str:
    name = type(part).__name__
    return f"`{'.'.join(path)}` (a {name})" if path else f"the {name}"


def _check_rank(
    part: Any, attribute: str, value: nnx.Variable, kind: type, path: tuple[str, ...]
) -> None:
    """Refuses what holds several layers in one, whose axes cannot be told apart."""
    rank = 0 if isinstance(value, Scheduled) else rank_of(part, attribute, kind)
    shape = value.get_value().shape
    if rank is None or rank == len(shape):
        return
    raise ValueError(
        f"{_called(part, path)} holds a `{attribute}` of the shape {tuple(shape)}, and "
        f"that of one layer has {rank} axes: it is several layers in one, as of "
        "`nnx.vmap` or `nnx.scan`, and PyTorch keeps each under a key of its own. Take "
        "them apart, `jax.tree.map(lambda leaf: leaf[i], layers)`, and join them by "
        "`jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)`"
    )


def _check_warehouses(module: nnx.Module, leaves: list[tuple[str, Leaf]]) -> None:
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

    Where one PyTorch array holds several, it is the first.

    Example:
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> torch_variables(layer)["fc1.weight"] is layer.router.fc1.kernel
        True
    """
    return {key: leaf.variables[0] for key, leaf in leaves_of(module) if leaf.variables}


# The layouts of checkpoints, and what makes one of the twin's.
_LAYOUTS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "dynconv": lambda state_dict: state_dict,
    "chen": to_chen_layout,
    "kernel_warehouse": to_warehouse_layout,
}


def to_torch_state_dict(
    module: nnx.Module,
    *,
    layout: Literal["dynconv", "chen", "kernel_warehouse"] = "dynconv",
) -> dict[str, np.ndarray]:
    """Returns the state of `module` under PyTorch's keys, in PyTorch's layout.

    Nothing is lost: dtypes are kept (bfloat16 as `ml_dtypes.bfloat16`), and what is
    loaded into an equal module comes out bit for bit. A module whose parameters hold
    gradients gives the gradients under the same keys. Random state is left out.

    Args:
        module: A layer or a model.
        layout: `"dynconv"`, the keys of `dynconv_torch`; `"chen"`, where every
            `DynamicConv` is as the checkpoints of Chen et al.'s port have it (see
            `chen_options`), without its temperature; or `"kernel_warehouse"`, where the
            cells of `with_warehouses` are as in published checkpoints, without τ.

    Returns:
        NumPy arrays by key, in the order of the module's attributes.

    Raises:
        TypeError: If `module` is no module.
        ValueError: If the layout is not known, or cannot hold the module; if a part of
            the module has no counterpart in PyTorch, or holds several layers in one; or
            if the warehouse of a layer is no part of the module.

    Example:
        >>> layer = DynamicConv(3, 8, (5, 3), rngs=nnx.Rngs(0))
        >>> state_dict = to_torch_state_dict(layer)
        >>> state_dict["weight"].shape, state_dict["fc2.weight"].shape
        ((4, 8, 3, 5, 3), (4, 1))
    """
    if layout not in _LAYOUTS:
        raise ValueError(
            f"`layout` (={layout!r}) must be one of {', '.join(map(repr, _LAYOUTS))}"
        )
    return _LAYOUTS[layout]({key: leaf.to_torch() for key, leaf in leaves_of(module)})


def torch_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that `to_torch_state_dict` would give, also if abstract.

    Example:
        >>> layer = nnx.eval_shape(lambda: DynamicConv(3, 8, (5, 3), rngs=nnx.Rngs(0)))
        >>> torch_shapes(layer)["weight"]
        (4, 8, 3, 5, 3)
    """
    return {key: leaf.torch_shape for key, leaf in leaves_of(module)}
