"""Names that are not ours, in what is printed: no terminal obeys them."""

import unicodedata

# Categories of Unicode that are not seen but obeyed: controls (escape, newline), marks
# such as those that turn the direction of writing, lone surrogates (bytes of a file's
# name that are no text), and the two that break a line or a paragraph.
OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Of them, what joins and parts letters in some languages, and the parts of emoji.
HARMLESS = {"\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}"}


def printable(text: object) -> str:
    r"""Returns a text as one line that a terminal shows and does not obey.

    What would move the cursor, colour the screen, break the line or turn the direction
    of writing becomes an escape as Python writes it; so do lone surrogates, which no
    stream can encode. All else stays, in whatever script.

    Args:
        text: A name, a path or another's message; what is no string is made one.

    Example:
        >>> print(printable("a\x1b[2Jb\nc"))
        a\x1b[2Jb\nc
        >>> printable("Größe, 猫, नमस्ते")
        'Größe, 猫, नमस्ते'
    """
    return "".join(map(_shown, str(text)))


def _shown(character: str) -> str:
    if character in HARMLESS or unicodedata.category(character) not in OBEYED:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
