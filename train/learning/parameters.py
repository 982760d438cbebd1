"""Which parameters of a model are what: of routers, of experts, of the head."""

from typing import Any

from flax import nnx

from dynconv_jax import DecomposedConv, Router, SigmoidRouter
from dynconv_jax.layers import KernelWarehouse, WarehouseConv
from dynconv_jax.layers.cell_attention import CellAttention
from dynconv_jax.layers.context_conv import ContextAttention
from dynconv_jax.layers.context_generator import ContextGenerator
from dynconv_jax.layers.fd_attention import LocalAttention
from dynconv_jax.layers.frequency_dynamic_conv import BinAttention
from dynconv_jax.layers.od_conv import ODAttention
from dynconv_jax.models import head_of, layer_groups
from dynconv_jax.weights.names import match_keys
from dynconv_jax.weights.starts import family
from dynconv_jax.weights.torch_layout import leaves_of

# What answers, from an input, how a kernel is made for it.
ROUTERS = (
    *(Router, SigmoidRouter, ODAttention, CellAttention, BinAttention),
    *(ContextAttention, ContextGenerator, LocalAttention),
)

# What has the kernels.
EXPERTS = *family(), KernelWarehouse

# The names of parts that any model may have.
GROUPS = "experts", "routers", "head", "backbone"

# What a variable is marked with that training leaves as it is.
FROZEN = "is_frozen"


def is_frozen(path: Any, variable: Any) -> bool:
    """Whether a variable is marked so; a filter of flax."""
    return variable.get_metadata(FROZEN, False)


TRAINABLE = nnx.All(nnx.Param, nnx.Not(is_frozen))


def parameters_by_key(model: nnx.Module) -> dict[str, tuple[nnx.Variable, ...]]:
    """Returns the parameters of a model by PyTorch's keys.

    Args:
        model: The model.

    Returns:
        For each key what it holds: one parameter, or several.
    """
    found = {
        key: tuple(each for each in leaf.variables if isinstance(each, nnx.Param))
        for key, leaf in leaves_of(model)
    }
    return {key: variables for key, variables in found.items() if variables}


def routing_parameters(model: nnx.Module) -> set[int]:
    """Returns the `id`s of the parameters of routers."""
    routers = []
    for _, part in nnx.iter_modules(model):
        if isinstance(part, ROUTERS):
            routers.append(part)
        elif isinstance(part, DecomposedConv):
            routers.extend((part.fc, part.fc_phi, part.fc_scale))
    return _parameters_in(routers)


def keys_of(group: str, model: nnx.Module) -> set[str]:
    """Returns the keys of the parameters of a group.

    Args:
        group: One of `GROUPS`.
        model: The model.
    """
    parameters = parameters_by_key(model)
    if group == "head":
        return set().union(*match_keys(head_of(model), parameters).values())
    routing = routing_parameters(model)
    routers = {
        key
        for key, variables in parameters.items()
        if any(id(each) in routing for each in variables)
    }
    if group == "routers":
        return routers
    if group == "backbone":
        return parameters.keys() - routers - keys_of("head", model)
    layers = [part for _, part in nnx.iter_modules(model) if isinstance(part, EXPERTS)]
    held = _parameters_in(layers) - routing
    return {
        key
        for key, variables in parameters.items()
        if any(id(each) in held for each in variables)
    }


def depths_of(model: nnx.Module) -> dict[str, int]:
    """Returns how many layers each parameter is from the head, by its key.

    The cells of a warehouse are as near as the nearest of its layers.

    Args:
        model: The model; its `layer_groups` are the layers.
    """
    parameters = parameters_by_key(model)
    depths = {
        key: depth
        for depth, names in enumerate(reversed(layer_groups(model)))
        for keys in match_keys(names, parameters).values()
        for key in keys
    }
    by_id = {id(each): depths[key] for key in depths for each in parameters[key]}
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, WarehouseConv):
            cells = id(layer.warehouse.cells)
            depth = min(by_id[each] for each in _parameters_in([layer.attention]))
            by_id[cells] = min(depth, by_id.get(cells, depth))
    return {key: by_id[id(each[0])] for key, each in parameters.items()}


def _parameters_in(parts: list[Any]) -> set[int]:
    return {
        id(variable)
        for part in parts
        for _, variable in nnx.iter_graph(part)
        if isinstance(variable, nnx.Param)
    }
