"""A model as a directory: its name, its options and its weights, for both frameworks.

The files are those of a model on the Hugging Face hub.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dynconv_torch.checks import check_module
from dynconv_torch.models.description import description_of, is_plain, plain
from dynconv_torch.models.registry import create_model
from dynconv_torch.weights.directories import new_directory
from dynconv_torch.weights.files import read_weights
from dynconv_torch.weights.identify import identify, loses
from dynconv_torch.weights.pretrained_config import (
    CONFIG,
    OWN,
    README,
    WEIGHTS,
    Config,
    as_path,
    card_of,
    check_place,
    read_config,
)
from dynconv_torch.weights.recognize import shapes_of
from dynconv_torch.weights.refusals import foreign

# What training and evaluation differ in, and what a gradient is computed from.
_MODES = ("training", "grad_checkpointing")


def save_pretrained(
    model: nn.Module, path: str | os.PathLike, *, card: str | None = None
) -> None:
    """Writes a model to a directory, from which `from_pretrained` builds it again.

    The directory is that of a model on the Hugging Face hub: `config.json` (the name of
    the model and its options), `model.safetensors` (its state dict) and `README.md`. It
    is written beside and renamed. `dynconv_jax.from_pretrained` opens it, too.

    Args:
        model: What `create_model` made.
        path: The directory; one that holds a model saved before is replaced.
        card: The text of `README.md`, in Markdown; None writes a short one.

    Raises:
        TypeError: If `model` is no module, `path` no path, or `card` no text.
        ValueError: If `create_model` did not make the model, or with options that no
            file can hold; if the model was changed since, so that these would build
            another; if its parameters have several dtypes; or if no file can hold
            `card`. Nothing is then written.
        FileExistsError: If the directory holds files of others.
        OSError: If it cannot be written; an existing one is then untouched.

    Example:
        >>> import tempfile
        >>> net = create_model("dynamic_net", 7, width_mult=0.25)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(net, f"{folder}/net")
        ...     again = from_pretrained(f"{folder}/net")
        >>> torch.equal(again.fc.weight, net.fc.weight)
        True
    """
    check_module("model", model)
    path = as_path(path)
    arguments, dtype = _arguments_of(model), _dtype_of(model)
    made = create_model(**arguments, dtype=dtype, device="meta")
    if changes := _changes(model, made):
        raise ValueError(
            f"`model` (a {type(model).__name__}) was changed since `create_model` made "
            f"it: {changes[0]}{_more(changes)}; make it as it is now by "
            "`create_model`, or save the weights alone by "
            "`safetensors.torch.save_file(model.state_dict(), file)`"
        )
    check_place(path)
    config = Config(
        written_by="dynconv_torch",
        model=arguments.pop("name"),
        conv=arguments.pop("conv", None),
        conv_options=arguments.pop("conv_options", {}),
        options=arguments,
        param_dtype=str(dtype).removeprefix("torch."),
        dtype=None,
    )
    content = card_of(config.model, card)
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    with new_directory(path) as place:
        (place / CONFIG).write_bytes(config.to_json())
        (place / WEIGHTS).write_bytes(safetensors.torch.save(tensors))
        (place / README).write_bytes(content)


def from_pretrained(
    path: str | os.PathLike,
    *,
    conv_options: Mapping[str, Any] | None = None,
    **options,
) -> Any:
    """Builds the model that `save_pretrained` wrote, and loads its weights.

    A directory of `dynconv_jax.save_pretrained` will do as well; how something is
    computed (`implementation`, a `dtype` of the computation) is then left to PyTorch,
    whose batch norms hold their statistics in the dtype of the parameters.

    Args:
        path: The directory. Nothing is fetched: what is on the Hugging Face hub comes
            by `huggingface_hub.snapshot_download(name)`, which answers a directory.
            Fields of `config.json` that are not of this library pass, as other
            libraries and the hub add theirs.
        conv_options: Options of the convolutions in the place of those saved.
        **options: Options of the model in the place of those saved, such as `device`.

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
    arguments = _to_arguments(read_config(path)) | options
    if conv_options is not None:
        is_by_name = isinstance(conv_options, Mapping)  # `create_model` says if not
        saved = arguments.get("conv_options", {}) if is_by_name else conv_options
        arguments["conv_options"] = {**saved, **conv_options} if is_by_name else saved
    tensors = read_weights(path / WEIGHTS)
    try:
        # Without memory: the file may tell of a model that is larger than any.
        made = create_model(**{**arguments, "device": "meta"})
    except (TypeError, ValueError, RuntimeError) as error:
        if options or conv_options:  # perhaps a fault of those
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"`path`: {os.fspath(path / CONFIG)!r}: {reason}") from error
    problems = _misfits(made, tensors)
    if not problems:
        model = create_model(**arguments)
        try:
            model.load_state_dict(tensors, strict=True)
            return model
        except RuntimeError as error:  # of a value that a schedule could not write
            problems = str(error).strip().splitlines()[-1:]
    is_foreign = shapes_of(tensors) != _shapes(made)
    told_of = foreign(identify(tensors), dict) if is_foreign else ""
    raise ValueError(
        f"`path`: {os.fspath(path / WEIGHTS)!r} does not fit the "
        f"{type(made).__name__} that {CONFIG} tells of: {problems[0].strip()}"
        f"{_more(problems)}{told_of}"
    )


