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

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer, PromoteDtypeFn
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.checks import check_choice, check_dtypes
from dynconv_jax.functional.choice import check_implementation
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import keep_wide
from dynconv_jax.functional.per_sample import add_bias, per_sample_conv
from dynconv_jax.functional.tiling import Share, Tiling, assemble_kernels
from dynconv_jax.gating import record_attention
from dynconv_jax.initializers import INITS
from dynconv_jax.layers.cell_attention import CellAttention
from dynconv_jax.layers.convolution import Convolution
from dynconv_jax.scheduled import HoldsScheduled, Scheduled, set_scheduled

default_bias_init = nnx.initializers.zeros_init()


class Assignment(Scheduled):
    """τ, how much of each tile is its assigned cell; `set_assignment` writes it.

    Example:
        >>> float(Assignment.create(0.5)[...])
        0.5
    """

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
    a `WarehouseConv`. Li & Yao, "KernelWarehouse: Rethinking the Design of Dynamic
    Convolution", ICML 2024. A model keeps the warehouse as an attribute; weights and
    checkpoints have the cells there. `with_warehouses` does all this for whole models.

    Cells are drawn from Kaiming's normal distribution (fan-out, ReLU), each as a part
    of the kernel of the layer that it is assigned to, so that with τ = 1 every layer
    starts as a static convolution would.

    Attributes:
        cells: Shape (n, *cell, ci, co).
        assignment: τ, a scalar `Assignment`; write it with `set_assignment`.
        tiling: Which layer has how many tiles, and which cells they are assigned.

    Example:
        >>> from dynconv_jax.functional import Geometry
        >>> geometries = [Geometry.create(4, 8, (3, 3)), Geometry.create(8, 8, (3, 3))]
        >>> warehouse = KernelWarehouse(geometries, rngs=nnx.Rngs(0))
        >>> warehouse.cells.shape
        (27, 1, 1, 4, 8)
    """

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
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
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
            param_dtype: The dtype of the cells.
            rngs: Where the initial cells come from.

        Raises:
            ValueError: If the layers cannot share cells, or a value is out of range.
        """
        Assignment.check(assignment)
        check_choice("init", init, INITS)
        check_dtypes(param_dtype=param_dtype)
        check_rngs(rngs)
        self.tiling = Tiling.create(
            geometries,
            ratio=ratio,
            in_ratio=in_ratio,
            out_ratio=out_ratio,
            spatial_partition=spatial_partition,
        )
        self.param_dtype = param_dtype
        deviations = jnp.asarray(self.tiling.deviations(init), param_dtype)
        shape = (self.tiling.num_cells, *self.tiling.cell_shape)
        drawn = jax.random.normal(rngs.params(), shape, param_dtype)
        axes = tuple(range(1, len(shape)))
        self.cells = nnx.Param(drawn * jnp.expand_dims(deviations, axes))
        self.assignment = Assignment.create(assignment)
        self.built: tuple[int, ...] = ()

    def _free_index(self, index: int | None) -> int:
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

    def _mark_built(self, index: int) -> None:
        """Notes that a layer was built, so that no other is built in its place."""
        self.built = (*self.built, index)


