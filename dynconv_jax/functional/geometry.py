"""The geometry of a convolution: normalised and refused here, once, for everyone."""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import max_dim

from dynconv_jax.functional.numerics import is_widened

PaddingLike = str | int | Sequence[int | tuple[int, int]]

# Each is drawn by itself, and a number that is larger by mistake (or in a file) would
# keep the constructor busy without end. Published networks have 4 to 32.
MOST_EXPERTS = 4096


def positive_int(name: str, value: object) -> int:
    """Returns `value` as an int of at least 1.

    Args:
        name: What the caller calls the value; it opens the error message.
        value: Anything that is an integer by `operator.index`, except a bool.

    Raises:
        TypeError: If `value` is not an integer.
        ValueError: If `value` is below 1.
    """
    return _int_from(name, value, 1)


def expert_count(num_experts: object) -> int:
    """Returns how many experts there are to be, as an int from 1 to `MOST_EXPERTS`.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.
    """
    number = positive_int("num_experts", num_experts)
    if number > MOST_EXPERTS:
        raise ValueError(
            f"`num_experts` (={number}) must be at most {MOST_EXPERTS}: each expert is "
            "a whole kernel, and every sample mixes all of them"
        )
    return number


def _int_from(name: str, value: object, least: int) -> int:
    number = _integer(name, value)
    if number < least:
        raise ValueError(f"`{name}` (={number}) must be at least {least}")
    return number