def _arguments_of(model: nn.Module) -> dict[str, Any]:
    """Returns the arguments of `create_model` that made a model."""
    description = description_of(model)
    name = type(model).__name__
    if description is None:
        raise ValueError(
            f"`model` (a {name}) was not made by `create_model`, so nothing says how "
            "to build it again; give the one that was made, if this is a wrapper of it "
            "(`model.module`), or make one and load it, "
            "`made.load_state_dict(model.state_dict())`"
        )
    if description.problem:
        raise ValueError(
            f"`model` (a {name}) was made with what no file can hold: "
            f"{description.problem}; save the weights alone by "
            "`safetensors.torch.save_file(model.state_dict(), file)`"
        )
    return json.loads(description.text)


def _dtype_of(model: nn.Module) -> torch.dtype:
    """Returns the one dtype of the parameters."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) != 1:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(
            f"`model` (a {type(model).__name__}) must have parameters of one dtype, "
            f"and has {names or 'none'}; cast it by `model.to(dtype)`"
        )
    return dtypes.pop()


def _changes(model: nn.Module, made: nn.Module) -> list[str]:
    """Says in what a model differs from one as it was made, its values apart."""
    changes = []
    ours, theirs = dict(model.named_modules()), dict(made.named_modules())
    for path in ours | theirs:
        kinds = [type(each[path]) for each in (ours, theirs) if path in each]
        if len(kinds) == 1:
            state = "was not there" if path in ours else "is gone"
            changes.append(f"{path or 'it'} (a {kinds[0].__name__}) {state}")
            continue
        if kinds[0] is not kinds[1]:
            now, before = (f"{each.__module__}.{each.__name__}" for each in kinds)
            changes.append(f"{path or 'it'} is a {now}, and was a {before}")
            continue
        now, before = (_settings(each[path]) for each in (ours, theirs))
        changes += [
            f"`{key}` of {path or 'it'} is {now.get(key)!r}, and was "
            f"{before.get(key)!r}"
            for key in now | before
            if now.get(key) != before.get(key)
        ]
    if changes:  # which the tensors would tell again
        return changes
    now, before = _shapes(model), _shapes(made)
    return [
        f"{key} is {now.get(key, 'gone')}, and was {before.get(key, 'not there')}"
        for key in now | before
        if now.get(key) != before.get(key)
    ]


def _settings(part: nn.Module) -> dict[str, Any]:
    """Returns what a module was told in numbers and words, and in tuples of them."""
    return {
        name: value
        for name, given in vars(part).items()
        if is_plain(value := plain(given))
        and not name.startswith("_")
        and name not in _MODES
    }


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _more(changes: list[str]) -> str:
    count = len(changes) - 1
    return f" ({count} more)" if count else ""


def _to_arguments(config: Config) -> dict[str, Any]:
    """Returns what a file has as arguments of `create_model`."""
    is_own = config.written_by == "dynconv_torch"

    def kept(options: dict[str, Any]) -> dict[str, Any]:
        return {n: value for n, value in options.items() if is_own or n not in OWN}

    arguments = {"name": config.model} | kept(config.options)
    if config.conv is not None:
        arguments["conv"] = config.conv
    if conv_options := kept(config.conv_options):
        arguments["conv_options"] = conv_options
    return arguments | {"dtype": getattr(torch, config.param_dtype)}


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Says in what tensors are not those of a model."""
    parameters = {key for key, _ in model.named_parameters()}
    state = model.state_dict()
    problems = [f"{key} is missing" for key in state if key not in tensors]
    problems += [f"{key} is not known" for key in tensors if key not in state]
    for key in [key for key in state if key in tensors]:
        ours, theirs = state[key], tensors[key]
        if ours.shape != theirs.shape:
            problems.append(
                f"{key} has the shape {tuple(theirs.shape)}, not {tuple(ours.shape)}"
            )
        elif key in parameters and loses(ours, theirs):
            problems.append(f"{key} is {theirs.dtype}, which {ours.dtype} cannot hold")
    return problems
