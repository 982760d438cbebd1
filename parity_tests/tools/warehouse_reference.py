"""KernelWarehouse from its equations alone: loops over samples and tiles.

Written from the equations, without a line of the two packages. It is slow and meant to
be read; the tests hold both packages against it.
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Case:
    """Two layers of different size that share one warehouse."""

    rank: int = 2
    kernel_sizes: tuple[tuple[int, ...], tuple[int, ...]] = ((2, 1), (1, 2))
    groups: int = 1
    ratio: float = 1.0
    in_ratio: float = 1.0
    out_ratio: float = 1.0
    spatial_partition: bool = True
    norm: str = "batch"
    bias: bool = False
    assignment: float = 0.0
    nonlocal_basis_ratio: float = 1.0
    batch: int = 3

    @property
    def sharing(self) -> dict[str, Any]:
        """The options of the warehouse, the same in both frameworks."""
        return dict(
            ratio=self.ratio,
            in_ratio=self.in_ratio,
            out_ratio=self.out_ratio,
            spatial_partition=self.spatial_partition,
            assignment=self.assignment,
        )

    def inputs(self, rng) -> np.ndarray:
        """Draws an input, channels last."""
        return rng.normal(size=(self.batch, *(6, 5, 4)[: self.rank], 4))


class PlainStore(torch.nn.Module):
    """The cells and τ."""

    def __init__(self, shape, assignment: float):
        super().__init__()
        self.cells = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("assignment", torch.tensor(assignment).double())


class PlainAttention(torch.nn.Module):
    """What holds the parameters; `PlainLayer` computes with them."""

    def __init__(self, channels, norm, tiles, cells, own, basis_ratio):
        super().__init__()
        hidden = max(int(channels / 16), 16)
        self.fc1 = torch.nn.Linear(channels, hidden, bias=norm != "batch")
        if norm == "batch":
            self.norm1 = torch.nn.BatchNorm1d(hidden)
        elif norm == "layer":
            self.norm1 = torch.nn.LayerNorm(hidden)
        if basis_ratio < 1:
            basis = max(int((cells - own) * basis_ratio), 16)
            self.fc2 = torch.nn.Linear(hidden, tiles * (own + basis + 1), bias=False)
            self.fc3 = torch.nn.Linear(basis, cells - own, bias=False)
            self.basis_bias = torch.nn.Parameter(torch.zeros(tiles * (cells + 1)))
        else:
            self.fc2 = torch.nn.Linear(hidden, tiles * (cells + 1))
        self.double()


class PlainLayer(torch.nn.Module):
    """One layer, sample by sample and tile by tile."""

    def __init__(self, shape, case, cell_shape, num_cells, assigned, start, options):
        super().__init__()
        self.start, self.own = start, int(len(assigned) * case.ratio)
        self.shape, self.cell_shape, self.num_cells = shape, cell_shape, num_cells
        self.assigned, self.options, self.norm = assigned, options, case.norm
        channels = shape[1] * options["groups"]
        sizes = len(assigned), num_cells, self.own, case.nonlocal_basis_ratio
        self.attention = PlainAttention(channels, case.norm, *sizes)
        bias = torch.zeros(shape[0], dtype=torch.float64) if case.bias else None
        self.bias = None if bias is None else torch.nn.Parameter(bias)

    def hidden(self, x):
        """The normalised features (B, H) of the attention."""
        linear = self.attention.fc1
        rows = []
        for sample in x:
            pooled = torch.stack([channel.mean() for channel in sample])
            row = linear.weight @ pooled
            rows.append(row if linear.bias is None else row + linear.bias)
        rows = torch.stack(rows)
        if self.norm == "none":
            return rows
        norm: Any = self.attention.norm1
        if self.norm == "layer":
            mean = rows.mean(1, keepdim=True)
            var = ((rows - mean) ** 2).mean(1, keepdim=True)
        elif self.training:
            mean = rows.mean(0)
            var = ((rows - mean) ** 2).mean(0)
            count = len(rows)
            with torch.no_grad():
                norm.running_mean.mul_(0.9).add_(0.1 * mean)
                norm.running_var.mul_(0.9).add_(0.1 * var * count / (count - 1))
                norm.num_batches_tracked.add_(1)
        else:
            mean, var = norm.running_mean, norm.running_var
        return (rows - mean) / torch.sqrt(var + 1e-5) * norm.weight + norm.bias

    def logits(self, hidden):
        """Each tile's numbers (n + 1) before they are normalised."""
        linear = self.attention.fc2
        if linear.bias is not None:
            return (linear.weight @ hidden + linear.bias).split(self.num_cells + 1)
        tiles = []
        biases = self.attention.basis_bias.split(self.num_cells + 1)
        for rows, bias in zip(linear.weight.chunk(len(biases)), biases, strict=True):
            numbers = list(rows @ hidden)
            own, basis = numbers[: self.own], torch.stack(numbers[self.own : -1])
            entries = [row @ basis for row in self.attention.fc3.weight]
            for offset, number in enumerate(own):
                entries.insert(self.start + offset, number)
            tiles.append(torch.stack([*entries, numbers[-1]]) + bias)
        return tiles

    def forward(self, x, store):
        """Convolves each sample with the kernel that its tiles make."""
        outputs = []
        own = torch.eye(self.num_cells, dtype=torch.float64)
        for sample, hidden in zip(x, self.hidden(x), strict=True):
            hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
            z = self.logits(hidden)
            kernel = torch.zeros(self.shape, dtype=torch.float64)
            co, ci, *size = self.cell_shape
            shape = (self.num_cells, *[1] * len(self.cell_shape))
            steps = [
                range(k // cell) for k, cell in zip(self.shape[2:], size, strict=True)
            ]
            tiles = itertools.product(
                list(itertools.product(*steps)),
                range(self.shape[0] // co),
                range(self.shape[1] // ci),
            )
            for tile, (position, out, into) in enumerate(tiles):
                attention = z[tile] / (z[tile].abs().sum() + 1e-3)
                weights = (1 - store.assignment) * attention[:-1]
                if self.assigned[tile] < self.num_cells:
                    weights = weights + store.assignment * own[self.assigned[tile]]
                mixed = (weights.reshape(shape) * store.cells).sum(0)
                window = [
                    slice(p * k, (p + 1) * k)
                    for p, k in zip(position, size, strict=True)
                ]
                place = slice(out * co, out * co + co), slice(into * ci, into * ci + ci)
                kernel[(*place, *window)] = mixed
            conv = getattr(F, f"conv{len(size)}d")
            outputs.append(conv(sample[None], kernel, self.bias, **self.options))
        return torch.cat(outputs)


class PlainPair(torch.nn.Module):
    """The same pair, from the equations alone."""

    def __init__(self, case: Case):
        super().__init__()
        first, second = case.kernel_sizes
        shapes = [(8, 4, *first), (6, 8 // case.groups, *second)]
        co = int(math.gcd(8, 6) * case.out_ratio)
        ci = int(math.gcd(4, 8 // case.groups) * case.in_ratio)
        size = [1] * case.rank if case.spatial_partition else first
        counts = [math.prod(shape) // (co * ci * math.prod(size)) for shape in shapes]
        num_cells = int(case.ratio * sum(counts))
        assigned: list[list[int]] = []
        starts = []
        start = 0
        for count in counts:
            own = []
            for tile in range(count):
                if case.ratio >= 1:
                    own.append(start + tile * int(case.ratio))
                    continue
                block = int(1 / case.ratio)
                on_diagonal = tile % block == (tile // block) % block
                own.append(start + tile // block if on_diagonal else num_cells)
            assigned.append(own)
            starts.append(start)
            start += int(count * case.ratio)
        self.warehouse = PlainStore((num_cells, co, ci, *size), case.assignment)
        cell_shape = (co, ci, *size)
        shared = case, cell_shape, num_cells
        self.first = PlainLayer(
            shapes[0], *shared, assigned[0], starts[0], dict(padding=1, groups=1)
        )
        self.second = PlainLayer(
            *(shapes[1], *shared, assigned[1], starts[1]),
            dict(stride=2, groups=case.groups),
        )

    def forward(self, x):
        """Applies both layers."""
        return self.second(self.first(x, self.warehouse), self.warehouse)
