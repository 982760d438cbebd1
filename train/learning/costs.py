"""What a model costs for an image, beside its static twin."""

import jax
import numpy as np
from flax import nnx

from dynconv_jax import count_multiply_adds, count_parameters
from dynconv_jax.models.abstract import abstract_module
from train.data.dataset import Dataset
from train.flags.config import Config
from train.learning.model import static_twin


def costs_of(config: Config, dataset: Dataset, model: nnx.Module) -> dict[str, int]:
    """Returns what the model costs for an image, and what its static twin does."""
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), np.float32)
    twin = abstract_module(
        lambda rngs: static_twin(
            *(config, dataset.num_classes, dataset.image_shape[-1]), rngs
        )
    )
    return {
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(model, image),
        "static_parameters": count_parameters(twin),
        "static_multiply_adds": count_multiply_adds(twin, image),
    }
