"""Networks of blocks unlike the published are refused by the name of the nearest."""

import re

import pytest

import dynconv_jax
import dynconv_torch
from dynconv_jax.weights.recognize import candidates
from parity_tests.tools.checkpoints import refusal, shapes_of, zeros

BOTH = pytest.mark.parametrize(
    "package", [pytest.param(dynconv_jax, marks=pytest.mark.slow), dynconv_torch]
)


def renumbered(shapes, row, at, *, by):
    """Returns shapes with one block of a row less, or one twice.

    Args:
        shapes: Of a network.
        row: What the keys of blocks begin with, up to their number.
        at: Which block it is.
        by: -1 or 1.
    """
    found = {}
    for key, shape in shapes.items():
        match = re.fullmatch(rf"{re.escape(row)}(\d+)(\..*)", key)
        if match is None or int(match[1]) < at:
            found[key] = shape
            continue
        number, rest = int(match[1]), match[2]
        if number > at or by > 0:
            found[f"{row}{number + by}{rest}"] = shape
        if number == at and by > 0:
            found[key] = shape
    return found


@pytest.mark.parametrize("conv", ["static", "odconv"])
@pytest.mark.parametrize(
    ("name", "at", "by", "first"),
    [
        ("mobilenet_v2", 5, -1, "features.6.conv.3 has 64 channels, and not 32"),
        ("mobilenet_v2", 5, 1, "features.7.conv.3 has 32 channels, and not 64"),
        (
            "mobilenet_v3_small",
            5,
            -1,
            "features.6.block.0.1 has 120 channels, and not 240",
        ),
        (
            "mobilenet_v3_small",
            5,
            1,
            "features.7.block.0.1 has 240 channels, and not 120",
        ),
        (
            "mobilenet_v3_large",
            8,
            -1,
            "features.8.block.0.1 has 184 channels, and not 200",
        ),
    ],
)
def test_the_first_block_that_differs_is_told(name, at, by, first, conv):
    shapes = renumbered(shapes_of(name, conv=conv), "features.", at, by=by)
    (call,) = candidates(shapes)
    assert call.name == name and "width_mult" not in call.options
    assert call.doubts[0].startswith(first)


@BOTH
def test_a_network_with_a_block_less_is_refused_by_name(package):
    shapes = shapes_of("mobilenet_v2", width_mult=0.5, num_classes=7)
    message = refusal(package, zeros(renumbered(shapes, "features.", 5, by=-1)))
    assert "`create_model('mobilenet_v2', width_mult=0.5, num_classes=7)`" in message
    assert "builds: features.6.conv.3 has 32 channels, and not 16; " in message


@pytest.mark.parametrize(
    ("by", "words"),
    [(-1, "missing keys (blocks.2.1."), (1, "unexpected keys (blocks.2.2.")],
)
def test_a_stage_of_other_depth_is_told(by, words):
    shapes = renumbered(shapes_of("efficientnet_cc_b0_4e"), "blocks.2.", 1, by=by)
    message = refusal(dynconv_torch, zeros(shapes))
    assert "looks like efficientnet_cc_b0_4e, but is not quite" in message
    assert words in message
