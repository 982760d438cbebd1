"""One array of PyTorch's, and the variables of a module that it holds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from dynconv_jax.scheduled import Scheduled
from dynconv_jax.weights.arrangements import Arrangement


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of PyTorch, and what of a module it holds.

    Attributes:
        variables: One variable; or as many as the PyTorch array holds together.
        is_packed: Whether the arrangement is of the tuple of them.
        arrangement: How they lie.
        owner: The module that has them.
        is_optional: Whether a state dict may lack the array.
    """

    variables: tuple[nnx.Variable, ...]
    is_packed: bool
    arrangement: Arrangement
    owner: Any
    is_optional: bool

    def to_torch(self) -> np.ndarray:
        """Returns the PyTorch array."""
        values = [np.asarray(variable[...]) for variable in self.variables]
        if self.is_scheduled:
            # PyTorch keeps it in float64. Where JAX has only float32, the shortest
            # decimal that names it restores a T such as 0.6 exactly.
            return np.array(float(str(values[0])))
        if not self.is_packed and np.issubdtype(values[0].dtype, np.integer):
            return values[0].astype(np.int64)  # PyTorch counts in it
        # In C order, as a copy: files and `torch.from_numpy` want it so.
        return np.array(self._arrange(values), order="C")

    def _arrange(self, values: list[np.ndarray]) -> np.ndarray:
        arrays = tuple(values) if self.is_packed else values[0]
        return self.arrangement.to_torch(arrays, self.owner)

    @property
    def is_scheduled(self) -> bool:
        """Whether a schedule moves it."""
        return not self.is_packed and isinstance(self.variables[0], Scheduled)

    # `get_value()`, not `[...]`, from here on: an abstract module holds no arrays.
    @property
    def is_abstract(self) -> bool:
        """Whether the module holds only the shape of it."""
        return any(
            isinstance(variable.get_value(), jax.ShapeDtypeStruct)
            for variable in self.variables
        )

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The shape of the PyTorch array."""
        # One bit, seen as an array of the shape.
        return self._arrange(
            [
                np.broadcast_to(False, variable.get_value().shape)
                for variable in self.variables
            ]
        ).shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype that the module has it in; of what it has not, a count's."""
        dtypes = [np.dtype(each.get_value().dtype) for each in self.variables]
        return dtypes[0] if dtypes else np.dtype(np.int64)

    def loses(self, value: np.ndarray) -> bool:
        """Whether the module's dtype cannot hold every value of the array's dtype."""
        if self.is_scheduled:
            return not jnp.issubdtype(value.dtype, jnp.floating)
        if np.issubdtype(self.dtype, np.integer):
            return bool(np.any(value.astype(self.dtype) != value))
        return not np.can_cast(value.dtype, self.dtype)

    def load(self, value: np.ndarray) -> None:
        """Writes a PyTorch array into the variables."""
        arranged = self.arrangement.from_torch(value, self.owner)
        arrays = arranged if self.is_packed else (arranged,)
        for variable, array in zip(self.variables, arrays, strict=True):
            old = variable.get_value()
            is_abstract = isinstance(old, jax.ShapeDtypeStruct)
            # An array that nobody placed stays so, free to follow others to their
            # devices.
            is_placed = getattr(old, "committed", is_abstract)
            variable.set_value(
                jax.device_put(
                    array.astype(old.dtype), old.sharding if is_placed else None
                )
            )


def as_array(value: Any) -> np.ndarray:
    """Returns a NumPy array, JAX array or PyTorch tensor as a NumPy array.

    Tensors may be on any device, require gradients or be bfloat16; they are known by
    their methods, as PyTorch is not imported.

    Raises:
        TypeError: If it is no array of numbers.
        RuntimeError: If a tensor has no values.

    Example:
        >>> as_array([1.0, 2.0]).shape
        (2,)
    """
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if hasattr(ml_dtypes, dtype):  # what NumPy has not: the bits, as integers
            same_size = {1: "char", 2: "short"}[tensor.element_size()]
            integer = getattr(tensor.new_empty(0), same_size)().dtype
            bits = tensor.contiguous().view(integer).numpy()
            return bits.view(getattr(ml_dtypes, dtype))
        return tensor.numpy(force=True)
    array = np.asarray(value)
    if array.dtype.kind in "OSUM":
        raise TypeError(f"it is a {type(value).__name__}")
    return array
