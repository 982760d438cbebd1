"""DyMN: the authors' names and counts, its equations, and the same in both."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import (
    ContextConv,
    DyMN,
    DynamicConv,
    count_parameters,
    diagnose,
    fold_batch_norm,
    init_from_static,
    load_torch_state_dict,
    set_temperature,
    to_torch_state_dict,
    two_slope_temperature,
)
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.torch_layout import torch_shapes
from dynconv_torch import ContextConv2d
from parity_tests.parity import as_torch, assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools import networks

BUILD = DyMN, dynconv_torch.DyMN
CONTEXT = ContextConv, ContextConv2d
# One without the first convolution, with a shortcut; one that widens and strides.
TWO_BLOCKS = ((3, 16, 16, 1, False), (5, 64, 8, 2, True))
NARROW: dict[str, Any] = dict(blocks=TWO_BLOCKS, width_mult=0.25)


def abstract(name, *arguments, **options):
    return abstract_module(
        lambda rngs: dynconv_jax.create_model(name, *arguments, rngs=rngs, **options)
    )


def on_meta(name, *arguments, **options):
    return dynconv_torch.create_model(name, *arguments, device="meta", **options)


def torch_shapes_of(net):
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


# Names, shapes and counts.


def to_eight(number):
    """The next multiple of eight, and never a tenth less than the number."""
    rounded = max(8, int(number + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * number else rounded


# Side, expanded channels, output channels of each block, at width 1.
TABLE = [
    *((3, 16, 16), (3, 64, 24), (3, 72, 24), (5, 72, 40), (5, 120, 40), (5, 120, 40)),
    *((3, 240, 80), (3, 200, 80), (3, 184, 80), (3, 184, 80), (3, 480, 112)),
    *((3, 672, 112), (5, 672, 160), (5, 960, 160), (5, 960, 160)),
]


def published_shapes(width_mult, num_classes=527):
    """The state dict of the authors' network, written from the list of its keys."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(key, width, outputs):
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (outputs, width), (outputs,)

    def norm(key, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.{part}"] = (channels,)
        shapes[f"{key}.num_batches_tracked"] = ()

    width = to_eight(16 * width_mult)
    shapes["in_c.0.weight"] = (width, 1, 3, 3)
    norm("in_c.1", width)
    for number, (side, wide, out) in enumerate(TABLE):
        block = f"layers.{number}"
        wide, out = to_eight(wide * width_mult), to_eight(out * width_mult)
        low, high = to_eight(32 * width_mult), to_eight(128 * width_mult)
        context = int(np.clip(to_eight(wide // 4), low, high))
        sizes = {"depth": wide * side**2, "proj": out * wide}
        if wide != width:
            sizes["exp"] = wide * width
        for name, size in sizes.items():
            shapes[f"{block}.{name}_conv.weight"] = (1, 1, 4, size)
            linear(f"{block}.{name}_conv.residuals.0", context, 4)
            norm(f"{block}.{name}_norm", out if name == "proj" else wide)
        shapes[f"{block}.depth_act.lambdas"] = (4,)
        shapes[f"{block}.depth_act.init_v"] = (4,)
        linear(f"{block}.depth_act.coef_net.0", context, 4 * wide)
        shapes[f"{block}.context_gen.joint_conv.weight"] = (context, width, 1, 1)
        norm(f"{block}.context_gen.joint_norm", context)
        for axis in "ft":
            shapes[f"{block}.context_gen.conv_{axis}.weight"] = (wide, context, 1, 1)
            shapes[f"{block}.context_gen.conv_{axis}.bias"] = (wide,)
        width = out
    shapes["out_c.0.weight"] = (6 * width, width, 1, 1)
    norm("out_c.1", 6 * width)
    hidden = to_eight(1280 * width_mult)
    linear("classifier.2", 6 * width, hidden)
    linear("classifier.5", hidden, num_classes)
    return shapes


SIZES = [
    ("dymn04", 0.4, 1_961_239),
    ("dymn10", 1.0, 10_548_479),
    ("dymn20", 2.0, 39_966_143),
]


def assert_published(shapes, width_mult):
    """Asserts that a state dict has the published keys, and temperatures beside."""
    expected = published_shapes(width_mult)
    assert len(expected) == 578
    added = {key for key in shapes if key not in expected}
    assert len(added) == 44
    assert all(key.endswith(".residuals.temperature") for key in added)
    assert {key: shapes[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "width_mult", "count"),
    [pytest.param(*size, marks=pytest.mark.slow) for size in SIZES[::2]] + [SIZES[1]],
)
def test_names_shapes_and_counts_are_those_published(name, width_mult, count):
    net = abstract(name)
    assert_published(torch_shapes(net), width_mult)
    assert count_parameters(net) == count


@pytest.mark.parametrize(("name", "width_mult", "count"), SIZES)
def test_those_of_the_twin_are_the_published_ones(name, width_mult, count):
    net = on_meta(name)
    assert_published(torch_shapes_of(net), width_mult)
    assert sum(each.numel() for each in net.parameters()) == count


@pytest.mark.slow
def test_a_checkpoint_of_imagenet_is_opened_at_its_temperature(rng):
    state = {
        key: torch.zeros(shape, dtype=torch.float32 if shape else torch.int64)
        for key, shape in published_shapes(0.4, 10).items()
    }
    for package, attention in (
        (dynconv_jax, "attention"),
        (dynconv_torch, "residuals"),
    ):
        net = package.create_model_from_checkpoint(state, temperature=30.0)
        router = getattr(net.layers[14].proj_conv, attention)
        assert float(router.temperature[...]) == 30


@pytest.mark.slow
def test_published_state_dicts_load_strictly_and_come_back(rng):
    state = {
        key: np.array(rng.random(shape), "float32" if shape else "int64")
        for key, shape in published_shapes(0.4, 10).items()
    }
    ours = dynconv_jax.create_model("dymn04", 10, rngs=nnx.Rngs(0))
    theirs = dynconv_torch.create_model("dymn04", 10)
    load_torch_state_dict(ours, state)
    theirs.load_state_dict({k: as_torch(v) for k, v in state.items()}, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        for key, value in state.items():
            assert returned.pop(key).tobytes() == value.tobytes(), key
        assert all(value == 1 for value in returned.values())  # the temperatures


# The same function.


def twins(x, rng, conv=CONTEXT, **options):
    """A narrow network in both frameworks, whose coefficients differ by the sample."""
    options = {"dropout": 0.0, **NARROW, **options}
    ours, theirs = networks.twins(*BUILD, x, rng, 5, conv=conv, **options)
    lively(theirs, rng)
    return ours, theirs


def lively(net, rng):
    """Enlarges what starts near zero: linear layers and biases."""
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, torch.nn.Linear):
                for parameter in part.parameters():
                    drawn = rng.normal(size=tuple(parameter.shape)) * 0.5
                    parameter.copy_(torch.from_numpy(drawn))
    return net


def test_net_of_two_blocks_agrees(rng):
    x = rng.normal(size=(2, 13, 10, 1))
    assert_parity(*twins(x, rng), x)


@pytest.mark.slow
def test_net_trains_alike_on_one_sample(rng):
    x = rng.normal(size=(1, 18, 13, 1))
    blocks = (*TWO_BLOCKS, (3, 24, 8, 1, True))
    assert_parity(*twins(x, rng, blocks=blocks), x)


class PlainDyMN:
    """The network from its equations, of a state dict, a sample at a time."""

    def __init__(self, state, blocks, temperature):
        self.state, self.blocks, self.temperature = state, blocks, temperature

    def norm(self, x, key):
        """Of evaluation; x is (C, ...)."""
        weight, bias, mean, var = (
            self.state[f"{key}.{part}"].reshape(-1, *(1,) * (x.ndim - 1))
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / torch.sqrt(var + 1e-3) * weight + bias

    def linear(self, x, key):
        return self.state[f"{key}.weight"].flatten(1) @ x + self.state[f"{key}.bias"]

    def conv(self, x, h, key, shape, stride=1, groups=1):
        logits = self.linear(h, f"{key}.residuals.0") / self.temperature
        weights = torch.exp(logits) / torch.exp(logits).sum()
        experts = self.state[f"{key}.weight"][0, 0].reshape(-1, *shape)
        kernel = torch.zeros(shape).to(x)
        for weight, expert in zip(weights, experts, strict=True):
            kernel = kernel + weight * expert
        padding = shape[-1] // 2
        return F.conv2d(x[None], kernel, None, stride, padding, 1, groups)[0]

    def sequence(self, s, stride):
        if stride == 1:
            return s
        return F.avg_pool1d(s[None], 3, stride, 1, count_include_pad=True)[0]

    def block(self, x, key, side, stride, is_hard_swish):
        width, rows = x.shape[0], x.shape[1]
        s = torch.cat([x.mean(2), x.mean(1)], 1)
        s = self.state[f"{key}.context_gen.joint_conv.weight"][:, :, 0, 0] @ s
        s = F.hardswish(self.norm(s, f"{key}.context_gen.joint_norm"))
        h = s.mean(1)
        y, wide = x, self.state[f"{key}.depth_norm.weight"].numel()
        if wide != width:
            y = self.conv(y, h, f"{key}.exp_conv", (wide, width, 1, 1))
            y = self.norm(y, f"{key}.exp_norm")
            y = F.hardswish(y) if is_hard_swish else F.relu(y)
        shape = wide, 1, side, side
        y = self.conv(y, h, f"{key}.depth_conv", shape, stride, wide)
        y = self.norm(y, f"{key}.depth_norm")
        theta = 2 * torch.sigmoid(self.linear(h, f"{key}.depth_act.coef_net.0")) - 1
        a1, a2, b1, b2 = theta.reshape(wide, 4).T[:, :, None, None]
        y = torch.maximum((1 + a1) * y + 0.5 * b1, a2 * y + 0.5 * b2)
        for axis, part in (("f", s[:, :rows]), ("t", s[:, rows:])):
            part = self.sequence(part, stride)
            weight = self.state[f"{key}.context_gen.conv_{axis}.weight"][:, :, 0, 0]
            bias = self.state[f"{key}.context_gen.conv_{axis}.bias"]
            gates = torch.sigmoid(weight @ part + bias[:, None])
            y = y * (gates[:, :, None] if axis == "f" else gates[:, None])
        out = self.state[f"{key}.proj_norm.weight"].numel()
        y = self.conv(y, h, f"{key}.proj_conv", (out, wide, 1, 1))
        y = self.norm(y, f"{key}.proj_norm")
        return x + y if stride == 1 and width == out else y

    def __call__(self, x):
        rows = []
        for sample in x:
            y = F.conv2d(sample[None], self.state["in_c.0.weight"], None, 2, 1)[0]
            y = F.hardswish(self.norm(y, "in_c.1"))
            for number, (side, _, _, stride, is_hard_swish) in enumerate(self.blocks):
                y = self.block(y, f"layers.{number}", side, stride, is_hard_swish)
            y = F.conv2d(y[None], self.state["out_c.0.weight"])[0]
            y = F.hardswish(self.norm(y, "out_c.1")).mean((1, 2))
            y = F.hardswish(self.linear(y, "classifier.2"))
            rows.append(self.linear(y, "classifier.5"))
        return torch.stack(rows)


def test_net_computes_the_equations(rng):
    blocks = ((3, 32, 32, 1, False), (5, 64, 32, 2, True), (3, 48, 32, 1, True))
    net = BUILD[1](7, blocks=blocks, width_mult=0.5, dtype=torch.float64)
    images = rng.normal(size=(3, 26, 19, 1))
    networks.enliven(net, images, rng)
    lively(net, rng)
    dynconv_torch.set_temperature(net, 2.0)
    x = as_torch(np.moveaxis(images, -1, 1)).requires_grad_()
    state = dict(net.eval().named_parameters()) | dict(net.named_buffers())
    leaves = {"input": x, **dict(net.named_parameters())}

    def results(outputs, cotangent):
        found = torch.autograd.grad(outputs, [*leaves.values()], cotangent)
        named = zip(leaves, found, strict=True)
        gradients = {f"of {name}": value.numpy() for name, value in named}
        return {"output": outputs.detach().numpy(), **gradients}

    actual, expected = net(x), PlainDyMN(state, blocks, 2.0)(x)
    cotangent = torch.randn_like(actual)
    assert_close(
        results(actual, cotangent),
        results(expected, cotangent),
        dtype="float64",
        floor=1e-6,
    )


# In use.


def test_temperature_falls_by_two_slopes():
    for schedule in (two_slope_temperature, dynconv_torch.two_slope_temperature):
        assert [float(schedule(e)) for e in (0, 12, 29, 500)] == [30, 18, 1, 1]
        low: dict[str, Any] = dict(start=21.0, end=0.5, slope=2.0, late_slope=0.1)
        found = [float(schedule(e, **low)) for e in (0, 10, 12, 100)]
        ratios = np.asarray(found) / [21, 1, 0.8, 0.5]
        assert_close({"ratio": ratios}, {"ratio": np.ones(4)}, dtype="float64")
        for wrong in (dict(slope=0.0), dict(late_slope=-1.0), dict(end=0.0)):
            with pytest.raises(ValueError, match=r"\(=-?\d\.0\) must be"):
                schedule(0, **wrong)
    with pytest.raises(ValueError, match="`slope` .=-1.0. must be positive"):
        two_slope_temperature(jnp.ones(()), slope=-1.0)


def test_temperature_of_all_layers_moves_inside_of_a_jitted_step():
    net = abstract_narrow()

    @nnx.jit
    def step(net, epoch):
        set_temperature(net, two_slope_temperature(epoch))

    step(net, jnp.asarray(4))
    found = [
        float(value.get_value())
        for path, value in nnx.to_flat_state(nnx.state(net, dynconv_jax.Temperature))
    ]
    assert found == [26.0] * 5


def abstract_narrow(**options):
    """A narrow network of JAX, with values of PyTorch's."""
    theirs = BUILD[1](5, **NARROW).eval()
    options = {"dropout": 0.0, **NARROW, **options}
    ours = abstract_module(lambda rngs: DyMN(5, rngs=rngs, **options))
    load_torch_state_dict(ours, torch_state(theirs))
    return ours


@pytest.mark.slow
def test_routers_gates_and_coefficients_are_diagnosed(rng):
    net = abstract_narrow()
    x = jnp.asarray(rng.normal(size=(3, 13, 10, 1)), "float32")
    found: Any = diagnose(net, x)
    convs = {path for path in found if path.endswith("conv.attention")}
    assert len(convs) == 5
    assert found["layers.0.depth_act.coefficients"].mean.shape == (8, 4)
    assert found["layers.1.gate.rows"].mean.shape == (4, 1, 16)
    with torch.no_grad():
        theirs = BUILD[1](5, **NARROW).eval()
        _, routers = dynconv_torch.capture_routers(theirs, torch.ones(2, 1, 13, 10))
    assert {path.replace("residuals", "attention") for path in routers} == convs


@pytest.mark.slow
def test_a_static_net_is_where_a_dynamic_one_starts_and_norms_fold(rng):
    options: Any = dict(dropout=0.0, conv=None, **NARROW, dtype=torch.float64)
    theirs = BUILD[1](5, **options)
    x = rng.normal(size=(2, 13, 10, 1))
    networks.enliven(theirs, x, rng)
    static, dynamic = (
        abstract_module(
            lambda rngs, conv=conv: DyMN(
                5, conv=conv, dropout=0.0, param_dtype="float64", rngs=rngs, **NARROW
            )
        )
        for conv in (None, ContextConv)
    )
    load_torch_state_dict(static, torch_state(theirs))
    load_torch_state_dict(dynamic, torch_state(BUILD[1](5, **NARROW).double()))
    init_from_static(dynamic, static)
    expected = nnx.view(static, use_running_average=True)(x)
    actual = nnx.view(dynamic, use_running_average=True)(x)
    assert_close({"": actual}, {"": expected}, dtype="float64")
    with jax.numpy_rank_promotion("allow"):
        folded: Any = fold_batch_norm(dynamic, x)
        assert_close({"": folded(x)}, {"": expected}, dtype="float64")
    kept = [
        p for p, part in nnx.iter_modules(folded) if isinstance(part, nnx.BatchNorm)
    ]
    assert {path[-1] for path in kept} == {"joint_norm"}


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        ("paper", ["0.depth", "0.proj", "1.depth", "1.exp", "1.proj"]),
        ("pointwise", ["0.proj", "1.exp", "1.proj"]),
        (1, ["1.depth", "1.exp", "1.proj"]),
    ],
)
def test_dynamic_says_which_layers_are_dynamic(dynamic, expected):
    net = abstract_module(lambda rngs: DyMN(rngs=rngs, dynamic=dynamic, **NARROW))
    twin = BUILD[1](device="meta", dynamic=dynamic, **NARROW)
    found = [
        f"{path[1]}.{path[2]}".removesuffix("_conv")
        for path, part in nnx.iter_modules(net)
        if isinstance(part, ContextConv)
    ]
    assert sorted(found) == expected
    assert torch_shapes(net) == torch_shapes_of(twin)


def test_other_convolutions_take_the_place_of_its_own():
    for conv in ("dynamic", "condconv", "static"):
        shapes = torch_shapes(abstract("dymn04", 5, conv=conv, blocks=TWO_BLOCKS))
        twin = on_meta("dymn04", 5, conv=conv, blocks=TWO_BLOCKS)
        assert shapes == torch_shapes_of(twin)
        assert ("layers.0.routing_fn.weight" in shapes) is (conv == "condconv")
    eight = functools.partial(ContextConv, num_experts=8)
    by_name: Any = dict(conv="context", conv_options={"num_experts": 8})
    for chosen in (dict(conv=eight), by_name):
        shapes = torch_shapes(abstract("dymn04", 5, **chosen, blocks=TWO_BLOCKS))
        assert shapes["layers.1.proj_conv.residuals.0.bias"] == (8,)


def test_condconv_in_its_blocks_is_given_their_attention():
    options: Any = dict(blocks=TWO_BLOCKS, width_mult=0.25)
    net = dynconv_torch.create_model("dymn04", 5, conv="condconv", **options).eval()
    assert net(torch.ones(2, 1, 13, 10)).shape == (2, 5)

    def logits(x):
        net = dynconv_jax.create_model(
            "dymn04", 5, conv="condconv", rngs=nnx.Rngs(0), **options
        )
        return net(x)

    assert jax.eval_shape(logits, jnp.ones((2, 13, 10, 1), "float32")).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(blocks=()), "`blocks` .* must have one block at least"),
        (dict(width_mult=0.0), "`width_mult` .* must be positive"),
        (dict(dynamic=16), "`dynamic` .*int from 1 to 15"),
        (dict(dropout=1.0), "`dropout`"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        abstract("dymn10", **options)
    with pytest.raises(ValueError, match=message):
        on_meta("dymn10", **options)


def test_what_is_no_spectrogram_is_refused():
    with pytest.raises(ValueError, match=r"`inputs`.*`in_features` \(=1\)"):
        abstract("dymn04", blocks=TWO_BLOCKS)(jnp.ones((2, 13, 10, 3)))
    with pytest.raises(ValueError, match=r"`x`.*`in_channels` \(=1\)"):
        on_meta("dymn04", blocks=TWO_BLOCKS)(torch.ones(2, 3, 13, 10))


@pytest.mark.slow
def test_linear_layers_begin_as_those_of_the_authors():
    theirs = BUILD[1](50, blocks=TWO_BLOCKS)
    ours = DyMN(50, blocks=TWO_BLOCKS, rngs=nnx.Rngs(0))
    for state in (torch_state(theirs), to_torch_state_dict(ours)):
        for key in ("classifier.2", "layers.1.depth_act.coef_net.0"):
            assert abs(state[f"{key}.weight"].std() / 0.01 - 1) < 0.1
            assert (state[f"{key}.bias"] == 0).all()


def test_net_can_be_pickled():
    net = abstract_module(lambda rngs: DyMN(5, conv=DynamicConv, rngs=rngs, **NARROW))
    assert torch_shapes(pickle.loads(pickle.dumps(net))) == torch_shapes(net)
