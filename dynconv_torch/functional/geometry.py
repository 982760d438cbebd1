"""The geometry of a convolution: normalised and refused here, once, for everyone."""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

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


def _without_array(value: object) -> object:
    """Returns an array or tensor as numbers, or lists of them, the rest as it is."""
    to_list = getattr(value, "tolist", None)
    return value if to_list is None else to_list()


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
    value = _without_array(value)
    if not isinstance(value, Sequence):
        return (_int_from(name, value, least),) * rank
    if len(value) != rank:
        raise ValueError(
            f"`{name}` (={value!r}) has {len(value)} entries for {rank} spatial "
            f"dimension(s); give an int, or {rank} of them"
        )
    return tuple(_int_from(name, entry, least) for entry in value)


def _normalise_padding(
    padding: object, extent: tuple[int, ...], stride: tuple[int, ...]
) -> str | tuple[tuple[int, int], ...]:
    rank = len(extent)
    padding = _without_array(padding)
    refusal = (
        f"`padding` (={padding!r}) must be 'same', 'valid', 'tf_same', an int, or "
        f"{rank} entries (one per spatial dimension), each an int or a (low, high) "
        "pair of ints"
    )
    if isinstance(padding, str):
        if padding.lower() == "valid":
            return ((0, 0),) * rank
        if padding.lower() == "tf_same":
            return "tf_same"
        if padding.lower() != "same":
            raise ValueError(
                f"{refusal}; for any other boundary, pad the input with "
                "`torch.nn.functional.pad` and use 'valid'"
            )
        if any(step != 1 for step in stride):
            raise ValueError(
                f"`padding` (={padding!r}) is defined for a stride of 1 only, not for "
                f"`stride` (={stride}), as in torch.nn.Conv2d; give the padding as "
                "ints, or 'tf_same' to pad as TensorFlow does"
            )
        return tuple(((span - 1) // 2, span // 2) for span in extent)
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


def _at_least_zero(number: Any) -> Any:
    """Returns the larger of a number, which may be one that a tracer sees, and 0."""
    if isinstance(number, Tensor):
        return number.clamp(min=0)
    return torch.sym_max(number, 0)


def _extent(kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(
        (size - 1) * step + 1 for size, step in zip(kernel_size, dilation, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Everything static about a convolution, one entry per spatial dimension.

    Attributes:
        in_channels: C, the number of input channels.
        out_channels: O, the number of output channels.
        kernel_size: The spatial extent of the kernel; its length is the rank.
        stride: The step between windows.
        padding: (low, high) pairs, or `"tf_same"`, which depends on the size of the
            input. A negative entry crops, as in `torch.nn.functional.pad`.
        dilation: The step between the taps of a window.
        groups: g, the number of channel groups.
    """

    weight_axes: ClassVar[str] = "out_channels, in_channels / groups, *kernel_size"

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def create(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        rank: int,
        stride: int | Sequence[int] = 1,
        padding: PaddingLike = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Self:
        """Normalises the arguments of a convolution, or says what is wrong with them.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range, has the wrong number of entries, or
                does not divide.

        Example:
            >>> Geometry.create(3, 8, 3, rank=2, padding=(1, (0, 2))).padding
            ((1, 1), (0, 2))
        """
        group_count = positive_int("groups", groups)
        for name, channels in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
        ):
            if positive_int(name, channels) % group_count:
                raise ValueError(
                    f"`{name}` (={channels}) must be divisible by `groups` "
                    f"(={group_count})"
                )
        size = per_dimension("kernel_size", kernel_size, rank)
        steps = per_dimension("stride", stride, rank)
        spacing = per_dimension("dilation", dilation, rank)
        return cls(
            in_channels=operator.index(in_channels),
            out_channels=operator.index(out_channels),
            kernel_size=size,
            stride=steps,
            padding=_normalise_padding(padding, _extent(size, spacing), steps),
            dilation=spacing,
            groups=group_count,
        )

    @property
    def rank(self) -> int:
        """The number of spatial dimensions."""
        return len(self.kernel_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape (O, C/g, *kernel_size) of one kernel."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @classmethod
    def of_weight(
        cls, in_channels: int, weight_shape: Sequence[int], **options
    ) -> Self:
        """Creates the geometry that a kernel of a shape has, as far as it fits.

        Args:
            in_channels: C.
            weight_shape: As `weight_shape` has it.
            **options: As in `create`, without the `kernel_size` and its `rank`.
        """
        out_channels, _, *size = weight_shape
        return cls.create(in_channels, out_channels, size, rank=len(size), **options)

    def multiply_adds(self, spatial: Sequence[int]) -> int:
        """Returns how many products the output of one sample sums."""
        pixels = math.prod(self.output_size(spatial))
        return pixels * math.prod(self.weight_shape)

    @property
    def extent(self) -> tuple[int, ...]:
        """The span of a window on the input, dilation included."""
        return _extent(self.kernel_size, self.dilation)

    def pads(self, spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Returns the (low, high) padding of an input of size `spatial`.

        `"tf_same"` gives the output ceil(size / stride), with the odd zero on the high
        side, as TensorFlow and XLA do. With a stride of 1 it is `"same"`.

        Example:
            >>> same = Geometry.create(3, 8, 3, rank=2, stride=2, padding="tf_same")
            >>> same.pads((8, 7))
            ((0, 1), (1, 1))
        """
        if not isinstance(self.padding, str):
            return self.padding
        pairs = []
        for size, extent, step in zip(spatial, self.extent, self.stride, strict=True):
            # What the last window has beyond the input, and nothing is compared: the
            # size may be open. Only a window shorter than a step may lack it.
            total = (size - 1) // step * step + extent - size
            if extent == 1:
                total = 0
            elif extent < step:
                total = _at_least_zero(total)
            pairs.append((total // 2, total - total // 2))
        return tuple(pairs)

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Returns the spatial size of the output for an input of size `spatial`.

        Raises:
            ValueError: If a dimension is empty, or its padded size is smaller than the
                window.
        """
        if any(size == 0 for size in spatial):
            raise ValueError(
                f"`input` has an empty spatial dimension: {tuple(spatial)}"
            )
        sizes = []
        for size, (low, high), extent, step in zip(
            spatial, self.pads(spatial), self.extent, self.stride, strict=True
        ):
            padded = size + low + high
            if padded < extent:
                raise ValueError(
                    f"`kernel_size` (={self.kernel_size}) with `dilation` "
                    f"(={self.dilation}) spans {self.extent}, more than the input of "
                    f"size {tuple(spatial)} with `padding` (={self.padding}); pad more "
                    "or use a smaller kernel"
                )
            sizes.append((padded - extent) // step + 1)
        return tuple(sizes)
