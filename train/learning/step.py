"""What is compiled: the training step and the evaluation step, and their state."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.scipy.special import entr
from jax.sharding import Sharding
from jax.typing import ArrayLike

from dynconv_jax import (
    Assignment,
    RouterOutput,
    Temperature,
    load_balance_loss,
    router_z_loss,
)
from dynconv_jax.diagnostics import capture_routers, capture_routing
from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.scheduled import Scheduled, iter_scheduled, set_scheduled
from dynconv_jax.weights import to_torch_state_dict
from train.flags.config import Config
from train.learning.augment import Augmentation, augment, normalize
from train.learning.optimizer import make_optimizer
from train.learning.parameters import TRAINABLE, is_frozen
from train.learning.schedules import (
    assignment_schedule,
    learning_rate_schedule,
    temperature_schedule,
)

# Sets the keys of augmentation apart from those of initialization and dropout, which
# follow from the same seed by small numbers.
AUGMENTATION = 2**31


# Of each image, or of each of its classes. Binary cross-entropies: Wightman, Touvron &
# Jegou, "ResNet strikes back: An improved training procedure in timm", 2021.
LOSSES = {
    "cross_entropy": optax.softmax_cross_entropy,
    "bce": optax.sigmoid_binary_cross_entropy,
}


class TrainState(nnx.Module):
    """What a step reads and writes.

    Attributes:
        model: The model, set to train.
        optimizer: Its optimizer, which counts the steps.
        key: Where augmentation comes from. It is state, not a constant, so that runs of
            other seeds share one compiled step.
        average: The model with the moving averages of parameters and batch statistics,
            or None.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: nnx.Optimizer,
        key: jax.Array,
        average: nnx.Module | None = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.key = nnx.Variable(key)
        self.average = average


def create_state(model: nnx.Module, config: Config) -> TrainState:
    """Returns the state before the first step.

    Args:
        model: The model, which becomes part of the state.
        config: The flags.
    """
    average = None
    if config.ema_decay is not None:
        # Copies: a step is given each array once, since it donates them all.
        graphdef, state = nnx.split(model)
        average = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    key = jax.random.fold_in(jax.random.key(config.seed), AUGMENTATION)
    return TrainState(model, make_optimizer(model, config), key, average)


def make_train_step(
    graphdef: nnx.GraphDef,
    config: Config,
    augmentation: Augmentation,
    class_count: int,
    shardings: Any,
    everywhere: Sharding,
) -> Callable[..., Any]:
    """Returns the jitted training step.

    A batch is augmented as a whole, whether it is then cut into parts or not.

    Args:
        graphdef: That of the `TrainState`.
        config: The flags.
        augmentation: What is done to the images.
        class_count: The number of classes.
        shardings: How the state lies on the devices; one for all or a tree of them.
        everywhere: How the metrics lie there.

    Returns:
        (state, images, labels) → (state, metrics). The state passed in is donated; the
        metrics are scalars, of the batch before the update; a temperature and an
        assignment are among them where the model has them, and the losses on routers,
        not yet weighed, where the flags have them.
    """
    learning_rate = learning_rate_schedule(config)
    scheduled = (
        ("temperature", Temperature, temperature_schedule(config)),
        ("assignment", Assignment, assignment_schedule(config)),
    )

    def step(state, images, labels):
        whole = nnx.merge(graphdef, state)
        model, optimizer = whole.model, whole.optimizer
        index = optimizer.step[...]
        metrics = {"learning_rate": learning_rate(index)}
        for name, kind, schedule in scheduled:
            if _set_scheduled(model, kind, schedule(index)):
                metrics[name] = schedule(index)

        images, targets = augment(
            jax.random.fold_in(whole.key[...], index),
            images,
            jax.nn.one_hot(labels, class_count),
            augmentation,
        )
        targets = optax.smooth_labels(targets, config.recipe("label_smoothing"))
        gradients, means = _differentiate(model, images, targets, config, everywhere)
        optimizer.update(model, gradients)
        if config.ema_decay is not None:
            _follow(whole.average, model, index, config.ema_decay)
        metrics |= means | {"gradient_norm": optax.tree.norm(gradients)}
        return nnx.state(whole), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))


