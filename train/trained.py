"""The network of a run, for programs of one's own.

from train.trained import load_run

run = load_run("runs/photos")
images = run.read_pictures(["a.jpg", "b.png"])
logits = run.model(run.preprocess(images))
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from train.commands.evaluate import Weights, load_trained
from train.data.dataset import Domain
from train.data.folder import FolderSource
from train.errors import TrainError
from train.learning.augment import normalize
from train.learning.step import evaluated


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A trained network, with what it needs of the images that it saw.

    Attributes:
        model: The network, as it is in evaluation.
        domain: The names of the classes (`class_names`), the shape of an image
            (`image_shape`, height, width and channels), `mean` and `std` of each
            channel, white being 1, and how pictures become such images
            (`interpolation`, `crop_pct`).
    """

    model: nnx.Module
    domain: Domain

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.domain.class_names

    def read_pictures(self, paths: Iterable[Path | str]) -> np.ndarray:
        """Returns pictures as images of the domain, as evaluation reads them.

        Args:
            paths: The B files.

        Returns:
            Shape (B, H, W, C), uint8.

        Raises:
            TrainError: If one cannot be read.
        """
        files = [Path(path) for path in paths]
        source = FolderSource.unlabelled(files, self.domain)
        images = [source.image(index) for index in range(len(source))]
        return np.array(images, np.uint8).reshape(-1, *self.domain.image_shape)

    def preprocess(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Returns images as the network takes them.

        Args:
            images: Shape (B, H, W, C), uint8, of the `image_shape` of the domain.

        Returns:
            Shape (B, H, W, C), float32, each channel less its mean, over its standard
            deviation.

        Raises:
            TrainError: If the images have another shape or dtype.
        """
        expected = self.domain.image_shape
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != "uint8":
            raise TrainError(
                f"`images` (shape {images.shape}, {images.dtype}) must be (batch, "
                f"{', '.join(map(str, expected))}) of uint8, as those of the run"
            )
        return normalize(jnp.asarray(images), self.domain.mean, self.domain.std)


def load_run(path: Path | str, weights: Weights = "final") -> TrainedRun:
    """Loads the network of a run; its data need not be there.

    Args:
        path: The directory of the run.
        weights: `"final"`, those after the last step; `"best"`, those with the best
            accuracy in evaluation; or `"ema"`, the moving average.

    Raises:
        TrainError: If there is no such run, or it has no such weights (yet).
    """
    _, domain, model = load_trained(Path(path), weights)
    return TrainedRun(evaluated(model), domain)
