"""Models by name, for programs that read the name from a command line or a file."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dynconv_torch.layers import (
    CondConv2d,
    ContextConv2d,
    DecomposedConv2d,
    DynamicConv2d,
    FDConv2d,
    FrequencyDynamicConv2d,
    ODConv2d,
)
from dynconv_torch.models.description import attach, describe
from dynconv_torch.models.dymn import dymn04, dymn10, dymn20
from dynconv_torch.models.dynamic_net import DynamicNet
from dynconv_torch.models.efficientnet_cc import (
    efficientnet_cc_b0_4e,
    efficientnet_cc_b0_8e,
    efficientnet_cc_b1_8e,
    tf_efficientnet_cc_b0_4e,
    tf_efficientnet_cc_b0_8e,
    tf_efficientnet_cc_b1_8e,
)
from dynconv_torch.models.fdy_cnn import FDYCNN
from dynconv_torch.models.kw_networks import (
    kw_convnext_tiny,
    kw_mobilenet_v2,
    kw_resnet18,
    kw_resnet50,
)
from dynconv_torch.models.mobilenet_v2 import mobilenet_v2
from dynconv_torch.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from dynconv_torch.models.options import check_options, did_you_mean
from dynconv_torch.models.published import PUBLISHED
from dynconv_torch.models.resnet import resnet18, resnet34, resnet50, resnet101
from dynconv_torch.models.warehouses import with_warehouses

MODELS: dict[str, Callable[..., Any]] = {
    "dymn04": dymn04,
    "dymn10": dymn10,
    "dymn20": dymn20,
    "dynamic_net": DynamicNet,
    "efficientnet_cc_b0_4e": efficientnet_cc_b0_4e,
    "efficientnet_cc_b0_8e": efficientnet_cc_b0_8e,
    "efficientnet_cc_b1_8e": efficientnet_cc_b1_8e,
    "tf_efficientnet_cc_b0_4e": tf_efficientnet_cc_b0_4e,
    "tf_efficientnet_cc_b0_8e": tf_efficientnet_cc_b0_8e,
    "tf_efficientnet_cc_b1_8e": tf_efficientnet_cc_b1_8e,
    "kw_convnext_tiny": kw_convnext_tiny,
    "kw_mobilenet_v2": kw_mobilenet_v2,
    "kw_resnet18": kw_resnet18,
    "kw_resnet50": kw_resnet50,
    "fdy_cnn": FDYCNN,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3_small,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    **PUBLISHED,
}

CONVOLUTIONS: dict[str, Callable[..., Any] | None] = {
    "static": None,
    "condconv": CondConv2d,
    "decomposed": DecomposedConv2d,
    "dynamic": DynamicConv2d,
    "fdconv": FDConv2d,
    "frequency_dynamic": FrequencyDynamicConv2d,
    "kernel_warehouse": with_warehouses,  # which builds the model, not a layer
    "odconv": ODConv2d,
}

# Those that only networks take which make what steers them.
STEERED: dict[str, Callable[..., Any] | None] = {"context": ContextConv2d}

# What the convolutions of networks are that have dynamic ones where nobody says.
OWN: dict[str, Callable[..., Any]] = {
    "dynamic_net": DynamicConv2d,
    "fdy_cnn": FrequencyDynamicConv2d,
    **dict.fromkeys(("dymn04", "dymn10", "dymn20"), ContextConv2d),
    # The name ends in the number of experts, as in b0_8e.
    **{
        name: functools.partial(CondConv2d, num_experts=int(name[-2]))
        for name in MODELS
        if "efficientnet_cc" in name
    },
    **{name: build.keywords["conv"] for name, build in PUBLISHED.items()},
}

# What the networks give to each of their convolutions, whatever the convolution is.
GIVEN = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "bias"),
    *("context_channels", "device", "dtype"),
)


def list_convolutions() -> list[str]:
    """Returns the names that `create_model` knows for `conv`.

    Example:
        >>> "odconv" in list_convolutions()
        True
    """
    return sorted(CONVOLUTIONS)


def list_models() -> list[str]:
    """Returns the names that `create_model` knows.

    Example:
        >>> "resnet18" in list_models()
        True
    """
    return sorted(MODELS)


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    conv: str | Callable[..., Any] | None = None,
    conv_options: Mapping[str, Any] | None = None,
    **options,
) -> nn.Module:
    """Builds a model by name.

    The model keeps the arguments, for `save_pretrained`.

    Args:
        name: One of `list_models()`.
        num_classes: The number of logits; None leaves it to the model.
        conv: What its convolutions are: one of `list_convolutions()`, of DyMN also
            `"context"`, which is its own; or a callable with the signature of
            `nn.Conv2d`; None leaves it to the model.
        conv_options: Options of the convolution, such as `{"num_experts": 8}`; of
            `"kernel_warehouse"` those of `with_warehouses`. Without `conv` they are of
            the convolutions that the network has anyway (`dymn10`, `od_resnet18`).
        **options: Options of the model.

    Raises:
        TypeError: If the model or the convolution does not take an option.
        ValueError: If a name is not known (the error suggests others), or there are
            options for no convolution.

    Example:
        >>> net = create_model(
        ...     "resnet18",
        ...     num_classes=10,
        ...     conv="dynamic",
        ...     conv_options={"num_experts": 8},
        ...     dynamic=1,
        ...     device="meta",
        ... )
        >>> net.layer4[0].conv1.weight.shape
        torch.Size([8, 512, 256, 3, 3])
    """
    build = _look_up("name", name, MODELS)
    check_options(options, build)
    if num_classes is not None:
        options["num_classes"] = num_classes
    given = dict(options)
    if conv == "static":
        options["conv"] = None  # also where the model has others by default
    known = {**CONVOLUTIONS, **STEERED}
    layer: Callable[..., Any] | None = (
        _look_up("conv", conv, known) if isinstance(conv, str) else conv
    )
    if conv_options is not None and not isinstance(conv_options, Mapping):
        raise TypeError(
            f"`conv_options` (={conv_options!r}) must be options by name, such as "
            "`{'num_experts': 8}`"
        )
    if layer is not None and not callable(layer):
        raise TypeError(
            f"`conv` (={layer!r}) must be one of {list_convolutions()}, or a callable "
            "with the signature of `nn.Conv2d`"
        )
    own = OWN.get(name)
    if layer in STEERED.values() and layer is not own:
        raise ValueError(
            f"`conv` (={conv!r}) needs a network that steers its convolutions, which "
            f"DyMN does alone, and {name} does not; choose one of {list_convolutions()}"
        )
    if conv is None and conv_options:
        layer = own
    if layer is None and conv_options:
        raise ValueError(
            f"`conv_options` (={dict(conv_options)!r}) are of a dynamic convolution; "
            "choose one by `conv`, such as 'dynamic'"
        )
    if layer is not None:
        check_options(
            conv_options or {},
            layer,
            argument="conv_options",
            given=_given_to(layer),
        )
        if layer is with_warehouses:
            build = functools.partial(
                with_warehouses, functools.partial(build, **options)
            )
            options = dict(conv_options or {})
        else:
            # A partial of no options would only hide which layer it is.
            options["conv"] = (
                functools.partial(layer, **conv_options) if conv_options else layer
            )
    model = build(**options)
    attach(model, describe(name, conv, conv_options or {}, given, known))
    return model


def _given_to(layer: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the arguments of a convolution that every network gives it."""
    if layer is with_warehouses:
        return ("build",)
    return GIVEN


def _look_up(argument: str, name: str, table: Mapping[str, Any]) -> Any:
    """Returns a row of a table, or says which names are near."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(
        f"`{argument}` (={name!r}) is not known; {did_you_mean(name, table)}There are "
        f"{sorted(table)}"
    )
