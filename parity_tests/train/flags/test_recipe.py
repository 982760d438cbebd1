"""The flags of the recipe: what they are where they are left out."""

from typing import Any

import pytest

from train.flags.config import Config
from train.flags.recipe import OF_PRESETS, USUAL


@pytest.mark.parametrize("name", USUAL)
def test_flag_is_that_of_the_preset_unless_it_is_given(name):
    own = OF_PRESETS["digits"][name]
    assert own != USUAL[name]
    assert Config().recipe(name) == Config().to_json()[name] == own
    assert Config(preset="fashion").recipe(name) == USUAL[name]
    given: dict[str, Any] = {name: 0.7}
    assert Config(**given).recipe(name) == 0.7


def test_flag_that_is_given_as_nothing_is_not_that_of_the_preset():
    assert Config(load_balance=0.0).recipe("load_balance") == 0
