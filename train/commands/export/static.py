"""A dynamic network made static, at the mean attention of its training images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynconv_jax import (
    DecomposedConv,
    DynamicConv,
    WarehouseConv,
    capture_attention,
    collapse,
)
from dynconv_jax.layers.expert_conv import ExpertConv
from train.commands.export.pictures import spread_pictures
from train.data.dataset import Dataset, Domain
from train.errors import TrainError
from train.flags.config import Config
from train.learning.augment import normalize
from train.learning.model import static_twin
from train.learning.step import evaluated

DYNAMIC = (ExpertConv, DecomposedConv, WarehouseConv)

IMAGES = 512  # whose attention is averaged, evenly spaced over the training images


def collapsed(model: nnx.Module, config: Config, dataset: Dataset) -> nnx.Module:
    """Returns the static network of a dynamic one.

    Args:
        model: The network.
        config: The flags of its run.
        dataset: Its training images say how much of each expert is mixed.

    Raises:
        TrainError: If the network is static already, or has layers of another member
            than `DynamicConv`, or a training image cannot be read and is not to be
            skipped.
    """
    layers = [part for _, part in nnx.iter_modules(model) if isinstance(part, DYNAMIC)]
    others = {type(each).__name__ for each in layers} - {DynamicConv.__name__}
    if others or not layers:
        has = f"has {', '.join(sorted(others))}" if others else "has none"
        raise TrainError(
            f"--static needs a network with routers of DynamicConv, and that of the "
            f"run {has}; leave it out"
        )
    pictures, _ = spread_pictures(dataset.train, IMAGES, config.on_bad_image)
    twin = static_twin(
        config, dataset.num_classes, dataset.image_shape[-1], nnx.Rngs(0)
    )
    collapse(model, twin, _mean_attention(evaluated(model), pictures, dataset))
    return twin


def _mean_attention(model: Any, pictures: np.ndarray, domain: Domain) -> dict[str, Any]:
    graphdef, state = nnx.split(model)

    @jax.jit
    def attention(state: Any, images: jax.Array) -> Any:
        inputs = normalize(images, domain.mean, domain.std)
        _, found = capture_attention(nnx.merge(graphdef, state), inputs)
        return {path: jnp.sum(each, 0) for path, each in found.items()}

    sums: dict[str, Any] = {}
    for batch in np.array_split(pictures, max(1, len(pictures) // 64)):
        found = attention(state, jnp.asarray(batch))
        sums = {path: sums.get(path, 0) + each for path, each in found.items()}
    return {path: each / len(pictures) for path, each in sums.items()}
