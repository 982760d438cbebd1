"""How well a state does on images that it did not see, and what its routers do."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dynconv_jax.diagnostics import dead_experts
from train.data.batches import evaluation_batches, to_devices
from train.data.dataset import PARTS, Dataset, Part
from train.errors import TrainingFailed
from train.flags.config import Config
from train.machines import devices


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came out of all images of the test, or of validation, in their order.

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
        shares: For every router the mean share of each expert in the attention, (K,).
        dead: For every router the experts that do nothing, as
            `dynconv_jax.RouterSummary` has them; of a warehouse's layer, the cells that
            it leaves to others.
        spread: For every router by how much the share of an expert differs between two
            images, at the most.
        confusion: How many images of each class (row) were predicted as each (column),
            (classes, classes) int.
        part: Of which images it is.
    """

    loss: float
    accuracy: float
    predictions: np.ndarray
    confidence: np.ndarray
    losses: np.ndarray
    attention: dict[str, np.ndarray]
    entropy: dict[str, float]
    usage: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    dead: dict[str, tuple[int, ...]]
    spread: dict[str, float]
    confusion: np.ndarray
    part: Part = "test"

    def scores(self, prefix: str = "") -> dict[str, float]:
        """Returns loss and accuracy under the names that files have for them.

        Args:
            prefix: What stands before these names: "ema_" for the averages.
        """
        name = f"{prefix}{self.part}"
        return {f"{name}_loss": self.loss, f"{name}_accuracy": self.accuracy}

    def routing(self) -> dict[str, Any]:
        """Returns entropy, usage, shares and the number of dead experts, for JSON."""
        return {
            "entropy": self.entropy,
            "usage": {path: each.tolist() for path, each in self.usage.items()},
            "shares": {path: each.tolist() for path, each in self.shares.items()},
            "dead_experts": {path: len(each) for path, each in self.dead.items()},
        }


def evaluate(
    eval_step: Callable[..., dict[str, Any]],
    state: Any,
    dataset: Dataset,
    config: Config,
    mesh: Mesh,
    part: Part = "test",
) -> Evaluation:
    """Evaluates on all images of a part; every process of a run must call it.

    Args:
        eval_step: The result of `train.learning.step.make_eval_step`.
        state: What it takes, on the devices.
        dataset: Where the images are.
        config: The flags; batches have the size of those in training, or, where the
            devices do not divide it, the next that they do.
        mesh: The devices that share a batch.
        part: Which images to evaluate on.
    """
    source = dataset.part(part)
    size = -(-config.batch_size // mesh.size) * mesh.size
    by_image = devices.by_image(mesh)
    images: list[dict[str, np.ndarray]] = []
    total = None
    batches = evaluation_batches(
        source,
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
        total = answer if total is None else _join(total, answer)
    assert total is not None  # a part without images is none
    per_image = {
        name: np.concatenate([rows[name] for rows in images])[: len(source)]
        for name in images[0]
    }
    return _summarize(per_image, total, dataset, part)


PER_IMAGE = ("loss", "prediction", "confidence")

# How answers for two batches become one; what is not here is added up.
JOINED = {"peak": np.maximum, "least": np.minimum}


def _join(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {
        name: jax.tree.map(JOINED.get(name, np.add), one[name], other[name])
        for name in one
    }


def _summarize(
    per_image: dict[str, np.ndarray],
    total: dict[str, Any],
    dataset: Dataset,
    part: Part,
) -> Evaluation:
    is_read = per_image["mask"] > 0
    if not is_read.any():
        raise TrainingFailed(f"none of the {PARTS[part]} images can be read")
    labels = dataset.part(part).labels[is_read]
    predictions = per_image["prediction"][is_read]
    confusion = np.zeros((dataset.num_classes, dataset.num_classes), int)
    np.add.at(confusion, (labels, predictions), 1)
    by_class = np.maximum(confusion.sum(1), 1)[:, None]  # a class may have no images
    count = int(is_read.sum())
    shares = {path: sums / count for path, sums in total["shares"].items()}
    peak, least = total["peak"], total["least"]
    return Evaluation(
        loss=float(per_image["loss"][is_read].mean(dtype=np.float64)),
        accuracy=float(np.trace(confusion) / count),
        predictions=np.where(is_read, per_image["prediction"], -1),
        confidence=per_image["confidence"],
        losses=per_image["loss"],
        attention={path: sums / by_class for path, sums in total["attention"].items()},
        entropy={path: float(sums / count) for path, sums in total["entropy"].items()},
        usage={path: wins / count for path, wins in total["wins"].items()},
        shares=shares,
        dead={path: dead_experts(each, peak[path]) for path, each in shares.items()},
        spread={path: float((peak[path] - least[path]).max()) for path in shares},
        confusion=confusion,
        part=part,
    )
