"""Parts of a module by their names: which of PyTorch's keys are meant."""

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from dynconv_jax.models.options import did_you_mean


def check_names(argument: str, names: Any) -> None:
    """Raises a TypeError for a single string, which is a collection of letters.

    Example:
        >>> check_names("ignore", ("fc",))
    """
    if isinstance(names, str):
        raise TypeError(
            f"`{argument}` (={names!r}) must be a tuple of names, `({names!r},)`"
        )


def match_keys(names: Iterable[str], keys: Collection[str]) -> dict[str, set[str]]:
    """Returns which keys each name means.

    A name is a key, or the beginning of keys up to a dot: `"layer4.0"` means all that
    is in that block. `*`, `?` and `[...]` stand for what they do in `fnmatch`, dots
    among it: `"*.fc1"`.

    Args:
        names: The names.
        keys: PyTorch's keys.

    Example:
        >>> found = match_keys(["fc", "*.bias"], ["conv.bias", "fc.bias", "fc2.weight"])
        >>> found["fc"], sorted(found["*.bias"])
        ({'fc.bias'}, ['conv.bias', 'fc.bias'])
    """
    return {
        name: {key for key in keys if any(_means(name, each) for each in _parts(key))}
        for name in names
    }


def keys_to_ignore(ignore: Iterable[str], keys: Collection[str]) -> set[str]:
    """Returns the keys that an argument `ignore` names.

    Args:
        ignore: The names; see `match_keys`.
        keys: PyTorch's keys, of the module and of what it is to take.

    Raises:
        ValueError: If a name means none of the keys.

    Example:
        >>> keys_to_ignore(("fc",), ["conv.weight", "fc.bias"])
        {'fc.bias'}
    """
    matched = match_keys(ignore, keys)
    for name, found in matched.items():
        if not found:
            raise ValueError(
                f"`ignore` (={name!r}) names nothing; {suggestion(name, keys)}"
            )
    return set().union(*matched.values())


def suggestion(name: str, keys: Collection[str]) -> str:
    """Returns what a name that means nothing may have been meant to be.

    Example:
        >>> suggestion("head", ["layer1.0.weight", "fc.bias"])
        'a name is a key, or the beginning of keys up to a dot'
    """
    known = sorted({part for key in keys for part in _parts(key)})
    guess = did_you_mean(name, known)
    article = "A" if guess else "a"
    return f"{guess}{article} name is a key, or the beginning of keys up to a dot"


def _means(name: str, part: str) -> bool:
    return part == name or fnmatchcase(part, name)


def _parts(key: str) -> list[str]:
    """Returns a key and what it begins with, up to each dot."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
