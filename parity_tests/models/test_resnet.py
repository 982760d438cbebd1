"""ResNet: torchvision's names, and the same network in both frameworks."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dynconv_jax import DynamicConv, models
from dynconv_jax.models import resnet
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.convolutions import Convolutions
from dynconv_jax.weights.torch_layout import torch_shapes
from dynconv_torch import DynamicConv2d
from dynconv_torch import models as torch_models
from dynconv_torch.models import resnet as torch_resnet
from dynconv_torch.models.convolutions import Convolutions as TorchConvolutions
from parity_tests.parity import assert_parity, assert_training_parity
from parity_tests.tools import networks

SMALL = (1, 1, 1, 1)
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
DYNAMIC = (
    functools.partial(DynamicConv, num_experts=2),
    functools.partial(DynamicConv2d, num_experts=2),
)


def torch_shapes_of(net):
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


def abstract(name, *arguments, **options):
    return abstract_module(
        lambda rngs: getattr(models, name)(*arguments, rngs=rngs, **options)
    )


def on_meta(name, *arguments, **options):
    return getattr(torch_models, name)(*arguments, device="meta", **options)


# Names and shapes.


def norm_shapes(name, channels):
    each = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in each} | {
        f"{name}.num_batches_tracked": ()
    }


def expected_shapes(name, num_classes, experts=None):
    """The state dict of torchvision's network; with the experts of dynamic layers."""
    is_deep = name == "resnet50"
    shapes = {"conv1.weight": (64, 3, 7, 7), **norm_shapes("bn1", 64)}

    def conv(key, fan_in, fan_out, side):
        shape = (fan_out, fan_in, side, side)
        if experts is None:
            return {f"{key}.weight": shape}
        hidden = fan_in // 4
        return {
            f"{key}.weight": (experts, *shape),
            f"{key}.fc1.weight": (hidden, fan_in),
            f"{key}.fc1.bias": (hidden,),
            f"{key}.fc2.weight": (experts, hidden),
            f"{key}.fc2.bias": (experts,),
            f"{key}.temperature": (),
        }

    width = 64
    for stage, (depth, channels) in enumerate(
        zip(DEPTHS[name], (64, 128, 256, 512), strict=True), start=1
    ):
        out = channels * 4 if is_deep else channels
        for index in range(depth):
            block = f"layer{stage}.{index}"
            if is_deep:
                plan = [(width, channels, 1), (channels, channels, 3)]
                plan += [(channels, out, 1)]
            else:
                plan = [(width, channels, 3), (channels, channels, 3)]
            for number, (fan_in, fan_out, side) in enumerate(plan, start=1):
                shapes |= conv(f"{block}.conv{number}", fan_in, fan_out, side)
                shapes |= norm_shapes(f"{block}.bn{number}", fan_out)
            if index == 0 and (stage > 1 or is_deep):
                shapes[f"{block}.downsample.0.weight"] = (out, width, 1, 1)
                shapes |= norm_shapes(f"{block}.downsample.1", out)
            width = out
    return shapes | {"fc.weight": (num_classes, width), "fc.bias": (num_classes,)}


@pytest.mark.parametrize("name", DEPTHS)
def test_static_nets_have_the_names_and_shapes_of_torchvision(name):
    expected = expected_shapes(name, 1000)
    assert torch_shapes(abstract(name)) == expected
    assert torch_shapes_of(on_meta(name)) == expected


