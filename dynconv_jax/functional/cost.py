"""A model of what each way to compute a dynamic convolution costs.

The time of forward and backward is taken to be a sum of a few kinds of work, each at a
rate of its own: the arithmetic of the products; the bytes of gathered windows, of mixed
kernels, of the experts' outputs and of the images themselves; the steps of a loop.
Bytes are cheaper while what a step works on stays in cache. `python -m benchmarks.fit`
fits the rates, which are data (`chips.py`), and prints the residuals.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from dynconv_jax.functional.chips import KINDS, PLATFORMS, Chip, memory_of
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.groups import group_geometry
from dynconv_jax.functional.pallas.by_platform import form_for, pallas_cycles
from dynconv_jax.functional.rows import kernel_rows

# Sizes that are not known when the program is traced are taken to be this large: that
# of the batch, and those of the images.
_TYPICAL_BATCH = 32
_TYPICAL_SIZE = 28

# Forms with a gradient rule of their own, which holds for one gradient in reverse mode.
_WITH_RULES = (
    *("taps", "looped taps", "batched taps", "experts by convolution"),
    *map(form_for, PLATFORMS),
)
# Forms that `jax.vmap` cannot map, or makes slow.
_NOT_MAPPED = (
    *("row_conv", "experts by convolution", "vmap"),
    *map(form_for, PLATFORMS),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to compute a dynamic convolution.

    Attributes:
        form: The form, by its name in `forms.py`, or `"experts"`, `"experts by
            convolution"` or `"pallas"` on a platform, which need the attention.
        chunk: How many samples a step of the scan takes; None takes all at once.
        by_sums: Whether kernels are mixed by multiples that are added up, which a
            compiler may compute wherever they are read, and not by a product, whose
            result lies in memory. What compiles for TPUs does, and is ahead.
    """

    form: str
    chunk: int | None = None
    by_sums: bool = False

    @property
    def implementation(self) -> str:
        """The name under which it is asked for."""
        if self.chunk is not None:
            return "scan"
        named = {
            "looped taps": "taps",
            "batched taps": "taps",
            "experts by convolution": "experts",
        }
        named |= dict.fromkeys(map(form_for, PLATFORMS), "pallas")
        return named.get(self.form, self.form)

    @property
    def plain(self) -> "Plan":
        """A plan for the same without a gradient rule of its own."""
        return Plan("patches") if self.form in _WITH_RULES else self

    @property
    def mappable(self) -> "Plan":
        """A plan for the same that `jax.vmap` maps well."""
        return Plan("patches") if self.form in _NOT_MAPPED else self

    @property
    def gathers(self) -> bool:
        """Whether it brings all samples of a sharded batch to every device."""
        return self.chunk is not None or self.form in (
            *("vmap", "looped taps", "row_conv"),
        )

    def __str__(self) -> str:
        if self.chunk is None:
            return self.form
        return f"scan of {self.form}, {self.chunk} samples a step"


def _typical_size(geometry: Geometry, spatial: Sequence[int]) -> tuple[int, ...]:
    """Returns the spatial size, with a number that the window fits for any symbol."""
    pads = geometry.pads((_TYPICAL_SIZE,) * geometry.rank)
    return tuple(
        size if isinstance(size, int) else max(_TYPICAL_SIZE, extent - low - high)
        for size, extent, (low, high) in zip(
            spatial, geometry.extent, pads, strict=True
        )
    )


