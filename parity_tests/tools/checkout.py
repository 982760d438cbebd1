"""Where the checkout is: programs that tests start run from there."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
