"""The geometry of a convolution whose inputs may be dilated, as `nnx.Conv` has it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

from dynconv_jax.functional.geometry import Geometry, check_not_empty, per_dimension


@dataclasses.dataclass(frozen=True)
class ConvGeometry(Geometry):
    """Everything static about a convolution.

    Attributes:
        padding: As that of `Geometry`, or `"SAME_LOWER"`: the odd one of the zeros of
            `"SAME"` lies at the low end.
        input_dilation: The step between neighbouring inputs; zeros lie between them.
    """

    input_dilation: tuple[int, ...] = ()

    @classmethod
    def create(
        cls,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        *,
        input_dilation: int | Sequence[int] | None = 1,
        **options,
    ) -> Self:
        """Normalises the arguments, or says what is wrong with them.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range, has the wrong number of entries, or
                does not divide; or the padding is a string and the inputs are dilated,
                for which there is no such padding.

        Example:
            >>> geometry = ConvGeometry.create(
            ...     3, 8, (3, 3), padding=1, input_dilation=2
            ... )
            >>> geometry.output_size((5, 4))
            (9, 7)
        """
        padding = options.get("padding")
        is_lower = isinstance(padding, str) and padding.upper() == "SAME_LOWER"
        if is_lower:
            options["padding"] = "SAME"
        plain = super().create(in_features, out_features, kernel_size, **options)
        dilation = per_dimension("input_dilation", input_dilation, plain.rank)
        if isinstance(plain.padding, str) and max(dilation) > 1:
            raise ValueError(
                f"`padding` (={padding!r}) is for inputs that are not dilated, and "
                f"`input_dilation` is {dilation}; give (low, high) pairs"
            )
        return dataclasses.replace(
            plain,
            input_dilation=dilation,
            padding="SAME_LOWER" if is_lower else plain.padding,
        )

    @classmethod
    def of(cls, geometry: Geometry) -> Self:
        """Returns a geometry as one of inputs that are not dilated."""
        return cls(**_fields_of(geometry), input_dilation=(1,) * geometry.rank)

    @property
    def dense(self) -> Geometry:
        """The convolution of inputs that have been dilated."""
        return Geometry(**_fields_of(self))

    def pads(self, spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Returns the (low, high) padding of an input of size `spatial`, dilated."""
        if self.padding != "SAME_LOWER":
            return super().pads(spatial)
        pairs = dataclasses.replace(self, padding="SAME").pads(spatial)
        return tuple((high, low) for low, high in pairs)

    def dilated(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Returns the size that an input of size `spatial` is dilated to."""
        return tuple(
            (size - 1) * step + 1
            for size, step in zip(spatial, self.input_dilation, strict=True)
        )

    def output_size(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Returns the spatial size of the output for an input of size `spatial`.

        Raises:
            ValueError: If a dimension is empty, or its padded size is smaller than the
                window; or if a symbolic size may be so.
        """
        check_not_empty(spatial)
        settled = dataclasses.replace(self.dense, padding=self.pads(spatial))
        return settled.output_size(self.dilated(spatial))


def _fields_of(geometry: Geometry) -> dict[str, Any]:
    names = (field.name for field in dataclasses.fields(Geometry))
    return {name: getattr(geometry, name) for name in names}
