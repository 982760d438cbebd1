"""What there is to compile: a layer or a training step, in one form."""

import dataclasses
from typing import Any

from benchmarks.shapes import LAYERS, Shape
from dynconv_jax.functional.choice import check_implementation, explain
from dynconv_jax.functional.cost import Plan
from dynconv_jax.functional.forms import FORMS

DENSE = LAYERS[:6]
DEPTHWISE = (
    Shape.depthwise(32, 14, 480, 5),
    Shape.depthwise(32, 28, 240, 3, stride=2),
    Shape.depthwise(32, 7, 1152, 5),
)

STATIC, AUTO = "static", "auto"
PASSES = ("forward", "forward + backward")

# Model, convolution, size of the images, classes: as their papers train them.
STEPS = (
    ("dynamic_net", "dynamic", 32, 10),
    ("resnet18", "static", 224, 1000),
    ("resnet18", "dynamic", 224, 1000),
    ("efficientnet_cc_b0_4e", "condconv", 224, 1000),
)
STEP_BATCH = 128
# The forms that mix outputs, and never a kernel.
BY_EXPERTS = ("experts", "experts by convolution")
# The forms that any convolution can be asked to take.
STEP_FORMS = ("patches", "rows", "experts")


@dataclasses.dataclass(frozen=True)
class Job:
    """One program to compile.

    Attributes:
        kind: `layer` or `step`.
        subject: The layer's shape as a dict, or the model, its convolution, the size
            of the images and the number of classes.
        form: `static`, `auto`, `experts`, or one of `FORMS`.
        variant: Which pass of a layer, or over how many chips a step.
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
        model, conv, size, _ = self.subject
        return f"{model}, {conv}, B {STEP_BATCH}, {size}×{size}"

    @property
    def form_title(self) -> str:
        """What a reader calls its form."""
        return str(Plan(self.form, self.chunk))


def forms(shape: Shape) -> list[str]:
    """Returns the forms that can compute a shape, by the library's own refusals."""
    able = []
    for form in (*BY_EXPERTS, *FORMS):
        try:
            check_implementation(Plan(form).implementation, shape.geometry)
        except ValueError:
            continue
        able.append(form)
    return able


def choice(shape: Shape, platform: str | None) -> Plan:
    """Returns what `"auto"` chooses for a shape; of None on this host."""
    geometry = shape.geometry
    return explain(
        shape.input_shape,
        (shape.experts, *geometry.kernel_shape),
        strides=shape.stride,
        padding=shape.kernel // 2,
        feature_group_count=shape.groups,
        dtype="bfloat16",
        platform=platform,
        device_count=None if platform is None else 1,
    ).plan


def layer_jobs(
    shapes: tuple[Shape, ...], passes: tuple[str, ...], platform: str
) -> list[Job]:
    """Returns the jobs of layers: every form, `auto`, and what it chooses there."""
    jobs = []
    for shape in shapes:
        chosen = choice(shape, platform)
        plans = [Plan(STATIC), Plan(AUTO), chosen, *map(Plan, forms(shape))]
        for variant in passes:
            for plan in dict.fromkeys(plans):
                subject = dataclasses.asdict(shape)
                jobs.append(Job("layer", subject, plan.form, variant, plan.chunk))
    return jobs


def step_jobs(
    subjects: tuple[tuple[str, str, int, int], ...], counts: tuple[int, ...]
) -> list[Job]:
    """Returns the jobs of training steps, in each form, over each number of chips."""
    return [
        Job("step", list(subject), form, str(count))
        for count in counts
        for subject in subjects
        for form in ((STATIC,) if subject[1] == STATIC else (AUTO, *STEP_FORMS))
    ]
