"""What routers do, in sentences: collapse, dead experts, images treated alike."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from parity_tests.tools.runs import make_dataset, make_evaluation
from train.learning.evaluation import Evaluation
from train.showing.routing_words import faults, in_words

SOUND: dict[str, Any] = dict(shares=(0.25,) * 4, usage=(0.25,) * 4, dead=(), spread=0.5)


def evaluation_of(**routers: dict[str, Any]) -> Evaluation:
    """Returns what routers did; each is sound where it is not said otherwise."""
    found = {path: SOUND | each for path, each in routers.items()}
    return dataclasses.replace(
        make_evaluation(make_dataset()),
        shares={path: np.array(each["shares"]) for path, each in found.items()},
        usage={path: np.array(each["usage"]) for path, each in found.items()},
        dead={path: each["dead"] for path, each in found.items()},
        spread={path: each["spread"] for path, each in found.items()},
    )


@pytest.mark.parametrize(
    ("router", "sentence"),
    [
        (
            dict(shares=(0.01, 0.99), usage=(0.003, 0.997)),
            "one uses one expert for 99.7 % of images: 1",
        ),
        (
            dict(shares=(1.0, 0.0), usage=(1.0, 0.0), dead=(1,), spread=0.0),
            "one uses one expert for 100 % of images: 0",
        ),
        (
            dict(shares=(0.5, 0, 0.5, 0), dead=(1, 3)),
            "two of four experts of one are dead: 1, 3",
        ),
        (
            dict(shares=(1 / 11,) * 11 + (0,), dead=(11,)),
            "one of 12 experts of one is dead: 11",
        ),
        (dict(spread=0.001), "one treats all images alike"),
    ],
)
def test_router_at_fault_has_its_sentence(router, sentence):
    assert faults(evaluation_of(one=router)) == [sentence]


def test_sound_routers_are_told_together():
    found = in_words(evaluation_of(one={}, two={}, three=dict(spread=0.0)))
    assert found == [
        "three treats all images alike",
        "the other routers use their experts and tell images apart",
    ]
    assert in_words(evaluation_of(one={})) == [
        "the router uses its experts and tells images apart"
    ]


def test_router_of_one_expert_has_no_sentence():
    alone = dict(shares=(1.0,), usage=(1.0,), spread=0.0)
    assert in_words(evaluation_of(one=alone)) == []


def test_layer_of_a_warehouse_may_leave_cells_to_others():
    routers = {"one.mixture": dict(shares=(0.5, 0.5, 0.0), dead=(2,))}
    assert faults(evaluation_of(**routers)) == []
