"""The geometry of a transposed convolution.

It is told as that of a convolution with stride 1 of the spread input, which has
stride - 1 zeros between any two pixels: `pads` is the padding of that.
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

from dynconv_jax.functional.geometry import (
    Geometry,
    check_not_empty,
    is_at_least,
    per_dimension,
)


@dataclasses.dataclass(frozen=True)
class TransposeGeometry(Geometry):
    """Everything static about a transposed convolution.

    Attributes:
        strides: The step between the outputs of neighbouring inputs.
        padding: `"SAME"`, `"VALID"`, or what is cropped from the full output, (low,
            high) pairs. A negative entry appends zeros.
        output_padding: How much less is cropped at the high end.
    """

    output_padding: tuple[int, ...] = ()

    @classmethod
    def create(
        cls,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
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
            >>> TransposeGeometry.create(3, 8, (3, 3), strides=2).output_size((5, 4))
            (10, 8)
        """
        plain = super().create(in_features, out_features, kernel_size, **options)
        extra = per_dimension("output_padding", output_padding, plain.rank, least=0)
        for entry, stride, dilation in zip(
            extra, plain.strides, plain.kernel_dilation, strict=True
        ):
            if entry >= max(stride, dilation):
                raise ValueError(
                    f"`output_padding` (={extra}) must be smaller than `strides` "
                    f"(={plain.strides}) or `kernel_dilation` "
                    f"(={plain.kernel_dilation}) in every dimension; for a larger "
                    "output, crop less: `padding` may be (low, high) pairs, and "
                    "negative"
                )
        return dataclasses.replace(plain, output_padding=extra)

    def pads(self, spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Returns the (low, high) padding of the spread input."""
        pairs = []
        for axis, (extent, stride) in enumerate(
            zip(self.extent, self.strides, strict=True)
        ):
            reach = extent - 1
            if not isinstance(self.padding, str):
                low, high = (reach - crop for crop in self.padding[axis])
            elif self.padding == "VALID":
                low, high = reach, max(reach, stride - 1)
            else:  # as `jax.lax.conv_transpose` splits it
                total = reach + stride - 1
                low = reach if stride > reach else -(-total // 2)
                high = total - low
            pairs.append((low, high + self.output_padding[axis]))
        return tuple(pairs)

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Returns the spatial size of the output for an input of size `spatial`.

        Raises:
            ValueError: If a dimension of the input is empty, or one of the output.
        """
        check_not_empty(spatial)
        sizes = tuple(
            (size - 1) * stride + 1 + low + high - (extent - 1)
            for size, stride, (low, high), extent in zip(
                spatial, self.strides, self.pads(spatial), self.extent, strict=True
            )
        )
        if not all(is_at_least(size, 1, spatial) for size in sizes):
            raise ValueError(
                f"`padding` (={self.padding}) crops all of the output: it would have "
                f"the size {sizes} for an input of size {tuple(spatial)}; crop less"
            )
        return sizes
