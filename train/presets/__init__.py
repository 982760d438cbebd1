"""The data sets by name: where each comes from and what is in it."""

from train.config import Config
from train.presets import digits, fashion
from train.presets.dataset import ArraySource, Dataset, Source

__all__ = ["ArraySource", "Dataset", "Source", "load"]


def load(config: Config) -> Dataset:
    """Returns the data set of `--preset`.

    Args:
        config: The flags.

    Raises:
        TrainError: If files are missing, cut or something else.

    Example:
        >>> load(Config(preset="digits")).num_classes
        10
    """
    match config.preset:
        case "digits":
            return digits.load()
        case "fashion":
            return fashion.load(config.data)
        case _:
            raise AssertionError(config.preset)
