"""How well a state does on the test images, and what its routers do with them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train.data.batches import evaluation_batches, to_devices
from train.data.dataset import Dataset
from train.errors import TrainingFailed
from train.flags.config import Config
from train.machines import devices


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came out of all test images, in their order.

    Attributes:
        loss: The mean cross-entropy.
        accuracy: The share of images of which the class was predicted.
        predictions: The class predicted for every image, (N,) int; -1 for images that
            could not be read, which count nowhere.
        confidence: The probability of the class predicted, (N,).
        losses: The cross-entropy of every image, (N,).
        attention: For every router its mean attention by class, (classes, K); for every
            layer of a warehouse, here and below, how it shares in the cells.
        entropy: For every router the mean entropy of an image's shares, in nats.
        usage: For every router the share of images in which each expert has the largest
            weight, (K,).
        confusion: How many images of each class (row) were predicted as each (column),
            (classes, classes) int.
    """

    loss: float
    accuracy: float
    predictions: np.ndarray
    confidence: np.ndarray
    losses: np.ndarray
    attention: dict[str, np.ndarray]
    entropy: dict[str, float]
    usage: dict[str, np.ndarray]
    confusion: np.ndarray

    def scores(self, prefix: str = "test_") -> dict[str, float]:
        """Returns loss and accuracy under the names that files have for them."""
        return {f"{prefix}loss": self.loss, f"{prefix}accuracy": self.accuracy}

    def routing(self) -> dict[str, Any]:
        """Returns entropy and usage as JSON has them."""
        usage = {path: shares.tolist() for path, shares in self.usage.items()}
        return {"entropy": self.entropy, "usage": usage}


def evaluate(
    eval_step: Callable[..., dict[str, Any]],
    state: Any,
    dataset: Dataset,
    config: Config,
    mesh: Mesh,
) -> Evaluation:
    """Evaluates on the whole test set; every process of a run must call it.

    Args:
        eval_step: The result of `train.learning.step.make_eval_step`.
        state: What it takes, on the devices.
        dataset: Its test images are used.
        config: The flags; batches have the size of those in training, or, where the
            devices do not divide it, the next that they do.
        mesh: The devices that share a batch.
    """
    size = -(-config.batch_size // mesh.size) * mesh.size
    by_image = devices.by_image(mesh)
    images: list[dict[str, np.ndarray]] = []
    total = None
    batches = evaluation_batches(
        dataset.test,
        size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        on_bad_image=config.on_bad_image,
    )
    for batch, mask in batches:
        arrays = to_devices((batch.images, batch.labels, mask), by_image)
        answer = jax.device_get(eval_step(state, *arrays))
        rows = {name: answer.pop(name) for name in PER_IMAGE}
        images.append(rows | {"mask": devices.gather(arrays[-1])})
        total = answer if total is None else jax.tree.map(np.add, total, answer)
    assert total is not None  # a data set without test images is refused at the door
    per_image = {
        name: np.concatenate([rows[name] for rows in images])[: len(dataset.test)]
        for name in images[0]
    }
    return _summarize(per_image, total, dataset)


PER_IMAGE = ("loss", "prediction", "confidence")


def _summarize(
    per_image: dict[str, np.ndarray], total: dict[str, Any], dataset: Dataset
) -> Evaluation:
    is_read = per_image["mask"] > 0
    if not is_read.any():
        raise TrainingFailed("none of the test images can be read")
    labels, predictions = dataset.test.labels[is_read], per_image["prediction"][is_read]
    confusion = np.zeros((dataset.num_classes, dataset.num_classes), int)
    np.add.at(confusion, (labels, predictions), 1)
    by_class = np.maximum(confusion.sum(1), 1)[:, None]  # a class may have no images
    count = int(is_read.sum())
    return Evaluation(
        loss=float(per_image["loss"][is_read].mean(dtype=np.float64)),
        accuracy=float(np.trace(confusion) / count),
        predictions=np.where(is_read, per_image["prediction"], -1),
        confidence=per_image["confidence"],
        losses=per_image["loss"],
        attention={path: sums / by_class for path, sums in total["attention"].items()},
        entropy={path: float(sums / count) for path, sums in total["entropy"].items()},
        usage={path: wins / count for path, wins in total["wins"].items()},
        confusion=confusion,
    )
