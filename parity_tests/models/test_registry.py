"""Models by name: the same names in both frameworks, and help with wrong ones."""

import itertools
from typing import Any

import jax
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax.models import registry
from dynconv_torch.models import registry as torch_registry
from parity_tests.tools.networks import abstract, on_meta, shapes_of

BUILDERS = pytest.mark.parametrize("build", [abstract, on_meta])


def test_both_frameworks_know_the_same_names():
    assert dynconv_jax.list_models() == dynconv_torch.list_models()
    assert set(dynconv_jax.list_models()) >= {
        *("dynamic_net", "mobilenet_v2", "resnet18", "resnet34", "resnet50")
    }
    assert registry.CONVOLUTIONS.keys() == torch_registry.CONVOLUTIONS.keys()


@pytest.mark.parametrize(
    ("name", "conv"),
    [
        *itertools.product(("dynamic_net", "resnet18"), registry.CONVOLUTIONS),
        pytest.param("mobilenet_v2", "fdconv", marks=pytest.mark.slow),
        pytest.param("resnet50", "decomposed", marks=pytest.mark.slow),
    ],
)
def test_both_frameworks_agree_on_keys_for_every_convolution(name, conv):
    assert shapes_of(abstract(name, 7, conv=conv)) == shapes_of(
        on_meta(name, 7, conv=conv)
    )


@BUILDERS
def test_options_reach_the_model_and_its_convolutions(build):
    net = build(
        "resnet18",
        num_classes=7,
        conv="dynamic",
        conv_options={"num_experts": 3, "reduction": 8},
        dynamic=1,
    )
    shapes = shapes_of(net)
    assert shapes["fc.bias"] == (7,)
    assert shapes["layer3.0.conv1.weight"] == (256, 128, 3, 3)
    assert shapes["layer4.0.conv1.weight"] == (3, 512, 256, 3, 3)
    assert shapes["layer4.0.conv1.fc1.weight"] == (32, 256)


@BUILDERS
@pytest.mark.parametrize(
    ("name", "layer", "latent"),
    [("resnet18", "layer1.0.conv1", 16), ("resnet50", "layer1.0.conv2", 8)],
)
def test_decomposed_layers_pool_by_two_in_basic_blocks_alone(
    build, name, layer, latent
):
    shapes = shapes_of(build(name, conv="decomposed", dynamic="all"))
    assert shapes[f"{layer}.q.weight"] == (latent, 64, 1, 1)


@BUILDERS
def test_an_option_that_was_chosen_wins_in_basic_blocks(build):
    net = build("resnet18", conv="decomposed", conv_options={"pool": 3})
    assert shapes_of(net)["layer1.0.conv1.q.weight"] == (24, 64, 1, 1)


@pytest.mark.parametrize(
    ("build", "conv"),
    [(abstract, dynconv_jax.DynamicConv), (on_meta, dynconv_torch.DynamicConv2d)],
)
def test_a_convolution_may_be_given_itself(build, conv):
    by_name, by_class = (
        shapes_of(build("resnet18", conv=given, conv_options={"num_experts": 2}))
        for given in ("dynamic", conv)
    )
    assert by_name == by_class


@BUILDERS
def test_without_a_convolution_a_model_is_static(build):
    static = shapes_of(build("resnet18"))
    assert static == shapes_of(build("resnet18", conv="static"))
    assert static["fc.bias"] == (1000,)
    assert static["layer1.0.conv1.weight"] == (64, 64, 3, 3)


@BUILDERS
@pytest.mark.parametrize(
    ("name", "key", "axis"),
    [
        ("dynamic_net", "stage1.dyn.weight", 0),
        ("dymn04", "layers.1.exp_conv.weight", 2),
        ("fdy_cnn", "cnn.conv1.weight", 0),
        ("efficientnet_cc_b0_8e", "blocks.6.0.conv_pw.weight", 0),
        ("od_resnet18", "layer1.0.conv1.weight", 0),
    ],
)
def test_options_alone_are_of_the_convolutions_that_a_network_has(
    build, name, key, axis
):
    shapes = shapes_of(build(name, conv_options={"num_experts": 3}))
    assert shapes[key][axis] == 3


