"""A PyTorch state dict into a module: all of it and nothing else, or a refusal."""

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from dynconv_jax.checks import check_state_dict
from dynconv_jax.layers.chen_layout import from_chen_layout
from dynconv_jax.layers.warehouse_layout import from_warehouse_layout
from dynconv_jax.weights.counterparts import silent_differences
from dynconv_jax.weights.does_not_fit import DoesNotFit
from dynconv_jax.weights.identify import identify, in_flax
from dynconv_jax.weights.leaf import Leaf, as_array
from dynconv_jax.weights.names import check_names, keys_to_ignore
from dynconv_jax.weights.prefixes import moved, prefixes_apart, remedy
from dynconv_jax.weights.recognize import Problem, shapes_of
from dynconv_jax.weights.refusals import description
from dynconv_jax.weights.torch_layout import leaves_of
from dynconv_jax.weights.wrappers import unwrap


def load_torch_state_dict(
    module: nnx.Module, state_dict: Mapping[str, Any], *, ignore: Iterable[str] = ()
) -> None:
    """Loads a PyTorch state dict into `module`, in place, strictly.

    Parameters keep the dtype of the module; a value of a narrower dtype is widened, one
    that the module's dtype cannot hold is refused. Temperatures, whatever else a
    schedule moves, and `num_batches_tracked` may be absent and then keep their values.
    Arrays keep their sharding. The layout of Chen et al.'s port (see `chen_options`) is
    recognised, and that of KernelWarehouse's checkpoints.

    What is around a state dict is taken off, with a warning that says so: the dict of a
    checkpoint (`"state_dict"`, `"model"`, and before these the averaged weights of
    `"state_dict_ema"` and `"model_ema"`), and the `module.` and `_orig_mod.` that
    wrappers put before all keys.

    Args:
        module: A layer or a model; an abstract one (`nnx.eval_shape`) becomes real.
        state_dict: PyTorch tensors or NumPy arrays by PyTorch key, such as
            `torch_module.state_dict()`.
        ignore: What not to load, such as `("fc",)`: it stays as it is in the module,
            and the state dict may have it in another shape, or not at all. A name is a
            key, or the beginning of keys up to a dot; `*` and `?` are those of
            `fnmatch`. Everything else is as strict as ever.

    Raises:
        TypeError: If `module` is no module, `state_dict` no dict, or `ignore` a string.
        ValueError: If a key is missing or unexpected, or a value has the wrong shape
            or a dtype that does not fit, or a temperature is not positive. The one
            error counts all and names the first of each kind, with the name of the
            model that the state dict is of, if that is known; the module is unchanged.
            Also if a part of the module has no counterpart in PyTorch, or the warehouse
            of a layer is no part of it; and if a name in `ignore` means no key of
            either, or a key of an abstract module, which has nothing that could stay.

    Warns:
        UserWarning: If something was taken off; and if a module has a default of flax's
            with which it computes something else than PyTorch's, such as the `epsilon`
            of a norm, which no state dict tells.

    Example:
        >>> from dynconv_jax import DynamicConv, to_torch_state_dict
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> twin = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(1))
        >>> load_torch_state_dict(twin, to_torch_state_dict(layer))
        >>> bool((twin.kernel[...] == layer.kernel[...]).all())
        True
    """
    prepare(module, state_dict, ignore=ignore).carry_out()


class Loading(NamedTuple):
    """What is to be written where, all of it checked.

    Attributes:
        writes: The PyTorch arrays, and what takes them.
        notes: What to warn of.
        absent: What is not written, because it may be absent and is.
    """

    writes: list[tuple[Leaf, np.ndarray]]
    notes: list[str]
    absent: dict[str, Leaf]

    def carry_out(self) -> None:
        """Warns, for the caller of the public function that calls this; then writes."""
        for note in self.notes:
            warnings.warn(note, stacklevel=3)
        for leaf, value in self.writes:
            leaf.load(value)