def _integer(name: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(f"`{name}` (={value!r}) must be an integer") from None


def per_dimension(
    name: str, value: object, rank: int, least: int = 1
) -> tuple[int, ...]:
    """Returns one int per spatial dimension; a single int counts for all of them.

    Args:
        name: What the caller calls the value; it opens the error message.
        value: An int, or `rank` of them.
        rank: The number of spatial dimensions.
        least: The smallest int that is accepted.

    Raises:
        TypeError: If an entry is not an integer.
        ValueError: If there is another number of entries, or one is too small.
    """
    if value is None:  # as nnx.Conv reads it
        value = 1
    value = _without_numpy(value)
    if not isinstance(value, Sequence):
        return (_int_from(name, value, least),) * rank
    if len(value) != rank:
        raise ValueError(
            f"`{name}` (={value!r}) has {len(value)} entries for {rank} spatial "
            f"dimension(s); give an int, or {rank} of them"
        )
    return tuple(_int_from(name, entry, least) for entry in value)


def _without_numpy(value: object) -> object:
    """Returns an array of NumPy as numbers, or lists of them, and the rest as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _normalise_kernel_size(kernel_size: object) -> tuple[int, ...]:
    kernel_size = _without_numpy(kernel_size)
    if not isinstance(kernel_size, Sequence) or isinstance(kernel_size, str):
        side = kernel_size if isinstance(kernel_size, int) else 3
        raise TypeError(
            f"`kernel_size` (={kernel_size!r}) must be a tuple, because its length "
            f"gives the rank; write ({side},) for 1-D, ({side}, {side}) for 2-D"
        )
    if not 1 <= len(kernel_size) <= 3:
        raise ValueError(
            f"`kernel_size` (={kernel_size!r}) must have 1, 2 or 3 entries, one per "
            "spatial dimension"
        )
    return tuple(positive_int("kernel_size", entry) for entry in kernel_size)


def _normalise_padding(padding: object, rank: int) -> str | tuple[tuple[int, int], ...]:
    refusal = (
        f"`padding` (={padding!r}) must be 'SAME', 'VALID', an int, or {rank} entries "
        "(one per spatial dimension), each an int or a (low, high) pair of ints"
    )
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(
                f"{refusal}; for any other boundary, pad the inputs with `jnp.pad` "
                "and use 'VALID'"
            )
        return padding.upper()
    padding = _without_numpy(padding)
    if not isinstance(padding, Sequence):
        pad = _integer("padding", padding)
        return ((pad, pad),) * rank
    if len(padding) != rank:
        raise ValueError(refusal)
    pairs = []
    for entry in padding:
        pair = tuple(entry) if isinstance(entry, Sequence) else (entry, entry)
        if len(pair) != 2:
            raise ValueError(refusal)
        pairs.append((_integer("padding", pair[0]), _integer("padding", pair[1])))
    return tuple(pairs)


def is_at_least(size: int, least: int, spatial: Sequence[int]) -> bool:
    """Returns whether a size is `least` or more.

    Args:
        size: One of an input, or what follows from one.
        least: What it is compared with.
        spatial: The sizes of the input, for the message.

    Raises:
        ValueError: If the size is symbolic, as in `jax.export`, and may be either; the
            message says which constraint would settle it.
    """
    try:
        return bool(size >= least)
    except jax.errors.InconclusiveDimensionOperation:
        raise ValueError(
            f"`inputs` of spatial size ({', '.join(map(str, spatial))}) may be too "
            f"small: {size} must be at least {least}; say that it is, by "
            f"`jax.export.symbolic_shape(..., constraints=['{size} >= {least}'])`"
        ) from None


def check_not_empty(spatial: Sequence[int]) -> None:
    """Raises a ValueError if a spatial size is 0, or symbolic and may be 0."""
    if not all(is_at_least(size, 1, spatial) for size in spatial):
        raise ValueError(f"`inputs` has an empty spatial dimension: {tuple(spatial)}")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Everything static about a convolution, one entry per spatial dimension.

    Attributes:
        in_features: C, the number of input channels.
        out_features: O, the number of output channels.
        kernel_size: The spatial extent of the kernel; its length is the rank.
        strides: The step between windows.
        padding: `"SAME"`, `"VALID"`, or (low, high) pairs. A negative entry crops, as
            in `jax.lax.pad`.
        kernel_dilation: The step between the taps of a window.
        feature_group_count: g, the number of channel groups.
    """

    in_features: int
    out_features: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    kernel_dilation: tuple[int, ...]
    feature_group_count: int

    @classmethod
    def create(
        cls,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        *,
        strides: int | Sequence[int] | None = 1,
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
    ) -> Self:
        """Normalises the arguments of a convolution, or says what is wrong with them.

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range, has the wrong number of entries, or
                does not divide.

        Example:
            >>> Geometry.create(3, 8, (3, 5), padding=(1, (0, 2))).padding
            ((1, 1), (0, 2))
        """
        widths = ("in_features", in_features), ("out_features", out_features)
        for name, features in widths:  # first, for they are what is swapped most often
            positive_int(name, features)
        size = _normalise_kernel_size(kernel_size)
        groups = positive_int("feature_group_count", feature_group_count)
        for name, features in widths:
            if features % groups:
                raise ValueError(
                    f"`{name}` (={features}) must be divisible by "
                    f"`feature_group_count` (={groups})"
                )
        return cls(
            in_features=operator.index(in_features),
            out_features=operator.index(out_features),
            kernel_size=size,
            strides=per_dimension("strides", strides, len(size)),
            padding=_normalise_padding(padding, len(size)),
            kernel_dilation=per_dimension(
                "kernel_dilation", kernel_dilation, len(size)
            ),
            feature_group_count=groups,
        )

    @property
    def rank(self) -> int:
        """The number of spatial dimensions."""
        return len(self.kernel_size)

    @property
    def is_depthwise(self) -> bool:
        """Whether every input channel is a group of its own."""
        return self.in_features == self.feature_group_count

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape (*kernel_size, C/g, O) of one kernel."""
        group_features = self.in_features // self.feature_group_count
        return (*self.kernel_size, group_features, self.out_features)

    @property
    def taps(self) -> int:
        """The number of positions in a window."""
        return math.prod(self.kernel_size)

    @property
    def extent(self) -> tuple[int, ...]:
        """The span of a window on the input, dilation included."""
        return tuple(
            (size - 1) * step + 1
            for size, step in zip(self.kernel_size, self.kernel_dilation, strict=True)
        )

    @property
    def mirrored(self) -> Self:
        """The transpose in the inputs of a convolution without strides, also one.

        It is for the reversed kernel, and the padding must be numbers.
        """
        assert not isinstance(self.padding, str)
        pads = (
            (extent - 1 - low, extent - 1 - high)
            for extent, (low, high) in zip(self.extent, self.padding, strict=True)
        )
        return dataclasses.replace(
            self,
            in_features=self.out_features,
            out_features=self.in_features,
            padding=tuple(pads),
        )

    def pads(self, spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Returns the (low, high) padding of an input of size `spatial`."""
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "VALID":
            return ((0, 0),) * self.rank
        pairs = []
        for size, extent, stride in zip(
            spatial, self.extent, self.strides, strict=True
        ):
            total = max_dim((-(-size // stride) - 1) * stride + extent - size, 0)
            pairs.append((total // 2, total - total // 2))
        return tuple(pairs)

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Returns the spatial size of the output for an input of size `spatial`.

        Raises:
            ValueError: If a dimension is empty, or its padded size is smaller than the
                window; or if a symbolic size may be so.
        """
        check_not_empty(spatial)
        sizes = []
        for size, (low, high), extent, stride in zip(
            spatial, self.pads(spatial), self.extent, self.strides, strict=True
        ):
            # Of "SAME" it is certain, but not for who has symbols to compare.
            is_padded = self.padding == "SAME"
            if not is_padded and not is_at_least(size, extent - low - high, spatial):
                raise ValueError(
                    f"`kernel_size` (={self.kernel_size}) with `kernel_dilation` "
                    f"(={self.kernel_dilation}) spans {self.extent}, more than the "
                    f"input of size {tuple(spatial)} with `padding` (={self.padding}); "
                    "pad more or use a smaller kernel"
                )
            sizes.append((size + low + high - extent) // stride + 1)
        return tuple(sizes)


GeometryType = TypeVar("GeometryType", bound=Geometry)


def check_operands(
    inputs: jax.Array | jax.ShapeDtypeStruct,
    kernel: jax.Array | jax.ShapeDtypeStruct,
    bias: jax.Array | None,
    *,
    stack: str | None,
    stack_size: int = 1,
    geometry_type: type[GeometryType] = Geometry,
    **options,
) -> GeometryType:
    """Checks kernels against inputs and returns their common geometry.

    Args:
        inputs: Shape (B, *S, C).
        kernel: Shape (stack_size, *k, C/g, O).
        bias: Shape (stack_size, O), or None.
        stack: What the leading axis of the kernel is, for the messages; None if there
            is one kernel and one bias, without that axis.
        stack_size: The size that axis must have.
        geometry_type: What to create.
        **options: Its `strides`, `padding`, `kernel_dilation` and so on.

    Raises:
        ValueError: If shapes or dtypes do not fit one another, are not floating, or
            there are no experts.
    """
    rank = inputs.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            f"`inputs` (shape {inputs.shape}) must be (batch, *spatial, features) with "
            "1, 2 or 3 spatial dimensions"
        )
    leading = () if stack is None else (stack_size,)
    named = "" if stack is None else f"{stack}, "
    dimensions = len(leading) + rank + 2
    if kernel.ndim != dimensions:
        raise ValueError(
            f"`kernel` (shape {kernel.shape}) must be ({named}*kernel_size, "
            f"in_features / feature_group_count, out_features): {dimensions} "
            f"dimensions for `inputs` of shape {inputs.shape}"
        )
    geometry = geometry_type.create(
        inputs.shape[-1], kernel.shape[-1], kernel.shape[len(leading) : -2], **options
    )
    if kernel.shape != (*leading, *geometry.kernel_shape):
        raise ValueError(
            f"`kernel` (shape {kernel.shape}) must have the shape "
            f"{(*leading, *geometry.kernel_shape)}, that is ({named}*kernel_size, "
            "in_features / feature_group_count, out_features), for `inputs` of shape "
            f"{inputs.shape} and `feature_group_count` "
            f"(={geometry.feature_group_count})"
        )
    if bias is not None and bias.shape != (*leading, geometry.out_features):
        raise ValueError(
            f"`bias` (shape {bias.shape}) must be ({named}out_features) = "
            f"{(*leading, geometry.out_features)}"
        )
    if stack_size == 0 and stack == "num_experts":
        raise ValueError(f"`kernel` (shape {kernel.shape}) has no experts to mix")
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise ValueError(
            f"`kernel` ({kernel.dtype}) must be floating, for the forms sum in "
            "different orders; cast it to float32"
        )
    if bias is not None and not jnp.issubdtype(bias.dtype, jnp.floating):
        raise ValueError(f"`bias` ({bias.dtype}) must be floating; cast it to float32")
    # Experts are rounded as they are mixed, and one kernel as it is applied.
    is_wide = stack != "batch" and is_widened(kernel.dtype, inputs.dtype)
    if inputs.dtype != kernel.dtype and not is_wide:
        raise ValueError(
            f"`inputs` ({inputs.dtype}) and `kernel` ({kernel.dtype}) must have the "
            "same dtype; cast one to the other"
        )
    geometry.output_size(inputs.shape[1:-1])
    return geometry