def devices_of_a_batch(device_count: int | None = None) -> int:
    """Returns over how many devices a batch may be spread.

    Along the axes of the mesh in use that are `Manual`, inside of `jax.shard_map`, a
    batch is what one device has of it.

    Args:
        device_count: How many devices the program is for, where no mesh is in use; None
            takes those that this process sees.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() if device_count is None else device_count
    return mesh.size // math.prod(mesh.shape[name] for name in mesh.manual_axes)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What there is to compute, and where.

    Attributes:
        geometry: The convolution.
        spatial: The spatial size of the input, typical where it is not known.
        batch: B, or None where it is not known.
        num_experts: K, or None where every sample brings its own kernel.
        itemsize: The bytes of a number.
        chip: What it is computed on.
        device_count: Over how many devices the batch may be spread.
        has_kernels: Whether the kernels of Pallas for the chip can compute it.
        is_sized: Whether all spatial sizes are known.
    """

    geometry: Geometry
    spatial: tuple[int, ...]
    batch: int | None
    num_experts: int | None
    itemsize: int
    chip: Chip
    device_count: int
    has_kernels: bool = False
    is_sized: bool = True

    @classmethod
    def of(
        cls,
        inputs: jax.Array | jax.ShapeDtypeStruct,
        geometry: Geometry,
        num_experts: int | None = None,
        *,
        chip: Chip,
        device_count: int | None = None,
    ) -> "Problem":
        """Returns the problem of convolving `inputs` (B, *S, C) on a chip.

        Args:
            inputs: The inputs, or their shape and dtype.
            geometry: The convolution.
            num_experts: K, or None where every sample brings its own kernel.
            chip: The chip.
            device_count: As in `devices_of_a_batch`.
        """
        batch = inputs.shape[0]
        return cls(
            geometry=geometry,
            spatial=_typical_size(geometry, inputs.shape[1:-1]),
            batch=batch if isinstance(batch, int) else None,
            num_experts=num_experts,
            itemsize=inputs.dtype.itemsize,
            chip=chip,
            device_count=devices_of_a_batch(device_count),
            is_sized=all(isinstance(size, int) for size in inputs.shape[1:-1]),
        )

    @property
    def may_loop(self) -> bool:
        """Whether a loop over the samples is harmless.

        It gathers a batch that is sharded over devices, and needs to know its size; and
        only a CPU computes a few samples as fast as many.
        """
        return self.is_local and self.chip.platform == "cpu"

    @property
    def is_local(self) -> bool:
        """Whether the whole batch lies on one device, and its size is known."""
        return self.device_count == 1 and self.batch is not None

    @property
    def samples(self) -> int:
        """The batch size, or a typical one."""
        return _TYPICAL_BATCH if self.batch is None else self.batch