def prepare(
    module: nnx.Module,
    given: Mapping[str, Any],
    *,
    is_of_jax: bool = False,
    ignore: Iterable[str] = (),
    is_outline: bool = False,
) -> Loading:
    """Checks whether a state dict fits a module; neither is changed.

    Args:
        module: A layer or a model.
        given: What to load into it.
        is_of_jax: Whether a JAX module wrote it, which had the same defaults.
        ignore: As of `load_torch_state_dict`.
        is_outline: Whether the caller asks what a state dict is of: the module is then
            abstract, the caller gives values to what may be absent, and no hints are
            looked for.

    Raises:
        TypeError: As `load_torch_state_dict`.
        ValueError: As `load_torch_state_dict`; as `DoesNotFit` where it is the state
            dict that does not fit.
    """
    check_names("ignore", ignore)
    if isinstance(module, Mapping) and isinstance(given, nnx.Module):
        raise TypeError(
            "`module` comes first and `state_dict` second, "
            "`load_torch_state_dict(module, state_dict)`"
        )
    check_state_dict("state_dict", given)
    leaves = leaves_of(module)
    known = {key: leaf.torch_shape for key, leaf in leaves}
    values, names, notes = unwrap(given, known)
    state_dict = from_chen_layout(values, known)
    is_chen = state_dict.keys() != values.keys()
    state_dict = from_warehouse_layout(state_dict, known)
    # What is wrong is told of the keys that the user knows.
    given_key = dict(zip(state_dict, names, strict=True))
    ignored = keys_to_ignore(ignore, known.keys() | state_dict.keys())
    leaves = _without(leaves, ignored)
    state_dict = {k: value for k, value in state_dict.items() if k not in ignored}
    absent = {key: leaf for key, leaf in leaves if key not in state_dict}
    missing = [
        key
        for key, leaf in absent.items()
        if not leaf.is_optional or (leaf.is_abstract and not is_outline)
    ]
    unexpected = [key for key in state_dict if key not in known]
    problems: list[Problem] = []
    accepted: dict[tuple[int, ...], tuple[str, Leaf, np.ndarray]] = {}
    for key, leaf in leaves:
        if key not in state_dict:
            continue
        name = given_key[key]
        try:
            value = as_array(state_dict[key])
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(("wrong value", f"{name} is not a NumPy array: {error}"))
            continue
        if problem := _misfit(name, leaf, value):
            problems.append(problem)
        elif leaf.variables:
            first_key, _, first = accepted.setdefault(
                tuple(map(id, leaf.variables)), (key, leaf, value)
            )
            if first is not value and first.tobytes() != value.tobytes():
                problems.append(
                    (
                        "wrong value",
                        f"{given_key[first_key]} and {name} are one array of the "
                        "module, but differ",
                    )
                )
    if problems or missing or unexpected:
        hints = [f"Before, {note}." for note in notes]
        prefixes = None if is_outline else prefixes_apart(missing, unexpected)
        # A prefix more or less is one only where no key is right without.
        if prefixes and (all(prefixes) or not state_dict.keys() & known.keys()):
            other, own = prefixes
            renamed = {moved(key, own, other): key for key in missing}
            problems += [
                ("key under another prefix", f"{given_key[there]} for {key}")
                for there, key in renamed.items()
            ]
            hints.append(remedy(other, own))
            missing, unexpected = [], [key for key in unexpected if key not in renamed]
        problems += [("missing key", f"{k}, of shape {known[k]}") for k in missing]
        problems += [("unexpected key", given_key[key]) for key in unexpected]
        match = None if is_outline else identify(values, prepare)
        told_of = ""
        if not is_outline:
            told_of = description(shapes_of(values), match, in_flax, problems)
            hints += [told_of] if told_of else []
        if is_chen:
            hints.append("Build the layer with `chen_options`, for its layout.")
        if missing and unexpected and not told_of:
            hints.append(
                "Keys follow the names of attributes; modules that name them otherwise "
                "than PyTorch need a row in `dynconv_jax.LAYOUT`."
            )
        raise DoesNotFit(type(module).__name__, problems, hints, match)
    if not is_of_jax:
        notes += silent_differences(module)
    writes = [(leaf, value) for _, leaf, value in accepted.values()]
    return Loading(writes, notes, absent)


def _without(
    leaves: list[tuple[str, Leaf]], ignored: Collection[str]
) -> list[tuple[str, Leaf]]:
    """Returns what is not ignored; what is can stay as it is, or it is refused."""
    held = {}
    for key, leaf in leaves:
        if key in ignored:
            if leaf.is_abstract:
                raise ValueError(
                    f"`ignore` leaves {key} as it is, but the module is abstract and "
                    "has no values; build it without `nnx.eval_shape`"
                )
            held.update((id(variable), key) for variable in leaf.variables)
    kept = [(key, leaf) for key, leaf in leaves if key not in ignored]
    for key, leaf in kept:
        for variable in leaf.variables:
            if id(variable) in held:
                raise ValueError(
                    f"`ignore` names {held[id(variable)]}, which is one array with "
                    f"{key}; name both or neither"
                )
    return kept


def _misfit(name: str, leaf: Leaf, value: np.ndarray) -> tuple[str, str] | None:
    """Says in what way a value does not fit its place, if in any."""
    if value.shape != leaf.torch_shape:
        return (
            "wrong shape",
            f"{name} has {value.shape}, the module {leaf.torch_shape}",
        )
    if leaf.loses(value):
        return (
            "wrong dtype",
            f"{name} is {value.dtype}, which the module's {leaf.dtype} cannot hold; "
            "cast the value, or build the module with `param_dtype`",
        )
    if leaf.is_scheduled:
        scheduled: Any = leaf.variables[0]
        if reason := scheduled.refusal(value, leaf.dtype):
            return "wrong value", f"{name} is {value}; it {reason}"
    return None
