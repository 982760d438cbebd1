"""The choice behind `implementation="auto"`: a model of what each form costs.

The time is taken to be a sum of a few kinds of work, each at a rate of its own: the
arithmetic of the convolutions; the bytes of mixed kernels and of the experts' outputs;
the calls of a loop. `python -m benchmarks.fit_torch` fits the rates for a CPU and
prints the residuals. On other devices, where nothing was measured, `"auto"` is
`"grouped"`.

A program that is traced for sizes to come is not for the sizes of the example, so that
no time can be estimated: `"auto"` is then one form for all, whose number of groups does
not depend on the batch (`choose_open`).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage]

from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.tracing import (
    can_scan,
    has_open_size,
    is_onnx_export,
    is_open,
)
from dynconv_torch.functional.transpose_geometry import TransposeGeometry

IMPLEMENTATIONS = ("auto", "loop", "grouped", "patches", "experts")


def check_implementation(implementation: str, *, has_experts: bool = True) -> None:
    """Checks that an implementation is known and can compute a convolution.

    Args:
        implementation: The name asked for.
        has_experts: Whether there are experts and their attention, or only kernels.

    Raises:
        ValueError: If it is unknown, or cannot; the message names those that can.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"`implementation` (={implementation!r}) must be one of "
            f"{', '.join(map(repr, IMPLEMENTATIONS))}"
        )
    if implementation == "experts" and not has_experts:
        raise ValueError(
            "`implementation` (='experts') sums the outputs of all experts and so "
            "needs their attention, as `dynamic_conv` has it; those that can compute "
            "this are 'auto', 'loop', 'grouped', 'patches'"
        )


class Work(NamedTuple):
    """How much of each kind of work a form does, forward.

    Attributes:
        dense: Gflop of convolutions with few groups.
        grouped: Gflop of convolutions with a group for every sample.
        depthwise: Gflop of depthwise convolutions.
        kernels: GB of mixed kernels.
        outputs: GB of the outputs of all experts.
        calls: Convolutions started.
    """

    dense: float = 0.0
    grouped: float = 0.0
    depthwise: float = 0.0
    kernels: float = 0.0
    outputs: float = 0.0
    calls: float = 0.0

    def seconds(self, rates: "Work") -> float:
        """Returns the time that the work takes, at rates in seconds a unit."""
        return sum(amount * rate for amount, rate in zip(self, rates, strict=True))


# Seconds a unit, on two cores of an AMD EPYC (Zen 4), torch 2.13, float32.
FORWARD = Work(
    dense=4.8e-3,
    grouped=6.3e-3,
    depthwise=7.4e-2,
    kernels=0.36,
    outputs=0.31,
    calls=8e-5,
)
FORWARD_AND_BACKWARD = Work(
    dense=1.52e-2,
    grouped=1.92e-2,
    depthwise=0.23,
    kernels=1.22,
    outputs=1.11,
    calls=2.2e-4,
)


def _is_depthwise(geometry: Geometry) -> bool:
    return geometry.groups == geometry.in_channels > 1


def work_of(
    form: str, input: Tensor, geometry: Geometry, num_experts: int | None
) -> Work:
    """Returns the work of a form on an input (B, C, *S)."""
    batch, _, *spatial = input.shape
    outputs = batch * geometry.out_channels * math.prod(geometry.output_size(spatial))
    kernel = math.prod(geometry.weight_shape)
    flops = 2e-9 * batch * geometry.multiply_adds(spatial)
    gigabyte = 1e-9 * input.element_size()
    is_depthwise = _is_depthwise(geometry)
    if form == "experts":
        assert num_experts is not None
        flops *= num_experts
        work = Work(outputs=num_experts * outputs * gigabyte, calls=1)
        kind = "depthwise" if is_depthwise else "dense"
    else:
        calls = batch if form == "loop" else 1
        work = Work(kernels=batch * kernel * gigabyte, calls=calls)
        kind = "depthwise" if is_depthwise else ("dense" if calls > 1 else "grouped")
    return work._replace(**{kind: flops})


def choose_open(
    implementation: str,
    geometry: Geometry,
    input: Tensor,
    num_experts: int | None = None,
) -> str:
    """Returns a form for every size, for a program that leaves some size open.

    `"patches"` does the least arithmetic that way. Depthwise, a product for each
    channel is a small one, and transposed, most of what it multiplies is zeros; there
    it is `"experts"`, if there are some.

    ONNX can loop over a batch that is open, and onnxruntime convolves with a kernel
    that was computed. For windows that is the fastest, most of all beside `"experts"`
    with K times the arithmetic; for a single tap it is level with a product, which is
    the shorter program. docs/performance.md has the figures.

    Args:
        implementation: `"auto"`, or the form to use, which is returned.
        geometry: The convolution.
        input: Shape (B, C, *S), of which some are open.
        num_experts: K, or None where every sample brings its own kernel.

    Raises:
        ValueError: If the form asked for is one that would fix the batch. Under
            `torch.compile` alone it may be: another batch is compiled anew.
    """
    if implementation == "auto":
        is_transposed = isinstance(geometry, TransposeGeometry)
        has_experts = num_experts is not None
        is_window = math.prod(geometry.kernel_size) > 1
        if can_scan(input) and is_window and not is_transposed:
            return "loop"
        if has_experts and (is_transposed or _is_depthwise(geometry)):
            return "experts"
        return "patches"
    is_compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if is_open(input.shape[0]) and not is_compiled:
        # torch.jit.trace and ONNX keep a number of groups as a constant.
        has_constant_groups = is_tracing() or is_onnx_export()
        if (implementation == "loop" and not can_scan(input)) or (
            implementation == "grouped" and has_constant_groups
        ):
            raise ValueError(
                f"`implementation` (={implementation!r}) would fix the batch of the "
                "program that is being traced, which leaves it open, to that of the "
                "example; take 'auto' or 'patches', or export with a fixed batch"
            )
    return implementation


def choose(
    implementation: str,
    geometry: Geometry,
    input: Tensor,
    *operands: Tensor,
    num_experts: int | None = None,
) -> str:
    """Returns the form that computes a convolution in the least time.

    Args:
        implementation: `"auto"`, or the form to use, which is returned.
        geometry: The convolution.
        input: Shape (B, C, *S).
        *operands: What else the outputs depend on: whether any of them needs a
            gradient counts.
        num_experts: K, or None where every sample brings its own kernel.

    Returns:
        `"loop"`, `"grouped"`, `"patches"` or, with experts, `"experts"`.

    Raises:
        ValueError: If the implementation needs experts and there are none, or would fix
            the batch of a program that leaves it open.
    """
    check_implementation(implementation, has_experts=num_experts is not None)
    if has_open_size(input, *operands):
        return choose_open(implementation, geometry, input, num_experts)
    if implementation != "auto":
        return implementation
    if input.device.type != "cpu":
        return "grouped"
    forms = ("grouped", "loop") + ("experts",) * (num_experts is not None)
    has_backward = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (input, *operands)
    )
    rates = FORWARD_AND_BACKWARD if has_backward else FORWARD
    seconds = {
        form: work_of(form, input, geometry, num_experts).seconds(rates)
        for form in forms
    }
    fastest = forms[0]
    for form in forms:  # not `min` with a key, which torch.compile cannot trace
        if seconds[form] < seconds[fastest]:
            fastest = form
    return fastest
