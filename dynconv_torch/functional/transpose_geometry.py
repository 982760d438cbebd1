"""The geometry of a transposed convolution."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Self

from dynconv_torch.functional.geometry import Geometry, per_dimension, positive_int


@dataclasses.dataclass(frozen=True)
class TransposeGeometry(Geometry):
    """Everything static about a transposed convolution.

    Attributes:
        stride: The step between the outputs of neighbouring inputs.
        padding: What is cropped from the full output, (low, high) pairs. A negative
            entry appends zeros.
        output_padding: How much less is cropped at the high end.
    """

    weight_axes: ClassVar[str] = "in_channels, out_channels / groups, *kernel_size"

    padding: tuple[tuple[int, int], ...]  # without the names that Geometry knows
    output_padding: tuple[int, ...] = ()

    @classmethod
    def create(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        output_padding: int | Sequence[int] = 0,
        **options,
    ) -> Self:
        """Normalises the arguments, or says what is wrong with them.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range, has the wrong number of entries, or
                does not divide; or the output padding is not smaller than the stride or
                the dilation.

        Example:
            >>> geometry = TransposeGeometry.create(3, 8, 3, rank=2, stride=2)
            >>> geometry.output_size((5, 4))
            (11, 9)
        """
        padding = options.get("padding")
        if isinstance(padding, str):
            raise ValueError(
                f"`padding` (={padding!r}) must be an int, or one int or (low, high) "
                "pair per spatial dimension: a transposed convolution of PyTorch has "
                "no named paddings"
            )
        plain = super().create(in_channels, out_channels, kernel_size, **options)
        extra = per_dimension("output_padding", output_padding, plain.rank, least=0)
        for entry, stride, dilation in zip(
            extra, plain.stride, plain.dilation, strict=True
        ):
            if entry >= max(stride, dilation):
                raise ValueError(
                    f"`output_padding` (={extra}) must be smaller than `stride` "
                    f"(={plain.stride}) or `dilation` (={plain.dilation}) in every "
                    "dimension; for a larger output, crop less: `padding` may be "
                    "(low, high) pairs, and negative"
                )
        return dataclasses.replace(plain, output_padding=extra)

    @classmethod
    def of_weight(
        cls, in_channels: int, weight_shape: Sequence[int], **options
    ) -> Self:
        """Creates the geometry that a kernel (C, O/g, *k) has, as far as it fits."""
        _, width, *size = weight_shape
        out_channels = width * positive_int("groups", options.get("groups", 1))
        return cls.create(in_channels, out_channels, size, rank=len(size), **options)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape (C, O/g, *kernel_size) of one kernel."""
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def multiply_adds(self, spatial: Sequence[int]) -> int:
        """Returns how many products the full output of one sample sums."""
        return math.prod(spatial) * math.prod(self.weight_shape)

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Returns the spatial size of the output for an input of size `spatial`.

        Raises:
            ValueError: If a dimension of the input is empty, or one of the output.
        """
        if any(size == 0 for size in spatial):
            raise ValueError(
                f"`input` has an empty spatial dimension: {tuple(spatial)}"
            )
        sizes = tuple(
            (size - 1) * step + extent - low - high + extra
            for size, step, extent, (low, high), extra in zip(
                spatial,
                self.stride,
                self.extent,
                self.padding,
                self.output_padding,
                strict=True,
            )
        )
        if any(size < 1 for size in sizes):
            raise ValueError(
                f"`padding` (={self.padding}) crops all of the output: it would have "
                f"the size {sizes} for an input of size {tuple(spatial)}; crop less"
            )
        return sizes
