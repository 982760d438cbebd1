"""From logits to attention: softmax, temperature, the k largest.

    a = softmax(z / T)               (B, K)    rows sum to 1

And what a router records of it, for losses and diagnostics.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.scheduled import Scheduled

# The attribute of a module in which `capture_routers` collects what it answers.
RECORDED = "_recorded_outputs"


class RouterOutput(NamedTuple):
    """What a router answered, and what the losses on it need.

    Attributes:
        attention: Shape (B, K), the weights of the experts.
        probabilities: Shape (B, K), the whole softmax, where `top_k` has cut it to the
            attention; else None.
        logits: Shape (B, K), what the softmax was taken of: divided by the temperature,
            in training with dropout and noise. None if there is no softmax.
    """

    attention: Tensor
    probabilities: Tensor | None = None
    logits: Tensor | None = None


def record_output(module: nn.Module, attention: Tensor) -> None:
    """Records what `module` answered, where `capture_routers` is listening."""
    recorded = getattr(module, RECORDED, None)
    if recorded is not None:
        recorded.append(RouterOutput(attention))


def record_softmax(
    module: nn.Module,
    attention: Tensor,
    logits: Tensor,
    temperature: float | Tensor,
    top_k: int | None = None,
) -> None:
    """Records what `attend` made of logits, and what the losses on it need."""
    recorded = getattr(module, RECORDED, None)
    if recorded is not None:
        scaled = _cool(logits, temperature)
        is_cut = not _keeps_all(logits, top_k)
        whole = torch.softmax(scaled, dim=-1) if is_cut else None
        recorded.append(RouterOutput(attention, whole, scaled))


def _cool(logits: Tensor, temperature: float | Tensor) -> Tensor:
    if isinstance(temperature, Tensor):
        temperature = temperature.to(logits)
    return logits / temperature


def _keeps_all(logits: Tensor, top_k: int | None) -> bool:
    return top_k is None or top_k == sizes_of(logits)[-1]


def _are_largest(logits: Tensor, count: int) -> Tensor:
    """Returns which logits (..., K) are among the `count` largest of their row.

    Of equal ones the first are, and NaN is larger than all, so that it is seen.
    """
    # Each against each: torch.topk leaves open which of equal logits it keeps, and not
    # every exporter knows a stable sort.
    ranked = logits.masked_fill(logits.isnan(), math.inf)
    mine, other = ranked[..., :, None], ranked[..., None, :]
    order = torch.arange(logits.shape[-1], device=logits.device)
    is_before = (other > mine) | ((other == mine) & (order < order[:, None]))
    return is_before.sum(-1) < count


def attend(
    logits: Float[Tensor, "*samples experts"],
    temperature: float | Tensor = 1.0,
    top_k: int | None = None,
) -> Float[Tensor, "*samples experts"]:
    """Turns logits into attention: softmax(logits / temperature) over the k largest.

    The weight of a single expert kept is 1, whatever its logit: nothing to learn from.
    So the gradient that reaches it goes on to its probability before the cut, as if
    that were the weight (a straight-through estimator). Fedus et al., "Switch
    Transformers", JMLR 2022, section 2.1, weigh by that probability itself; here rows
    sum to 1, and kernels keep their scale when experts are dropped.

    Args:
        logits: The logits of each sample.
        temperature: A positive scalar; large values even the attention out. With one
            that is a hundredth of what logits differ by, or less, the softmax is 0 and
            1 to the last digit, and no gradient passes.
        top_k: How many experts to keep. The others get exactly 0 and what is computed
            from the attention gives them no gradient, and those kept sum to 1; among
            equal logits the first ones are kept. With 1, logits of the others have a
            gradient by the probability of the one kept. None keeps all.

    Returns:
        The weights of the experts; those of a sample sum to 1.

    Example:
        >>> attend(torch.tensor([[0.0, 0.0, -1.0]]), top_k=2).tolist()
        [[0.5, 0.5, 0.0]]
    """
    scaled = _cool(logits, temperature)
    if _keeps_all(logits, top_k):
        return torch.softmax(scaled, dim=-1)
    assert top_k is not None
    is_kept = _are_largest(logits, top_k)
    if top_k == 1:
        whole = torch.softmax(scaled, dim=-1).masked_fill(~is_kept, 0)
        return is_kept.to(whole.dtype) + (whole - whole.detach())
    return torch.softmax(scaled.masked_fill(~is_kept, -math.inf), dim=-1)


class Temperature(Scheduled):
    """The temperature of a softmax or sigmoid; `set_temperature` writes it."""

    name = "temperature"
    requirement = (
        "one positive finite number, in float32 too: the logits are divided by it"
    )
    setter = "set_temperature"

    @classmethod
    def accepts(cls, value: float) -> bool:
        """Whether `value` is positive and finite.

        What float32 has only as a subnormal number counts as 0, which processors that
        flush them make of it.
        """
        return torch.finfo(torch.float32).tiny <= value < math.inf
