"""What checkpoints put around a state dict, taken off: containers and prefixes.

Training scripts save a dict with the state dict in it; what wraps a module puts a name
before, or into, its keys.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# Entries that hold a state dict, in the order of preference: timm's, which evaluates
# the averaged weights where there are some.
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "params",
    "net",
    "module",
)

# Names that wrappers give what they wrap: data parallelism and averaging; compilation;
# sharding and rematerialisation. Those of the second line are no one's own.
PREFIXES = (
    "module",
    *(RESERVED := ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")),
)

# What `torch.optim.swa_utils.AveragedModel` counts, beside the module.
_COUNT = "n_averaged"


class Unwrapped(NamedTuple):
    """A state dict, and what was around it.

    Attributes:
        values: By the keys of the module.
        names: The keys as they were given, in the same order.
        notes: What was taken off.
    """

    values: dict[str, Any]
    names: list[str]
    notes: list[str]


def in_one_line(text: str) -> str:
    """Returns a text with what no line can show escaped, as `repr` does.

    Example:
        >>> in_one_line("a key"), len(in_one_line(chr(10)))
        ('a key', 2)
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Returns the first names, in one line, and how many more there are.

    Example:
        >>> listed("abcde", 3)
        'a, b, c and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return in_one_line(", ".join(names[:limit])) + more


def unwrap(
    given: Any, known: Iterable[str], *, argument: str = "state_dict"
) -> Unwrapped:
    """Takes off what is around a state dict; what is a state dict stays as it is.

    Args:
        given: A state dict, or a dict that holds one.
        known: The keys of the module. A prefix that they have, too, stays.
        argument: What the caller calls what is given.

    Raises:
        TypeError: If it is no such thing.
        ValueError: If it holds no state dict.

    Example:
        >>> unwrap({"model": {"module.weight": 1, "module.bias": 2}}, ["weight"]).values
        {'weight': 1, 'bias': 2}
    """
    known = set(known)
    notes: list[str] = []
    given = _checked(given, argument)
    while nested := [
        key
        for key in CONTAINERS
        if key not in known and isinstance(given.get(key), Mapping) and given[key]
    ]:
        others = [key for key in given if key != nested[0]]
        rest = f", not {listed(map(repr, others))}" if others else ""
        also = (
            f" (for another, give it alone, as `checkpoint[{nested[1]!r}]`)"
            if len(nested) > 1
            else ""
        )
        notes.append(f"the weights are those of the entry {nested[0]!r}{rest}{also}")
        given = _checked(given[nested[0]], argument)
    for key in CONTAINERS:
        if key not in known and hasattr(given.get(key), "state_dict"):
            raise TypeError(
                f"`{argument}` has a {type(given[key]).__name__} under {key!r}, not "
                "arrays; give its `.state_dict()`"
            )
    if given and all(not hasattr(value, "shape") for value in given.values()):
        if any(isinstance(value, Mapping) for value in given.values()):
            raise ValueError(
                f"`{argument}` holds no arrays but the entries {listed(given)}; give "
                "the one that has the weights"
            )
    values = dict(given)
    if _COUNT in values and _COUNT not in known and len(values) > 1:
        if all(key.startswith("module.") for key in values if key != _COUNT):
            del values[_COUNT]
            notes.append(f"{_COUNT!r} was left out, the count of an average")
    names = list(values)
    wrapped = _leading(values)
    own = _leading(known)
    if len(wrapped) > len(own) and wrapped[len(wrapped) - len(own) :] == own:
        off = "".join(f"{name}." for name in wrapped[: len(wrapped) - len(own)])
        values = {key.removeprefix(off): value for key, value in values.items()}
        notes.append(f"the prefix {off!r} was taken off all keys")
    for name in RESERVED:
        inner = _take_out(values, name)
        if inner.keys() != values.keys() and not any(
            name in key.split(".") for key in known
        ):
            values = inner
            notes.append(f"{name + '.'!r} was taken out of keys")
    return Unwrapped(values, names, notes)


def _checked(given: Any, argument: str) -> Mapping[str, Any]:
    """Returns a mapping with keys of strings, or says what to give instead."""
    if hasattr(given, "state_dict"):
        instead = f"not the {type(given).__name__}; give its `.state_dict()`"
    elif not isinstance(given, Mapping):
        instead = "not None" if given is None else f"not a {type(given).__name__}"
    elif odd := [key for key in given if not isinstance(key, str)]:
        instead = f"and {odd[0]!r} is no such key"
    else:
        return given
    raise TypeError(f"`{argument}` must be a dict of arrays by PyTorch key, {instead}")


def _leading(keys: Iterable[str]) -> list[str]:
    """Returns the names of wrappers that all keys begin with."""
    split = [key.split(".")[:-1] for key in keys]
    names: list[str] = []
    for level in zip(*split, strict=False):
        if len(set(level)) > 1 or level[0] not in PREFIXES:
            break
        names.append(level[0])
    return names


def _take_out(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Takes a name out of keys, where all that is beside it has it, too."""
    result = {}
    for key, value in values.items():
        parts = key.split(".")
        if name in parts[:-1]:
            above = "".join(f"{part}." for part in parts[: parts.index(name)])
            if all(
                other.startswith(f"{above}{name}.")
                for other in values
                if other.startswith(above)
            ):
                parts.remove(name)
        result[".".join(parts)] = value
    return result
