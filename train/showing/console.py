"""Where commands print: a terminal, or a file in which nothing is cut or broken."""

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

# Of lines that are not for a terminal, which has them as they are.
UNBROKEN = 10_000
BETWEEN = 3  # two blanks and a line


def open_console() -> Console:
    """Returns the console of standard output; texts are shown as they are written."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = UNBROKEN
    return console


def say(console: Console, text: str) -> None:
    """Prints lines, which only the terminal breaks: a path stays one word."""
    console.print(text, markup=False, soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Prints a table. Where it is too wide, names are folded, and figures never.

    Args:
        console: Where to. A terminal that is too narrow for the figures breaks lines.
        table: A table whose figures are in columns justified to the right.
    """
    widest = [0]
    naturals = []
    for column in table.columns:
        column.overflow = "fold"
        cells = [cell_len(str(cell)) for cell in column.cells]
        naturals.append(max([cell_len(str(column.header)), *cells]))
        if column.justify == "right":
            widest += cells
    # Columns are narrowed from the widest down, so none becomes narrower than this.
    needed = sum(min(each, max(widest)) + BETWEEN for each in naturals)
    console.width = max(console.width, needed)
    console.print(table)
