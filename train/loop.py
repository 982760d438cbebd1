"""The training program, from the first line to the last."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynconv_jax.models import DynamicNet
from train.config import Config
from train.data import (
    PRESETS,
    Dataset,
    check_batch_size,
    evaluation_batches,
    training_batches,
)
from train.display import Display
from train.errors import TrainingFailed
from train.report import draw_routing
from train.run_directory import PICTURE, WEIGHTS, RunDirectory
from train.step import make_eval_step, make_optimizer, make_train_step, params_sha256


def train(config: Config) -> dict[str, Any]:
    """Trains, evaluates and writes the results.

    Args:
        config: The flags.

    Returns:
        The content of summary.json.

    Raises:
        TrainError: If a flag does not fit the data, the devices or the disk, or if the
            loss is not finite.
    """
    started = time.perf_counter()

    # Data, and the devices that share a batch of it. Parameters lie on every device,
    # images on one; the compiler adds what crosses between them.
    dataset = PRESETS[config.preset]()
    mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_image = NamedSharding(mesh, PartitionSpec("data"))
    check_batch_size(config, dataset, mesh.size)
    run = RunDirectory(config)

    # Model and optimizer: a static description and a tree of arrays, so that one plain
    # jax.jit can donate the arrays.
    model = DynamicNet(
        in_features=dataset.train.images.shape[-1],
        num_classes=dataset.num_classes,
        num_experts=config.num_experts,
        temperature=config.temperature_start,
        reduction=config.reduction,
        top_k=config.top_k,
        router_dropout=config.router_dropout,
        rngs=nnx.Rngs(config.seed),
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    graphdef, state = nnx.split((model, make_optimizer(model, config)))
    state = jax.device_put(state, everywhere)

    batches = training_batches(dataset.train, config.batch_size, config.seed)

    def next_batch() -> tuple[jax.Array, jax.Array]:
        batch = next(batches)
        return jax.device_put((batch.images, batch.labels), by_image)

    with Display(config.steps) as display:
        # Compilation, ahead of time, so that it can be told from training.
        display.say(
            f"{config.preset}: {len(dataset.train)} training and {len(dataset.test)} "
            f"test images; {parameters:,} parameters; {mesh.size} "
            f"{mesh.devices.flat[0].platform} device(s)"
        )
        images, labels = next_batch()
        mask = jax.device_put(np.ones(config.batch_size, np.float32), by_image)
        compile_started = time.perf_counter()
        train_step = (
            make_train_step(graphdef, config, everywhere)
            .lower(state, images, labels)
            .compile()
        )
        eval_step = (
            make_eval_step(graphdef, dataset.num_classes, everywhere)
            .lower(state, images, labels, mask)
            .compile()
        )
        compile_seconds = time.perf_counter() - compile_started
        display.say(f"compiled in {compile_seconds:.1f} s")

        # Training. The clock runs only here: neither compilation nor evaluation counts.
        clock = Clock(config.batch_size)
        losses: list[jax.Array] = []  # since the last log; read together, to wait once
        evaluation: dict[str, Any] = {}
        clock.start()
        for step in range(1, config.steps + 1):
            state, metrics = train_step(state, images, labels)
            losses.append(metrics["loss"])
            is_last = step == config.steps
            is_logged = is_last or step % config.log_every == 0
            is_evaluated = is_last or step % config.eval_every == 0
            if not is_last:
                images, labels = next_batch()
            if not (is_logged or is_evaluated):
                continue
            first = step - len(losses) + 1
            for number, loss in enumerate(jax.device_get(losses), start=first):
                check_loss(loss, "loss", number)
            losses.clear()
            clock.stop(step)
            if is_logged:
                record = {
                    "step": step,
                    **{name: float(value) for name, value in metrics.items()},
                    "images_per_second": clock.lap_rate(),
                }
                run.log(record)
                display.logged(record)
            if is_evaluated:
                evaluation = evaluate(eval_step, state, dataset, config, by_image)
                check_loss(evaluation["test_loss"], "test loss", step)
                record = {
                    "step": step,
                    "test_loss": evaluation["test_loss"],
                    "test_accuracy": evaluation["test_accuracy"],
                }
                run.log(record)
                display.evaluated(record)
            clock.start()

        # Results.
        model, _ = nnx.merge(graphdef, state)
        summary = {
            "test_accuracy": evaluation["test_accuracy"],
            "test_loss": evaluation["test_loss"],
            "steps": config.steps,
            "images_per_second": clock.rate(),
            "compile_seconds": compile_seconds,
            "wall_seconds": time.perf_counter() - started,
            "parameters": parameters,
            "params_sha256": params_sha256(model),
        }
        run.write_weights(WEIGHTS, model)
        run.write(PICTURE, draw_routing(evaluation["attention"]))
        run.finish(summary)
        display.say(
            f"test accuracy {summary['test_accuracy']:.4f} after "
            f"{summary['wall_seconds']:.1f} s; results in {run.path}"
        )
    return summary


def check_loss(loss: float, name: str, step: int) -> None:
    """Raises a TrainingFailed if the loss after or of `step` is not finite."""
    if not math.isfinite(loss):
        raise TrainingFailed(
            f"the {name} is {loss} at step {step}; lower --learning-rate (or raise "
            "--warmup-steps or --temperature-end)"
        )


def evaluate(
    eval_step: Callable[..., Any],
    state: nnx.State,
    dataset: Dataset,
    config: Config,
    by_image: NamedSharding,
) -> dict[str, Any]:
    """Evaluates on the whole test set.

    Args:
        eval_step: The compiled evaluation step.
        state: That of the model and the optimizer.
        dataset: Its test images are used.
        config: The flags.
        by_image: How a batch lies on the devices.

    Returns:
        `test_loss` and `test_accuracy`, and under `attention` for every router its mean
        attention by class, (classes, K).
    """
    total = None
    for batch, mask in evaluation_batches(dataset.test, config.batch_size):
        arrays = jax.device_put((batch.images, batch.labels, mask), by_image)
        sums = jax.device_get(eval_step(state, *arrays))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    assert total is not None
    count = len(dataset.test)
    by_class = np.bincount(dataset.test.labels, minlength=dataset.num_classes)
    return {
        "test_loss": float(total["loss"]) / count,
        "test_accuracy": float(total["correct"]) / count,
        "attention": {
            path: each / by_class[:, None] for path, each in total["attention"].items()
        },
    }


class Clock:
    """Measures images per second over the stretches between `start` and `stop`."""

    def __init__(self, batch_size: int):
        """Sets the clock to zero.

        Args:
            batch_size: The images of a step.
        """
        self._batch_size = batch_size
        self._started = 0.0
        self._seconds = 0.0
        self._step = 0
        self._logged = (0, 0.0)

    def start(self) -> None:
        """Starts a stretch."""
        self._started = time.perf_counter()

    def stop(self, step: int) -> None:
        """Ends the stretch after `step`."""
        self._seconds += time.perf_counter() - self._started
        self._step = step

    def rate(self) -> float:
        """Returns the images per second of the whole run."""
        return self._step * self._batch_size / self._seconds

    def lap_rate(self) -> float:
        """Returns the images per second since it was last asked."""
        step, seconds = self._logged
        self._logged = (self._step, self._seconds)
        return (self._step - step) * self._batch_size / (self._seconds - seconds)
