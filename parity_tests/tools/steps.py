"""Small networks and the compiled steps of the program on them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from dynconv_jax import BatchNorm, DynamicConv
from train.flags.config import Config
from train.learning.augment import Augmentation
from train.learning.step import create_state, make_eval_step, make_train_step

CLASSES = 5
CONFIG = Config(
    steps=10,
    batch_size=8,
    optimizer="sgd",
    learning_rate=0.1,
    label_smoothing=0.0,
    load_balance=0.0,
    temperature_start=4.0,
    temperature_end=0.1,
)


class Net(nnx.Module):
    """A convolution, perhaps a norm, and a head."""

    def __init__(self, conv: Any = DynamicConv, has_norm: bool = True, **options):
        """Builds the layers; options are those of the convolution."""
        rngs = nnx.Rngs(0)
        self.conv = conv(1, 4, (3, 3), rngs=rngs, **options)
        self.norm = nnx.data(BatchNorm(4, rngs=rngs) if has_norm else None)
        self.fc = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Classifies images (B, H, W, 1)."""
        x = self.conv(inputs)
        x = x if self.norm is None else self.norm(x)
        return self.fc(jax.nn.relu(x).mean((1, 2)))


def build(model: nnx.Module, config: Config, augmentation=None):
    """Returns the parts of a run: graphdef, state, step."""
    graphdef, state = nnx.split(create_state(model, config))
    device = SingleDeviceSharding(jax.devices()[0])
    state = jax.device_put(state, device)
    augmentation = augmentation or Augmentation()
    step = make_train_step(graphdef, config, augmentation, CLASSES, device, device)
    return graphdef, state, step


def evaluation(graphdef: nnx.GraphDef, **options):
    """Returns the step of evaluation of images that need no normalisation."""
    device = SingleDeviceSharding(jax.devices()[0])
    return make_eval_step(graphdef, CLASSES, ((0.0,), (1.0,)), device, **options)


def as_array(leaf: jax.Array) -> np.ndarray:
    """Returns an array of JAX, or what a key consists of, as one of NumPy."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)


def values(tree: Any, kind: type | None = None) -> dict[str, np.ndarray]:
    """Returns arrays of a module or state by path, of one kind if that is given."""
    state = nnx.state(tree, kind) if kind else nnx.state(tree)
    flat = nnx.to_flat_state(state)
    return {".".join(map(str, path)): as_array(each[...]) for path, each in flat}
