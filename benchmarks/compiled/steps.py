"""The program of a whole training step: that of `python -m train`, as it is jitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh

from benchmarks.compiled.jobs import AUTO, STATIC, STEP_BATCH, Job
from train.flags.config import Config
from train.learning.augment import Augmentation
from train.learning.model import FORM, create
from train.learning.step import create_state, make_train_step
from train.machines import devices


class Step(NamedTuple):
    """A training step.

    Attributes:
        lowered: The step for the chips it was asked for.
        donated: How many arrays of its state are donated.
        arguments: Makes a state, images and labels on those chips, if they exist.
    """

    lowered: jax.stages.Lowered
    donated: int
    arguments: Callable[[], tuple[Any, ...]]


def lower_step(job: Job, chips: list[Any]) -> Step:
    """Lowers the training step of a model for the chips given, the batch cut over them.

    Args:
        job: One of `step_jobs`.
        chips: The devices of a topology.
    """
    model, conv, size, classes = job.subject
    config = Config(
        model=model,
        conv=conv,
        dtype="bfloat16",
        batch_size=STEP_BATCH,
        **dict.fromkeys(("label_smoothing", "load_balance"), 0.0),  # not as for digits
        model_options=() if job.form in (STATIC, AUTO) else (f"{FORM}={job.form}",),
    )
    mesh = Mesh(np.array(chips), (devices.AXIS,), axis_types=(AxisType.Auto,))
    everywhere, by_image = devices.everywhere(mesh), devices.by_image(mesh)

    def build() -> nnx.Module:
        return create_state(create(config, classes, 3, nnx.Rngs(0)), config)

    graphdef, shapes = nnx.split(nnx.eval_shape(build))
    shardings = devices.state_shardings(shapes, mesh, fsdp=False)
    state = jax.tree.map(
        lambda each, sharding: jax.ShapeDtypeStruct(
            each.shape, each.dtype, sharding=sharding
        ),
        shapes,
        shardings,
    )
    augmentation = Augmentation(flip=0.5, mean=(0.5,) * 3, std=(0.25,) * 3)
    step = make_train_step(
        graphdef, config, augmentation, classes, shardings, everywhere
    )
    images = jax.ShapeDtypeStruct(
        (STEP_BATCH, size, size, 3), np.uint8, sharding=by_image
    )
    labels = jax.ShapeDtypeStruct((STEP_BATCH,), np.int32, sharding=by_image)

    def arguments() -> tuple[Any, ...]:
        drawn = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
        return (
            devices.place(nnx.split(build())[1], shardings),
            jax.device_put(drawn, by_image),
            jax.device_put(np.zeros(labels.shape, np.int32), by_image),
        )

    # With the mesh in use, `auto` knows for which kind of chip it chooses.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = step.lower(state, images, labels)
    return Step(lowered, len(jax.tree.leaves(state)), arguments)
