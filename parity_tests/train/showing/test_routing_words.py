"""What routers do, in sentences: collapse, dead experts, images treated alike."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from parity_tests.tools.runs import make_dataset, make_evaluation
from train.learning.evaluation import Evaluation
from train.showing.routing_words import faults, in_words

ALIKE = np.full((3, 4), 0.25)
APART = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
SOUND: dict[str, Any] = dict(
    **dict(shares=(0.25,) * 4, usage=(0.25,) * 4, dead=(), spread=0.5),
    attention=ALIKE,
)
CLASSES_ALIKE = "all classes are routed much alike"


def evaluation_of(**routers: dict[str, Any]) -> Evaluation:
    """Returns what routers did; each is sound where it is not said otherwise."""
    found = {path: SOUND | each for path, each in routers.items()}
    return dataclasses.replace(
        make_evaluation(make_dataset()),
        shares={path: np.array(each["shares"]) for path, each in found.items()},
        usage={path: np.array(each["usage"]) for path, each in found.items()},
        dead={path: each["dead"] for path, each in found.items()},
        spread={path: each["spread"] for path, each in found.items()},
        attention={path: each["attention"] for path, each in found.items()},
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
        CLASSES_ALIKE,
    ]
    assert in_words(evaluation_of(one={})) == [
        "the router uses its experts and tells images apart",
        CLASSES_ALIKE,
    ]


def test_routers_that_tell_classes_apart_are_counted_and_the_strongest_is_named():
    some = dict(attention=ALIKE + 0.2 * (APART - ALIKE))
    much = dict(attention=APART)
    by = "classes are routed differently by"
    found = in_words(evaluation_of(one={}, two=much, three=some))
    assert found[-1] == f"{by} one of three routers, most by two"
    some = dict(attention=ALIKE + 0.5 * (APART - ALIKE))
    found = in_words(evaluation_of(one={}, two=some, three=much))
    assert found[-1] == f"{by} two of three routers, most by three"
    found = in_words(evaluation_of(one=much))
    assert found[-1] == f"{by} the router one"


def test_routers_at_fault_are_not_said_once_more_to_treat_classes_alike():
    assert len(in_words(evaluation_of(one=dict(spread=0.0)))) == 1


def test_router_of_one_expert_has_no_sentence():
    alone = dict(shares=(1.0,), usage=(1.0,), spread=0.0)
    assert in_words(evaluation_of(one=alone)) == []


def test_layer_of_a_warehouse_may_leave_cells_to_others():
    routers = {"one.mixture": dict(shares=(0.5, 0.5, 0.0), dead=(2,))}
    assert faults(evaluation_of(**routers)) == []
