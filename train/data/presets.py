"""The data sets by name: where each comes from and what is in it."""

import dataclasses

from train.data import cifar10, digits, fashion, folder
from train.data.dataset import Dataset, Source
from train.data.folder import FolderSource
from train.data.split import Subset, split_off
from train.flags.config import Config


def load(config: Config) -> Dataset:
    """Returns the data set of `--preset`, as the other flags have it.

    These are the validation part of `--val-split`, what images are normalised by, and
    how much of them is kept in evaluation.

    Args:
        config: The flags.

    Raises:
        TrainError: If files are missing, cut or something else, or too few to be split,
            or if a flag has numbers for other channels.

    Example:
        >>> load(Config(preset="digits")).num_classes
        10
    """
    dataset = _normalised(_load(config), config)
    if config.val_split:
        dataset = split_off(dataset, config.val_split, config.seed)
    if config.crop_pct == 1:
        return dataset
    return dataclasses.replace(
        dataset,
        test=_cropped(dataset.test, config.crop_pct),
        val=None if dataset.val is None else _cropped(dataset.val, config.crop_pct),
        crop_pct=config.crop_pct,
    )


def _cropped(source: Source, crop_pct: float) -> Source:
    """Returns pictures of which a share is kept."""
    if isinstance(source, Subset):
        of_it = _cropped(source.source, crop_pct)
        return dataclasses.replace(source, source=of_it)
    assert isinstance(source, FolderSource)  # The flags see to it.
    return dataclasses.replace(source, crop_pct=crop_pct)


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
                *(data, config.height_and_width, config.max_image_pixels),
                interpolation=config.interpolation,
                class_map=config.class_map,
                needs_test=not config.val_split,
            )


def _normalised(dataset: Dataset, config: Config) -> Dataset:
    """Returns the data with what `--mean` and `--std` say of every channel."""
    channels = dataset.image_shape[-1]
    for name in ("mean", "std"):
        values = getattr(config, name)
        if values is not None:
            counts = "" if channels == 1 else f", or {channels}, one for each channel"
            rule = f"be one number{counts} of --preset {config.preset}"
            config.require(name, len(values) in (1, channels), rule)
            every = values if len(values) == channels else values * channels
            dataset = dataclasses.replace(dataset, **{name: every})
    return dataset
