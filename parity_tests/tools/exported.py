"""Programs that were exported with sizes left open, written and read again."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export

PLATFORMS = ("cpu", "cuda", "tpu")


def exported(
    function: Callable[..., Any],
    *shapes: str,
    constraints: Sequence[str] = (),
    dtype: Any = "float32",
) -> export.Exported:
    """Exports a function of arrays, and reads what was written.

    Args:
        function: What to export.
        *shapes: Of its operands; a name in it is a size left open.
        constraints: What is known of these sizes, as `jax.export` reads it.
        dtype: Of the operands.
    """
    scope = export.SymbolicScope(constraints)
    operands = [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for shape in shapes
    ]
    artifact = export.export(jax.jit(function), platforms=PLATFORMS)(*operands)
    return export.deserialize(artifact.serialize())
