"""A study that is done."""

import json

import pytest

from parity_tests.tools.studies import (
    Trainer,
    page_of,
    small,
)
from train.commands.study import study


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory):
    """The flags of a study that is done, who was started, and the results."""
    flags = small(tmp_path_factory.mktemp("study"))
    trainer = Trainer()
    study(flags, start=trainer)
    results = json.loads((page_of(flags) / "results.json").read_text())
    return flags, trainer, results