@pytest.mark.parametrize("name", DEPTHS)
def test_dynamic_nets_add_only_the_names_of_their_layers(name):
    expected = expected_shapes(name, 7, experts=2)
    assert torch_shapes(abstract(name, 7, conv=DYNAMIC[0])) == expected
    assert torch_shapes_of(on_meta(name, 7, conv=DYNAMIC[1])) == expected


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)],
)
def test_static_nets_have_as_many_parameters_as_published(name, count):
    params = nnx.state(abstract(name), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert sum(p.numel() for p in on_meta(name).parameters()) == count


# The same function.


@pytest.mark.slow
def test_dynamic_net_of_few_blocks_agrees(rng):
    x = rng.normal(size=(2, 33, 24, 3))
    build = (
        functools.partial(models.ResNet, resnet.Bottleneck),
        functools.partial(torch_models.ResNet, torch_resnet.Bottleneck),
    )
    # Blocks with and without a shortcut of their own, at a stride and without.
    pair = networks.twins(*build, x, rng, (1, 2, 1, 1), 7, conv=DYNAMIC)
    networks.assert_networks_agree(*pair, x)


@pytest.mark.slow
def test_dynamic_net_of_few_blocks_trains_alike(rng):
    x = rng.normal(size=(2, 3, 33, 24, 3))
    build = (
        functools.partial(models.ResNet, resnet.BasicBlock),
        functools.partial(torch_models.ResNet, torch_resnet.BasicBlock),
    )
    pair = networks.twins(*build, x[0], rng, SMALL, 7, conv=DYNAMIC, dynamic=2)
    labels = rng.integers(7, size=(2, 3))
    # Not by Adam, whose division makes steps of gradients that are but rounding.
    assert_training_parity(*pair, x, labels, optimizer="sgd")


ROUTED = networks.RoutedConv, networks.RoutedConv2d


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
@pytest.mark.parametrize("dynamic", ["all", "paper"])
def test_a_block_routes_the_layers_that_need_it(block, dynamic, routers, rng):
    x = rng.normal(size=(2, 7, 6, 3))

    def make_jax(*arguments, conv, **options):
        make = Convolutions(conv, dynamic, stages=4, **options)
        return getattr(resnet, block)(*arguments, stage=1, make=make)

    def make_torch(*arguments, conv, **options):
        make = TorchConvolutions(conv, dynamic, stages=4, **options)
        return getattr(torch_resnet, block)(*arguments, stage=1, make=make)

    ours, theirs = networks.twins(make_jax, make_torch, x, rng, 3, 4, 2, conv=ROUTED)
    assert_parity(ours, theirs, x)


def test_the_stem_has_a_router_of_its_own(routers):
    net = on_meta("resnet18", conv=ROUTED[1], dynamic="all")
    routed = [key for key in net.state_dict() if "routing_fn.weight" in key]
    assert routed == [
        "stem_routing_fn.weight",
        *(f"layer{n}.{i}.routing_fn.weight" for n in (1, 2, 3, 4) for i in (0, 1)),
    ]
    ours = abstract("resnet18", conv=ROUTED[0], dynamic="all")
    assert torch_shapes(ours) == torch_shapes_of(net)


def test_a_block_of_static_layers_has_no_router(routers):
    net = on_meta("resnet18", conv=ROUTED[1], dynamic=1)
    ours = abstract("resnet18", conv=ROUTED[0], dynamic=1)
    assert torch_shapes(ours) == torch_shapes_of(net)
    assert [key for key in net.state_dict() if "routing_fn.bias" in key] == [
        "layer4.0.routing_fn.bias",
        "layer4.1.routing_fn.bias",
    ]


def test_layers_of_one_block_need_one_number_of_experts(routers):
    convs = [
        (networks.RoutedConv, (3, 3), Convolutions, dict(rngs=nnx.Rngs(0))),
        (networks.RoutedConv2d, 3, TorchConvolutions, {}),
    ]
    for conv, size, convolutions, options in convs:
        make = convolutions(conv, "all", stages=1, **options)
        layers = [conv(4, 4, size, num_experts=k, **options) for k in (2, 5)]
        with pytest.raises(ValueError, match=r"\[2, 5\] experts.*`num_experts`"):
            make.router(4, *layers)


# Which layers are dynamic.

CONVS = [f"layer{stage}.0.conv{n}" for stage in (1, 2, 3, 4) for n in (1, 2, 3)]
SHORTCUTS = [f"layer{stage}.0.downsample.0" for stage in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        ("paper", CONVS),
        ("all", ["conv1", *CONVS, *SHORTCUTS]),
        ("pointwise", [name for name in CONVS if not name.endswith("conv2")]),
        (1, CONVS[-3:]),
        (3, CONVS[-9:]),
        (4, CONVS),
    ],
)
def test_dynamic_says_which_layers_are_dynamic(dynamic, expected):
    def build():
        return models.ResNet(
            resnet.Bottleneck,
            SMALL,
            conv=DynamicConv,
            dynamic=dynamic,
            rngs=nnx.Rngs(0),
        )

    theirs = torch_models.ResNet(
        torch_resnet.Bottleneck,
        SMALL,
        conv=DynamicConv2d,
        dynamic=dynamic,
        device="meta",
    )
    for net in (nnx.eval_shape(build), theirs):
        assert networks.dynamic_layers(net) == sorted(expected)