class WarehouseConv(Convolution):
    """A convolution whose kernel is tiled, for every sample, with mixed cells.

    It is one of the layers that a `KernelWarehouse` was made for. The warehouse is no
    part of it for weights: `to_torch_state_dict` lists the cells once, where a model
    keeps the warehouse, and refuses a model that does not.

    Attributes:
        attention: The `CellAttention`; `mixture` calls it and applies τ.
        bias: Shape (O,), the same for all samples, or None.

    Example:
        >>> from dynconv_jax.functional import Geometry
        >>> geometry = Geometry.create(3, 8, (3, 3), strides=2, padding=1)
        >>> warehouse = KernelWarehouse([geometry], rngs=nnx.Rngs(0))
        >>> layer = WarehouseConv(warehouse, rngs=nnx.Rngs(1))
        >>> images = jnp.ones((2, 9, 7, 3))
        >>> layer(images).shape
        (2, 5, 4, 8)
        >>> layer.mixture(images).shape
        (2, 9, 9)
    """

    # Before the arguments meet the signature of `__init__`, which would say of those of
    # an `nnx.Conv` only that they are too many.
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
                "`KernelWarehouse([Geometry.create(3, 8, (3, 3))], rngs=rngs)`, or a "
                "whole model by `with_warehouses`"
            )
        return super().__new__(cls)

    def __init__(
        self,
        warehouse: KernelWarehouse,
        index: int | None = None,
        *,
        use_bias: bool = False,
        reduction: int = 16,
        norm: str = "batch",
        nonlocal_basis_ratio: float = 1.0,
        implementation: str = "auto",
        dtype: DTypeLike | None = None,
        precision: lax.PrecisionLike = None,
        bias_init: Initializer = default_bias_init,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the layer; geometry and `param_dtype` are those of the warehouse.

        Args:
            warehouse: Where the cells are.
            index: Which of the warehouse's layers this is; None takes the next one.
            use_bias: Whether there is a bias.
            reduction: The hidden layer of the attention has max(16, C // reduction)
                units.
            norm: What normalises them: `"batch"`, as published, which needs two samples
                to train, `"layer"`, or `"none"`.
            nonlocal_basis_ratio: Below 1 the attention for the cells of other layers is
                mixed from as many numbers, this times their number, and 16 at least.
                It saves parameters where many layers share.
            implementation: How to convolve: `"auto"`, `"patches"`, `"rows"`, `"scan"`,
                `"taps"` (depthwise) or `"vmap"`; see `per_sample_conv`.
            dtype: The dtype of the computation; None infers it from the input and the
                parameters. The attention is computed in float32 at least.
            precision: As in `jax.lax.conv_general_dilated`.
            bias_init: Initialises the bias.
            promote_dtype: As in `nnx.Conv`: takes the tuple (inputs, cells, bias).
            preferred_element_type: As in `nnx.Conv`.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range, or the layer was built before.
        """
        check_dtypes(
            dtype=dtype,
            preferred_element_type=preferred_element_type,
            optional=("dtype", "preferred_element_type"),
        )
        check_rngs(rngs)
        self.index = warehouse._free_index(index)
        self._warehouse = warehouse
        geometry = self.share.geometry
        check_implementation(implementation, geometry, has_experts=False)
        self._take_geometry(geometry)
        self.use_bias = use_bias
        self.implementation = implementation
        self.dtype = dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        param_dtype = warehouse.param_dtype
        self.attention = CellAttention(
            geometry.in_features,
            len(self.share.assigned),
            warehouse.tiling.num_cells,
            start=self.share.start,
            num_own=self.share.num_own,
            reduction=reduction,
            norm=norm,
            nonlocal_basis_ratio=nonlocal_basis_ratio,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        self.bias: nnx.Param[jax.Array] | None
        if use_bias:
            shape = (geometry.out_features,)
            self.bias = nnx.Param(bias_init(rngs.params(), shape, param_dtype))
        else:
            self.bias = nnx.data(None)
        warehouse._mark_built(self.index)

    @property
    def warehouse(self) -> KernelWarehouse:
        """Where the cells are."""
        return self._warehouse

    @property
    def share(self) -> Share:
        """What the layer takes from the warehouse."""
        return self._warehouse.tiling.shares[self.index]

    def mixture(self, inputs: jax.Array) -> jax.Array:
        """Returns how much of each cell is in each tile of the kernel.

        Args:
            inputs: Shape (*batch, *S, C).

        Returns:
            α, shape (*batch, M, n).

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        flat, batch = self._flatten_batch(inputs)
        mixture = self._mix(flat)
        return mixture.reshape(*batch, *mixture.shape[1:])

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (*batch, *S, C), with any number of batch dimensions, also
                none.

        Returns:
            Shape (*batch, *S_out, O).

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        flat, batch = self._flatten_batch(inputs)
        mixture = self._mix(flat)
        record_attention(self, mixture, "mixture")
        bias = None if self.bias is None else self.bias[...]
        stored = self._warehouse.cells[...]
        flat, cells, bias = self.promote_dtype((flat, stored, bias), dtype=self.dtype)
        if self.promote_dtype is dtypes.promote_dtype:  # which only casts
            cells = keep_wide(stored, cells)
        kernel = assemble_kernels(
            mixture, cells, self.share, dtype=flat.dtype, precision=self.precision
        )
        outputs = per_sample_conv(
            flat,
            kernel,
            **self._geometry_options,
            implementation=self.implementation,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )
        outputs = add_bias(outputs, None if bias is None else bias[None])
        return outputs.reshape(*batch, *outputs.shape[1:])

    def _mix(self, inputs: jax.Array) -> jax.Array:
        """Returns α (B, M, n): the attention and the assigned cells, without zero."""
        attention = self.attention(inputs)[..., :-1]
        strength = self._warehouse.assignment[...].astype(attention.dtype)
        assigned = jnp.asarray(self.share.assigned)[:, None]
        is_assigned = assigned == jnp.arange(attention.shape[-1])[None]
        cells = is_assigned.astype(attention.dtype)[None]
        return (1 - strength) * attention + strength * cells


def set_assignment(module: nnx.Module, value: ArrayLike) -> None:
    """Sets τ of every warehouse in `module`, in place.

    The value may be traced, so that a schedule inside a jitted step causes no
    recompilation.

    Args:
        module: A warehouse, a layer or a whole model.
        value: The new τ in [0, 1]: 1 gives every tile its assigned cell, whatever the
            input, and 0 what the attention says.

    Raises:
        ValueError: If the value is out of range, or `module` has no warehouse.

    Example:
        >>> from dynconv_jax.functional import Geometry
        >>> geometries = [Geometry.create(4, 8, (3, 3))]
        >>> warehouse = KernelWarehouse(geometries, rngs=nnx.Rngs(0))
        >>> set_assignment(warehouse, 0.5)
        >>> float(warehouse.assignment[...])
        0.5
    """
    if not set_scheduled(module, Assignment, value):
        raise ValueError(f"`module` (a {type(module).__name__}) contains no warehouse")
