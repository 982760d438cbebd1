"""What all layers that convolve share: their geometry, and inputs without a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.tracing import sizes_of


def as_one_kernel(
    fn: Callable[[Tensor], Tensor], shape: torch.Size
) -> Callable[[Tensor], Tensor]:
    """Returns `fn` as it is to see stacked kernels: as one with all their outputs.

    A memory format, which `Module.to` may apply, is for tensors of a certain number of
    dimensions, and a stack has one more than a kernel of its rank.

    Args:
        fn: What `Module._apply` applies.
        shape: The shape (K, O, ...) of the stack, by which it is known.

    Example:
        >>> stack = torch.ones(4, 8, 3, 5, 5)
        >>> fn = as_one_kernel(
        ...     lambda kernel: kernel.to(memory_format=torch.channels_last), stack.shape
        ... )
        >>> fn(stack).stride()
        (600, 75, 1, 15, 3)
    """

    def apply(tensor: Tensor) -> Tensor:
        if tensor.shape != shape:  # also true of the gradient
            return fn(tensor)
        return fn(tensor.flatten(0, 1)).unflatten(0, shape[:2])

    return apply


def check_rows(
    name: str, rows: Tensor, batch: Sequence[int], size_name: str, size: int
) -> None:
    """Raises an error unless there is a row for every sample of a batch.

    Args:
        name: The name of the argument.
        rows: Shape (*batch, size).
        batch: The batch dimension of the samples, or none.
        size_name: What the size is called.
        size: The length of a row.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it has another shape, or is not real.

    Example:
        >>> check_rows("latents", torch.ones(2, 5), (2,), "channels", 5)
    """
    given: dict[str, Any] = {name: rows}
    check_tensors(**given)
    expected = (*batch, size)
    if sizes_of(rows) != expected:
        raise ValueError(
            f"`{name}` (shape {sizes_of(rows)}) must be (batch, {size_name}), without "
            f"batch for one sample: {expected}"
        )


class ConvolutionNd(nn.Module):
    """A layer whose geometry is that of `torch.nn.Conv2d`, under the same names.

    A subclass has the attribute `rank`, its number of spatial dimensions.
    """

    rank: int
    bias: nn.Parameter | None
    implementation: str

    def take_geometry(self, geometry: Geometry) -> None:
        """Makes the parts of a geometry attributes of the layer."""
        self.in_channels = geometry.in_channels
        self.out_channels = geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = geometry.padding
        self.dilation = geometry.dilation
        self.groups = geometry.groups

    @property
    def geometry_options(self) -> dict[str, Any]:
        """What of the geometry functions take by name, as `dynamic_conv` does."""
        return dict(
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def is_unbatched(self, x: Tensor) -> bool:
        """Whether `x` is one sample without a batch.

        Raises:
            TypeError: If the input is no tensor.
            ValueError: If it does not fit the layer.
        """
        check_tensors(x=x)
        shape = sizes_of(x)
        channel_axis = x.ndim - self.rank - 1
        if channel_axis not in (0, 1) or shape[channel_axis] != self.in_channels:
            raise ValueError(
                f"`x` (shape {shape}) must be (batch, in_channels, *spatial) "
                f"or (in_channels, *spatial) with {self.rank} spatial dimension(s) and "
                f"`in_channels` (={self.in_channels})"
            )
        return channel_axis == 0

    def batch_of(self, x: Tensor) -> tuple[int, ...]:
        """Returns the batch dimension of `x`, or none."""
        return sizes_of(x)[: -self.rank - 1]

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}, stride={self.stride}",
            f"padding={self.padding}",
        ]
        if any(step != 1 for step in self.dilation):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is not None:
            parts.append("bias=True")
        if self.implementation != "auto":
            parts.append(f"implementation={self.implementation!r}")
        return ", ".join(parts)
