"""Keys of a state dict and of a module that differ by their prefix alone."""


def prefixes_apart(missing: list[str], unexpected: list[str]) -> tuple[str, str] | None:
    """Returns the prefixes that tell all missing keys from unexpected ones, if any.

    Returns:
        That of the state dict and that of the module; None where there are none, or
        several would do.

    Example:
        >>> prefixes_apart(["fc.bias", "fc.weight"], ["net.fc.bias", "net.fc.weight"])
        ('net.', '')
    """
    if not missing or not unexpected:
        return None
    there, found = set(unexpected), set()
    first = missing[0].split(".")
    for length in range(1, len(first) + 1):
        ending = ".".join(first[-length:])
        own = missing[0].removesuffix(ending)
        if not all(key.startswith(own) for key in missing):
            continue
        for key in unexpected:
            if key == ending or key.endswith(f".{ending}"):
                other = key.removesuffix(ending)
                if all(moved(key, own, other) in there for key in missing):
                    found.add((other, own))
    # Not with what both have in common; and one key may be renamed by chance.
    found = {
        (other, own)
        for other, own in found
        if not (other and own)
        or (len(missing) > 1 and other.split(".")[-2] != own.split(".")[-2])
    }
    return found.pop() if len(found) == 1 else None


def moved(key: str, old: str, new: str) -> str:
    """Returns a key with another prefix.

    Example:
        >>> moved("fc.bias", "", "net.")
        'net.fc.bias'
    """
    return new + key.removeprefix(old)


def remedy(other: str, own: str) -> str:
    """Returns what makes keys the same that differ by these prefixes.

    Example:
        >>> remedy("net.", "")
        "Load {key.removeprefix('net.'): value for key, value in state_dict.items()}."
    """
    if not other:
        return f"Load it into the part of the module that is {own[:-1]!r}."
    change = (
        f"removeprefix({other!r})" if not own else f"replace({other!r}, {own!r}, 1)"
    )
    return f"Load {{key.{change}: value for key, value in state_dict.items()}}."
