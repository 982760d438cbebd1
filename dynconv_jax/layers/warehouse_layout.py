"""The keys of KernelWarehouse's published checkpoints.

    warehouse_manager.weights.i (n, co, ci, *cell)     cells, here `warehouses.i.cells`
    classifier.{weight,bias}                           here `classifier.1.{weight,bias}`

All other keys are the same. The second row is of MobileNetV2, whose classifier is a
linear layer there, and here comes after dropout in a row. τ is in no checkpoint, so
that loading one leaves τ as it is.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Array = TypeVar("Array")

_THEIRS = re.compile(r"(?P<model>(?:.*\.)?)warehouse_manager\.weights\.(?P<index>\d+)")
_OURS = re.compile(
    r"(?P<model>(?:.*\.)?)warehouses\.(?P<index>\d+)\.(?P<name>cells|assignment)"
)
_CLASSIFIER = ("weight", "bias")


def from_warehouse_layout(
    state_dict: Mapping[str, Array], known: Iterable[str]
) -> dict[str, Array]:
    """Renames what is in the published layout; all else stays as it is.

    Args:
        state_dict: The state dict to load.
        known: The keys that the module has.

    Returns:
        A new state dict in the layout of `with_warehouses`.

    Example:
        >>> known = ["warehouses.0.cells", "classifier.1.weight"]
        >>> published = {"warehouse_manager.weights.0": 1, "classifier.weight": 2}
        >>> from_warehouse_layout(published, known)
        {'warehouses.0.cells': 1, 'classifier.1.weight': 2}
    """
    known = set(known)
    renamed: dict[str, str] = {}
    for key in state_dict:
        if match := _THEIRS.fullmatch(key):
            model = match["model"]
            renamed[key] = f"{model}warehouses.{match['index']}.cells"
            for name in _CLASSIFIER:
                renamed[f"{model}classifier.{name}"] = f"{model}classifier.1.{name}"

    def name_of(key: str) -> str:
        new = renamed.get(key, key)
        # What the module has by this name stays, and what it has not, to be refused.
        is_free = key not in known and new in known and new not in state_dict
        return new if is_free else key

    return {name_of(key): value for key, value in state_dict.items()}


def to_warehouse_layout(state_dict: Mapping[str, Array]) -> dict[str, Array]:
    """Returns a state dict of a model of `with_warehouses` in the published layout.

    What was read from a published checkpoint comes out bit for bit. The layout has no
    place for τ: note it elsewhere.

    Args:
        state_dict: Of a model, or of one that is part of another.

    Raises:
        ValueError: If there are no warehouses in it.

    Example:
        >>> to_warehouse_layout({"warehouses.0.cells": 1, "warehouses.0.assignment": 0})
        {'warehouse_manager.weights.0': 1}
    """
    matches = [match for key in state_dict if (match := _OURS.fullmatch(key))]
    if not matches:
        raise ValueError(
            "there are no cells `warehouses.0.cells`, ... among the keys; this layout "
            "is of what `with_warehouses` builds"
        )
    # Published models have the cells before all else.
    cells = {
        f"{match['model']}warehouse_manager.weights.{match['index']}": state_dict[
            match.string
        ]
        for match in matches
        if match["name"] == "cells"
    }
    moved = {match.string for match in matches}
    renamed = {
        f"{match['model']}classifier.1.{name}": f"{match['model']}classifier.{name}"
        for match in matches
        for name in _CLASSIFIER
    }
    rest = {renamed.get(k, k): v for k, v in state_dict.items() if k not in moved}
    return cells | rest
