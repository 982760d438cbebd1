"""What PyTorch calls an option of flax, and flax one of PyTorch."""

from collections.abc import Mapping
from typing import Any

from dynconv_jax.weights.pretrained_config import OWN

IN_PYTORCH = {
    "in_features": "in_channels",
    "stem_features": "stem_channels",
    "head_features": "head_channels",
    "router_hidden_features": "router_hidden_channels",
    "router_use_hidden_bias": "router_hidden_bias",
    "router_use_bias": "router_bias",
    "kernel_dilation": "dilation",
    "feature_group_count": "groups",
}
IN_FLAX = {theirs: ours for ours, theirs in IN_PYTORCH.items()}


def renamed(
    options: Mapping[str, Any], names: Mapping[str, str], *, keeps_own: bool = True
) -> dict[str, Any]:
    """Returns options under other names, with or without those of a framework.

    Args:
        options: The options.
        names: The other names.
        keeps_own: Whether those stay that say how something is computed.

    Example:
        >>> renamed({"in_channels": 3, "num_classes": 10}, IN_FLAX)
        {'in_features': 3, 'num_classes': 10}
    """
    return {
        names.get(name, name): value
        for name, value in options.items()
        if keeps_own or name not in OWN
    }
