"""The data sets by name: where each comes from and what is in it."""

from train.data import cifar10, digits, fashion, folder
from train.data.dataset import Dataset
from train.data.split import split_off
from train.flags.config import Config


def load(config: Config) -> Dataset:
    """Returns the data set of `--preset`, with the validation part of `--val-split`.

    Args:
        config: The flags.

    Raises:
        TrainError: If files are missing, cut or something else, or too few to be split.

    Example:
        >>> load(Config(preset="digits")).num_classes
        10
    """
    dataset = _load(config)
    if config.val_split:
        dataset = split_off(dataset, config.val_split, config.seed)
    return dataset


def _load(config: Config) -> Dataset:
    data = config.data
    match config.preset:
        case "digits":
            return digits.load()
        case "fashion":
            return fashion.load(data)
        case "cifar10":
            assert data is not None  # The flags see to it.
            return cifar10.load(data)
        case "folder":
            assert data is not None
            return folder.load(
                *(data, config.image_size, config.max_image_pixels),
                needs_test=not config.val_split,
            )