@pytest.mark.parametrize("dynamic", ["papr", 0, 5, True, None])
@pytest.mark.parametrize("build", [abstract, on_meta])
def test_an_unknown_choice_of_layers_is_refused(build, dynamic):
    with pytest.raises(ValueError, match=r"`dynamic` \(=.*\) must be 'paper', 'all'"):
        build("resnet18", dynamic=dynamic)


@pytest.mark.parametrize(
    ("build", "conv"), [(abstract, DynamicConv), (on_meta, DynamicConv2d)]
)
def test_a_choice_that_leaves_all_static_is_refused(build, conv):
    with pytest.raises(ValueError, match="`dynamic` .='pointwise'. makes no conv"):
        build("resnet18", conv=conv, dynamic="pointwise")


@pytest.mark.parametrize("build", [abstract, on_meta])
def test_the_name_of_a_convolution_is_for_the_registry(build):
    with pytest.raises(TypeError, match="`conv` .='dynamic'. must be a callable.*`cre"):
        build("resnet18", conv="dynamic")


# Initial values, options, refusals.


def test_initial_values_are_those_of_torchvision():
    ours = Convolutions(None, "paper", stages=4, rngs=nnx.Rngs(0))
    theirs = TorchConvolutions(None, "paper", stages=4)
    for place, role in [((3, 64, 7, 2), "stem"), ((32, 96, 3), "body")]:
        expected = np.sqrt(2 / (place[1] * place[2] ** 2))
        for kernel in (
            np.asarray(ours(*place, role=role).kernel[...]),
            theirs(*place, role=role).weight.detach().numpy(),
        ):
            assert abs(kernel.std() / expected - 1) < 0.05
            assert abs(kernel).max() > 3 * expected  # not truncated


def test_dropout_acts_in_training_only(rng):
    x = rng.normal(size=(2, 20, 17, 3))
    nets = []
    for rate in (0.0, 0.5):
        _, theirs = networks.twins(
            functools.partial(models.ResNet, resnet.BasicBlock),
            functools.partial(torch_models.ResNet, torch_resnet.BasicBlock),
            x,
            np.random.default_rng(0),
            SMALL,
            7,
            dropout=rate,
        )
        nets.append(theirs)
        torch.manual_seed(0)
    nets[1].load_state_dict(nets[0].state_dict())
    images = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    for training in (True, False):
        plain, dropped = (net.train(training)(images) for net in nets)
        assert torch.equal(plain, dropped) != training


def test_dropout_of_jax_is_before_the_head():
    net = nnx.eval_shape(
        lambda: models.ResNet(
            resnet.BasicBlock, SMALL, 7, dropout=0.5, rngs=nnx.Rngs(0)
        )
    )
    assert net.dropout.rate == 0.5
    assert abstract("resnet18").dropout.rngs is None


@pytest.mark.parametrize("shape", [(16, 16, 3), (2, 16, 16, 4)])
def test_images_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"inputs.*height, width.*\(=3\)"):
        abstract("resnet18")(jnp.ones(shape))
    with pytest.raises(ValueError, match=r"x.*height, width|in_channels.*\(=3\)"):
        on_meta("resnet18")(torch.ones(shape).movedim(-1, -3))


@pytest.mark.parametrize("depths", [(1, 1, 1), (1, 1, 1, 1, 1), (1, 0, 1, 1)])
def test_impossible_depths_are_refused(depths):
    with pytest.raises(ValueError, match="`depths`"):
        models.ResNet(resnet.BasicBlock, depths, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`depths`"):
        torch_models.ResNet(torch_resnet.BasicBlock, depths)


def test_net_computes_in_bfloat16_from_float32_parameters():
    def logits(images):
        net = models.ResNet(
            resnet.BasicBlock,
            SMALL,
            7,
            conv=DynamicConv,
            dtype=jnp.bfloat16,
            rngs=nnx.Rngs(0),
        )
        return net(images), net.layer1.layers[0].conv1.kernel[...]

    answer, kernel = jax.eval_shape(logits, jnp.ones((2, 33, 40, 3), jnp.float32))
    assert (answer.dtype, kernel.dtype) == (jnp.bfloat16, jnp.float32)


def test_net_can_be_pickled():
    net = abstract("resnet18", 7, conv=DynamicConv)
    assert torch_shapes(pickle.loads(pickle.dumps(net))) == torch_shapes(net)
