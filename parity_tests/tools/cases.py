"""Convolutions to test: a list that covers every option, and a strategy that draws."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from flax import nnx
from hypothesis import strategies as st

import dynconv_jax


@dataclasses.dataclass(frozen=True)
class Case:
    """One dynamic convolution and the size of its input, in either framework's words.

    Attributes:
        spatial: The spatial size of the input.
        kernel_size: The spatial size of the kernel.
        strides: One per dimension.
        padding: (low, high) pairs.
        dilation: One per dimension.
        groups: The number of channel groups.
        width: Input channels of a group.
        out_width: Output channels of a group.
        batch: The number of samples.
        num_experts: K.
        bias: Whether the experts have biases.
        jax_class: The layer in JAX.
        torch_class: The layer in PyTorch, without its rank.
    """

    jax_class: ClassVar[str] = "DynamicConv"
    torch_class: ClassVar[str] = "DynamicConv"

    spatial: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    width: int = 3
    out_width: int = 2
    batch: int = 2
    num_experts: int = 3
    bias: bool = True

    @property
    def channels(self) -> int:
        """C, the number of input channels."""
        return self.groups * self.width

    @property
    def outputs(self) -> int:
        """O, the number of output channels."""
        return self.groups * self.out_width

    @property
    def is_depthwise(self) -> bool:
        """Whether every input channel is a group of its own."""
        return self.width == 1

    @property
    def jax_geometry(self) -> dict[str, Any]:
        """The geometry as the JAX functions take it."""
        return dict(
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.dilation,
            feature_group_count=self.groups,
        )

    @property
    def torch_geometry(self) -> dict[str, Any]:
        """The geometry as the PyTorch functions take it."""
        return dict(
            stride=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def inputs(self, rng: np.random.Generator) -> np.ndarray:
        """Draws an input, channels last."""
        return rng.normal(size=(self.batch, *self.spatial, self.channels))

    def jax_layer(self, **options) -> Any:
        """Builds the JAX layer in float64."""
        return getattr(dynconv_jax, self.jax_class)(
            self.channels,
            self.outputs,
            self.kernel_size,
            use_bias=self.bias,
            num_experts=self.num_experts,
            reduction=1,  # a hidden layer of one unit would often be dead
            param_dtype="float64",
            rngs=nnx.Rngs(0),
            **self.jax_geometry,
            **options,
        )

    def torch_layer(self, **options):
        """Builds the PyTorch layer in float64, with biases that are not 0."""
        import dynconv_torch  # which tests without PyTorch do not ask for

        cls = getattr(dynconv_torch, f"{self.torch_class}{len(self.spatial)}d")
        layer = cls(
            self.channels,
            self.outputs,
            self.kernel_size,
            bias=self.bias,
            num_experts=self.num_experts,
            reduction=1,
            **self.torch_geometry,
            **options,
        ).double()
        if layer.bias is not None:
            layer.bias.data.normal_()
        return layer


CASES = {
    "1d": Case((9,), (3,), (1,), ((1, 1),), (1,)),
    "1d dilated, strided": Case((11,), (3,), (2,), ((2, 1),), (2,)),
    "2d": Case((7, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "2d strided": Case((8, 7), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    "2d uneven": Case((9, 6), (2, 3), (3, 1), ((0, 2), (1, 0)), (1, 2)),
    "2d pointwise": Case((5, 4), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), width=5),
    "2d pointwise, strided": Case((5, 4), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    "2d grouped": Case((6, 5), (3, 2), (2, 1), ((1, 1), (0, 1)), (1, 1), groups=3),
    "2d depthwise": Case(
        (6, 7), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups=4, width=1, out_width=1
    ),
    "2d depthwise, multiplied": Case(
        (6, 7), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), groups=3, width=1, out_width=2
    ),
    "2d kernel beyond the input": Case(
        (3, 2), (5, 4), (1, 1), ((2, 2), (2, 1)), (1, 1)
    ),
    "2d cropped": Case((7, 8), (3, 3), (1, 1), ((-1, 1), (0, -2)), (1, 1)),
    "3d": Case((4, 5, 3), (2, 3, 1), (1, 2, 1), ((0, 1), (1, 1), (0, 0)), (2, 1, 1)),
    "batch 1": Case((6, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), batch=1),
    "one expert": Case((6, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), num_experts=1),
    "no bias": Case((6, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), bias=False),
}


@dataclasses.dataclass(frozen=True)
class TransposeCase(Case):
    """One transposed dynamic convolution and the size of its input.

    Attributes:
        padding: What is cropped, (low, high) pairs.
        output_padding: One per dimension.
    """

    jax_class: ClassVar[str] = "DynamicConvTranspose"
    torch_class: ClassVar[str] = "DynamicConvTranspose"

    output_padding: tuple[int, ...] = (0, 0)

    @property
    def jax_geometry(self) -> dict[str, Any]:
        """The geometry as the JAX functions take it."""
        return super().jax_geometry | dict(output_padding=self.output_padding)

    @property
    def torch_geometry(self) -> dict[str, Any]:
        """The geometry as the PyTorch functions take it."""
        return super().torch_geometry | dict(output_padding=self.output_padding)

    @property
    def is_torch_padding(self) -> bool:
        """Whether PyTorch itself takes the padding, which is symmetric there."""
        return all(0 <= low == high for low, high in self.padding)


TRANSPOSE_CASES = {
    "1d": TransposeCase((5,), (4,), (2,), ((1, 1),), (1,), output_padding=(1,)),
    "1d, dilated": TransposeCase(
        (4,), (5,), (4,), ((2, 2),), (6,), output_padding=(5,)
    ),
    "2d": TransposeCase((4, 3), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    "2d, stride 1": TransposeCase((5, 4), (3, 2), (1, 1), ((1, 1), (0, 0)), (1, 1)),
    "2d, uneven": TransposeCase(
        (3, 4), (2, 5), (3, 2), ((0, 0), (2, 2)), (1, 3), output_padding=(2, 1)
    ),
    "2d, outputs that no tap reaches": TransposeCase(
        (3, 2), (1, 2), (3, 2), ((0, 0), (0, 0)), (1, 2), output_padding=(1, 0)
    ),
    "2d, grouped": TransposeCase(
        (3, 4), (3, 2), (2, 1), ((1, 1), (0, 0)), (1, 1), groups=3
    ),
    "2d, depthwise": TransposeCase(
        (4, 3), (4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 3, width=1, out_width=1
    ),
    "2d, depthwise, multiplied": TransposeCase(
        (4, 3), (3, 2), (2, 3), ((1, 1), (0, 0)), (1, 1), 2, width=1, out_width=2
    ),
    "2d, pairs": TransposeCase((4, 3), (3, 3), (2, 2), ((2, 0), (-1, 1)), (1, 1)),
    "3d": TransposeCase(
        (2, 3, 2),
        (3, 2, 1),
        (2, 1, 2),
        ((1, 1), (0, 0), (0, 0)),
        (1, 2, 1),
        output_padding=(1, 0, 0),
    ),
    "batch 1": TransposeCase((3, 4), (2, 2), (2, 2), ((0, 0),) * 2, (1, 1), batch=1),
    "no bias": TransposeCase((3, 4), (2, 2), (2, 2), ((0, 0),) * 2, (1, 1), bias=False),
}


Shape = tuple[int, ...]

# (shape of inputs, of experts, options): one that each form is for, on a CPU.
EXTREMES: dict[str, tuple[Shape, Shape, dict[str, Any]]] = {
    "scan": ((32, 56, 56, 64), (4, 3, 3, 64, 64), {"padding": 1}),
    "experts": ((64, 2, 2, 128), (4, 3, 3, 128, 256), {"padding": 1, "strides": 2}),
    "taps": ((32, 14, 14, 480), (4, 5, 5, 1, 480), {"feature_group_count": 480}),
}


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """Draws any convolution of rank 1 to 3, some with a window beyond the input."""
    rank = draw(st.integers(1, 3))

    def per_dimension(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    largest = (9, 7, 4)[rank - 1]
    return Case(
        spatial=per_dimension(1, largest),
        kernel_size=per_dimension(1, 3),
        strides=per_dimension(1, 3),
        padding=tuple(zip(per_dimension(0, 2), per_dimension(0, 2), strict=True)),
        dilation=per_dimension(1, 2),
        groups=draw(st.integers(1, 3)),
        width=draw(st.integers(1, 2)),
        out_width=draw(st.integers(1, 2)),
        batch=draw(st.integers(1, 3)),
        num_experts=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
    )


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> TransposeCase:
    """Draws any transposed convolution of rank 1 to 3, some that crop all outputs."""
    rank = draw(st.integers(1, 3))

    def per_dimension(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    strides = per_dimension(1, (4, 3, 2)[rank - 1])
    dilation = per_dimension(1, 4)
    largest = (6, 4, 3)[rank - 1]
    return TransposeCase(
        spatial=per_dimension(1, largest),
        kernel_size=per_dimension(1, largest),
        strides=strides,
        padding=tuple(zip(per_dimension(-2, 3), per_dimension(-2, 3), strict=True)),
        dilation=dilation,
        groups=draw(st.integers(1, 3)),
        width=draw(st.integers(1, 2)),
        out_width=draw(st.integers(1, 2)),
        batch=draw(st.integers(1, 3)),
        num_experts=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        output_padding=tuple(
            draw(st.integers(0, max(pair) - 1))
            for pair in zip(strides, dilation, strict=True)
        ),
    )
