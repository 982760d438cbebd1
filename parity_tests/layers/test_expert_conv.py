"""ExpertConv: what all layers with experts take, under the same names."""

import inspect

import jax.numpy as jnp
import pytest
from flax import nnx

from dynconv_jax import CondConv, DynamicConv, DynamicConvTranspose, ODConv
from dynconv_jax.layers.expert_conv import ExpertConv, ExpertOptions

MEMBERS = [CondConv, DynamicConv, DynamicConvTranspose, ODConv]

OPTIONS: dict = dict(
    padding=1,
    kernel_dilation=2,
    feature_group_count=2,
    use_bias=True,
    num_experts=3,
    implementation="patches",
    dtype=jnp.bfloat16,
    param_dtype=jnp.float16,
    precision="highest",
    kernel_init=nnx.initializers.constant(2.0),
    bias_init=nnx.initializers.constant(3.0),
    promote_dtype=lambda arrays, **options: arrays,
    preferred_element_type=jnp.float32,
    kernel_metadata={"group": "kernels"},
    bias_metadata={"group": "biases"},
)


def keywords(layer: type) -> dict[str, inspect.Parameter]:
    """Returns the keyword-only arguments of a layer, but `rngs`."""
    parameters = inspect.signature(layer.__init__).parameters
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "rngs"
    }


def test_options_are_the_arguments_of_expert_conv():
    assert keywords(ExpertConv).keys() == ExpertOptions.__annotations__.keys()
    assert OPTIONS.keys() == ExpertOptions.__annotations__.keys()


def test_dynamic_conv_spells_out_all_options_with_the_same_defaults():
    spelled = keywords(DynamicConv)
    for name, parameter in keywords(ExpertConv).items():
        assert spelled[name] == parameter


@pytest.mark.parametrize("member", MEMBERS)
def test_members_take_every_option(member):
    layer = member(4, 6, (3, 2), rngs=nnx.Rngs(0), **OPTIONS)
    for name in ("feature_group_count", "num_experts", "implementation", "dtype"):
        assert getattr(layer, name) == OPTIONS[name]
    assert layer.kernel_dilation == (2, 2)
    assert layer.kernel.shape == (3, 3, 2, 2, 6) and layer.bias.shape == (3, 6)
    assert layer.kernel.dtype == layer.bias.dtype == jnp.float16
    assert (layer.kernel[...] == 2).all() and (layer.bias[...] == 3).all()
    assert layer.kernel.get_metadata("group") == "kernels"
    assert layer.bias.get_metadata("group") == "biases"
    assert layer.promote_dtype is OPTIONS["promote_dtype"]


@pytest.mark.parametrize("member", MEMBERS)
def test_an_unknown_option_is_refused(member):
    with pytest.raises(TypeError, match="stride"):
        member(4, 6, (3, 2), stride=2, rngs=nnx.Rngs(0))