def _set_scheduled(model: nnx.Module, kind: type[Scheduled], value: ArrayLike) -> bool:
    """Writes what a schedule moves, but for what is frozen; returns if there is any."""
    frozen = [
        (variable, variable[...])
        for path, variable in iter_scheduled(model, kind)
        if is_frozen(path, variable)
    ]
    count = set_scheduled(model, kind, value)
    for variable, held in frozen:
        variable[...] = held
    return count > len(frozen)


def _differentiate(
    model: nnx.Module,
    images: jax.Array,
    targets: jax.Array,
    config: Config,
    everywhere: Sharding,
) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the gradients and metrics of a batch, each the mean over its parts.

    Batch statistics and random state of the model move on with each part.
    """
    graphdef, params, frozen, rest = nnx.split(model, TRAINABLE, nnx.Param, ...)

    def loss_of(params, rest, images, targets):
        # Parameters that are sharded come to the images, not the images to them.
        held = jax.lax.with_sharding_constraint((params, frozen), everywhere)
        merged = nnx.merge(graphdef, *held, rest, copy=True)
        logits, routers = capture_routers(merged, images)
        logits = logits.astype(at_least_float32(logits.dtype))
        loss = LOSSES[config.loss](logits, targets).mean()
        weights = {
            "load_balance": config.recipe("load_balance"),
            "router_z_loss": config.router_z_loss,
        }
        terms = _router_losses(routers.values(), weights)
        for name, term in terms.items():
            loss += weights[name] * term
        is_right = logits.argmax(-1) == targets.argmax(-1)
        metrics = {"loss": loss, "accuracy": is_right.mean(), **terms}
        return loss, (metrics, nnx.state(merged, nnx.Not(nnx.Param)))

    def of_part(rest, part):
        differentiate = jax.grad(loss_of, has_aux=True)
        gradients, (metrics, rest) = differentiate(params, rest, *part)
        return rest, (gradients, metrics)

    if config.accumulate == 1:
        rest, means = of_part(rest, (images, targets))
    else:
        parts = _cut((images, targets), config.accumulate)
        rest, means = _mean_over_parts(of_part, rest, parts)
    nnx.update(model, rest)
    return means


def _router_losses(
    routers: Iterable[RouterOutput], weights: Mapping[str, float]
) -> dict[str, jax.Array]:
    """Returns the losses on the routers that have a weight, by the flag's name.

    Each is the mean over the routers that have what it is computed from.
    """
    values: dict[str, list[jax.Array]] = {}
    for attention, probabilities, logits in routers:
        if weights["load_balance"]:
            balance = load_balance_loss(attention, probabilities)
            values.setdefault("load_balance", []).append(balance)
        if weights["router_z_loss"] and logits is not None:
            values.setdefault("router_z_loss", []).append(router_z_loss(logits))
    return {name: jnp.stack(each).mean() for name, each in values.items()}


def _cut(batch: Any, count: int) -> Any:
    """Cuts a batch into parts of every count-th image, (count, B / count, ...).

    So each device has its share of every part, and no image moves between them.
    """
    return jax.tree.map(
        lambda each: each.reshape(-1, count, *each.shape[1:]).swapaxes(0, 1), batch
    )


def _mean_over_parts(of_part: Callable, rest: Any, parts: Any) -> tuple[Any, Any]:
    """Calls `of_part` for one part after the other; only one is in memory at a time."""
    count = len(jax.tree.leaves(parts)[0])
    first = jax.tree.map(lambda each: each[0], parts)
    _, shapes = jax.eval_shape(of_part, rest, first)

    def add(carry, part):
        rest, total = carry
        rest, values = of_part(rest, part)
        return (rest, jax.tree.map(jnp.add, total, values)), None

    zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    (rest, total), _ = jax.lax.scan(add, (rest, zeros), parts)
    return rest, jax.tree.map(lambda each: each / count, total)


def _follow(
    average: nnx.Module, model: nnx.Module, index: jax.Array, decay: float
) -> None:
    """Moves the averages towards the model, and copies what has no mean, or one value.

    A young average follows faster: after n earlier steps it keeps n / (n + 9) at the
    most, so that the first step copies the model and the initial weights are forgotten.
    """
    moving = nnx.All(nnx.Any(nnx.Param, nnx.BatchStat), nnx.Not(is_frozen))
    taken = index.astype(float)
    kept = jnp.minimum(decay, taken / (taken + 9))

    def mix(old, new):
        if not jnp.issubdtype(new.dtype, jnp.floating):  # the batches counted
            return new
        return optax.incremental_update(new, old, (1 - kept).astype(new.dtype))

    old, new = nnx.state(average, moving), nnx.state(model, moving)
    nnx.update(average, jax.tree.map(mix, old, new))
    nnx.update(average, nnx.state(model, nnx.Not(moving)))


def evaluated(model: nnx.Module) -> nnx.Module:
    """Returns a model as it is in evaluation."""
    return nnx.view(
        model, use_running_average=True, deterministic=True, raise_if_not_found=False
    )


def make_eval_step(
    graphdef: nnx.GraphDef,
    class_count: int,
    normalisation: tuple[Any, Any],
    everywhere: Sharding,
    *,
    average: bool = False,
) -> Callable[..., Any]:
    """Returns the jitted evaluation step.

    Args:
        graphdef: That of the `TrainState`.
        class_count: The number of classes.
        normalisation: The mean and the standard deviation of the training images.
        everywhere: How the result lies on the devices.
        average: Evaluate the averages, not the model.

    Returns:
        (state, images, labels, mask) → for every image its `loss` (cross-entropy),
        `prediction` and `confidence`, (B,); and for every router, summed over the
        images with mask 1: `attention`, by class (class_count, K), `entropy` of the
        experts' shares in nats, (), `shares`, (K,), and `wins`, how often each expert
        has the largest weight, (K,). Of a warehouse it is the shares of the cells, and
        all are means over the tiles of a kernel. `peak` and `least`, (K,), are the
        largest and smallest share in any image, or tile of one, not a sum. Models that
        choose nothing have empty dicts.
    """

    def step(state, images, labels, mask):
        state = jax.lax.with_sharding_constraint(state, everywhere)  # as in training
        whole = nnx.merge(graphdef, state)
        model = evaluated(whole.average if average else whole.model)
        images = normalize(images, *normalisation)
        logits, routing = capture_routing(model, images)
        logits = logits.astype(at_least_float32(logits.dtype))
        shares = {path: _shares(each) for path, each in routing.items()}
        is_class = jax.nn.one_hot(labels, class_count) * mask[:, None]
        return {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
            "prediction": logits.argmax(-1),
            "confidence": jax.nn.softmax(logits).max(-1),
            "attention": {
                path: jnp.einsum(
                    "bn,bk->nk",
                    is_class,
                    each if each.ndim == 2 else _over_tiles(shares[path]),
                    precision="highest",
                )
                for path, each in routing.items()
            },
            "entropy": {
                path: mask @ _over_tiles(entr(each)).sum(-1)
                for path, each in shares.items()
            },
            "wins": {
                path: mask
                @ _over_tiles(jax.nn.one_hot(each.argmax(-1), each.shape[-1]))
                for path, each in routing.items()
            },
            "shares": {path: mask @ _over_tiles(each) for path, each in shares.items()},
            "peak": {
                path: _of_masked(each, mask, 0.0).max(tuple(range(each.ndim - 1)))
                for path, each in shares.items()
            },
            "least": {
                path: _of_masked(each, mask, 1.0).min(tuple(range(each.ndim - 1)))
                for path, each in shares.items()
            },
        }

    return jax.jit(step, out_shardings=everywhere)


def _shares(attention: jax.Array) -> jax.Array:
    """Returns the share of each expert in the attention (..., K) of a sample.

    A softmax answers shares; sigmoids do not. A row of zeros counts as even.
    """
    magnitudes = jnp.abs(attention)
    total = magnitudes.sum(-1, keepdims=True)
    even = 1 / attention.shape[-1]
    return jnp.where(total == 0, even, magnitudes / jnp.where(total == 0, 1, total))


def _over_tiles(values: jax.Array) -> jax.Array:
    """Returns the mean over the tiles of a kernel, where there are any, (B, K)."""
    return values.mean(axis=tuple(range(1, values.ndim - 1)))


def _of_masked(shares: jax.Array, mask: jax.Array, fill: float) -> jax.Array:
    """Returns shares (B, ..., K) with `fill` for the images that do not count."""
    counts = jnp.expand_dims(mask > 0, tuple(range(1, shares.ndim)))
    return jnp.where(counts, shares, fill)


def params_sha256(model: nnx.Module) -> str:
    """Returns a fingerprint of the parameters and buffers of `model`.

    It covers the PyTorch-layout state dict in the order of names: each name, dtype,
    shape and the bytes of the values.
    """
    digest = hashlib.sha256()
    for name, array in sorted(to_torch_state_dict(model).items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
