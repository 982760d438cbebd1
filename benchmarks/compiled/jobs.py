"""What there is to compile: a layer or a training step, in one form."""

import dataclasses
from typing import Any

from benchmarks.compiled.chips import CHIPS
from benchmarks.shapes import LAYERS, OTHERS, Shape
from benchmarks.stacks import BY_MAP, BY_VMAP, OURS, STACKS, Stack
from dynconv_jax.functional.choice import (
    IMPLEMENTATIONS,
    check_implementation,
    explain,
)
from dynconv_jax.functional.cost import Plan
from dynconv_jax.functional.forms import FORMS
from dynconv_jax.functional.pallas.by_platform import form_for

DENSE = LAYERS[:6]
DEPTHWISE = (
    Shape.depthwise(32, 14, 480, 5),
    Shape.depthwise(32, 28, 240, 3, stride=2),
    Shape.depthwise(32, 7, 1152, 5),
)

# What else rates are fitted to.
SWEEP = tuple(shape for shape in OTHERS if shape.groups in (1, shape.in_features))
STATIC, AUTO = "static", "auto"
# How one would write it down; `auto` never chooses it.
REFERENCE = "vmap"
PASSES = ("forward", "forward + backward")

# Model, convolution, size of the images, classes: as their papers train them.
# The same with static convolutions is what they are held against.
STEPS = (
    ("dynamic_net", "static", 32, 10),
    ("dynamic_net", "dynamic", 32, 10),
    ("resnet18", "static", 224, 1000),
    ("resnet18", "dynamic", 224, 1000),
    ("efficientnet_cc_b0_4e", "static", 224, 1000),
    ("efficientnet_cc_b0_4e", "condconv", 224, 1000),
)
STEP_BATCH = 128
# Every form by its name: those that need the attention, and those of `FORMS`.
EVERY_FORM = ("experts", "experts by convolution", "pallas", *FORMS)


# Loops over samples are for CPUs; what only a TPU runs well is not for GPUs.
_ONLY_FOR = {"looped taps": "cpu", "row_conv": "tpu", "batched taps": "tpu"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One program to compile.

    Attributes:
        kind: `layer`, `stack` or `step`.
        subject: The shape of the layer or the stack as a dict, or the model, its
            convolution, the size of the images and the number of classes.
        form: `static`, `auto`, `experts`, or one of `FORMS`; of a stack the way that it
            is computed.
        variant: Which pass of a layer or a stack, or over how many chips a step.
        chunk: How many samples a step of the scan takes; None is no scan.
    """

    kind: str
    subject: Any
    form: str
    variant: str
    chunk: int | None = None

    @property
    def title(self) -> str:
        """What a reader calls it, without its form."""
        if self.kind == "layer":
            return str(Shape(**self.subject))
        if self.kind == "stack":
            return str(Stack(**self.subject))
        model, conv, size, _ = self.subject
        return f"{model}, {conv}, B {STEP_BATCH}, {size}×{size}"

    @property
    def static_title(self) -> str | None:
        """The title of the step with static convolutions, if it is one."""
        if self.kind != "step":
            return None
        model, _, *rest = self.subject
        return Job("step", [model, STATIC, *rest], STATIC, self.variant).title

    @property
    def form_title(self) -> str:
        """What a reader calls its form."""
        return str(Plan(self.form, self.chunk))


def forms(shape: Shape, platform: str) -> list[str]:
    """Returns the forms that can compute a shape, by the library's own refusals."""
    able = []
    for form in EVERY_FORM:
        if _ONLY_FOR.get(form, platform) != platform:
            continue
        if form == "experts by convolution" and shape.groups > 1:
            continue  # a convolution in groups is by gathered windows, as `"experts"`
        if form == "pallas":
            form = form_for(platform)
        try:
            check_implementation(Plan(form).implementation, shape.geometry)
        except ValueError:
            continue
        able.append(form)
    return able


def choice(shape: Shape, chip: str | None) -> Plan:
    """Returns what `"auto"` chooses for a shape on a chip; of None on this host."""
    geometry = shape.geometry
    return explain(
        shape.input_shape,
        (shape.experts, *geometry.kernel_shape),
        strides=shape.stride,
        padding=shape.kernel // 2,
        feature_group_count=shape.groups,
        dtype="bfloat16",
        chip=chip,
        device_count=None if chip is None else 1,
    ).plan


def layer_jobs(
    shapes: tuple[Shape, ...], passes: tuple[str, ...], chip: str
) -> list[Job]:
    """Returns the jobs of layers: every form, `auto`, and what it chooses there."""
    jobs = []
    platform = CHIPS[chip].platform
    for shape in shapes:
        auto = choice(shape, chip)
        chosen = Plan(auto.form, auto.chunk)
        plans = [Plan(STATIC), Plan(AUTO), chosen, *map(Plan, forms(shape, platform))]
        for variant in passes:
            for plan in dict.fromkeys(plans):
                subject = dataclasses.asdict(shape)
                jobs.append(Job("layer", subject, plan.form, variant, plan.chunk))
    return jobs


def stack_jobs(
    passes: tuple[str, ...], stacks: tuple[Stack, ...] = STACKS
) -> list[Job]:
    """Returns the jobs of mapped convolutions, each way that JAX has."""
    return [
        Job("stack", stack.sizes(), way, variant)
        for variant in passes
        for stack in stacks
        for way in (OURS, BY_VMAP, BY_MAP)
    ]


def step_forms() -> list[str]:
    """Returns the forms that all dense convolutions of a network can be asked for."""
    able = [set(forms(shape, "gpu")) for shape in DENSE]
    common = set.intersection(*able) & set(IMPLEMENTATIONS) - {REFERENCE}
    return [form for form in EVERY_FORM if form in common]


def step_jobs(
    subjects: tuple[tuple[str, str, int, int], ...],
    counts: tuple[int, ...],
    every_form: bool = False,
) -> list[Job]:
    """Returns the jobs of training steps over each number of chips.

    Args:
        subjects: Rows of `STEPS`.
        counts: The numbers of chips.
        every_form: Also in the forms that `auto` may not choose. A step is compiled for
            many minutes.
    """
    dynamic = (AUTO, *(step_forms() if every_form else ()))
    return [
        Job("step", list(subject), form, str(count))
        for count in counts
        for subject in subjects
        for form in ((STATIC,) if subject[1] == STATIC else dynamic)
    ]
