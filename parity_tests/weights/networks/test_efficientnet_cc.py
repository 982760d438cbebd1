"""EfficientNets are recognised by depth and experts."""

import pytest

from dynconv_jax.weights.recognize import candidates
from dynconv_torch.weights.identify import identify as identify_torch
from parity_tests.tools.checkpoints import shapes_of, zeros


@pytest.mark.parametrize(
    ("name", "options", "call"),
    [
        ("efficientnet_cc_b0_8e", dict(dynamic=2), ("efficientnet_cc_b0_8e", {})),
        (
            "efficientnet_cc_b0_4e",
            dict(conv="condconv", conv_options={"num_experts": 2}),
            ("efficientnet_cc_b0_4e", {"conv": "condconv"}),
        ),
        (
            "efficientnet_cc_b1_8e",
            dict(conv="static", stem_channels=16, head_channels=640),
            ("efficientnet_cc_b1_8e", {"conv": "static"}),
        ),
    ],
)
def test_efficientnets_are_called_by_depth_and_experts(name, options, call):
    match = identify_torch(zeros(shapes_of(name, **options)))
    assert match is not None and match.problems == []
    expected, told = call
    assert match.call.name == expected
    assert told.items() <= match.call.options.items()
    own = {k: v for k, v in options.items() if k != "conv"}
    assert own.items() <= match.call.options.items()


def test_only_of_condconv_weights_are_taken_to_be_of_tensorflow():
    chosen = {}
    for conv in ("condconv", "static"):
        shapes = shapes_of("efficientnet_cc_b0_4e", conv=conv)
        call, *_ = candidates(shapes)
        chosen[conv] = call.options["tensorflow"]
        assert len(call.guessed({})) == 1 and call.guessed({"tensorflow": False}) == []
    assert chosen == {"condconv": True, "static": False}
