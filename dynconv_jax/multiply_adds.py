"""How many multiply-adds a model takes, those of kernels made per sample included.

The count is read off the traced program, so it holds for any module: products and
convolutions count, elementwise work does not. Every layer of this library is traced in
its readable form (`"vmap"`), so the figure is what the mathematics asks for, not what a
form that trades arithmetic for memory spends. Mixing kernels is a product and counts.
"""

import math
from typing import Any, cast

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from dynconv_jax.checks import check_module
from dynconv_jax.functional.platforms import is_computed_where_lowered, program_of
from dynconv_jax.layers import ModulatedConv


def count_parameters(module: nnx.Module) -> int:
    """Returns how many numbers the parameters of a module have; shared ones once.

    Example:
        >>> count_parameters(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)))
        224
    """
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def count_multiply_adds(module: nnx.Module, *args: Any, **kwargs: Any) -> int:
    """Counts the multiply-adds of a module's forward pass in evaluation.

    Nothing is computed: arguments may be `jax.ShapeDtypeStruct`s.

    Args:
        module: A layer or a model; it is not changed.
        *args: Passed on to the module.
        **kwargs: Passed on to the module.

    Returns:
        The count for the whole batch. A window's positions in the padding count as the
        others do.

    Raises:
        NotImplementedError: If the program loops for a number of times that is not
            known before it runs.

    Example:
        >>> layer = nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> image = jax.ShapeDtypeStruct((1, 9, 7, 3), "float32")
        >>> count_multiply_adds(layer, image) == 9 * 7 * 8 * (3 * 3 * 3)
        True
    """
    check_module("module", module)
    evaluated = nnx.view(
        module, deterministic=True, use_running_average=True, raise_if_not_found=False
    )
    graphdef, state = nnx.split(evaluated)

    def forward(state: Any, args: Any, kwargs: Any) -> Any:
        model = nnx.merge(graphdef, state)
        part: Any
        for _, part in nnx.iter_modules(model):
            # A modulated convolution of one kernel has no form by that name.
            is_mixed = not isinstance(part, ModulatedConv)
            if is_mixed and hasattr(part, "implementation"):
                part.implementation = "vmap"
        return model(*args, **kwargs)

    return _count(jax.make_jaxpr(forward)(state, args, kwargs).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        inputs, kernel, outputs = (
            cast(jax.ShapeDtypeStruct, variable.aval)
            for variable in (*equation.invars, *equation.outvars)
        )
        numbers = parameters["dimension_numbers"]
        if name == "dot_general":
            (contracted, _), _ = numbers
            summed = math.prod(inputs.shape[axis] for axis in contracted)
            return outputs.size * summed
        filters = kernel.shape[numbers.rhs_spec[0]]
        if max(parameters["lhs_dilation"], default=1) > 1:
            # Transposed: every input meets every tap of its group; zeros between the
            # inputs meet none.
            spatial = math.prod(kernel.shape[axis] for axis in numbers.rhs_spec[2:])
            groups = parameters["feature_group_count"]
            return inputs.size * spatial * filters // groups
        return outputs.size * kernel.size // filters
    if name == "while":
        raise NotImplementedError(
            "the program has a `while` loop, whose number of steps is not known before "
            "it runs; count its body on its own"
        )
    if is_computed_where_lowered(equation):
        return _count(program_of(equation))
    inner = [_count(each) for each in _jaxprs_in(parameters)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (parameters["length"] if name == "scan" else 1)


def _jaxprs_in(parameters: dict[str, Any]) -> list[Jaxpr]:
    """Returns the programs that an equation calls; of a custom rule, its function."""
    found = []
    for value in parameters.values():
        for entry in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(entry, ClosedJaxpr):
                found.append(entry.jaxpr)
            elif isinstance(entry, Jaxpr):
                found.append(entry)
    return found
