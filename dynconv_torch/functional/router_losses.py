"""Losses on what routers do: how unevenly experts are used, how large logits are."""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.numerics import at_least_float32


def load_balance_loss(
    attention: Shaped[Tensor, "*samples experts"],
    probabilities: Shaped[Tensor, "*samples experts"] | None = None,
) -> Float[Tensor, ""]:
    """Measures how unevenly a batch uses the experts, so that training evens it out.

        K · Σ_i f_i · P_i

    f_i is the share of expert i in the choices of the samples, and P_i its share in
    their probabilities; the gradient goes through P. It is 1 where all experts are used
    alike and K where one has all. Add it to the loss with a small weight; the source
    has 0.01. Fedus et al., "Switch Transformers", JMLR 2022, section 2.2, equation 4.

    Args:
        attention: The weights of the experts. A sample chooses the one with the largest
            weight, or, if `probabilities` are given, those with any: each of k kept
            counts 1/k.
        probabilities: The whole softmax where `top_k` has cut it to the attention, as
            `capture_routers` returns it: an expert that no sample keeps has a gradient
            only there. None: the attention is whole. Of sigmoids, whose rows do not sum
            to 1, P_i is the share in the sum of all.

    Returns:
        The loss.

    Raises:
        TypeError: If one is no tensor, but a model perhaps.
        ValueError: If the two differ in shape, or there is no axis of experts.

    Example:
        >>> kept = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> whole = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])
        >>> float(load_balance_loss(kept, whole))
        1.5
    """
    _check_routed(attention=attention, probabilities=probabilities)
    if probabilities is not None and probabilities.shape != attention.shape:
        raise ValueError(
            f"`probabilities` (shape {tuple(probabilities.shape)}) must have the shape "
            f"of `attention`, {tuple(attention.shape)}"
        )
    num_experts, wide = attention.shape[-1], at_least_float32(attention.dtype)
    if probabilities is None:
        largest = attention.argmax(dim=-1, keepdim=True)
        chosen = torch.zeros_like(attention, dtype=wide).scatter(-1, largest, 1)
        probabilities = attention
    else:
        kept = (attention != 0).to(wide)
        chosen = kept / kept.sum(dim=-1, keepdim=True).clamp(min=1)
    importance = probabilities.to(wide).reshape(-1, num_experts).mean(dim=0)
    shares = importance / importance.sum()
    chosen_shares = chosen.reshape(-1, num_experts).mean(dim=0)
    return num_experts * torch.sum(chosen_shares * shares)


def router_z_loss(logits: Shaped[Tensor, "*samples experts"]) -> Float[Tensor, ""]:
    """Measures how large the logits of a router are, so that its softmax stays soft.

    The mean of logsumexp(logits)². Add it to the loss with a small weight; the source
    has 0.001. Zoph et al., "ST-MoE: Designing Stable and Transferable Sparse Expert
    Models", 2022, section 3.3, equation 5.

    Args:
        logits: What the softmax is taken of, that is, divided by the temperature, as
            `capture_routers` returns it.

    Returns:
        The loss.

    Raises:
        TypeError: If it is no tensor, but a model perhaps.
        ValueError: If there is no axis of experts.

    Example:
        >>> float(router_z_loss(torch.tensor([[0.0], [2.0]])))
        2.0
    """
    _check_routed(logits=logits)
    wide = logits.to(at_least_float32(logits.dtype))
    return torch.logsumexp(wide, dim=-1).square().mean()


def _check_routed(**tensors: Any) -> None:
    """Refuses what no router answers, and says what does."""
    try:
        check_tensors(optional=("probabilities",), **tensors)
    except TypeError as error:
        raise TypeError(
            f"{error}; `capture_routers(model, inputs)` returns it of each router"
        ) from None
    for name, value in tensors.items():
        if value is not None and value.ndim == 0:
            raise ValueError(
                f"`{name}` (shape ()) must be (..., num_experts), of each sample"
            )
