"""Networks by name, whole and in float64, in both frameworks.

How far two programs that compute the same are apart is what a network makes of their
rounding, and that depends on what it is given. The norms inside of attentions divide by
the deviation of a pooled vector from sample to sample: where samples look alike, or are
two or three, they multiply rounding by as much as they divide. So here images differ in
their means and contrasts, there are as many as such norms need, and running statistics
are those of the images, as in a network that was trained on their like.

That this is all, PyTorch shows alone: in `kw_mobilenet_v2` as it is drawn, images that
differ by one bit, 2e-16, have gradients that differ by 8e-8.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax.models.options import option_names
from dynconv_jax.models.registry import MODELS
from parity_tests.parity import assert_parity
from parity_tests.tools import alike, networks


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a network is compared with.

    Attributes:
        batch: How many images there are.
        size: Their height and width; of the usual one the last stage of most has two
            pixels.
        options: Those of the network.
    """

    batch: int = 3
    size: tuple[int, int] = (33, 17)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# τ and the temperature, which falls from 30 to 1, are as in the middle of training.
_ASSIGNMENT = {"assignment": 0.5}
_TEMPERATURE = {"conv_options": {"temperature": 4.0}}

# By what names begin with; what says more of a name goes first.
SETTINGS = {
    # Of two pixels a sample of this depth grows beyond all numbers, square by square.
    "dcd_resnet101": Setting(8, (33, 24)),
    "dcd_": Setting(4),
    "efficientnet_cc": Setting(4),
    "fdy_cnn": Setting(3, (4, 128)),
    "kw_convnext_tiny": Setting(2, (64, 32), _ASSIGNMENT),
    "kw_mobilenet_v2": Setting(8, options=_ASSIGNMENT),
    "kw_resnet18": Setting(6, options=_ASSIGNMENT),
    # Of half the parameters it has a basis.
    "kw_resnet50": Setting(4, options={**_ASSIGNMENT, "ratio": 0.5}),
    "od_": Setting(6, options=_TEMPERATURE),
    "tf_efficientnet_cc": Setting(4),
    "": Setting(),
}


def pair(
    name: str, rng: np.random.Generator
) -> tuple[nnx.Module, torch.nn.Module, np.ndarray]:
    """Returns a network of JAX, without values, its twin, and what they are to see.

    Args:
        name: One of `list_models()`.
        rng: Draws images and parameters.
    """
    setting = next(each for start, each in SETTINGS.items() if name.startswith(start))
    options = dict(setting.options)
    if "dropout" in (option_names(MODELS[name]) or ()):
        options["dropout"] = 0.0
    theirs = dynconv_torch.create_model(name, 7, dtype=torch.float64, **options)
    channels: Any = theirs.in_channels
    images = different_images((setting.batch, *setting.size, channels), rng)
    awaken(theirs, rng)
    # Biases of 1 have `kw_mobilenet_v2` multiply rounding by forty times as much.
    networks.enliven(theirs, images, rng, biases=0.3)
    networks.fit_statistics(theirs, images)
    ours = networks.abstract(name, 7, param_dtype="float64", **options)
    return ours, theirs, images


def assert_whole_parity(name: str, rng: np.random.Generator) -> None:
    """Asserts that a network of this name is the same in both frameworks.

    Compared are the outputs in evaluation and in training, where also the gradients of
    the images and of every parameter, and the buffers.

    Args:
        name: One of `list_models()`.
        rng: Draws images and parameters.

    Raises:
        ParityError: If anything differs.
    """
    ours, theirs, images = pair(name, rng)
    with alike.compiled_once(ours):
        assert_parity(ours, theirs, images, jit=False, gradients_in=("train",))


def different_images(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns images (B, H, W, C), each with means and contrasts of its own."""
    batch, *_, channels = shape
    contrast = rng.uniform(0.3, 2.0, size=(batch, 1, 1, channels))
    mean = rng.normal(size=(batch, 1, 1, channels))
    return rng.normal(size=shape) * contrast + mean


def awaken(net: torch.nn.Module, rng: np.random.Generator) -> None:
    """Draws what begins as a constant, and enlarges what begins near zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            deviation = float(parameter.std(correction=0))
            if deviation == 0:
                drawn = rng.normal(0, 0.5, tuple(parameter.shape))
                parameter.add_(torch.from_numpy(drawn))
            elif deviation < 0.011:
                parameter.mul_(0.1 / deviation)
