"""The convolutions that are measured."""

import dataclasses
import math

import numpy as np

from dynconv_jax.functional import Geometry


@dataclasses.dataclass(frozen=True)
class Shape:
    """A square dynamic convolution and its input; padded as to keep the size.

    Attributes:
        batch: B.
        size: Height and width of the input.
        in_features: C.
        out_features: O.
        kernel: The side of the kernel.
        stride: The stride.
        experts: K.
        groups: The number of channel groups.
    """

    batch: int
    size: int
    in_features: int
    out_features: int
    kernel: int = 3
    stride: int = 1
    experts: int = 4
    groups: int = 1

    @classmethod
    def depthwise(
        cls, batch: int, size: int, features: int, kernel: int, stride: int = 1
    ) -> "Shape":
        """Returns a depthwise convolution."""
        return cls(batch, size, features, features, kernel, stride, groups=features)

    def __str__(self) -> str:
        features = f"{self.in_features}→{self.out_features}"
        if self.groups == self.in_features:
            features = f"{self.in_features} depthwise"
        elif self.groups > 1:
            features += f" in {self.groups} groups"
        parts = [
            f"B {self.batch}",
            f"{self.size}×{self.size}",
            features,
            f"{self.kernel}×{self.kernel}",
        ]
        if self.stride > 1:
            parts.append(f"stride {self.stride}")
        if self.experts != 4:
            parts.append(f"K {self.experts}")
        return ", ".join(parts)

    @property
    def geometry(self) -> Geometry:
        """The geometry in the words of `dynconv_jax`."""
        return Geometry.create(
            self.in_features,
            self.out_features,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=self.kernel // 2,
            feature_group_count=self.groups,
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape (B, H, W, C) of the input."""
        return (self.batch, self.size, self.size, self.in_features)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape (B, H', W', O) of the output."""
        size = self.geometry.output_size((self.size, self.size))
        return (self.batch, *size, self.out_features)

    @property
    def gigaflops(self) -> float:
        """The arithmetic of forward and backward, of a static convolution too."""
        row = self.kernel**2 * self.in_features // self.groups
        return 3 * 2e-9 * math.prod(self.output_shape) * row

    def inputs(self) -> np.ndarray:
        """Draws a float32 input (B, H, W, C)."""
        draw = np.random.default_rng(0).normal(size=self.input_shape)
        return draw.astype(np.float32)

    def cotangent(self) -> np.ndarray:
        """Draws a float32 cotangent of the output."""
        draw = np.random.default_rng(1).normal(size=self.output_shape)
        return draw.astype(np.float32)


LAYERS = (
    Shape(32, 56, 64, 64),
    Shape(32, 28, 128, 128),
    Shape(32, 14, 256, 256),
    Shape(32, 7, 512, 512),
    Shape(32, 14, 256, 256, kernel=1),
    Shape(16, 64, 32, 64, stride=2),
    Shape(64, 16, 64, 128, stride=2),
    Shape(1, 56, 64, 64),
    Shape(8, 28, 40, 240, kernel=1, experts=8),
)
DEPTHWISE = (
    Shape.depthwise(32, 14, 480, 5),
    Shape.depthwise(32, 14, 480, 3),
    Shape.depthwise(32, 28, 240, 3, stride=2),
    Shape.depthwise(32, 7, 1152, 5),
)
# What else the rates of the cost model are fitted on.
OTHERS = (
    Shape(32, 32, 32, 64, stride=2),
    Shape(32, 16, 64, 128, stride=2),
    Shape(32, 8, 128, 256, stride=2),
    Shape(128, 32, 32, 64, stride=2),
    Shape(128, 16, 64, 128, stride=2),
    Shape(128, 8, 128, 256, stride=2),
    Shape(64, 8, 32, 64, stride=2),
    Shape(64, 4, 64, 128, stride=2),
    Shape(64, 2, 128, 256, stride=2),
    Shape(8, 28, 128, 128),
    Shape(128, 14, 64, 64),
    Shape(16, 28, 64, 64, kernel=5),
    Shape(32, 28, 192, 32, kernel=1),
    Shape(32, 7, 320, 1280, kernel=1),
    Shape(16, 14, 128, 128, experts=16),
    Shape(4, 14, 256, 256),
    Shape(1, 14, 256, 256),
    Shape(16, 56, 24, 144, kernel=1),
    Shape(32, 28, 64, 64, groups=8),
    Shape(16, 14, 128, 128, groups=4),
    Shape.depthwise(16, 28, 96, 3),
    Shape.depthwise(4, 112, 32, 3),
    Shape.depthwise(32, 7, 192, 3),
)


def random_shapes(count: int, seed: int) -> list[Shape]:
    """Draws shapes of 0.1 to 30 Gflop, a seventh of them depthwise."""
    rng = np.random.default_rng(seed)
    shapes: list[Shape] = []
    while len(shapes) < count:
        batch, size = int(2 ** rng.integers(0, 8)), int(rng.integers(4, 65))
        features, wide = (int(2**power) for power in rng.uniform(3, 9, size=2))
        kernel = int(rng.choice([1, 3, 3, 5]))
        stride = int(rng.choice([1, 1, 2]))
        if rng.random() < 1 / 7:
            shape = Shape.depthwise(batch, size, features, max(kernel, 3), stride)
        else:
            experts = int(rng.choice([2, 4, 8]))
            shape = Shape(batch, size, features, wide, kernel, stride, experts)
        kernels = batch * math.prod(shape.geometry.kernel_shape)
        if 0.1 < shape.gigaflops * (1 if shape.groups == 1 else 30) < 30 and (
            kernels < 1e8 and math.prod(shape.output_shape) < 5e7
        ):
            shapes.append(shape)
    return shapes
