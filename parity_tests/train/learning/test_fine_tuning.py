"""What is frozen stays bit for bit, and has no state; all else moves as it would."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding

from dynconv_jax import Temperature, list_convolutions, to_torch_state_dict
from parity_tests.tolerances import assert_close
from train.errors import TrainError
from train.flags.config import Config
from train.learning.augment import Augmentation
from train.learning.fine_tuning import described
from train.learning.model import create, twin_of
from train.learning.parameters import TRAINABLE, keys_of
from train.learning.step import create_state, make_train_step

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

CLASSES = 5
CONFIG = Config(
    steps=10,
    batch_size=8,
    learning_rate=0.05,
    warmup_steps=0,
    router_weight_decay=0.1,
    label_smoothing=0.0,
    load_balance=0.0,
    temperature_start=4.0,
    num_experts=2,
    model_options=("width_mult=0.25",),
)


def flags(**given: Any) -> Config:
    return dataclasses.replace(CONFIG, **given)


def build(**given: Any) -> nnx.Module:
    return create(flags(**given), CLASSES, 1, nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(8, 9, 7, 1)).astype(np.float32)
    return images, rng.integers(CLASSES, size=8).astype(np.int32)


def train(model: nnx.Module, config: Config, batch: Any, steps: int = 2) -> Any:
    """Returns the state of a run after some steps, and its last metrics."""
    graphdef, state = nnx.split(create_state(model, config))
    device = SingleDeviceSharding(jax.devices()[0])
    state = jax.device_put(state, device)
    step = make_train_step(*(graphdef, config, Augmentation(), CLASSES, device, device))
    metrics = {}
    for _ in range(steps):
        state, metrics = step(state, *batch)
    return nnx.merge(graphdef, state), metrics


def moved(before: dict, model: nnx.Module) -> set[str]:
    after = to_torch_state_dict(model)
    return {key for key in after if after[key].tobytes() != before[key].tobytes()}


# What stays, and what moves


@dataclasses.dataclass
class Tuned:
    """A model before and after steps with a frozen backbone, averages and parts."""

    before: dict[str, np.ndarray]
    backbone: set[str]
    whole: Any


@pytest.fixture(scope="module")
def tuned(batch) -> Tuned:
    config = flags(freeze=("backbone",), ema_decay=0.9, accumulate=2, clip_norm=1.0)
    model = create(config, CLASSES, 1, nnx.Rngs(0))
    before = to_torch_state_dict(model)
    backbone = keys_of("backbone", model)
    return Tuned(before, backbone, train(model, config, batch, steps=3)[0])


@pytest.mark.parametrize("part", ["model", "average"])
def test_frozen_parameters_are_the_same_bits_and_the_others_move(tuned, part):
    changed = moved(tuned.before, getattr(tuned.whole, part))
    temperatures = {key for key in tuned.before if key.endswith("temperature")}
    statistics = {key for key in tuned.before if "running" in key or "batches" in key}
    assert not changed & (tuned.backbone | statistics)
    assert changed == tuned.before.keys() - tuned.backbone - statistics
    assert temperatures and temperatures <= changed


def test_frozen_parameters_have_no_state_in_the_optimizer(tuned):
    moments = [
        leaf.size
        for leaf in jax.tree.leaves(nnx.state(tuned.whole.optimizer))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    trained = tuned.before.keys() - tuned.backbone
    size = sum(tuned.before[key].size for key in trained if "fc" in key)
    assert sum(moments) == 2 * size


@pytest.mark.slow
def test_trained_parameters_move_as_if_the_others_were_constants(batch):
    config = flags(freeze=("stem", "*.bn", "stage2"), optimizer="sgd", momentum=0.0)
    whole, metrics = train(build(freeze=config.freeze), config, batch, steps=1)

    images, labels = batch
    model: Any = build(freeze=config.freeze)
    for stage in (model.stage1, model.stage3):  # not of stage2, which is frozen
        stage.dyn.router.temperature[...] = config.recipe("temperature_start")
    graphdef, params, rest = nnx.split(model, TRAINABLE, ...)

    def loss_of(params):
        logits = nnx.merge(graphdef, params, rest)(images)
        targets = jax.nn.one_hot(labels, CLASSES)
        return optax.softmax_cross_entropy(logits, targets).mean()

    gradients = jax.jit(jax.grad(loss_of))(params)
    expected = {}
    for path, gradient in nnx.to_flat_state(gradients):
        old = dict(nnx.to_flat_state(params))[path][...]
        of_kernel = 0.1 if "router" in path else config.weight_decay
        decay = of_kernel if path[-1] == "kernel" else 0.0
        expected[path] = old - 0.05 * (gradient[...] + decay * old)
    trained = dict(nnx.to_flat_state(nnx.state(whole.model, TRAINABLE)))
    assert {path[0] for path in expected} == {"stage1", "stage3", "fc"}
    assert_close(
        {".".join(map(str, path)): each[...] for path, each in trained.items()},
        {".".join(map(str, path)): each for path, each in expected.items()},
        dtype="float32",
    )
    norm = optax.tree.norm(gradients)
    assert_close({"": metrics["gradient_norm"]}, {"": norm}, dtype="float32")


def test_frozen_router_keeps_its_temperature(batch):
    config = flags(freeze=("routers",))
    model: Any = build(freeze=("routers",))
    model.stage1.dyn.router.temperature[...] = 0.25
    whole, metrics = train(model, config, batch, steps=1)
    temperatures = nnx.to_flat_state(nnx.state(whole.model, Temperature))
    assert [float(each[...]) for _, each in temperatures] == [0.25, 1.0, 1.0]
    assert "temperature" not in metrics


@pytest.mark.slow
def test_batch_norm_that_is_frozen_by_half_goes_on(batch):
    config = flags(freeze=("stem.1.weight", "stage1.bn"))
    model = build(freeze=config.freeze)
    before = to_torch_state_dict(model)
    changed = moved(before, train(model, config, batch, steps=1)[0].model)
    assert "stem.1.weight" not in changed and "stem.1.running_mean" in changed
    assert not any(key.startswith("stage1.bn") for key in changed)


@pytest.mark.parametrize("conv", list_convolutions())
def test_every_member_is_frozen_but_for_its_head(conv):
    freeze = ("backbone",) if conv == "static" else ("backbone", "routers")
    model = build(freeze=freeze, conv=conv, num_experts=None)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, TRAINABLE))]
    assert paths == [("fc", "bias"), ("fc", "kernel")]
    norms = [
        part for _, part in nnx.iter_modules(model) if isinstance(part, nnx.BatchNorm)
    ]
    assert norms and all(norm.use_running_average for norm in norms)


def test_without_freeze_nothing_is_marked():
    model = build()
    assert nnx.state(model, TRAINABLE) == nnx.state(model, nnx.Param)
    assert not any(
        part.use_running_average
        for _, part in nnx.iter_modules(model)
        if isinstance(part, nnx.BatchNorm)
    )


# What is said, and what is refused


def test_what_is_frozen_is_said():
    given = flags(freeze=("backbone",))
    (line,) = described(build(freeze=("backbone",)), given)
    assert line == (
        "48,696 parameters and 4 batch norms are frozen, by --freeze backbone"
    )
    assert not [*described(build(), CONFIG)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            dict(freeze=("stage",)),
            ["--freeze (=stage)", "did you mean", "'stage1'", "experts, routers, head"],
        ),
        (
            dict(freeze=("stem", "layer4")),
            ["--freeze (=layer4) must name parameters of --model dynamic_net"],
        ),
        (dict(freeze=("*.running_mean",)), ["--freeze (=*.running_mean) must name"]),
        (
            dict(freeze=("experts",), conv="static", num_experts=None),
            ["--freeze (=experts)", "--conv static has no experts"],
        ),
        (dict(freeze=("*",)), ["--freeze (=*) must leave a parameter to train"]),
        (
            dict(freeze=("backbone", "routers", "fc")),
            ["--freeze (=backbone routers fc) must leave a parameter to train"],
        ),
        (
            dict(router_learning_rate=0.1, conv="static", num_experts=None),
            ["--router-learning-rate (=0.1) must be left out", "which has no routers"],
        ),
        (
            dict(router_learning_rate=0.1, freeze=("routers",)),
            ["--router-learning-rate (=0.1) must be left", "whose routers --freeze"],
        ),
        (
            dict(head_learning_rate=0.1, freeze=("fc",)),
            ["--head-learning-rate (=0.1) must be left out", "whose head --freeze"],
        ),
        (
            dict(layer_decay=0.5, freeze=("backbone", "routers")),
            ["--layer-decay (=0.5) must be left out where --freeze leaves only the"],
        ),
    ],
)
def test_what_no_run_could_use_is_refused_in_one_line(given, words):
    with pytest.raises(TrainError) as caught:
        build(**given)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


def test_static_twin_is_frozen_as_far_as_it_has_the_parts():
    config = flags(freeze=("stem", "routers"), twin=True)
    create(config, CLASSES, 1, nnx.Rngs(0))
    assert twin_of(config).freeze == ("stem",)
    assert twin_of(flags(router_learning_rate=0.1)).router_learning_rate is None
    with pytest.raises(TrainError, match=r"^the static twin: --freeze \(=experts\)"):
        build(freeze=("experts",), twin=True)
