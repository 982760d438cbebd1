"""The choice behind `implementation="auto"`, and its explanation.

Of the plans that can compute a problem, the one with the least estimated time
(`cost.py`), on the chip that the program is lowered for: it is chosen then, not before
(`platforms.py`). Nothing is left of it at run time.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dynconv_jax.functional.checks import check_dtypes
from dynconv_jax.functional.chips import PLATFORMS, Chip, chip_for, chips, platform_of
from dynconv_jax.functional.cost import Estimate, Plan, Problem, estimate
from dynconv_jax.functional.geometry import (
    Geometry,
    PaddingLike,
    check_operands,
    positive_int,
)
from dynconv_jax.functional.pallas.by_platform import form_for, pallas_refuses

IMPLEMENTATIONS = (
    "auto",
    "patches",
    "rows",
    "scan",
    "taps",
    "experts",
    "row_conv",
    "pallas",
    "vmap",
)

# How many samples a step of a loop may take: one leaves a core idle, many leave the
# cache.
_CHUNKS = (2, 4, 8)


def check_implementation(
    implementation: str,
    geometry: Geometry,
    *,
    has_experts: bool = True,
    has_batch: bool = True,
) -> None:
    """Checks that an implementation is known and can compute a convolution.

    Args:
        implementation: The name asked for.
        geometry: The convolution.
        has_experts: Whether there are experts and their attention, or only kernels.
        has_batch: Whether the size of the batch is known.

    Raises:
        ValueError: If it is unknown, or cannot; the message names those that can.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"`implementation` (={implementation!r}) must be one of "
            f"{', '.join(map(repr, IMPLEMENTATIONS))}"
        )
    refused = {}
    if not has_batch:
        refused["scan"] = "loops over the samples and must know how many there are"
        refused["row_conv"] = "has the samples in a window and must know how many"
        refused["vmap"] = "makes a group for every sample and must know how many"
    if not geometry.is_depthwise:
        refused["taps"] = (
            "is for depthwise convolutions, with `feature_group_count` "
            f"(={geometry.feature_group_count}) equal to in_features "
            f"(={geometry.in_features})"
        )
    if not has_experts:
        refused["experts"] = (
            "sums the outputs of all experts and needs their attention, as "
            "`dynamic_conv` has it"
        )
        refused["pallas"] = (
            "mixes experts on the chip and needs their attention, as `dynamic_conv` "
            "has it"
        )
    if geometry.rank != 2:
        refused["pallas"] = f"is for 2 spatial dimensions, not {geometry.rank}"
    elif not has_batch:
        refused["pallas"] = "is a kernel for a batch whose size is known"
    if implementation in refused:
        able = [repr(name) for name in IMPLEMENTATIONS if name not in refused]
        raise ValueError(
            f"`implementation` (={implementation!r}) {refused[implementation]}; those "
            f"that can compute this are {', '.join(able)}"
        )


def plans(problem: Problem) -> list[Plan]:
    """Returns the plans that can compute a problem; the reference is not among them."""
    products = ["patches"]
    if problem.geometry.kernel_size[0] > 1:  # else rows would compute the same
        products.append("rows")
    is_tpu = problem.chip.platform == "tpu"
    found = [Plan(form, by_sums=is_tpu) for form in products]
    if problem.num_experts is not None:
        found.append(Plan("experts"))
    if problem.geometry.is_depthwise:
        taps = "looped taps" if problem.may_loop else "taps"
        found.append(Plan(taps, by_sums=is_tpu))
        if is_tpu:
            found.append(Plan("batched taps", by_sums=True))
    if is_tpu and problem.is_local:
        found.append(Plan("row_conv", by_sums=True))
        if problem.has_kernels:
            found.append(Plan(form_for("tpu")))
    # XLA's convolution has no gradient for sizes that are not known.
    takes_one = problem.geometry.feature_group_count == 1 and problem.is_sized
    if problem.num_experts is not None and takes_one and problem.chip.platform != "cpu":
        found.append(Plan("experts by convolution"))
    if problem.may_loop:
        chunks = [chunk for chunk in _CHUNKS if chunk < problem.samples]
        found += [Plan(form, chunk) for form in products for chunk in chunks]
    return found


def is_chosen_by_place(implementation: str) -> bool:
    """Tells whether a form depends on where it is computed."""
    return implementation in ("auto", "taps", "experts", "pallas")


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, implementation: str = "auto") -> Plan:
    """Returns the plan that computes a problem in the least time.

    Args:
        problem: What there is to compute.
        implementation: `"auto"`, or the name of the form to use.

    Returns:
        The fastest plan of those asked for, by the estimate, that the memory of the
        machine holds; if it holds none, the one that needs the least.

    Raises:
        ValueError: If the implementation is unknown or cannot compute the problem.
    """
    check_implementation(
        implementation,
        problem.geometry,
        has_experts=problem.num_experts is not None,
        has_batch=problem.batch is not None,
    )
    if implementation in ("vmap", "rows", "row_conv"):
        return Plan(implementation)
    if implementation == "pallas":
        return Plan(form_for(problem.chip.platform))
    if implementation == "scan":
        # Asked for by name, it is the caller who knows where the batch lies, and even
        # one or two samples are taken in the way of a loop.
        samples = max(problem.samples, _CHUNKS[0] + 1)
        problem = dataclasses.replace(
            problem, device_count=1, batch=samples, chip=chip_for("cpu")
        )
    asked = [
        plan
        for plan in plans(problem)
        if implementation in ("auto", plan.implementation)
    ]
    return min((estimate(problem, plan) for plan in asked), key=_preference).plan


