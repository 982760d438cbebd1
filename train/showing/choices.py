"""The answers about models: which there are, and what their options are."""

import dataclasses
import fnmatch
import math

import jax
from flax import nnx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynconv_jax import list_convolutions, list_models
from dynconv_jax.models.options import did_you_mean
from train.errors import TrainError
from train.flags.checks import flag_of
from train.flags.config import Config
from train.flags.help import LIST_MODELS
from train.flags.inquiry import Inquiry
from train.learning.model import default_convolution
from train.learning.options import options_of, outline
from train.showing.console import open_console, say, show_table

# The side of the pictures that published weights are of, where it is another one.
USUAL_SIDE = 224
SIDES = {name: 240 for name in list_models() if "_b1_" in name} | {"dynamic_net": None}


def answer(inquiry: Inquiry, config: Config) -> None:
    """Prints what is asked.

    Args:
        inquiry: What is asked.
        config: The other flags, which say of which convolutions and model.

    Raises:
        TrainError: If there is no such model or convolution, or an option is refused.
    """
    console = open_console()
    if inquiry.pattern is not None:
        _list_models(console, inquiry.pattern, config)
    for field in inquiry.fields:
        _tell_options(console, config, field)


def _list_models(console: Console, pattern: str, config: Config) -> None:
    names = fnmatch.filter(list_models(), pattern)
    if not names:
        raise TrainError(
            f"{LIST_MODELS} (={pattern}) is the name of no model; "
            f"{did_you_mean(pattern, list_models())}An asterisk stands for anything, "
            f"as in {LIST_MODELS} '*net*'"
        )
    table = Table("model", show_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("pictures", justify="right")
    table.add_column("convolutions")
    for name in names:
        chosen = dataclasses.replace(config, model=name)
        try:
            sizes = jax.tree.leaves(nnx.state(outline(chosen), nnx.Param))
        except TrainError:  # It does not take what was given.
            parameters = "–"
        else:
            parameters = f"{sum(math.prod(each.shape) for each in sizes):,}"
        side = SIDES.get(name, USUAL_SIDE)
        pictures = "any" if side is None else f"{side}×{side}"
        conv, options = default_convolution(name)
        words = [conv, *(f"{key}={value}" for key, value in options.items())]
        table.add_row(name, parameters, pictures, config.conv or ", ".join(words))
    show_table(console, table)
    say(
        console,
        "Pictures are of the size that published weights are of; others will do. Each "
        f"model takes, by --conv, one of: {', '.join(list_convolutions())}; kw_... is "
        "as published, or static.",
    )


def _tell_options(console: Console, config: Config, field: str) -> None:
    options = options_of(config, field)
    conv = config.conv or default_convolution(config.model)[0]
    of = f"--conv {conv}" if field == "conv_options" else f"--model {config.model}"
    table = Table("option", "type", "default", "meaning", show_edge=False)
    for each in options:
        typed = each.flag or f"{each.name}="
        cells = typed, each.kind, str(each.default), each.meaning
        table.add_row(*map(escape, cells))
    show_table(console, table)
    say(console, f"Of {of}, after {flag_of(field)} as NAME=VALUE, or by a flag.")