@dataclasses.dataclass(frozen=True)
class Work:
    """How much of each kind of work a plan does, forward and backward.

    Attributes:
        arithmetic: Gflop of products.
        thin_arithmetic: Gflop of products of channel groups, which are thin.
        taps: Gflop of shifted multiply-adds.
        windows: GB of windows and partial sums, written or read.
        cached_windows: The same, where a step's share is in cache.
        kernels: GB of mixed kernels and their gradients.
        cached_kernels: The same, where a step's share is in cache.
        experts: GB of the experts and of the sums of their gradients.
        outputs: GB of the outputs of all experts.
        images: GB of inputs and outputs.
        cycles: Gcycles of kernels of our own, by their own estimate.
        steps: Steps of a loop.
        memory: GB that live at the same time. On a CPU the system gives them page by
            page, and clears each page.
    """

    arithmetic: float = 0.0
    thin_arithmetic: float = 0.0
    taps: float = 0.0
    windows: float = 0.0
    cached_windows: float = 0.0
    kernels: float = 0.0
    cached_kernels: float = 0.0
    experts: float = 0.0
    outputs: float = 0.0
    images: float = 0.0
    cycles: float = 0.0
    steps: float = 0.0
    memory: float = 0.0

    def seconds(self, rates: Mapping[str, float]) -> float:
        """Returns the time that the work takes."""
        return sum(getattr(self, kind) * rates[kind] for kind in KINDS)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a plan is expected to cost, forward and backward.

    Attributes:
        plan: The plan.
        milliseconds: The time.
        gigabytes: The memory that lives at the same time.
        fits: Whether the machine has that memory.
    """

    plan: Plan
    milliseconds: float
    gigabytes: float
    fits: bool


def estimate(problem: Problem, plan: Plan) -> Estimate:
    """Estimates a plan of `choice.plans(problem)`."""
    chip = problem.chip
    work = work_of(problem, plan, chip.cache)
    seconds = work.seconds(chip.rates_of(plan.form))
    fits = 1e9 * work.memory <= memory_of(chip)
    return Estimate(plan, 1e3 * seconds, work.memory, fits)


def work_of(problem: Problem, plan: Plan, cache: float) -> Work:
    """Returns the work of a plan.

    Args:
        problem: What there is to compute.
        plan: One of `choice.plans(problem)`.
        cache: The GB of cache.
    """
    geometry, batch = problem.geometry, problem.samples
    experts = problem.num_experts or 0  # none: every sample brings its own kernel
    each = 1e-9 * problem.itemsize  # GB of a number
    pixels = math.prod(geometry.output_size(problem.spatial))
    outputs = pixels * geometry.out_features
    kernel = math.prod(geometry.kernel_shape) * each
    # The channels of an image are filled up to whole lanes of the chip.
    lanes = problem.chip.lanes
    inputs = math.prod(problem.spatial) * _filled(geometry.in_features, lanes)
    images = inputs + pixels * _filled(geometry.out_features, lanes)
    images *= batch * each

    is_kernel = plan.implementation == "pallas"
    if plan.implementation == "taps" or (is_kernel and geometry.is_depthwise):
        # Without the loop every tap reads the images from memory, not from the cache.
        reads = 2 * geometry.taps * images if plan.form == "taps" else 0
        return Work(
            taps=6e-9 * batch * outputs * geometry.taps,
            windows=reads,
            kernels=6 * batch * kernel,
            images=3 * images,
            memory=2 * images + 2 * batch * kernel,
        )
    flops, elements = _product_of_one(geometry, problem, plan.form)
    arithmetic, windows = 3e-9 * batch * flops, elements * each
    if plan.implementation == "experts":
        arithmetic *= experts
        wide = batch * experts * outputs * each
        memory = images + 2 * (batch * windows + wide + experts * kernel)
        work = Work(
            windows=5 * batch * windows,
            outputs=5 * wide,
            experts=4 * experts * kernel,
        )
    elif is_kernel:
        memory = images + 2 * experts * kernel
        dtype = "bfloat16" if problem.itemsize == 2 else "float32"
        shape = (batch, *problem.spatial, geometry.in_features)
        cycles = pallas_cycles(problem.chip.platform, geometry, shape, experts, dtype)
        work = Work(cycles=1e-9 * cycles, experts=4 * experts * kernel)
        arithmetic = 0 if cycles else arithmetic  # which are of the same product
    else:
        at_once = plan.chunk or batch
        steps = 0.0 if plan.chunk is None else batch / plan.chunk
        memory = images + 2 * at_once * (windows + kernel)
        memory += 2 * experts * kernel if steps else 0
        memory += 0 if experts else 2 * batch * kernel
        # Written, and read by the products; the same for the gradients.
        window_bytes, kernel_bytes = 5 * batch * windows, 6 * batch * kernel
        are_windows_cached = 2 * at_once * windows <= cache
        are_kernels_cached = 2 * at_once * kernel <= cache
        work = Work(
            windows=0 if are_windows_cached else window_bytes,
            cached_windows=window_bytes if are_windows_cached else 0,
            kernels=0 if are_kernels_cached else kernel_bytes,
            cached_kernels=kernel_bytes if are_kernels_cached else 0,
            # A loop adds up the gradient of the experts at every step.
            experts=(2 + 4 * steps) * experts * kernel,
            # A TPU starts anew for each sample.
            steps=batch if plan.form == "row_conv" else steps,
        )
    is_thin = geometry.feature_group_count > 1
    return dataclasses.replace(
        work,
        arithmetic=0 if is_thin else arithmetic,
        thin_arithmetic=arithmetic if is_thin else 0,
        images=3 * images,
        memory=memory,
    )


def _product_of_one(
    geometry: Geometry, problem: Problem, form: str
) -> tuple[float, float]:
    """Returns the flops of one sample, and how many numbers its windows have.

    By rows, the partial sums count among the windows. Rows and columns of a product are
    filled up to whole lanes of the chip.
    """
    dense, groups = group_geometry(geometry), geometry.feature_group_count
    spatial, lanes = problem.spatial, problem.chip.lanes
    height, *pixels = dense.output_size(spatial)
    width = math.prod(pixels)

    def product(count: int, rows: int, columns: int) -> float:
        return 2.0 * count * _filled(rows, lanes) * _filled(columns, lanes)

    if form not in ("rows", "row_conv"):
        count = height * width
        rows = dense.taps * dense.in_features
        is_gathered = form in ("patches", "experts") and (
            dense.taps > 1 or max(dense.strides) > 1
        )
        flops = product(count, rows, dense.out_features)
        return groups * flops, groups * count * rows * is_gathered
    columns = math.prod(dense.kernel_size[1:])
    rows = columns * dense.in_features
    low, high = dense.pads(spatial)[0]
    is_gathered = columns > 1 or max(dense.strides[1:], default=1) > 1
    windows = (spatial[0] + low + high) * width * rows * is_gathered
    flops = 0.0
    if form == "row_conv":  # rows that a stride steps over are channels of one product
        deepest = (dense.extent[0] - 1) // dense.strides[0]
        lines, features = (height + deepest) * width, (deepest + 1) * dense.out_features
        flops = product(lines, dense.strides[0] * rows, features)
        # The image is laid out so first.
        moved = math.prod(spatial) * _filled(geometry.in_features, lanes)
        return groups * flops, float(moved * (dense.strides[0] > 1))
    for indices in kernel_rows(dense):
        if indices:
            lines = (height + indices[-1][1]) * width
            features = len(indices) * dense.out_features
            windows += lines * features
            flops += product(lines, rows, features)
    return groups * flops, groups * windows


def _filled(size: int, lanes: int) -> int:
    return -(-size // lanes) * lanes
