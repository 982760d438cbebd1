"""A network that is made static mixes its experts as it did on average."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynconv_jax import capture_attention
from parity_tests.tolerances import TOLERANCES
from parity_tests.tools.jax_modules import build
from parity_tests.tools.runs import make_dataset
from train.commands.export.programs import evaluated
from train.commands.export.static import collapsed
from train.data.folder import FolderSource
from train.errors import TrainError, TrainingFailed
from train.flags.config import Config
from train.learning.augment import normalize
from train.learning.model import create

DEFAULT_NUMERICS = True


def network(**flags):
    config = Config(model_options=("width_mult=0.25",), **flags)
    return config, build(lambda: create(config, 4, 3, nnx.Rngs(0)))


def test_kernels_are_mixed_by_the_mean_attention_of_the_training_images():
    config, model = network()
    dataset = make_dataset()
    static: Any = collapsed(model, config, dataset)
    pictures, _ = dataset.train.gather(np.arange(len(dataset.train)))
    images = normalize(jnp.asarray(pictures), dataset.mean, dataset.std)
    _, attention = capture_attention(evaluated(model), images)
    mean = attention["stage1.dyn.router"].mean(0)
    expected = np.tensordot(mean, model.stage1.dyn.kernel[...], 1)
    np.testing.assert_allclose(
        static.stage1.dyn.kernel[...], expected, rtol=TOLERANCES["float32"].relative
    )


@pytest.mark.parametrize(
    ("conv", "has"),
    [
        ("static", "none"),
        ("odconv", "ODConv"),
        ("decomposed", "DecomposedConv"),
        ("kernel_warehouse", "WarehouseConv"),
    ],
)
def test_a_network_without_routers_of_its_layers_is_refused_by_what_it_has(conv, has):
    config, model = network(conv=conv)
    words = f"--static needs a network with routers of DynamicConv, .* has {has}; leave"
    with pytest.raises(TrainError, match=words):
        collapsed(model, config, make_dataset())


def test_a_training_image_that_cannot_be_read_is_put_up_with_as_told(tmp_path):
    config, model = network()
    torn = FolderSource((tmp_path / "gone.png",), np.zeros(1, np.int32), (5, 5, 3))
    dataset = dataclasses.replace(make_dataset(), train=torn)
    with pytest.raises(TrainingFailed, match="gone.png .*pass --on-bad-image skip"):
        collapsed(model, config, dataset)
