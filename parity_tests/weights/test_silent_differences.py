"""What a state dict does not tell, and loading warns of."""

import warnings

import pytest
from flax import nnx

import dynconv_jax
from dynconv_jax import load_torch_state_dict, to_torch_state_dict
from dynconv_jax.weights.counterparts import silent_differences
from parity_tests.tools.jax_modules import Holder


class Defaults(nnx.Module):
    """Modules with flax's defaults."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.before = nnx.LayerNorm(4, rngs=rngs)
        self.blocks = nnx.List([nnx.GroupNorm(4, 2, rngs=rngs)])
        self.instance = nnx.InstanceNorm(4, rngs=rngs)
        self.ported = nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs)
        self.batch = nnx.BatchNorm(4, rngs=rngs)


def loading_warnings(module):
    state_dict = to_torch_state_dict(module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_torch_state_dict(module, state_dict)
    assert all(each.filename == __file__ for each in caught)
    assert all(each.category is UserWarning for each in caught)
    return [str(each.message) for each in caught]


def test_norms_with_the_epsilon_of_flax_are_told_once_with_pytorchs():
    (message,) = loading_warnings(Defaults())
    for word in (
        "before (LayerNorm)",
        "blocks.0 (GroupNorm)",
        "instance (InstanceNorm)",
        "default is 1e-5",
        "`epsilon=1e-5`",
    ):
        assert word in message
    assert "ported" not in message and "batch" not in message


def test_the_epsilon_of_pytorchs_rms_norm_is_another():
    (message,) = loading_warnings(nnx.RMSNorm(4, rngs=nnx.Rngs(0)))
    assert "the module (RMSNorm)" in message
    assert "finfo(dtype).eps" in message and "1e-5" not in message


@pytest.mark.parametrize(
    ("size", "strides", "padding", "is_told"),
    [
        (3, 2, "SAME", True),
        (4, 3, "SAME", True),
        (3, 1, "SAME", False),
        (1, 2, "SAME", False),
        (3, 2, 1, False),
        (3, 2, "VALID", False),
    ],
)
def test_padding_that_pytorch_has_not_is_told(size, strides, padding, is_told):
    conv = nnx.Conv(3, 4, (1, size), (1, strides), padding=padding, rngs=nnx.Rngs(0))
    messages = loading_warnings(Holder(conv))
    assert len(messages) == is_told
    assert all("'SAME' in part (Conv)" in message for message in messages)


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: dynconv_jax.ODConv(8, 4, (3,), 2, norm="layer", rngs=rngs),
        lambda rngs: dynconv_jax.DynamicConvBlock(
            3, 4, strides=2, padding="SAME", conv=nnx.Conv, rngs=rngs
        ),
        pytest.param(
            lambda rngs: dynconv_jax.create_model(
                "tf_efficientnet_cc_b0_4e", rngs=rngs
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_modules_of_this_project_have_no_such_default(make):
    module = nnx.eval_shape(lambda: Holder(make(nnx.Rngs(0))))
    assert silent_differences(module) == []
