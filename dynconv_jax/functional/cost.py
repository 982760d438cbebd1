"""A model of what each way to compute a dynamic convolution costs.

The time of forward and backward is taken to be a sum of a few kinds of work, each at a
rate of its own: the arithmetic of the products; the bytes of gathered windows, of mixed
kernels, of the experts' outputs and of the images themselves; the steps of a loop.
Bytes are cheaper while what a step works on stays in cache. `python -m benchmarks.fit`
fits the rates and prints the residuals.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.groups import group_geometry
from dynconv_jax.functional.rows import kernel_rows

# Sizes that are not known when the program is traced are taken to be this large: that
# of the batch, and those of the images.
_TYPICAL_BATCH = 32
_TYPICAL_SIZE = 28


class Rates(NamedTuple):
    """What a unit of each kind of `Work` costs, in seconds; and the cache, in GB."""

    arithmetic: float
    thin_arithmetic: float
    taps: float
    windows: float
    cached_windows: float
    kernels: float
    cached_kernels: float
    experts: float
    outputs: float
    images: float
    steps: float
    memory: float
    cache: float


# CPU: two cores of an AMD EPYC (Zen 4), jax 0.10, float32, in the environment as found;
# only the ratios of the rates matter. GPU and TPU were not measured: their rates are
# those of data sheets (products at 100 and 60 Tflop/s, memory at 2 and 1 TB/s), and a
# guess at what starting a step costs.
RATES = {
    "cpu": Rates(
        arithmetic=5.1e-3,
        thin_arithmetic=8.7e-3,
        taps=4.4e-2,
        windows=0.116,
        cached_windows=7.5e-2,
        kernels=0.104,
        cached_kernels=2.6e-2,
        experts=6.1e-2,
        outputs=0.262,
        images=9.6e-2,
        steps=1.5e-5,
        memory=0.108,
        cache=0.032,
    ),
    "gpu": Rates(
        arithmetic=1e-5,
        thin_arithmetic=4e-5,
        taps=1e-4,
        windows=5e-4,
        cached_windows=5e-4,
        kernels=5e-4,
        cached_kernels=5e-4,
        experts=5e-4,
        outputs=5e-4,
        images=5e-4,
        steps=3e-5,
        memory=0.0,
        cache=0.0,
    ),
    "tpu": Rates(
        arithmetic=1.7e-5,
        thin_arithmetic=1.4e-4,
        taps=5e-4,
        windows=1e-3,
        cached_windows=1e-3,
        kernels=1e-3,
        cached_kernels=1e-3,
        experts=1e-3,
        outputs=1e-3,
        images=1e-3,
        steps=1e-5,
        memory=0.0,
        cache=0.0,
    ),
}


def rates_of(platform: str) -> Rates:
    """Returns the rates of a platform; one that is not known is taken for a GPU."""
    return RATES.get(platform, RATES["gpu"])


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to compute a dynamic convolution.

    Attributes:
        form: The form, by its name in `forms.py`, or `"experts"` or `"experts by
            convolution"`.
        chunk: How many samples a step of the scan takes; None takes all at once.
    """

    form: str
    chunk: int | None = None

    @property
    def implementation(self) -> str:
        """The name under which it is asked for."""
        if self.chunk is not None:
            return "scan"
        named = {"looped taps": "taps", "experts by convolution": "experts"}
        return named.get(self.form, self.form)

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


