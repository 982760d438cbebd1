"""The model that the flags describe, and where it starts."""

import ast
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax.numpy as jnp
from flax import nnx

from dynconv_jax import Router, SigmoidRouter, create_model, list_models
from dynconv_jax.layers.context_conv import ContextAttention
from dynconv_jax.layers.od_conv import ODAttention
from dynconv_jax.models import set_grad_checkpointing
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.registry import CONVOLUTIONS, OWN, STEERED
from train.errors import TrainError
from train.flags.checks import flag_of
from train.flags.config import Config
from train.flags.recipe import USUAL
from train.learning.fine_tuning import prepare_fine_tuning
from train.learning.start import start_from_file


def _by_name(conv: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name of a convolution, and the options that it is given."""
    layer = getattr(conv, "func", conv)
    known = {**CONVOLUTIONS, **STEERED}
    name = next(each for each, other in known.items() if other is layer)
    return name, dict(getattr(conv, "keywords", {}))


# What models are made of where `--conv` does not say, if not static.
DEFAULT_CONVOLUTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: _by_name(conv) for name, conv in OWN.items()},
    **{name: ("kernel_warehouse", {}) for name in list_models() if name[:3] == "kw_"},
}

# The options of convolutions that have a flag of their own.
SHORTHANDS = "num_experts", "reduction", "top_k", "router_dropout", "router_noise"

# The option of models that has one, which is called as timm's.
DROP_PATH_RATE = "drop_path_rate"

# The option of models that says how their dynamic convolutions are computed.
FORM = "implementation"

# What NAME=VALUE does not set, and what does.
SET_ELSEWHERE = {
    **{name: flag_of(name) for name in (*SHORTHANDS, "conv", "dtype")},
    "temperature": "--temperature-start",
    "assignment": "--assignment-steps",
    "num_classes": "the data",
    "in_features": "the data",
    "param_dtype": "the program: parameters are float32",
    "rngs": "--seed",
}


def create(
    config: Config, num_classes: int, in_features: int, rngs: nnx.Rngs
) -> nnx.Module:
    """Builds the model, marks what of it is frozen, and loads what it starts from.

    Args:
        config: The flags.
        num_classes: The number of classes of the data.
        in_features: The number of channels of the images.
        rngs: Where the initial parameters come from.

    Raises:
        TrainError: If there is no such model or convolution, an option is refused, or
            the file of `--init-from` does not fit; or if a flag of fine-tuning is of
            nothing that there is.
    """
    model = build(config, num_classes, in_features, rngs)
    parts = [part for _, part in nnx.iter_modules(model)]
    for name, applies, what in (
        ("load_balance", _has_experts, "no router over several experts"),
        ("router_z_loss", _has_softmax, "no softmax over several experts"),
    ):
        weight = getattr(config, name)
        if name in USUAL and weight == config.of_preset(name):
            continue  # as where it is left out: without routers it weighs nothing
        if weight and not any(map(applies, parts)):
            raise TrainError(
                f"{flag_of(name)} (={weight}) must be 0 with {describe(config)}, "
                f"which has {what}"
            )
    if config.twin:
        _require_twin(model, config, num_classes, in_features)
    what = describe(config)
    prepare_fine_tuning(model, config, what)
    if config.init_from is not None:
        start_from_file(
            *(model, lambda: static_twin(config, num_classes, in_features, rngs)),
            *(config, what, rngs),
        )
    return model


def static_twin(
    config: Config, num_classes: int, in_features: int, rngs: nnx.Rngs
) -> nnx.Module:
    """Builds the same model with static convolutions in the place of dynamic ones.

    Args:
        config: The flags of the model.
        num_classes: The number of classes of the data.
        in_features: The number of channels of the images.
        rngs: Where the initial parameters come from.

    Raises:
        TrainError: If there is no such model, or an option of it is refused.
    """
    return build(twin_of(config), num_classes, in_features, rngs)


def twin_of(config: Config) -> Config:
    """Returns the flags of the static twin, without those of what it has not."""
    return dataclasses.replace(
        config,
        conv="static",
        conv_options=(),
        model_options=tuple(
            pair for pair in config.model_options if pair.partition("=")[0] != FORM
        ),
        twin=False,
        router_learning_rate=None,
        freeze=tuple(name for name in config.freeze if name != "routers"),
        **dict.fromkeys(("num_experts", "reduction", "top_k", "load_balance")),
        **dict.fromkeys(("router_dropout", "router_noise", "init_noise"), 0.0),
        router_z_loss=0.0,
    )


def _require_twin(
    model: nnx.Module, config: Config, num_classes: int, in_features: int
) -> None:
    """Refuses `--twin` for a model that is its own static twin."""
    outline = abstract_module(
        lambda rngs: static_twin(config, num_classes, in_features, rngs)
    )
    own, static = (
        {path: param.shape for path, param in nnx.to_flat_state(nnx.state(each))}
        for each in (model, outline)
    )
    rule = (
        f"be left out with {describe(config)}, whose convolutions are static already; "
        "choose others by --conv"
    )
    config.require("twin", own != static, rule)
    twin = twin_of(config)
    try:
        prepare_fine_tuning(outline, twin, describe(twin))
    except TrainError as error:
        raise TrainError(f"the static twin: {error}") from error


def _has_experts(part: Any) -> bool:
    is_choosing = isinstance(part, SigmoidRouter) and part.num_experts > 1
    return is_choosing or _has_softmax(part)


def _has_softmax(part: Any) -> bool:
    if isinstance(part, ODAttention):
        return part.kernel_fc is not None
    if isinstance(part, ContextAttention):
        return part.fc.out_features > 1
    return isinstance(part, Router) and part.num_experts > 1


def describe(config: Config) -> str:
    """Returns the flags that name the model and its convolutions."""
    conv = "" if config.conv is None else f" --conv {config.conv}"
    return f"--model {config.model}{conv}"


def build(
    config: Config, num_classes: int | None, in_features: int, rngs: nnx.Rngs
) -> nnx.Module:
    """Builds the model as it is drawn.

    Args:
        config: The flags.
        num_classes: The number of classes; None leaves it to the model.
        in_features: The number of channels of the images.
        rngs: Where the initial parameters come from.

    Raises:
        TrainError: If there is no such model or convolution, or an option is refused.
    """
    conv, conv_options = _convolution(config)
    options = _read_options("model_options", config.model_options)
    if config.drop_path:
        rule = f"be left out with --model-options {DROP_PATH_RATE}, which is the same"
        config.require("drop_path", DROP_PATH_RATE not in options, rule)
        options[DROP_PATH_RATE] = config.drop_path
    if config.dtype != "float32":
        options["dtype"] = jnp.dtype(config.dtype)
    try:
        model = create_model(
            config.model,
            num_classes,
            conv=conv,
            conv_options=conv_options,
            in_features=in_features,
            rngs=rngs,
            **options,
        )
    except (TypeError, ValueError) as error:
        _refuse(error, config)
    set_grad_checkpointing(model, config.grad_checkpointing)
    return model


def default_convolution(model: str) -> tuple[str, dict[str, Any]]:
    """Returns what a model is made of where `--conv` does not say, and its options."""
    return DEFAULT_CONVOLUTIONS.get(model, ("static", {}))


def _convolution(config: Config) -> tuple[str | None, dict[str, Any]]:
    """Returns the name of the convolution and its options.

    The name is None where both are what the model has by default.
    """
    options = _read_options("conv_options", config.conv_options)
    for name in SHORTHANDS:
        value = getattr(config, name)
        if value:  # None and a dropout of 0 are no choice
            options[name] = value
    default, default_options = default_convolution(config.model)
    if config.conv is None and not options:
        return None, {}
    conv = config.conv or default
    if conv == "static" and options:
        name = next(iter(options))
        raise TrainError(
            f"{_written(name, config)} is an option of dynamic convolutions, and those "
            f"of {describe(config)} are static; choose others by --conv, or leave it "
            "out"
        )
    return conv, (default_options if conv == default else {}) | options


def _read_options(field: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Returns the options of NAME=VALUE ...; values are Python's literals, or words."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name in SET_ELSEWHERE or name in options:
            setter = SET_ELSEWHERE.get(name, "an earlier one")
            raise TrainError(
                f"{flag_of(field)} (={pair}) must leave {name} out: it is set by "
                f"{setter}"
            )
        try:
            options[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            options[name] = text
    return options


def _written(name: str, config: Config) -> str:
    """Returns an argument of the library as it was written on the command line."""
    if name in SHORTHANDS:
        return f"{flag_of(name)} (={getattr(config, name)})"
    for field in ("conv_options", "model_options"):
        for pair in getattr(config, field):
            if pair.partition("=")[0] == name:
                return f"{flag_of(field)} (={pair})"
    field = {"name": "model", DROP_PATH_RATE: "drop_path"}.get(name, name)
    value = getattr(config, field, None)
    return f"{flag_of(field)} (={value})"


def _refuse(error: TypeError | ValueError, config: Config) -> NoReturn:
    """Raises what the library says of its arguments in the words of the flags."""
    message = " ".join(str(error).split())
    unknown = re.search(r"unexpected keyword argument '(\w+)'", message)
    if unknown:
        written = _written(unknown[1], config)
        flag = flag_of(
            "conv_options" if "`conv_options`" in message else "model_options"
        )
        raise TrainError(
            f"{written} is not known to {describe(config)}; `{flag} help` lists what is"
        ) from error
    named = re.match(r"`(\w+)` \(=[^)]*\) (.*)", message)
    if named:
        # A value that no flag gave is the library's own.
        rest = re.sub(
            r"`(\w+)` (\(=[^)]*\))",
            lambda other: f"{flag_of(other[1])} {other[2]}",
            named[2],
        )
        raise TrainError(f"{_written(named[1], config)} {rest}") from error
    raise TrainError(f"{describe(config)} cannot be built: {message}") from error
