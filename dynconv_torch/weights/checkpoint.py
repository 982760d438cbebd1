"""A network from a checkpoint alone: recognised, built, loaded, to be evaluated."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_dtype
from dynconv_torch.models.registry import (
    CONVOLUTIONS,
    MODELS,
    OWN,
    STEERED,
    create_model,
)
from dynconv_torch.weights.files import read_weights
from dynconv_torch.weights.identify import as_tensors, identify, loses, misfits
from dynconv_torch.weights.pretrained import from_pretrained
from dynconv_torch.weights.pretrained_config import path_called, weights_in
from dynconv_torch.weights.recognize import (
    SCHEDULED,
    check_size,
    in_words,
    inner_state_dict,
    merged,
    shapes_of,
    without_redundant,
    without_scheduled,
)
from dynconv_torch.weights.refusals import contradiction, refusal
from dynconv_torch.weights.wrappers import in_one_line, unwrap

_ARGUMENT = "state_dict_or_path"
_WITHOUT_HEAD = (
    "build that with the `num_classes` of yours, and give it what is there: "
    "`net.load_state_dict({state_dict}, strict=False)`, whose answer says what it "
    "left: let that be {head!r} alone"
)


def create_model_from_checkpoint(
    state_dict_or_path: Mapping[str, Any] | str | os.PathLike,
    *,
    dtype: torch.dtype = torch.float32,
    **options,
) -> Any:
    """Builds the network that a checkpoint is of, and loads it.

    Which network it is, its number of classes and of image channels, its convolutions,
    their experts and ratios are read off keys and shapes, by the table of published
    layouts (`weights/networks`). What the table answers is held against the
    checkpoint before anything is loaded.

    What is around the state dict is taken off: the dict of a checkpoint
    (`"state_dict"`, `"model"`, and before these the averaged weights of
    `"state_dict_ema"` and `"model_ema"`), the `module.` and `_orig_mod.` that wrappers
    put before all keys, and one prefix of all keys, such as `"backbone."`, where a
    known network is behind it.

    Args:
        state_dict_or_path: Tensors or NumPy arrays by key; or a file of safetensors or
            of `torch.save`, of which no code is run; or a directory of
            `save_pretrained`, or another one with `model.safetensors` or
            `pytorch_model.bin` in it.
        dtype: The dtype of the parameters, which must hold those of the checkpoint.
        **options: Options of the network or of its convolutions that no array tells,
            such as `dropout`, `temperature` or `device`. A `temperature` or
            `assignment` given here goes before that of the checkpoint.

    Returns:
        The network, in evaluation mode.

    Raises:
        TypeError: If the first argument is neither a state dict nor a path, or an
            option is unknown.
        OSError: If a file cannot be read.
        ValueError: If a file is damaged or of another kind; if the checkpoint is of no
            network that is known, or is only nearly of one (the error names that one
            and says what differs); or if an option contradicts the arrays.

    Warns:
        UserWarning: If something was taken off, or no array tells how the network
            computes, such as the padding of an EfficientNet.

    Example:
        >>> net = create_model("dynamic_net", 7, width_mult=0.25)
        >>> again = create_model_from_checkpoint(net.state_dict())
        >>> torch.equal(again.fc.weight, net.fc.weight)
        True
    """
    check_dtype(dtype)
    given, where = state_dict_or_path, f"`{_ARGUMENT}`"
    if isinstance(given, (str, os.PathLike)):
        where = f"`{_ARGUMENT}` (={os.fspath(given)!r})"
        with path_called(_ARGUMENT):
            file = weights_in(Path(given))
            if file is None:  # of `save_pretrained`, which says what it is of
                return from_pretrained(given, dtype=dtype, **options).eval()
            given = read_weights(file)
    unwrapped = unwrap(given, (), argument=_ARGUMENT)
    values, notes = inner_state_dict(unwrapped.values)
    notes = [*unwrapped.notes, *notes]
    shapes = shapes_of(values)
    try:
        check_size(shapes)
        tensors = as_tensors(without_scheduled(values, options))
        match = identify(tensors)
        if match is None or match.problems:
            written = in_words(unwrapped.values, values)

            def way_out(head: str) -> str:
                return _WITHOUT_HEAD.format(head=head, state_dict=written)

            raise ValueError(refusal(shapes, match, dict, way_out))
        read = match.call.options
        options = without_redundant(options, read, shapes)
        arguments = merged(
            {"name": match.call.name, **read, "dtype": dtype},
            options,
            MODELS[match.call.name],
            {**CONVOLUTIONS, **STEERED}[read["conv"]]
            if "conv" in read
            else OWN.get(match.call.name),
        )
        if problems := misfits(arguments, tensors):
            raise ValueError(contradiction(read, options, problems))
        model = create_model(**arguments)
        _load(model, tensors)
    except ValueError as error:
        before = "".join(f"; before, {note}" for note in notes)
        raise ValueError(in_one_line(f"{where}: {error}{before}")) from None
    for note in [*notes, *match.call.guessed(options)]:
        warnings.warn(note, stacklevel=2)
    return model.eval()


def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loads tensors into a network that has their keys and shapes.

    Raises:
        ValueError: If a dtype or a value does not fit.
    """
    for key, own in model.state_dict().items():
        value = tensors.get(key)
        if value is None or value.is_meta or key.rpartition(".")[2] in SCHEDULED:
            continue
        if loses(own, value):
            is_float = value.is_floating_point() and own.is_floating_point()
            remedy = f"give `dtype={value.dtype}`" if is_float else "cast the value"
            raise ValueError(
                f"{key} is {value.dtype}, which the network's {own.dtype} cannot hold; "
                f"{remedy}"
            )
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:  # of a value that a schedule could not write
        raise ValueError(str(error).strip().splitlines()[-1].strip()) from error
