"""A model as a directory: its name, its options and its weights, for both frameworks.

The files are those of a model on the Hugging Face hub. What is in `config.json` has the
words of PyTorch, as the weights have its layout.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynconv_jax.checks import check_module, check_rngs
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.description import DTYPES, description_of, is_plain, plain
from dynconv_jax.models.registry import create_model
from dynconv_jax.weights.directories import new_directory
from dynconv_jax.weights.does_not_fit import DoesNotFit
from dynconv_jax.weights.files import load_weights, save_weights, write_file
from dynconv_jax.weights.identify import in_flax
from dynconv_jax.weights.pretrained_config import (
    CONFIG,
    README,
    WEIGHTS,
    Config,
    as_path,
    card_of,
    check_place,
    read_config,
)
from dynconv_jax.weights.refusals import foreign
from dynconv_jax.weights.torch_layout import leaves_of
from dynconv_jax.weights.words import IN_FLAX, IN_PYTORCH, renamed

# What training and evaluation differ in, and what a gradient is computed from.
_MODES = ("deterministic", "use_running_average", "grad_checkpointing")


def save_pretrained(
    model: nnx.Module, path: str | os.PathLike, *, card: str | None = None
) -> None:
    """Writes a model to a directory, from which `from_pretrained` builds it again.

    The directory is that of a model on the Hugging Face hub: `config.json` (the name of
    the model and its options), `model.safetensors` (as of `save_weights`) and
    `README.md`. It is written beside and renamed. `dynconv_torch.from_pretrained` opens
    it, too.

    Args:
        model: What `create_model` made. Initialisers and metadata of its parameters are
            not kept.
        path: The directory; one that holds a model saved before is replaced.
        card: The text of `README.md`, in Markdown; None writes a short one.

    Raises:
        TypeError: If `model` is no module, `path` no path, or `card` no text.
        ValueError: If `create_model` did not make the model, or with options that no
            file can hold; or if the model was changed since, so that these would build
            another; or if no file can hold `card`. Nothing is then written.
        FileExistsError: If the directory holds files of others.
        OSError: If it cannot be written; an existing one is then untouched.

    Example:
        >>> import tempfile
        >>> from dynconv_jax import create_model
        >>> net = create_model("dynamic_net", 7, width_mult=0.25, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(net, f"{folder}/net")
        ...     again = from_pretrained(f"{folder}/net")
        >>> bool((again.fc.kernel[...] == net.fc.kernel[...]).all())
        True
    """
    check_module("model", model)
    path = as_path(path)
    arguments = _arguments_of(model)
    if changes := _changes(model, abstract_module(_builder(arguments))):
        raise ValueError(
            f"`model` (a {type(model).__name__}) was changed since `create_model` made "
            f"it: {changes[0]}{_more(changes)}; make it as it is now by "
            "`create_model`, or save the weights alone by `save_weights`"
        )
    check_place(path)
    config = _to_config(arguments)
    content = card_of(config.model, card)
    with new_directory(path) as place:
        write_file(place / CONFIG, config.to_json())
        save_weights(model, place / WEIGHTS)
        write_file(place / README, content)


def from_pretrained(
    path: str | os.PathLike,
    *,
    conv_options: Mapping[str, Any] | None = None,
    rngs: nnx.Rngs | None = None,
    **options,
) -> Any:
    """Builds the model that `save_pretrained` wrote, and loads its weights.

    A directory of `dynconv_torch.save_pretrained` will do as well; how something is
    computed (`implementation`) is then left to this library.

    Args:
        path: The directory. Nothing is fetched: what is on the Hugging Face hub comes
            by `huggingface_hub.snapshot_download(name)`, which answers a directory.
            Fields of `config.json` that are not of this library pass, as other
            libraries and the hub add theirs.
        conv_options: Options of the convolutions in the place of those saved.
        rngs: Where dropout and noise draw from; None is `nnx.Rngs(0)`.
        **options: Options of the model in the place of those saved, such as `dtype`.

    Returns:
        The model, as `create_model` makes it: ready to be trained, and to be evaluated
        after `.eval()`.

    Raises:
        TypeError: If `path` is no path, or an option is unknown.
        FileNotFoundError: If the directory or a file of it is not there.
        ValueError: If a file is damaged, of another library or a newer version; if the
            model or an option in it is unknown; or if the weights do not fit.

    Example:
        >>> from_pretrained("nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: `path` (='nowhere') is no directory; ...
    """
    path = as_path(path)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    check_rngs(rngs)
    arguments = _to_arguments(read_config(path)) | options
    if conv_options is not None:
        is_by_name = isinstance(conv_options, Mapping)  # `create_model` says if not
        saved = arguments.get("conv_options", {}) if is_by_name else conv_options
        arguments["conv_options"] = {**saved, **conv_options} if is_by_name else saved
    for name in ("param_dtype", "dtype"):
        if arguments.get(name) == jnp.float64 and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                f"`path` (={os.fspath(path)!r}): `{name}` is float64, which JAX has "
                'only after `jax.config.update("jax_enable_x64", True)`; set that, or '
                "save the model in float32"
            )
    try:
        model = abstract_module(_builder(arguments))
    except (TypeError, ValueError) as error:
        if options or conv_options:  # perhaps a fault of those
            raise
        raise ValueError(f"`path`: {os.fspath(path / CONFIG)!r}: {error}") from error
    try:
        load_weights(model, path / WEIGHTS)
    except ValueError as error:
        if not isinstance(error.__cause__, DoesNotFit):
            raise
        found = error.__cause__
        problems = [f"{kind}: {text}" for kind, text in found.problems]
        raise ValueError(
            f"`path`: {os.fspath(path / WEIGHTS)!r} does not fit the "
            f"{type(model).__name__} that {CONFIG} tells of: {problems[0]}"
            f"{_more(problems)}{foreign(found.match, in_flax, found.problems)}"
        ) from error
    give_streams(model, rngs)
    return model


def give_streams(model: nnx.Module, rngs: nnx.Rngs) -> None:
    """Gives values to the random streams of a model that was built without.

    Example:
        >>> give_streams(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Rngs(1))
    """
    for _, stream in nnx.iter_graph(model):
        if isinstance(stream, nnx.RngStream):
            stream.key.set_value(getattr(rngs, stream.tag)())
            stream.count.set_value(jnp.zeros((), jnp.uint32))


def _arguments_of(model: nnx.Module) -> dict[str, Any]:
    """Returns the arguments of `create_model` that made a model, but for `rngs`."""
    description = description_of(model)
    name = type(model).__name__
    if description is None:
        raise ValueError(
            f"`model` (a {name}) was not made by `create_model`, so nothing says how "
            "to build it again; make one by that and give it the weights, "
            "`load_torch_state_dict(made, to_torch_state_dict(model))`, or save them "
            "alone by `save_weights`"
        )
    if description.problem:
        raise ValueError(
            f"`model` (a {name}) was made with what no file can hold: "
            f"{description.problem}; save the weights alone by `save_weights`"
        )
    return json.loads(description.text)


def _builder(arguments: Mapping[str, Any]) -> Any:
    """Returns what builds a model by random numbers."""
    return lambda rngs: create_model(**arguments, rngs=rngs)


def _changes(model: nnx.Module, made: nnx.Module) -> list[str]:
    """Says in what a model differs from one as it was made, its values apart."""
    changes = []
    ours, theirs = dict(nnx.iter_modules(model)), dict(nnx.iter_modules(made))
    for path in ours | theirs:
        name = ".".join(map(str, path)) or "it"
        kinds = [type(each[path]) for each in (ours, theirs) if path in each]
        if len(kinds) == 1:
            state = "was not there" if path in ours else "is gone"
            changes.append(f"{name} (a {kinds[0].__name__}) {state}")
            continue
        if kinds[0] is not kinds[1]:
            now, before = (f"{each.__module__}.{each.__name__}" for each in kinds)
            changes.append(f"{name} is a {now}, and was a {before}")
            continue
        now, before = (_settings(each[path]) for each in (ours, theirs))
        changes += [
            f"`{key}` of {name} is {now.get(key)!r}, and was {before.get(key)!r}"
            for key in now | before
            if now.get(key) != before.get(key)
        ]
    if changes:  # which the arrays would tell again
        return changes
    now, before = _arrays(model), _arrays(made)
    return [
        f"{key} is {now.get(key, 'gone')}, and was {before.get(key, 'not there')}"
        for key in now | before
        if now.get(key) != before.get(key)
    ]


def _settings(part: Any) -> dict[str, Any]:
    """Returns what a module was told in numbers and words, and in tuples of them."""
    return {
        name: value
        for name, given in vars(part).items()
        if is_plain(value := plain(given))
        and not name.startswith("_")
        and name not in (*_MODES, *DTYPES)
    }


def _arrays(model: nnx.Module) -> dict[str, str]:
    """Returns shapes and dtypes as PyTorch would have them, by key, in words."""
    return {
        key: f"{leaf.torch_shape}"
        + ("" if leaf.is_scheduled else f" in {leaf.dtype.name}")
        for key, leaf in leaves_of(model)
    }


def _more(changes: list[str]) -> str:
    count = len(changes) - 1
    return f" ({count} more)" if count else ""


def _to_config(arguments: Mapping[str, Any]) -> Config:
    """Returns arguments of `create_model` as the file has them."""
    options = dict(arguments)
    return Config(
        written_by="dynconv_jax",
        model=options.pop("name"),
        conv=options.pop("conv", None),
        conv_options=renamed(options.pop("conv_options", {}), IN_PYTORCH),
        param_dtype=options.pop("param_dtype", None) or "float32",
        dtype=options.pop("dtype", None),
        options=renamed(options, IN_PYTORCH),
    )


def _to_arguments(config: Config) -> dict[str, Any]:
    """Returns what a file has as arguments of `create_model`."""
    arguments: dict[str, Any] = {"name": config.model}
    if config.conv is not None:
        arguments["conv"] = config.conv
    is_own = config.written_by == "dynconv_jax"
    conv_options = renamed(config.conv_options, IN_FLAX, keeps_own=is_own)
    if conv_options:
        arguments["conv_options"] = conv_options
    arguments |= renamed(config.options, IN_FLAX, keeps_own=is_own)
    if config.param_dtype != "float32":
        arguments["param_dtype"] = jnp.dtype(config.param_dtype)
    if config.dtype is not None:
        arguments["dtype"] = jnp.dtype(config.dtype)
    return arguments
