"""What routers and kernels of a model do: attention, gates, usage, dead experts."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.special import entr

from dynconv_jax.checks import check_module
from dynconv_jax.gating import Attention, Gating, RouterOutput
from dynconv_jax.layers import KernelWarehouse
from dynconv_jax.layers.expert_conv import ExpertConv

# What is recorded that chooses among experts or cells; the rest are gates.
CHOICES = "attention", "mixture"

# A router that gives one expert more than this share of all attention has collapsed.
COLLAPSE_SHARE = 0.95

# A dead expert has less than the first of an even share on average, and less than the
# second in each sample; that spares experts of few samples.
DEAD_SHARE = 0.05
DEAD_PEAK = 0.5

# Fewer samples than this for each expert may leave out a live one by chance.
SAMPLES_AN_EXPERT = 4


class RoutingCollapseWarning(UserWarning):
    """One expert gets nearly all the attention; the layer is all but static."""


class DeadExpertWarning(UserWarning):
    """Several experts share the attention, and others get none of it."""


@dataclasses.dataclass(frozen=True)
class RouterSummary:
    """What one router did over a set of samples.

    Attributes:
        mean_attention: Shape (K,), the average weight of each expert, as answered; of a
            softmax it sums to 1.
        share: Shape (K,), the average share of each expert in the attention of a
            sample; sums to 1. Of a softmax it is `mean_attention`.
        win_share: Shape (K,), the share of samples in which each expert has the largest
            weight; sums to 1.
        peak: Shape (K,), the largest share of each expert in any sample.
        spread: The most by which the share of an expert differs between two samples.
        entropy: The mean entropy of a sample's shares in nats, from 0 (one expert a
            sample) to log K (all alike).
        usage_entropy: The entropy of `share` in nats, from 0 (one expert for all
            samples) to log K (all experts in use).
        collapsed: Whether one of several experts has more than `COLLAPSE_SHARE` of all
            attention.
        dead_experts: Those that have less than `DEAD_SHARE` (0.05) of an even share,
            1/K, on average and less than `DEAD_PEAK` (0.5) of it in every sample. Of a
            mixture, the cells that this layer leaves to others.
    """

    mean_attention: np.ndarray
    share: np.ndarray
    win_share: np.ndarray
    peak: np.ndarray
    spread: float
    entropy: float
    usage_entropy: float
    collapsed: bool
    dead_experts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class GateSummary:
    """What one set of gates did over a set of samples: factors, not a choice.

    Attributes:
        mean: The average of each gate, in the shape that it has for a sample.
        deviation: The standard deviation of each gate over the samples.
        variation: The mean of `deviation` as a share of the mean magnitude of the
            gates; 0 if all samples are treated alike, as a static layer would.
    """

    mean: np.ndarray
    deviation: np.ndarray
    variation: float


def _capture(
    model: nnx.Module, kinds: Sequence[type[nnx.Variable]], args: Any, kwargs: Any
) -> tuple[Any, dict[tuple[str, str], jax.Array]]:
    """Calls a model; returns its result and what its parts recorded, by path, name."""
    check_module("model", model)
    capture = nnx.capture(model, *kinds)
    try:
        result, *captured = capture(*args, **kwargs)
    except BaseException:
        for _, part in nnx.iter_modules(model):  # nnx.capture leaves them behind
            if hasattr(part, "__captures__"):
                del part.__captures__
        raise
    recorded = {}
    for state in captured:
        for (*path, name), calls in nnx.to_flat_state(state):
            key = ".".join(map(str, path)), str(name)
            recorded[key] = jnp.concatenate(calls.get_value())
    return result, recorded


def capture_attention(
    model: nnx.Module, *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """Calls a model and returns its result beside the attention of its routers.

    The model is called as it is set, in training or evaluation. Works inside `jax.jit`
    and `jax.grad`.

    Args:
        model: A module that contains routers.
        *args: Passed on to the model.
        **kwargs: Passed on to the model.

    Returns:
        The model's result, and for each router that was called, by its path in the
        model, its attention (B, K). A router called several times has its calls
        concatenated along B.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynconv_jax import DynamicConvBlock
        >>> block = DynamicConvBlock(3, 8, rngs=nnx.Rngs(0))
        >>> _, attention = capture_attention(block, jnp.ones((2, 9, 7, 3)))
        >>> {path: a.shape for path, a in attention.items()}
        {'dyn.router': (2, 4)}
    """
    result, recorded = _capture(model, [Attention], args, kwargs)
    return result, _named(recorded, ["attention"])


def capture_routers(
    model: nnx.Module, *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, RouterOutput]]:
    """Calls a model and returns its result beside what the losses on routers need.

    Args:
        model: A module that contains routers.
        *args: Passed on to the model.
        **kwargs: Passed on to the model.

    Returns:
        The model's result, and under the paths of `capture_attention` a `RouterOutput`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynconv_jax import DynamicConv, load_balance_loss
        >>> layer = DynamicConv(3, 8, (3, 3), top_k=1, rngs=nnx.Rngs(0))
        >>> _, routers = capture_routers(layer, jnp.ones((2, 9, 7, 3)))
        >>> attention, probabilities, logits = routers["router"]
        >>> bool(load_balance_loss(attention, probabilities) > 1)
        True
    """
    result, recorded = _capture(model, [Attention, Gating], args, kwargs)
    return result, {
        path: RouterOutput(
            attention,
            recorded.get((path, "probabilities")),
            recorded.get((path, "logits")),
        )
        for (path, name), attention in recorded.items()
        if name == "attention"
    }


def capture_routing(
    model: nnx.Module, *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """Calls a model and returns its result beside all that it chose for each sample.

    That is what `capture_attention` returns, and the mixtures of warehouses.

    Args:
        model: A module that contains routers or warehouses.
        *args: Passed on to the model.
        **kwargs: Passed on to the model.

    Returns:
        The model's result, and by path the attention (B, K) of each router and, with
        `.mixture` added to the path, the mixture (B, M, n) of each `WarehouseConv`: how
        much of each of n cells is in each of M tiles of its kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynconv_jax import DynamicConvBlock
        >>> block = DynamicConvBlock(3, 8, rngs=nnx.Rngs(0))
        >>> _, routing = capture_routing(block, jnp.ones((2, 9, 7, 3)))
        >>> {path: each.shape for path, each in routing.items()}
        {'dyn.router': (2, 4)}
    """
    result, recorded = _capture(model, [Attention], args, kwargs)
    return result, _named(recorded, CHOICES)


def _named(
    recorded: dict[tuple[str, str], jax.Array], names: Sequence[str]
) -> dict[str, jax.Array]:
    """Returns what was recorded under some names, by path."""
    return {
        _path_of(path, name): each
        for (path, name), each in recorded.items()
        if name in names
    }


def _path_of(path: str, name: str) -> str:
    """Returns under which path what a part recorded is known."""
    return path if name == "attention" else f"{path}.{name}".lstrip(".")


def summarize(attention: jax.Array | np.ndarray) -> RouterSummary:
    """Summarises the attention (N, K) of one router over N samples.

    Rows that do not sum to 1, as those of a `SigmoidRouter`, count by the share of each
    expert in the sum of their magnitudes; a row of zeros counts as even.

    Example:
        >>> summarize(np.array([[0.9, 0.1], [0.2, 0.8]])).win_share.tolist()
        [0.5, 0.5]
    """
    attention = np.asarray(attention)
    num_experts = attention.shape[-1]
    mean_attention = attention.mean(axis=0)
    magnitudes = np.abs(attention)
    totals = magnitudes.sum(axis=-1, keepdims=True)
    shares = np.where(
        totals == 0, 1 / num_experts, magnitudes / np.where(totals == 0, 1, totals)
    )
    share, peak = shares.mean(axis=0), shares.max(axis=0)
    wins = np.bincount(attention.argmax(axis=-1), minlength=num_experts)
    return RouterSummary(
        mean_attention=mean_attention,
        share=share,
        win_share=wins / len(attention),
        peak=peak,
        spread=float((peak - shares.min(axis=0)).max()),
        entropy=float(entr(shares).sum(axis=-1).mean()),
        usage_entropy=float(entr(share).sum()),
        collapsed=num_experts > 1 and bool(share.max() > COLLAPSE_SHARE),
        dead_experts=dead_experts(share, peak),
    )


def dead_experts(share: np.ndarray, peak: np.ndarray) -> tuple[int, ...]:
    """Returns the experts that do nothing, as `RouterSummary` has them.

    Args:
        share: Shape (K,), the average share of each expert in the attention.
        peak: Shape (K,), its largest share in any sample.

    Example:
        >>> dead_experts(np.array([0.99, 0.0, 0.01]), np.array([1.0, 0.0, 0.9]))
        (1,)
    """
    even = 1 / len(share)
    are_dead = (share < DEAD_SHARE * even) & (peak < DEAD_PEAK * even)
    return tuple(np.flatnonzero(are_dead).tolist())


def summarize_gates(gates: jax.Array | np.ndarray) -> GateSummary:
    """Summarises gates (N, ...) over N samples.

    Example:
        >>> summarize_gates(np.array([[0.5, 1.0], [1.5, 1.0]])).deviation.tolist()
        [0.5, 0.0]
    """
    gates = np.asarray(gates)
    deviation = gates.std(axis=0)
    magnitude = float(np.abs(gates).mean())
    return GateSummary(
        mean=gates.mean(axis=0),
        deviation=deviation,
        variation=float(deviation.mean()) / magnitude if magnitude else 0.0,
    )


def compare_experts(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns how alike the experts of each layer are, and the cells of a warehouse.

    Experts that are copies of one another (after `init_from_static` without noise, say)
    make a layer static, whatever its router does.

    Args:
        model: A layer or a model.

    Returns:
        By the path of the layer, for a warehouse that of its first layer, the cosine of
        the angle between each two experts or cells, (K, K): 1 for equal directions, 0
        for unrelated ones.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> compare_experts(layer)[""].shape
        (4, 4)
    """
    check_module("model", model)
    found = {}
    for path, part in nnx.iter_modules(model):
        if isinstance(part, ExpertConv):
            stack = np.asarray(part.kernel[...], np.float64)
        elif isinstance(part, KernelWarehouse):
            stack = np.asarray(part.cells[...], np.float64)
        else:
            continue
        flat = stack.reshape(len(stack), -1)
        norms = np.linalg.norm(flat, axis=1, keepdims=True)
        directions = flat / np.where(norms == 0, 1, norms)
        name = ".".join(map(str, path)).removesuffix("._warehouse")
        found[name] = directions @ directions.T
    return found