@BUILDERS
@pytest.mark.parametrize("name", ["resnet18", "dynamic_net", "mobilenet_v3_small"])
def test_what_needs_a_context_is_of_the_networks_that_make_one(build, name):
    message = rf"`conv` \(='context'\) needs .* DyMN .* and {name} does not; choose"
    with pytest.raises(ValueError, match=message):
        build(name, conv="context")


@BUILDERS
def test_dynamic_net_is_made_of_its_own_convolutions(build):
    shapes = shapes_of(build("dynamic_net", num_experts=3))
    assert shapes["fc.bias"] == (10,)
    assert shapes["stage1.dyn.weight"] == (3, 64, 32, 3, 3)


@BUILDERS
def test_dynamic_net_takes_others_too(build):
    options = {"num_experts": 2}
    shapes = shapes_of(build("dynamic_net", conv="dynamic", conv_options=options))
    assert shapes["stage2.dyn.weight"] == (2, 128, 64, 3, 3)
    static = shapes_of(build("dynamic_net", conv="static"))
    assert static["stage1.dyn.weight"] == (64, 32, 3, 3)


@BUILDERS
@pytest.mark.parametrize("conv_options", [None, {"router_dropout": 0.1}])
def test_options_of_dynamic_net_reach_the_convolution_by_name(build, conv_options):
    net = build(
        "dynamic_net",
        conv="dynamic",
        conv_options=conv_options,
        num_experts=3,
        reduction=8,
    )
    shapes = shapes_of(net)
    assert shapes["stage1.dyn.weight"] == (3, 64, 32, 3, 3)
    assert shapes["stage1.dyn.fc1.weight"] == (4, 32)


@BUILDERS
def test_options_of_the_convolution_win_over_those_of_dynamic_net(build):
    options = {"num_experts": 2}
    net = build("dynamic_net", conv="dynamic", conv_options=options, num_experts=3)
    assert shapes_of(net)["stage1.dyn.weight"] == (2, 64, 32, 3, 3)


@BUILDERS
@pytest.mark.parametrize("conv", ["odconv", "static"])
def test_options_of_dynamic_net_are_refused_for_other_convolutions(build, conv):
    message = r"`temperature` \(=30.0\).*functools.partial.*`conv_options`"
    with pytest.raises(ValueError, match=message):
        build("dynamic_net", conv=conv, temperature=30.0)


@pytest.mark.parametrize("conv", [None, "kernel_warehouse"])
def test_a_model_of_jax_needs_rngs(conv):
    create_model: Any = dynconv_jax.create_model
    with pytest.raises(TypeError, match="rngs"):
        create_model("dynamic_net", conv=conv)


@BUILDERS
@pytest.mark.parametrize(
    ("wrong", "near"), [("resnet81", "'resnet18'"), ("mobilenetv2", "'mobilenet_v2'")]
)
def test_a_misspelt_model_is_answered_with_near_names(build, wrong, near):
    with pytest.raises(ValueError, match=f"`name` .='{wrong}'.*did you mean {near}"):
        build(wrong)


@BUILDERS
def test_a_misspelt_convolution_is_answered_with_near_names(build):
    with pytest.raises(ValueError, match="`conv` .='dynamik'.*did you mean 'dynamic'"):
        build("resnet18", conv="dynamik")


@BUILDERS
def test_a_name_like_no_other_is_answered_with_all(build):
    with pytest.raises(ValueError, match=r"`name` .='xyz'. is not known; There are \["):
        build("xyz")


@BUILDERS
@pytest.mark.parametrize("conv", [None, "static"])
def test_options_of_no_convolution_are_refused(build, conv):
    with pytest.raises(ValueError, match="`conv_options` .*choose one by `conv`"):
        build("resnet18", conv=conv, conv_options={"num_experts": 2})


@BUILDERS
def test_an_option_that_the_model_does_not_take_is_refused(build):
    with pytest.raises(TypeError, match="width_mult"):
        build("resnet18", width_mult=0.5)


