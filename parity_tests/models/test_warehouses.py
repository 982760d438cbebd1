"""Whole models whose convolutions share warehouses."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax.functional import Geometry
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.warehouses import stage_and_kernel_size
from dynconv_jax.weights import torch_variables
from dynconv_torch.functional import Geometry as TorchGeometry
from dynconv_torch.models.warehouses import stage_and_kernel_size as torch_key
from parity_tests.parity import assert_parity
from parity_tests.tolerances import assert_close


class JaxBlock(nnx.Module):
    def __init__(self, conv, channels, outputs, strides, rngs, dtype):
        shared: dict[str, Any] = dict(use_bias=False, param_dtype=dtype, rngs=rngs)
        self.conv1 = conv(channels, outputs, (3, 3), strides, padding=1, **shared)
        self.conv2 = conv(outputs, outputs, (3, 3), padding=1, **shared)
        self.shortcut = conv(channels, outputs, (1, 1), strides, padding=0, **shared)

    def __call__(self, x):
        return self.conv2(jnp.tanh(self.conv1(x))) + self.shortcut(x)


class JaxNet(nnx.Module):
    """Two stages, and a convolution with groups and bias between."""

    def __init__(self, conv=nnx.Conv, *, dtype: Any = "float64", rngs):
        self.stage1 = nnx.List([JaxBlock(conv, 2, 4, 1, rngs, dtype)])
        self.middle = conv(
            4,
            4,
            (2, 1),
            feature_group_count=2,
            padding="VALID",
            param_dtype=dtype,
            kernel_dilation=2,
            rngs=rngs,
        )
        self.stage2 = nnx.List([JaxBlock(conv, 4, 6, 2, rngs, dtype)])
        self.fc = nnx.Linear(6, 3, param_dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = self.stage2[0](self.middle(self.stage1[0](x)))
        return self.fc(x.mean((1, 2)))


class TorchBlock(torch.nn.Module):
    def __init__(self, conv, channels, outputs, stride):
        super().__init__()
        self.conv1 = conv(channels, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = conv(channels, outputs, 1, stride, bias=False)

    def forward(self, x):
        return self.conv2(torch.tanh(self.conv1(x))) + self.shortcut(x)


class TorchNet(torch.nn.Module):
    def __init__(self, conv: Any = torch.nn.Conv2d):
        super().__init__()
        self.stage1 = torch.nn.ModuleList([TorchBlock(conv, 2, 4, 1)])
        self.middle = conv(4, 4, (2, 1), groups=2, dilation=2)
        self.stage2 = torch.nn.ModuleList([TorchBlock(conv, 4, 6, 2)])
        self.fc = torch.nn.Linear(6, 3)

    def forward(self, x):
        x = self.stage2[0](self.middle(self.stage1[0](x)))
        return self.fc(x.mean((2, 3)))


def outlined(build: Any = JaxNet, **options) -> Any:
    """The JAX model without arrays; errors are those of a real one."""
    make = functools.partial(dynconv_jax.with_warehouses, build, **options)
    return abstract_module(lambda rngs: make(rngs=rngs))


def torch_net(**options) -> Any:
    return dynconv_torch.with_warehouses(TorchNet, **options)


def in_one(index, geometry, path):
    return "one"


def test_models_agree(rng):
    options: dict[str, Any] = dict(ratio=2, norm="layer", assignment=0.3)
    theirs = torch_net(**options).double()
    for parameter in theirs.parameters():
        parameter.data.normal_(0, 0.5)
    assert_parity(outlined(**options), theirs, rng.normal(size=(2, 7, 6, 2)))


def test_a_model_is_drawn_once_for_all_layers():
    def build(conv, rngs):
        options: dict[str, Any] = dict(use_bias=False, rngs=rngs)
        return nnx.Sequential(*[conv(4, 4, (1,), **options) for _ in range(2)])

    net = dynconv_jax.with_warehouses(build, group_by=in_one, rngs=nnx.Rngs(0))
    first, second = net.layers
    assert first.warehouse is second.warehouse is net.warehouses[0]
    assert net.warehouses[0].cells.shape == (2, 1, 4, 4)
    drawn = np.asarray(net.warehouses[0].cells[...])
    assert np.isfinite(drawn).all() and (drawn[0] != drawn[1]).all()


def test_a_stage_and_a_kernel_size_have_a_warehouse_of_their_own():
    ours, theirs = outlined(), torch_net()
    for net in ours, theirs:
        rows = [
            [share.geometry.kernel_size for share in warehouse.tiling.shares]
            for warehouse in net.warehouses
        ]
        assert rows == [
            [(3, 3), (3, 3)],
            [(1, 1)],
            [(2, 1)],
            [(3, 3), (3, 3)],
            [(1, 1)],
        ]
    assert list(theirs.state_dict())[-2:] == [
        "warehouses.4.cells",
        "warehouses.4.assignment",
    ]


def test_layers_know_their_cells_in_the_order_of_building():
    net = torch_net(group_by=in_one)
    layers = [
        *(net.stage1[0].conv1, net.stage1[0].conv2, net.stage1[0].shortcut, net.middle),
        *(net.stage2[0].conv1, net.stage2[0].conv2, net.stage2[0].shortcut),
    ]
    assert [layer.index for layer in layers] == list(range(7))
    assert {layer.warehouse for layer in layers} == set(net.warehouses)
    assert net.middle.bias is not None and net.middle.groups == 2


def test_layers_can_be_grouped_by_index_geometry_and_path():
    seen = []

    def key(index, geometry, path):
        seen.append((index, geometry.kernel_size, path))
        return geometry.rank

    assert len(torch_net(group_by=key).warehouses) == 1
    assert len(outlined(group_by=key).warehouses) == 1
    assert seen[:7] == seen[7:]
    assert seen[1] == (1, (3, 3), "stage1.0.conv2")
    assert seen[3] == (3, (2, 1), "middle")


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("layer1.0.conv2", "layer1"),
        ("blocks.4.0.conv_pw", "blocks.4"),
        ("features.3.conv", "features.3"),
        ("stem.conv", "stem.conv"),
        ("", ""),
    ],
)
def test_the_stage_ends_at_the_first_digit(path, stage):
    for function in stage_and_kernel_size, torch_key:
        geometry: Any = Geometry.create(2, 2, (3, 5))
        assert function(0, geometry, path) == (stage, (3, 5))


def test_outlining_takes_no_random_numbers_and_leaves_the_device_alone():
    torch.manual_seed(3)
    net = torch_net(group_by=in_one)
    (warehouse,) = net.warehouses
    geometries = [share.geometry for share in warehouse.tiling.shares]
    torch.manual_seed(3)
    same = dynconv_torch.KernelWarehouse(geometries)
    assert torch.equal(warehouse.cells, same.cells)
    assert {value.device.type for value in net.state_dict().values()} == {"cpu"}


def test_options_reach_every_layer():
    options: dict[str, Any] = dict(
        ratio=2, in_ratio=0.5, out_ratio=0.5, reduction=1, norm="none", assignment=0.5
    )
    ours, theirs = outlined(**options), torch_net(**options)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    variables = torch_variables(ours)
    assert sorted(variables) == sorted(shapes)
    assert not [key for key in shapes if "norm1" in key]
    assert shapes["warehouses.0.cells"] == (2 * 2 * 9 * (2 + 4), 2, 1, 1, 1)
    assert float(theirs.warehouses[4].assignment) == 0.5


def test_one_call_sets_the_assignment_of_all_warehouses():
    net = torch_net()
    dynconv_torch.set_assignment(net, 0.25)
    assert [float(each.assignment) for each in net.warehouses] == [0.25] * 5


def refused(
    message,
    build: Any,
    torch_build: Any,
    error: type[Exception] = ValueError,
    **options,
):
    """Asserts that both frameworks refuse."""
    with pytest.raises(error, match=message):
        outlined(build, **options)
    with pytest.raises(error, match=message):
        dynconv_torch.with_warehouses(torch_build, **options)


@pytest.mark.parametrize("rank", [0, 4, 10**12, "2"])
def test_a_rank_of_no_convolution_of_pytorch_is_refused(rank):
    with pytest.raises(ValueError, match="^`rank` .* must be 1, 2 or 3"):
        torch_net(rank=rank)


def test_a_model_without_convolutions_is_refused():
    refused(
        "`build` never called",
        lambda conv, rngs: nnx.Linear(2, 3, rngs=rngs),
        lambda conv: torch.nn.Linear(2, 3),
    )


def test_layers_that_cannot_share_are_named():
    message = r"layers stage1.0.conv1.* 'one': layer 2 .*\(1, 1\).*spatial_partition"
    refused(message, JaxNet, TorchNet, group_by=in_one, spatial_partition=False)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, 4), "layer 1 was .*8.*, and is now .*4"),
        ((8,), "at first it built 2, then 1"),
        ((8, 8, 8), "layer 2 was not at all"),
    ],
)
def test_another_model_the_second_time_is_refused(sizes, message):
    def builds(make):
        """A builder that at first builds two layers of 8 outputs."""
        plan = iter([(8, 8), sizes])
        return lambda **arguments: make(next(plan), **arguments)

    refused(
        message,
        builds(
            lambda sizes, conv, rngs: nnx.Sequential(
                *[conv(4, size, (3, 3), rngs=rngs) for size in sizes]
            )
        ),
        builds(
            lambda sizes, conv: torch.nn.Sequential(
                *[conv(4, size, 3) for size in sizes]
            )
        ),
    )


def test_layers_of_two_dtypes_cannot_share():
    def build(conv, rngs):
        return nnx.Sequential(
            conv(4, 4, (3,), rngs=rngs),
            conv(4, 4, (3,), param_dtype="bfloat16", rngs=rngs),
        )

    def torch_build(conv):
        return torch.nn.Sequential(conv(4, 4, 3), conv(4, 4, 3, dtype=torch.half))

    refused("dtype.* must be one for all", build, torch_build, group_by=in_one)


def test_an_option_that_no_layer_has_is_refused():
    refused(
        "kernel_init|padding_mode",
        lambda conv, rngs: conv(4, 4, (3,), kernel_init=None, rngs=rngs),
        lambda conv: conv(4, 4, 3, padding_mode="circular"),
        error=TypeError,
    )


def test_an_attribute_of_the_model_is_not_overwritten():
    class Taken(JaxNet):
        warehouses = "mine"

    class TorchTaken(TorchNet):
        warehouses = "mine"

    refused("Taken.*attribute `warehouses`", Taken, TorchTaken)


# Static layers, ratios of their own, linear layers.


class JaxHead(nnx.Module):
    """Two convolutions, and a linear layer that `conv` builds."""

    def __init__(self, conv, *, dtype: Any = "float64", rngs):
        shared: dict[str, Any] = dict(param_dtype=dtype, rngs=rngs)
        self.conv1 = conv(2, 4, (3, 3), 2, padding=1, **shared)
        self.conv2 = conv(4, 4, (1, 2), padding="VALID", use_bias=False, **shared)
        self.fc = conv.linear(4, 6, **shared)

    def __call__(self, x):
        x = self.conv2(jnp.tanh(self.conv1(x)))
        return self.fc(x) + self.fc(x.mean((1, 2)))[:, None, None]


class TorchHead(torch.nn.Module):
    """The twin of `JaxHead`."""

    def __init__(self, conv):
        super().__init__()
        self.conv1 = conv(2, 4, 3, 2, padding=1)
        self.conv2 = conv(4, 4, (1, 2), bias=False)
        self.fc = conv.linear(4, 6)

    def forward(self, x):
        x = self.conv2(torch.tanh(self.conv1(x))).movedim(1, -1)
        return (self.fc(x) + self.fc(x.mean((1, 2)))[:, None, None]).movedim(-1, 1)


def all_but_the_first(index, geometry, path):
    return None if path == "conv1" else path


def test_models_with_static_and_linear_layers_agree(rng):
    options: dict[str, Any] = dict(
        group_by=all_but_the_first,
        ratio={"conv2": 2, "fc": 0.5},
        out_ratio={"fc": 0.5},
        norm="layer",
        assignment=0.3,
    )
    theirs = dynconv_torch.with_warehouses(TorchHead, **options).double()
    shapes = [tuple(warehouse.cells.shape) for warehouse in theirs.warehouses]
    assert shapes == [(4, 4, 4, 1, 1), (1, 3, 4, 1)]
    assert isinstance(theirs.conv1, torch.nn.Conv2d)
    for parameter in theirs.parameters():
        parameter.data.normal_(0, 0.5)
    ours = outlined(JaxHead, **options)
    assert type(ours.conv1) is nnx.Conv
    assert_parity(ours, theirs, rng.normal(size=(2, 7, 6, 2)))


def test_a_linear_layer_is_the_product_with_its_mixed_kernel(rng):
    theirs = dynconv_torch.with_warehouses(TorchHead, norm="none").double()
    layer = theirs.fc
    for parameter in layer.parameters():
        parameter.data.normal_(0, 0.5)
    x = torch.from_numpy(rng.normal(size=(2, 3, 4)))
    attention = layer.conv.attention
    for sample, output in zip(x, layer(x), strict=True):
        hidden = attention.fc1.weight @ sample.mean(0) + attention.fc1.bias
        z = attention.fc2.weight @ hidden.clamp(min=0) + attention.fc2.bias
        weights = z / (z.abs().sum() + 1e-3)  # one tile, of one cell and zero
        kernel = weights[0] * layer.conv.warehouse.cells[0, :, :, 0]
        expected = sample @ kernel.T + layer.conv.bias
        ratio = (output / expected).detach().numpy()
        assert_close({"ratio": ratio}, {"ratio": np.ones_like(ratio)}, dtype="float64")


def test_static_layers_are_drawn_as_those_of_networks():
    def build(conv, rngs):
        return nnx.Sequential(
            conv(8, 64, (3, 3), rngs=rngs),
            conv(64, 64, (1, 1), rngs=rngs),
            conv.linear(8, 8, rngs=rngs),
        )

    def torch_build(conv):
        return torch.nn.Sequential(conv(8, 64, 3), conv(64, 64, 1), conv.linear(8, 8))

    options: dict[str, Any] = dict(
        group_by=lambda index, geometry, path: "one" if path == "1" else None
    )
    ours = dynconv_jax.with_warehouses(build, rngs=nnx.Rngs(0), **options)
    theirs = dynconv_torch.with_warehouses(torch_build, **options)
    assert type(ours.layers[2]) is nnx.Linear and type(theirs[2]) is torch.nn.Linear
    for kernel in (np.asarray(ours.layers[0].kernel[...]), theirs[0].weight):
        assert abs(kernel.std() * (9 * 64 / 2) ** 0.5 - 1) < 0.05
    assert not theirs[0].bias.any()


def test_a_model_of_which_all_is_static_is_refused():
    group_by: Any = lambda index, geometry, path: None  # noqa: E731
    refused("answers None for every layer", JaxNet, TorchNet, group_by=group_by)


@pytest.mark.parametrize("name", ["ratio", "in_ratio", "out_ratio"])
def test_a_ratio_of_no_group_is_refused(name):
    options: dict[str, Any] = {name: {"two": 1.0}}
    message = rf"^`{name}` is given for 'two', .*answers \['one'\]"
    refused(message, JaxNet, TorchNet, group_by=in_one, **options)


def test_a_warehouse_of_convolutions_makes_no_linear_layer():
    geometry = Geometry.create(4, 6, (2,), padding="VALID")
    message = r"`kernel_size` \(=\(2,\)\).*`linear_geometry\(4, 6\)`"
    with pytest.raises(ValueError, match=message):
        abstract_module(
            lambda rngs: dynconv_jax.WarehouseLinear(
                dynconv_jax.KernelWarehouse([geometry], rngs=rngs), rngs=rngs
            )
        )
    twin = TorchGeometry.create(4, 6, 2, rank=1)
    with pytest.raises(ValueError, match=message):
        dynconv_torch.WarehouseLinear(dynconv_torch.KernelWarehouse([twin]))


def test_a_vector_without_a_batch_is_refused():
    theirs = dynconv_torch.with_warehouses(TorchHead, norm="none").fc
    with pytest.raises(ValueError, match=r"`x` \(shape \(4,\)\)"):
        theirs(torch.ones(4))
    ours = outlined(JaxHead, norm="none").fc
    with pytest.raises(ValueError, match=r"`inputs` \(shape \(4,\)\)"):
        ours(jnp.ones(4))
