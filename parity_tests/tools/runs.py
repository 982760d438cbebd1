"""Directories of runs, made in no time: what a run leaves, without the training."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from flax import nnx

from dynconv_jax.weights import save_weights
from train.data import presets
from train.data.dataset import ArraySource, Dataset
from train.flags.config import Config
from train.learning.evaluation import Evaluation
from train.learning.model import create
from train.storage.run_directory import RunDirectory
from train.storage.run_files import WEIGHTS

SUMMARY: dict[str, Any] = {
    "test_accuracy": 0.75,
    "test_loss": 0.5,
    "best_test_accuracy": 0.75,
    "best_step": 20,
    "steps": 40,
    "images_per_second": 1234.5,
    "compile_seconds": 2.5,
    "wall_seconds": 75.0,
    "parameters": 4000,
    "multiply_adds": 30000,
    "static_parameters": 1000,
    "static_multiply_adds": 20000,
    "params_sha256": "0123abcd",
}


def make_dataset(classes: int = 4, images: int = 12, side: int = 5) -> Dataset:
    """Returns images of noise, whose classes take turns."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    source = ArraySource(pixels, np.arange(images, dtype=np.int32) % classes)
    names = tuple(f"class <{number}>" for number in range(classes))
    return Dataset(
        train=source,
        test=source,
        class_names=names,
        image_shape=(side, side, 3),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def make_evaluation(
    dataset: Dataset, routers: int = 2, experts: int = 4, wrong: tuple[int, ...] = (3,)
) -> Evaluation:
    """Returns the evaluation of a model that is wrong about the images `wrong`."""
    rng = np.random.default_rng(1)
    labels, classes = dataset.test.labels, dataset.num_classes
    predictions = labels.copy()
    predictions[list(wrong)] = (labels[list(wrong)] + 1) % classes
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, predictions), 1)
    paths = [f"stage{number}.dyn.router" for number in range(routers)]
    return Evaluation(
        loss=0.5,
        accuracy=float((predictions == labels).mean()),
        predictions=predictions,
        confidence=np.linspace(0.5, 1, len(labels)),
        losses=np.linspace(0, 3, len(labels)),
        attention={path: rng.dirichlet([1] * experts, classes) for path in paths},
        entropy={path: 0.5 * math.log(experts) for path in paths},
        usage={path: rng.dirichlet([1] * experts) for path in paths},
        shares={path: np.full(experts, 1 / experts) for path in paths},
        dead=dict.fromkeys(paths, ()),
        spread=dict.fromkeys(paths, 0.5),
        confusion=confusion,
    )


def write_run(
    path: Path,
    *,
    is_finished: bool = True,
    dataset: Dataset | None = None,
    metrics: Mapping[str, float] = MappingProxyType({}),
    summary: Mapping[str, float] = MappingProxyType({}),
    **flags: Any,
) -> Config:
    """Writes flags, metrics and, if it is finished, the summary of a run.

    Args:
        path: Where to.
        is_finished: Whether it is.
        dataset: What it was trained on.
        metrics: Further metrics of each training step.
        summary: Further figures of the summary.
        **flags: The flags.
    """
    config = Config(out=path, steps=40, **flags)
    with RunDirectory(config, dataset=dataset) as run:
        for step in (10, 20, 30, 40) if is_finished else (10, 20):
            row = {
                "step": step,
                "loss": 10.0 / step,
                "accuracy": step / 50,
                "learning_rate": 1e-3,
                "gradient_norm": 0.5,
                "images_per_second": 1000.0,
                **metrics,
            }
            run.log(row if config.conv == "static" else row | {"temperature": 1.0})
            if step % 20 == 0:
                usage = {"stage0.dyn.router": [0.5, 0.5, 0.0, 0.0]}
                run.log(
                    {
                        "step": step,
                        "test_loss": 12.0 / step,
                        "test_accuracy": step / 60,
                        "entropy": {"stage0.dyn.router": 40 / (step + 40)},
                        "usage": usage,
                    }
                )
        if is_finished:
            run.finish({**SUMMARY, **summary})
    return config


def write_trained(path: Path, **flags: Any) -> tuple[Dataset, nnx.Module]:
    """Writes a run of a narrow model, with weights; returns its data and its model."""
    dataset = presets.load(Config(**flags))
    options = ("width_mult=0.25",)
    config = write_run(path, dataset=dataset, model_options=options, **flags)
    channels = dataset.image_shape[-1]
    model = create(config, dataset.num_classes, channels, nnx.Rngs(config.seed + 1))
    save_weights(model, path / WEIGHTS)
    return dataset, model
