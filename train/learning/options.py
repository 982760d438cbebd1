"""The options of a model or of its convolutions, as the library itself tells them."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal

from flax import nnx

from dynconv_jax import DynamicConv
from dynconv_jax.models import kw_networks
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.options import option_names
from dynconv_jax.models.registry import CONVOLUTIONS, GIVEN, MODELS, STEERED
from dynconv_jax.models.warehouses import with_warehouses
from train.errors import TrainError
from train.flags.checks import flag_of
from train.flags.config import Config
from train.flags.help import descriptions, first_sentence
from train.learning.model import (
    DROP_PATH_RATE,
    SET_ELSEWHERE,
    SHORTHANDS,
    build,
    default_convolution,
    describe,
)

# Of options that have a flag of their own.
FLAGS = {
    **{name: SET_ELSEWHERE[name] for name in SHORTHANDS},
    DROP_PATH_RATE: flag_of("drop_path"),
}
COLORS = 3  # of the pictures of an outline
# What can be typed as a value, and its name.
TYPED = {bool: "bool", int: "int", float: "float", str: "str", NoneType: "None"}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option that a command line can set.

    Attributes:
        name: Its name in the library.
        flag: The flag that sets it, or "" where NAME=VALUE does.
        kind: The types that its value may have.
        default: What it is if left out.
        meaning: What it does, in a sentence.
    """

    name: str
    flag: str
    kind: str
    default: Any
    meaning: str


def outline(config: Config) -> Any:
    """Builds the model of the flags without values, with its own number of classes.

    Raises:
        TrainError: If there is no such model or convolution, or an option is refused.
    """
    return abstract_module(lambda rngs: build(config, None, COLORS, rngs))


def options_of(config: Config, field: str) -> list[Option]:
    """Returns the options of the model of the flags, or of its convolutions.

    Args:
        config: The flags.
        field: `model_options` or `conv_options`.

    Raises:
        TrainError: If there is no such model or convolution, or it is static.
    """
    outline(config)  # which refuses what there is not
    if field == "model_options":
        build = MODELS[config.model]
        is_kw = getattr(build, "__module__", "") == kw_networks.__name__
        settled = kw_networks.SETTLED if is_kw else ()
        # Networks of warehouses pass on what it explains.
        told = _options(build, with_warehouses)
        return [each for each in told if each.name not in settled]
    conv, usual = default_convolution(config.model)
    if config.conv not in (None, conv):
        conv, usual = config.conv, {}
    layer = {**CONVOLUTIONS, **STEERED}[conv]
    if layer is None:
        raise TrainError(
            f"--conv-options (=help) must be of dynamic convolutions, and those of "
            f"{describe(config)} are static; choose others by --conv"
        )
    # Members pass on what all of them have, and DynamicConv explains it.
    options = _options(layer, DynamicConv.__init__)
    return [
        dataclasses.replace(each, default=usual.get(each.name, each.default))
        for each in options
        if each.name not in GIVEN
    ]


def _options(
    build: Callable[..., Any], *explaining: Callable[..., Any]
) -> list[Option]:
    """Returns those of a class or function that can be typed, in its order."""
    set_already = getattr(build, "keywords", {})  # of a published network
    sources = _sources(getattr(build, "func", build))
    parameters: dict[str, inspect.Parameter] = {}
    meanings: dict[str, str] = {}
    for source in (*sources, *explaining):
        parameters = {**inspect.signature(source).parameters, **parameters}
        meanings = descriptions(source) | meanings
    options = []
    for name in option_names(build) or ():
        parameter = parameters[name]
        kinds = _kinds(parameter.annotation)
        is_set_otherwise = name in SET_ELSEWHERE and name not in FLAGS
        if is_set_otherwise or set(kinds) <= {TYPED[NoneType]}:
            continue
        options.append(
            Option(
                name=name,
                flag=FLAGS.get(name, ""),
                kind=" or ".join(kinds),
                default=set_already.get(name, parameter.default),
                meaning=first_sentence(meanings[name]),
            )
        )
    return options


def _sources(build: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Returns the functions whose signatures say what `build` takes and passes on."""
    if isinstance(build, type):
        bases = [kind for kind in build.__mro__ if issubclass(kind, nnx.Module)]
        return [vars(kind)["__init__"] for kind in bases if "__init__" in vars(kind)]
    made = inspect.signature(build).return_annotation
    return [build, *(_sources(made) if isinstance(made, type) else ())]


def _kinds(annotation: Any) -> list[str]:
    """Returns the names of the types that can be typed, of those of an annotation."""
    if annotation in TYPED:
        return [TYPED[annotation]]
    if typing.get_origin(annotation) is Literal:
        return [repr(each) for each in typing.get_args(annotation)]
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        found = (kind for each in typing.get_args(annotation) for kind in _kinds(each))
        return list(dict.fromkeys(found))
    return []