def diagnose(
    model: nnx.Module, *args: Any, **kwargs: Any
) -> dict[str, RouterSummary | GateSummary]:
    """Runs a model in evaluation and summarises each of its routers.

    Args:
        model: A module that contains routers; it is left as it was.
        *args: Passed on to the model.
        **kwargs: Passed on to the model.

    Returns:
        By the path of the router a `RouterSummary` of its attention over the experts.
        What other members of the family record follows under the path and a name: a
        `RouterSummary` of the `mixture` of a `WarehouseConv`, over its cells, with each
        tile as a sample; `GateSummary`s of the attentions `channel`, `filter` and
        `spatial` of an `ODConv`, and of `scale` and `phi` of a `DecomposedConv`.

    Raises:
        ValueError: If nothing was recorded.

    Warns:
        RoutingCollapseWarning: For each router that has collapsed onto one expert.
        DeadExpertWarning: For each other router with dead experts, if there are enough
            samples to tell.

    Example:
        >>> import jax.numpy as jnp
        >>> from dynconv_jax import DynamicConvBlock
        >>> block = DynamicConvBlock(3, 8, rngs=nnx.Rngs(0))
        >>> summaries = diagnose(block, jnp.ones((2, 9, 7, 3)))
        >>> summaries["dyn.router"].mean_attention.shape
        (4,)
    """
    evaluated = nnx.view(
        model, deterministic=True, use_running_average=True, raise_if_not_found=False
    )
    _, recorded = _capture(evaluated, [Attention], args, kwargs)
    if not recorded:
        raise ValueError(
            f"`model` (a {type(model).__name__}) called no router; `diagnose` sees "
            "those that are called with the model"
        )
    summaries: dict[str, RouterSummary | GateSummary] = {}
    for (path, name), each in recorded.items():
        key = _path_of(path, name)
        if name not in CHOICES:
            summaries[key] = summarize_gates(each)
            continue
        rows = each.reshape(-1, each.shape[-1])
        summaries[key] = summary = summarize(rows)
        found = _fault(path, summary, len(rows), is_mixture=name == "mixture")
        if found is not None:
            warnings.warn(*found, stacklevel=2)
    return summaries


def _fault(
    path: str, summary: RouterSummary, samples: int, *, is_mixture: bool
) -> tuple[str, type[UserWarning]] | None:
    """Returns what to warn of, and as what."""
    if summary.collapsed:
        expert = int(summary.share.argmax())
        return (
            f"router {path!r} gives expert {expert} {summary.share[expert]:.0%} of all "
            "attention; raise the temperature early in training, or add "
            "`load_balance_loss`",
            RoutingCollapseWarning,
        )
    experts = len(summary.share)
    is_telling = samples >= SAMPLES_AN_EXPERT * experts
    if is_mixture or not summary.dead_experts or not is_telling:
        return None
    return (
        f"router {path!r} gives {len(summary.dead_experts)} of {experts} experts "
        f"nothing: {', '.join(map(str, summary.dead_experts))}; add "
        "`load_balance_loss` or noise on the logits",
        DeadExpertWarning,
    )