def _preference(each: Estimate) -> tuple[bool, float]:
    return (False, each.milliseconds) if each.fits else (True, each.gigabytes)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `"auto"` chooses for a shape, and why; `str` of it is a table.

    Attributes:
        problem: What there is to compute, and where.
        estimates: An estimate for every plan that can compute it: those that fit the
            memory, fastest first, then the others, leanest first.
    """

    problem: Problem
    estimates: tuple[Estimate, ...]

    @property
    def plan(self) -> Plan:
        """The plan that is chosen."""
        return self.estimates[0].plan

    @property
    def reason(self) -> str:
        """Why the plan was chosen, in a sentence."""
        if not any(estimate.fits for estimate in self.estimates):
            return (
                "no form fits the memory of this machine; this one needs the least, "
                f"{self.estimates[0].gigabytes:.3g} GB"
            )
        reason = "it is estimated to be the fastest"
        if not self.estimates[1].fits:
            reason = "it is the only one that fits the memory of this machine"
        if self.problem.may_loop:
            return reason
        if self.problem.batch is None:
            because = "the batch has no known size"
        elif self.problem.device_count > 1:
            because = (
                f"the batch may be sharded over {self.problem.device_count} devices"
            )
        else:
            because = "only a CPU computes a few samples as fast as many"
        return f"{reason}; loops over the samples are left out, because {because}"

    def __str__(self) -> str:
        chip = self.problem.chip
        lines = [
            f"{self.plan} ({chip.platform}, {chip.name}): {self.reason}",
            f"  {'form':<34}{'forward + backward':>20}{'memory':>12}",
        ]
        for each in self.estimates:
            lines.append(
                f"  {str(each.plan):<34}{each.milliseconds:>17.3g} ms"
                f"{each.gigabytes:>9.3g} GB{'' if each.fits else '  too much'}"
            )
        return "\n".join(lines)


def explain(
    inputs: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    dtype: DTypeLike = jnp.float32,
    platform: str | None = None,
    chip: str | None = None,
    device_count: int | None = None,
) -> Explanation:
    """Says what `implementation="auto"` chooses for a shape, and why.

    Args:
        inputs: The shape (B, *S, C) of the inputs of a dynamic convolution.
        kernel: The shape (K, *k, C/g, O) of its experts.
        strides: As in `dynamic_conv`.
        padding: As in `dynamic_conv`.
        kernel_dilation: As in `dynamic_conv`.
        feature_group_count: As in `dynamic_conv`.
        dtype: The dtype of both.
        platform: `"cpu"`, `"gpu"` or `"tpu"`; None takes that of `chip`, or else the
            one JAX runs on. A program has the choice of the platform that it is lowered
            for.
        chip: The kind of chip, such as `"v5e"` or `"h100"`; None takes that of the mesh
            in use (`jax.set_mesh`), or the one that JAX runs on, or a typical one.
        device_count: Over how many devices the batch may be spread; None takes those
            that this process sees.

    Returns:
        The choice of `dynamic_conv`, its reason, and an estimate for every form;
        `problem.chip.source` says where the rates behind it come from.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shapes do not fit one another, or the platform or
            the chip is unknown, or the chip is of another platform.

    Example:
        >>> explanation = explain((32, 14, 14, 256), (4, 1, 1, 256, 64))
        >>> explanation.plan in [each.plan for each in explanation.estimates]
        True
    """
    check_dtypes(dtype=dtype)
    images = jax.ShapeDtypeStruct(tuple(inputs), dtype)
    geometry = check_operands(
        images,
        jax.ShapeDtypeStruct(tuple(kernel), dtype),
        None,
        stack="num_experts",
        stack_size=kernel[0] if kernel else 0,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    if device_count is not None:
        positive_int("device_count", device_count)
    problem = Problem.of(images, geometry, kernel[0], chip=_asked_chip(platform, chip))
    if device_count is not None:  # whatever mesh is in use
        problem = dataclasses.replace(problem, device_count=device_count)
    refusal = pallas_refuses(
        problem.chip.platform,
        geometry,
        images.shape,
        kernel[0],
        dtype,
        device_count=problem.device_count,
    )
    problem = dataclasses.replace(problem, has_kernels=refusal is None)
    estimates = (estimate(problem, plan) for plan in plans(problem))
    return Explanation(problem, tuple(sorted(estimates, key=_preference)))


def _asked_chip(platform: str | None, chip: str | None) -> Chip:
    known = chips()
    if platform is not None and platform not in PLATFORMS:
        raise ValueError(
            f"`platform` (={platform!r}) must be one of "
            f"{', '.join(map(repr, PLATFORMS))}"
        )
    if chip is None:
        return chip_for(platform or platform_of(jax.default_backend()))
    if chip not in known:
        raise ValueError(
            f"`chip` (={chip!r}) must be one of {', '.join(map(repr, known))}"
        )
    if platform not in (None, known[chip].platform):
        raise ValueError(
            f"`chip` (={chip!r}) is a {known[chip].platform}, and `platform` "
            f"(={platform!r}) another; leave one of them out"
        )
    return known[chip]
