"""KernelWarehouse: layers whose kernels are tiled with mixtures of shared cells.

    a = the attention of the layer (`cell_attention.py`)    (B, M, n + 1)
    α = (1 − τ) · a + τ · β, its last entry cut             (B, M, n)
    W(x_i) = the M tiles Σ_j α_imj cell_j, laid together
    y_i = conv(x_i, W(x_i)) + b

n cells serve several layers, M tiles make the kernel of this one. β assigns each tile a
cell of its own, or the zero cell, which is the entry that is cut (`tiling.py`).
Training moves τ from 1 to 0, so that it starts from static kernels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice, check_dtype
from dynconv_torch.functional.choice import check_implementation
from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.per_sample import add_bias, per_sample_conv
from dynconv_torch.functional.tiling import Share, Tiling, assemble_weights
from dynconv_torch.functional.tracing import constant
from dynconv_torch.initializers import INITS
from dynconv_torch.layers.cell_attention import CellAttention
from dynconv_torch.layers.convolution import ConvolutionNd, as_one_kernel
from dynconv_torch.scheduled import HoldsScheduled, Scheduled, set_scheduled


class Assignment(Scheduled):
    """τ, how much of each tile is its assigned cell; `set_assignment` writes it."""

    name = "assignment"
    requirement = "one number in [0, 1]: 0 takes the attention, 1 the assigned cells"
    setter = "set_assignment"

    @classmethod
    def accepts(cls, value: float) -> bool:
        """Whether `value` is in [0, 1]."""
        return 0 <= value <= 1


class KernelWarehouse(HoldsScheduled):
    """The cells that several layers tile their kernels with.

    It knows its layers from the start, by their geometries; each is then built once, as
    a `WarehouseConv2d` or of another rank. Li & Yao, "KernelWarehouse: Rethinking the
    Design of Dynamic Convolution", ICML 2024. A model must keep the warehouse as a
    submodule: its layers know it, but do not hold it. `with_warehouses` does all this
    for whole models.

    Cells are drawn from Kaiming's normal distribution (fan-out, ReLU), each as a part
    of the kernel of the layer that it is assigned to, so that with τ = 1 every layer
    starts as a static convolution would.

    Attributes:
        cells: Shape (n, co, ci, *cell).
        assignment: τ, a scalar buffer; write it with `set_assignment`.
        tiling: Which layer has how many tiles, and which cells they are assigned.

    Example:
        >>> from dynconv_torch.functional import Geometry
        >>> geometries = [Geometry.create(c, 8, 3, rank=2) for c in (4, 8)]
        >>> warehouse = KernelWarehouse(geometries)
        >>> warehouse.cells.shape
        torch.Size([27, 8, 4, 1, 1])
    """

    assignment: Tensor

    def __init__(
        self,
        geometries: Sequence[Geometry],
        *,
        ratio: float = 1.0,
        in_ratio: float = 1.0,
        out_ratio: float = 1.0,
        spatial_partition: bool = True,
        assignment: float = 0.0,
        init: Literal["default", "published"] = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Plans and draws the cells.

        Args:
            geometries: The convolutions that share the cells, in the order in which
                their layers are built.
            ratio: The number of cells over that of tiles in all layers: a whole number,
                or one over one. It is the parameter budget: with 1 about as many as the
                static layers have.
            in_ratio: The in-planes of a cell over the largest that fit all layers.
            out_ratio: The out-planes of a cell over the largest that fit all layers.
            spatial_partition: Whether a cell is one tap of a window, or else a whole
                window, which must then be the same in all layers.
            assignment: The initial τ. Published checkpoints are evaluated with 0, and
                published trainings start from 1, with which attention learns nothing.
            init: How the cells are drawn: `"default"`, as said above, or `"published"`,
                as the authors do. With `ratio` 1 the two are one where a cell has all
                in-planes of its layer, and that no groups; else theirs are narrower.
            device: Where the cells are.
            dtype: The dtype of the cells.

        Raises:
            ValueError: If the layers cannot share cells, or a value is out of range.
        """
        super().__init__()
        check_dtype(dtype)
        check_choice("init", init, INITS)
        self.init = init
        self.tiling = Tiling.create(
            geometries,
            ratio=ratio,
            in_ratio=in_ratio,
            out_ratio=out_ratio,
            spatial_partition=spatial_partition,
        )
        shape = (self.tiling.num_cells, *self.tiling.cell_shape)
        self.cells = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.hold_scheduled(Assignment, assignment, self.cells.device)
        self.built: tuple[int, ...] = ()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the cells, each for the layer that it is assigned to."""
        nn.init.normal_(self.cells)
        deviations = self.cells.new_tensor(self.tiling.deviations(self.init))
        with torch.no_grad():
            self.cells.mul_(deviations.view(-1, *(1,) * (self.cells.ndim - 1)))

    def free_index(self, index: int | None) -> int:
        """Returns the index of a layer that is not built yet, the next one if None.

        Raises:
            ValueError: If there is no such layer, or it was built before.
        """
        count = len(self.tiling.shares)
        if index is None:
            free = [each for each in range(count) if each not in self.built]
            if not free:
                raise ValueError(f"all {count} layers of the warehouse were built")
            index = free[0]
        if not 0 <= index < count:
            raise ValueError(
                f"`index` (={index}) must be that of one of the {count} layers that "
                "the warehouse was made for"
            )
        if index in self.built:
            raise ValueError(
                f"layer {index} of the warehouse was built before, and its cells are "
                "assigned; give the warehouse one more geometry, or share that layer"
            )
        return index

    def mark_built(self, index: int) -> None:
        """Notes that a layer was built, so that no other is built in its place."""
        self.built = (*self.built, index)

    def extra_repr(self) -> str:
        """Returns what the warehouse holds, for its `repr`."""
        return (
            f"{self.tiling.num_cells} cells of {self.tiling.cell_shape} for "
            f"{len(self.tiling.shares)} layers"
        )

    def _apply(self, fn, recurse=True):
        return super()._apply(as_one_kernel(fn, self.cells.shape), recurse)


class WarehouseConvNd(ConvolutionNd):
    """What the layers of a warehouse share, whatever their rank."""

    # Before the arguments meet the signature of `__init__`, which would say of those of
    # a `torch.nn.Conv2d` only that they are too many.
    def __new__(cls, *arguments: Any, **options: Any):
        """Refuses what is built without a warehouse, as other layers are."""
        first = arguments[0] if arguments else options.get("warehouse")
        # Without any, it is a copy that is made.
        if (arguments or options) and not isinstance(first, KernelWarehouse):
            is_short = first is None or isinstance(first, int)
            what = f"={first!r}" if is_short else f"a {type(first).__name__}"
            raise TypeError(
                f"`warehouse` ({what}) must be a KernelWarehouse, whose cells the "
                "kernel is made of; build one for all geometries that share it, "
                "`KernelWarehouse([Geometry.create(3, 8, 3, rank=2)])`, or a whole "
                "model by `with_warehouses`"
            )
        return super().__new__(cls)

    def __init__(
        self,
        warehouse: KernelWarehouse,
        index: int | None = None,
        *,
        bias: bool = False,
        reduction: int = 16,
        norm: str = "batch",
        nonlocal_basis_ratio: float = 1.0,
        implementation: str = "auto",
    ):
        """Builds the layer; geometry, device and dtype are those of the warehouse.

        Args:
            warehouse: Where the cells are.
            index: Which of the warehouse's layers this is; None takes the next one.
            bias: Whether there is a bias, the same for all samples.
            reduction: The hidden layer of the attention has max(16, C // reduction)
                units.
            norm: What normalises them: `"batch"`, as published, which needs two samples
                to train, `"layer"`, or `"none"`.
            nonlocal_basis_ratio: Below 1 the attention for the cells of other layers is
                mixed from as many numbers, this times their number, and 16 at least.
                It saves parameters where many layers share.
            implementation: How to convolve: `"auto"`, `"loop"`, `"grouped"` or
                `"patches"`; see `per_sample_conv`.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range, the layer was built before, or is of
                another rank.
        """
        super().__init__()
        rank = warehouse.tiling.shares[0].geometry.rank
        if rank != self.rank:
            raise ValueError(
                f"`warehouse` is for layers of rank {rank}, not {self.rank}; build a "
                f"WarehouseConv{rank}d"
            )
        check_implementation(implementation, has_experts=False)
        self.index = warehouse.free_index(index)
        self._warehouse = (warehouse,)  # in a tuple: known, but no submodule
        geometry = self.share.geometry
        self.take_geometry(geometry)
        self.implementation = implementation
        where: dict[str, Any] = dict(
            device=warehouse.cells.device, dtype=warehouse.cells.dtype
        )
        self.attention = CellAttention(
            geometry.in_channels,
            len(self.share.assigned),
            warehouse.tiling.num_cells,
            start=self.share.start,
            num_own=self.share.num_own,
            reduction=reduction,
            norm=norm,
            nonlocal_basis_ratio=nonlocal_basis_ratio,
            **where,
        )
        zeros = torch.zeros(self.out_channels, **where) if bias else None
        self.register_parameter("bias", None if zeros is None else nn.Parameter(zeros))
        warehouse.mark_built(self.index)

    @property
    def warehouse(self) -> KernelWarehouse:
        """Where the cells are."""
        return self._warehouse[0]

    @property
    def share(self) -> Share:
        """What the layer takes from the warehouse."""
        return self.warehouse.tiling.shares[self.index]

    def mixture(self, x: Tensor) -> Tensor:
        """Returns how much of each cell is in each tile of the kernel.

        Args:
            x: Shape (B, C, *S), or (C, *S).

        Returns:
            α, shape (B, M, n), or (M, n).

        Raises:
            ValueError: If the input does not fit the layer.
        """
        if self.is_unbatched(x):
            return self.mixture(x[None])[0]
        attention = self.attention(x)[..., :-1]
        strength = self.warehouse.assignment.to(attention.dtype)
        assigned = constant(self.share.assigned, x.device)[:, None]
        own = assigned == torch.arange(attention.shape[-1], device=x.device)
        return (1 - strength) * attention + strength * own

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, *S), or (C, *S) for one sample without a batch.

        Returns:
            Shape (B, O, *S_out), or (O, *S_out).

        Raises:
            ValueError: If the input does not fit the layer.
        """
        if self.is_unbatched(x):
            return self.forward(x[None])[0]
        output = per_sample_conv(
            x,
            assemble_weights(self.mixture(x), self.warehouse.cells, self.share),
            **self.geometry_options,
            implementation=self.implementation,
        )
        return add_bias(output, None if self.bias is None else self.bias[None])

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        return f"{super().extra_repr()}, index={self.index}"


class WarehouseConv1d(WarehouseConvNd):
    """A 1-D convolution whose kernel is tiled, for every sample, with mixed cells.

    See `WarehouseConv2d`.

    Example:
        >>> from dynconv_torch.functional import Geometry
        >>> warehouse = KernelWarehouse([Geometry.create(4, 8, 3, rank=1)])
        >>> WarehouseConv1d(warehouse)(torch.ones(2, 4, 10)).shape
        torch.Size([2, 8, 8])
    """

    rank = 1


class WarehouseConv2d(WarehouseConvNd):
    """A 2-D convolution whose kernel is tiled, for every sample, with mixed cells.

    It is one of the layers that a `KernelWarehouse` was made for. The warehouse is no
    submodule of it: a model keeps the warehouse once, for all of its layers. A model
    that does not have it as an attribute has a `state_dict` without cells and τ, is
    moved and cast without them, and gives an optimizer no cells to train.

    Attributes:
        attention: The `CellAttention`; `mixture` calls it and applies τ.
        bias: Shape (O,), the same for all samples, or None.

    Example:
        >>> from dynconv_torch.functional import Geometry
        >>> geometry = Geometry.create(3, 8, 3, rank=2, stride=2, padding=1)
        >>> layer = WarehouseConv2d(KernelWarehouse([geometry]))
        >>> images = torch.ones(2, 3, 9, 7)
        >>> layer(images).shape
        torch.Size([2, 8, 5, 4])
        >>> layer.mixture(images).shape
        torch.Size([2, 9, 9])
    """

    rank = 2


class WarehouseConv3d(WarehouseConvNd):
    """A 3-D convolution whose kernel is tiled, for every sample, with mixed cells.

    See `WarehouseConv2d`.

    Example:
        >>> from dynconv_torch.functional import Geometry
        >>> warehouse = KernelWarehouse([Geometry.create(4, 8, 1, rank=3)])
        >>> WarehouseConv3d(warehouse)(torch.ones(2, 4, 4, 3, 2)).shape
        torch.Size([2, 8, 4, 3, 2])
    """

    rank = 3


def set_assignment(module: nn.Module, value: float | Tensor) -> None:
    """Sets τ of every warehouse in `module`, in place.

    Args:
        module: A warehouse, or a model that holds some.
        value: The new τ in [0, 1]: 1 gives every tile its assigned cell, whatever the
            input, and 0 what the attention says.

    Raises:
        ValueError: If the value is out of range, or `module` has no warehouse.

    Example:
        >>> from dynconv_torch.functional import Geometry
        >>> warehouse = KernelWarehouse([Geometry.create(4, 8, 3, rank=2)])
        >>> set_assignment(warehouse, 0.5)
        >>> float(warehouse.assignment)
        0.5
    """
    if not set_scheduled(module, Assignment, value):
        raise ValueError(f"`module` (a {type(module).__name__}) contains no warehouse")