@dataclasses.dataclass(frozen=True)
class Problem:
    """What there is to compute, and where.

    Attributes:
        geometry: The convolution.
        spatial: The spatial size of the input, typical where it is not known.
        batch: B, or None where it is not known.
        num_experts: K, or None where every sample brings its own kernel.
        itemsize: The bytes of a number.
        platform: `"cpu"`, `"gpu"` or `"tpu"`.
        device_count: Over how many devices the batch may be spread.
    """

    geometry: Geometry
    spatial: tuple[int, ...]
    batch: int | None
    num_experts: int | None
    itemsize: int
    platform: str
    device_count: int

    @classmethod
    def of(
        cls,
        inputs: jax.Array | jax.ShapeDtypeStruct,
        geometry: Geometry,
        num_experts: int | None = None,
    ) -> "Problem":
        """Returns the problem of convolving `inputs` (B, *S, C), here and now."""
        batch = inputs.shape[0]
        mesh = jax.sharding.get_abstract_mesh()
        # Inside of `jax.shard_map` a batch is what one device has of it.
        is_local = not mesh.empty and mesh.are_all_axes_manual
        return cls(
            geometry=geometry,
            spatial=_typical_size(geometry, inputs.shape[1:-1]),
            batch=batch if isinstance(batch, int) else None,
            num_experts=num_experts,
            itemsize=inputs.dtype.itemsize,
            platform=jax.default_backend(),
            device_count=1 if is_local else jax.device_count(),
        )

    @property
    def may_loop(self) -> bool:
        """Whether a loop over the samples is harmless.

        It gathers a batch that is sharded over devices, and needs to know its size.
        """
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
    steps: float = 0.0
    memory: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """Returns the time that the work takes."""
        return sum(getattr(self, kind) * getattr(rates, kind) for kind in KINDS)


KINDS = tuple(field.name for field in dataclasses.fields(Work))


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
    rates = rates_of(problem.platform)
    work = work_of(problem, plan, rates.cache)
    limit = memory_of_machine(problem.platform)
    return Estimate(
        plan, 1e3 * work.seconds(rates), work.memory, 1e9 * work.memory <= limit
    )


@functools.cache
def memory_of_machine(platform: str) -> float:
    """Returns the bytes of memory of a device, or infinity where it is not known."""
    if platform != jax.default_backend():  # a program for another machine
        return math.inf
    try:
        if platform == "cpu":
            return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        stats = jax.local_devices()[0].memory_stats() or {}
    except (AttributeError, OSError, RuntimeError, ValueError):
        return math.inf  # each system and each plugin says differently that it cannot
    return stats.get("bytes_limit", math.inf)


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
    inputs = math.prod(problem.spatial) * geometry.in_features
    outputs = math.prod(geometry.output_size(problem.spatial)) * geometry.out_features
    kernel = math.prod(geometry.kernel_shape) * each
    images = batch * (inputs + outputs) * each

    if plan.form in ("taps", "looped taps"):
        # Without the loop every tap reads the images from memory, not from the cache.
        reads = 0 if plan.form == "looped taps" else 2 * geometry.taps * images
        return Work(
            taps=6e-9 * batch * outputs * geometry.taps,
            windows=reads,
            kernels=6 * batch * kernel,
            images=3 * images,
            memory=2 * images + 2 * batch * kernel,
        )
    flops, elements = _product_of_one(geometry, problem.spatial, plan.form == "rows")
    arithmetic, windows = 3e-9 * batch * flops, elements * each
    if plan.form == "experts":
        arithmetic *= experts
        wide = batch * experts * outputs * each
        memory = images + 2 * (batch * windows + wide + experts * kernel)
        work = Work(
            windows=5 * batch * windows,
            outputs=5 * wide,
            experts=4 * experts * kernel,
        )
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
            steps=steps,
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
    geometry: Geometry, spatial: Sequence[int], by_rows: bool
) -> tuple[float, float]:
    """Returns the flops of one sample, and how many numbers its windows have.

    By rows, the partial sums count among the windows.
    """
    dense, groups = group_geometry(geometry), geometry.feature_group_count
    height, *pixels = dense.output_size(spatial)
    if not by_rows:
        count = height * math.prod(pixels)
        rows = dense.taps * dense.in_features
        is_gathered = dense.taps > 1 or max(dense.strides) > 1
        flops = 2 * count * rows * dense.out_features
        return groups * flops, groups * count * rows * is_gathered
    width = math.prod(pixels)
    columns = math.prod(dense.kernel_size[1:])
    rows = columns * dense.in_features
    low, high = dense.pads(spatial)[0]
    is_gathered = columns > 1 or max(dense.strides[1:], default=1) > 1
    windows = (spatial[0] + low + high) * width * rows * is_gathered
    flops = 0
    for indices in kernel_rows(dense):
        if indices:
            partial = (height + indices[-1][1]) * width * len(indices)
            windows += partial * dense.out_features
            flops += 2 * partial * rows * dense.out_features
    return groups * flops, groups * windows