# What the others compute is compared with the twin's.
@pytest.mark.parametrize("name", ["dynamic_net", "resnet18", "efficientnet_cc_b0_4e"])
def test_models_of_the_registry_run(name):
    net = on_meta(name, 7).eval()
    channels: Any = net.in_channels
    assert net(torch.ones(2, channels, 33, 130, device="meta")).shape == (2, 7)
    images = jax.ShapeDtypeStruct((2, 33, 130, channels), "float32")
    logits = nnx.eval_shape(lambda net, images: net(images), abstract(name, 7), images)
    assert logits.shape == (2, 7)


# Options


@BUILDERS
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", dict(cnv="dynamic"), r"'cnv'; did you mean 'conv'"),
        ("resnet50", dict(num_experts=8), r"'num_experts'; it takes \['num_classes', "),
        ("mobilenet_v2", dict(width=0.5), "'width'; did you mean 'width_mult'"),
        ("efficientnet_cc_b0_4e", dict(dropot=0.5), "did you mean 'dropout'"),
        ("tf_efficientnet_cc_b1_8e", dict(drop_path=0.5), "mean 'drop_path_rate'"),
        ("dynamic_net", dict(dynamic=1), "'dynamic'; it takes .*'num_experts'"),
        ("dynamic_net", dict(conv="kernel_warehouse", top=2), "'top'"),
    ],
)
def test_an_unknown_option_is_answered_with_those_that_are_known(
    build, name, options, message
):
    with pytest.raises(TypeError, match=f"unexpected keyword argument .*{message}"):
        build(name, **options)


@BUILDERS
@pytest.mark.parametrize(
    ("conv", "option", "message"),
    [
        ("dynamic", "experts", r"DynamicConv.*'experts' in `conv_options`; .*'num_exp"),
        ("condconv", "temperature", r"CondConv.*'temperature'.*takes \[.*'num_experts"),
        ("odconv", "min_hiden", "ODConv.*did you mean 'min_hidden'"),
        ("decomposed", "num_experts", r"DecomposedConv.*takes \[.*'pool'"),
        ("kernel_warehouse", "ratios", "with_warehouses.*did you mean 'ratio'"),
    ],
)
def test_an_unknown_option_of_the_convolution_is_answered_with_the_known(
    build, conv, option, message
):
    with pytest.raises(TypeError, match=message):
        build("resnet18", conv=conv, conv_options={option: 8})


@BUILDERS
@pytest.mark.parametrize("option", ["padding", "kernel_size", "dtype"])
def test_what_the_network_sets_is_no_option_of_its_convolutions(build, option):
    with pytest.raises(ValueError, match=f"`conv_options` must leave '{option}' out"):
        build("resnet18", conv="dynamic", conv_options={option: 1})


@BUILDERS
@pytest.mark.parametrize("wrong", [["num_experts"], "num_experts=8", 8])
def test_options_without_names_are_refused(build, wrong):
    with pytest.raises(TypeError, match="`conv_options` .*options by name"):
        build("resnet18", conv="dynamic", conv_options=wrong)


@BUILDERS
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("dynamic", [1, "all", "paper"])
def test_dynamic_layers_of_no_convolution_are_refused(build, name, dynamic):
    with pytest.raises(ValueError, match="^`dynamic` .* but there is no `conv`"):
        build(name, dynamic=dynamic)


@BUILDERS
def test_a_network_that_is_static_on_purpose_may_say_which_layers_would_not_be(build):
    net = build("resnet18", conv="static", dynamic=1)
    assert shapes_of(net) == shapes_of(build("resnet18"))


@BUILDERS
@pytest.mark.parametrize("wrong", [3, ("dynamic",)])
def test_what_is_no_convolution_is_refused(build, wrong):
    with pytest.raises(TypeError, match=r"`conv` .* must be one of \['condconv'"):
        build("dynamic_net", conv=wrong)
    with pytest.raises(ValueError, match="`name` .* is not known"):
        build(wrong)
