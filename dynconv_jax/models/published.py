"""Networks as they were published: an architecture, its convolution, its settings.

Each is a row: the builder of the architecture with options given to it. What a caller
gives to `create_model` wins over them.
"""

import functools
from collections.abc import Callable
from typing import Any

from dynconv_jax.layers import DecomposedConv, ODConv
from dynconv_jax.models.mobilenet_v2 import mobilenet_v2
from dynconv_jax.models.resnet import resnet18, resnet34, resnet50, resnet101


def _decomposed(build: Callable[..., Any], conv: dict[str, Any], **options) -> Any:
    """Li et al., "Revisiting Dynamic Convolution via Matrix Decomposition", ICLR 2021.

    With the dropout of the commands that the authors give for their checkpoints.
    """
    return functools.partial(
        build,
        conv=functools.partial(DecomposedConv, init="published", **conv),
        head="dynamic",
        dropout=0.1,
        **options,
    )


def _omni_dimensional(build: Callable[..., Any], **options) -> Any:
    """Li et al., "Omni-Dimensional Dynamic Convolution", ICLR 2022; with one expert.

    The networks that the paper calls 4× have four: `conv_options={"num_experts": 4}`.
    """
    return functools.partial(
        build, conv=functools.partial(ODConv, num_experts=1), **options
    )


PUBLISHED: dict[str, functools.partial[Any]] = {
    "dcd_resnet18": _decomposed(resnet18, {}),
    "dcd_resnet34": _decomposed(resnet34, {}),
    "dcd_resnet50": _decomposed(resnet50, {"min_hidden": 1}),
    "dcd_resnet101": _decomposed(resnet101, {"min_hidden": 1}),
    # Its first stage, which does not expand, is static.
    "dcd_mobilenet_v2": _decomposed(
        mobilenet_v2,
        {"variant": "mobilenet_v2"},
        dynamic=("pointwise", 6),
        layout="flat",
    ),
    **{
        f"od_{build.__name__}": _omni_dimensional(build, dropout=0.1, head_std=0.01)
        for build in (resnet18, resnet34, resnet50, resnet101)
    },
    "od_mobilenet_v2": _omni_dimensional(mobilenet_v2),
}
