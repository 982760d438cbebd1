"""From a static model to a dynamic one that computes the same, and trains on."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dynconv_jax import (
    AdaptiveConv,
    CondConv,
    DynamicConv,
    DynamicConvBlock,
    DynamicConvTranspose,
    KernelWarehouse,
    ModulatedConv,
    ODConv,
    Router,
    WarehouseLinear,
    collapse,
    create_model,
    init_from_static,
    list_convolutions,
    to_torch_state_dict,
)
from dynconv_jax.layers import linear_geometry
from parity_tests.tolerances import assert_close
from parity_tests.tools.slow import thinned
from parity_tests.tools.trained import GEOMETRY, evaluated, layer_of, warmed

MEMBERS = [name for name in list_convolutions() if name != "static"]
OPTIONS: dict[str, Any] = dict(param_dtype="float64", rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("name", "use_bias", "groups"),
    [
        ("dynamic", True, 2),
        ("odconv", False, 1),
        ("decomposed", True, 2),
        ("kernel_warehouse", False, 1),
        ("kernel_warehouse", True, 2),
    ],
)
def test_a_layer_starts_as_the_trained_one(name, use_bias, groups, rng):
    options: dict[str, Any] = dict(use_bias=use_bias, feature_group_count=groups)
    static = nnx.Conv(**GEOMETRY, **OPTIONS, **options)
    if static.bias is not None:
        static.bias[...] = jnp.asarray(rng.normal(size=8))
    layer = layer_of(name, **options)
    init_from_static(layer, static)
    images = jnp.asarray(rng.normal(size=(3, 9, 8, 6)))
    assert_close(
        {"output": evaluated(layer)(images)},
        {"output": static(images)},
        dtype="float64",
    )


@pytest.mark.parametrize("cls", [AdaptiveConv, ModulatedConv])
@pytest.mark.parametrize("options", [{}, {"gain": 0.5, "use_bias": True}])
def test_a_styled_layer_starts_as_the_trained_one_whatever_the_latents(
    cls, options, rng
):
    use_bias = options.get("use_bias", False)
    static = nnx.Conv(**GEOMETRY, **OPTIONS, use_bias=use_bias)
    if static.bias is not None:
        static.bias[...] = jnp.asarray(rng.normal(size=8))
    layer = cls(**GEOMETRY, **OPTIONS, **options, style_features=5, demodulate=False)
    noise = 0.5 if cls is ModulatedConv else 0.0  # which is of experts
    init_from_static(layer, static, noise=noise, rngs=nnx.Rngs(1))
    images = jnp.asarray(rng.normal(size=(3, 9, 8, 6)))
    latents = jnp.asarray(rng.normal(size=(3, 5)))
    assert_close(
        {"output": layer(images, latents)}, {"output": static(images)}, dtype="float64"
    )


class Tiled(nnx.Module):
    """A linear layer, and the warehouse of its cells."""

    def __init__(self, ratio=2.0):
        self.warehouse = KernelWarehouse(
            [linear_geometry(6, 8)], ratio=ratio, out_ratio=0.5, **OPTIONS
        )
        self.fc = WarehouseLinear(self.warehouse, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.fc(x)


class Linear(nnx.Module):
    """Its static counterpart."""

    def __init__(self, features=8):
        self.fc: Any = nnx.Linear(6, features, **OPTIONS)

    def __call__(self, x):
        return self.fc(x)


def test_a_linear_layer_of_cells_starts_as_the_trained_one_and_becomes_it(rng):
    static, other, model = Linear(), Linear(), evaluated(Tiled())
    static.fc.bias[...] = jnp.asarray(rng.normal(size=8))
    init_from_static(model, static)
    features = jnp.asarray(rng.normal(size=(3, 6)))
    expected = {"output": static(features)}
    assert_close({"output": model(features)}, expected, dtype="float64")
    share = model.fc.conv.share
    mixture = np.eye(model.warehouse.tiling.num_cells)[list(share.assigned)]
    collapse(model, other, {"fc.conv": mixture})
    assert_close({"output": other(features)}, expected, dtype="float64")


def test_a_linear_layer_of_cells_that_has_no_start_is_named():
    with pytest.raises(ValueError, match="fc .WarehouseLinear.: it has fewer cells"):
        init_from_static(Tiled(ratio=0.5), Linear())
    with pytest.raises(
        ValueError, match=r"fc: the trained kernel .* \(6, 5\), .* \(6, 8"
    ):
        init_from_static(Tiled(), Linear(5))
    convolution = Linear()
    convolution.fc = nnx.Conv(6, 8, (1,), **OPTIONS)
    with pytest.raises(ValueError, match="fc: the static model has a Conv there"):
        init_from_static(Tiled(), convolution)


def test_a_block_with_attention_from_outside_starts_as_the_static_one(rng):
    shared: dict[str, Any] = dict(padding=1, **OPTIONS)
    block = DynamicConvBlock(6, 8, conv=CondConv, num_experts=3, **shared)
    static = DynamicConvBlock(6, 8, conv=nnx.Conv, **shared)
    images = jnp.asarray(rng.normal(size=(3, 9, 8, 6)))
    warmed(static)
    init_from_static(block, static)
    assert_close(
        {"output": evaluated(block)(images)},
        {"output": evaluated(static)(images)},
        dtype="float64",
    )


def test_noise_makes_experts_differ_by_its_share_of_the_kernel(rng):
    static = nnx.Conv(64, 64, (3, 3), use_bias=False, **OPTIONS)
    layer = DynamicConv(64, 64, (3, 3), **OPTIONS)
    init_from_static(layer, static, noise=0.1, rngs=nnx.Rngs(7))
    trained = np.asarray(static.kernel[...])
    difference = np.asarray(layer.kernel[...]) - trained
    assert abs(difference.std() / trained.std() - 0.1) < 0.002
    assert abs(np.corrcoef(difference[0].ravel(), difference[1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("noise", [-0.1, float("nan")])
def test_noise_that_is_no_deviation_is_refused(noise):
    with pytest.raises(ValueError, match="`noise`"):
        init_from_static(
            layer_of("dynamic"), nnx.Conv(**GEOMETRY, **OPTIONS), noise=noise
        )


def test_noise_without_rngs_is_refused():
    static = nnx.Conv(**GEOMETRY, use_bias=False, **OPTIONS)
    with pytest.raises(ValueError, match=r"`noise` \(=0.1\) needs `rngs`"):
        init_from_static(layer_of("dynamic"), static, noise=0.1)


def transposed() -> DynamicConvTranspose:
    return DynamicConvTranspose(**GEOMETRY, **OPTIONS)


REFUSED = {
    "attention from outside": (
        lambda: CondConv(**GEOMETRY, **OPTIONS),
        "comes from outside",
    ),
    "another router": (
        lambda: DynamicConv(**GEOMETRY, router=lambda x: x[:, 0, 0, :4], **OPTIONS),
        "may answer weights that do not sum to 1",
    ),
    "fewer cells than tiles": (
        lambda: layer_of("kernel_warehouse", ratio=0.5),
        "fewer cells than tiles",
    ),
    "demodulated": (
        lambda: ModulatedConv(**GEOMETRY, style_features=5, **OPTIONS),
        "divides each kernel by its norm.*`demodulate=False`",
    ),
    "demodulated experts": (
        lambda: AdaptiveConv(**GEOMETRY, style_features=5, **OPTIONS),
        "divides each kernel by its norm.*`demodulate=False`",
    ),
    "divided by the magnitude": (
        lambda: ModulatedConv(
            **GEOMETRY,
            style_features=5,
            demodulate=False,
            magnitude_momentum=0.9,
            **OPTIONS,
        ),
        "divides the inputs.*`magnitude_momentum`",
    ),
    "a gain of 0": (
        lambda: ModulatedConv(
            **GEOMETRY, style_features=5, demodulate=False, gain=0, **OPTIONS
        ),
        "its `gain` is 0",
    ),
    "transposed": (transposed, "transposed"),
    "no bias": (lambda: layer_of("dynamic"), "has a bias"),
    "another padding": (
        lambda: DynamicConv(**{**GEOMETRY, "padding": "SAME"}, **OPTIONS),
        r"`padding` is \(\(1, 1\), \(1, 1\)\) in the trained layer, SAME here",
    ),
    "another stride": (
        lambda: DynamicConv(**{**GEOMETRY, "strides": 1}, **OPTIONS),
        r"`strides` is \(2, 2\) in the trained layer, \(1, 1\) here",
    ),
    "a narrower dtype": (
        lambda: DynamicConv(**GEOMETRY, rngs=nnx.Rngs(0)),
        "the trained float64 does not fit the layer's float32",
    ),
    "another size": (
        lambda: DynamicConv(6, 8, (5, 3), **OPTIONS),
        r"the trained kernel has the shape \(3, 3, 6, 8\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_there_is_no_exact_start_an_error_says_why(name):
    build, reason = REFUSED[name]
    layer = build()
    before = jax.tree.leaves(nnx.state(layer, nnx.Param))
    static = nnx.Conv(**GEOMETRY, use_bias=name == "no bias", **OPTIONS)
    with pytest.raises(ValueError, match=reason):
        init_from_static(layer, static)
    after = jax.tree.leaves(nnx.state(layer, nnx.Param))
    assert all((old == new).all() for old, new in zip(before, after, strict=True))


def test_models_that_do_not_fit_are_refused_with_all_differences():
    build: dict[str, Any] = dict(num_classes=3, **OPTIONS)
    model = create_model("dynamic_net", in_features=1, **build)
    static = create_model("dynamic_net", conv="static", **build)
    with pytest.raises(
        ValueError, match=r"stem.layers.0.kernel: float64\[3, 3, 3, 32\]"
    ):
        init_from_static(model, static)
    with pytest.raises(ValueError, match="the static model has"):
        init_from_static(model, nnx.Conv(**GEOMETRY, **OPTIONS))


@pytest.fixture(scope="module")
def trained() -> tuple[Any, jax.Array, jax.Array]:
    """A static model with statistics, images, and their logits."""
    model: Any = create_model(
        "dynamic_net",
        num_classes=3,
        conv="static",
        param_dtype="float64",
        rngs=nnx.Rngs(3),
    )
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 12, 9, 3)))
    warmed(model)
    return model, images, jax.jit(evaluated(model))(images)


@pytest.mark.parametrize("member", thinned(MEMBERS, "dynamic", "kernel_warehouse"))
def test_a_network_starts_as_the_trained_one(member, trained):
    static, images, expected = trained
    model: Any = create_model("dynamic_net", num_classes=3, conv=member, **OPTIONS)
    init_from_static(model, static)
    actual = jax.jit(evaluated(model))(images)
    assert_close({"logits": actual}, {"logits": expected}, dtype="float64")


@pytest.mark.parametrize("member", thinned(MEMBERS, "dynamic", "kernel_warehouse"))
def test_what_is_ignored_stays_as_it_is_and_all_else_starts(member, trained):
    static, _, _ = trained
    own: dict[str, Any] = dict(param_dtype="float64", rngs=nnx.Rngs(0))
    model: Any = create_model("dynamic_net", num_classes=5, conv=member, **own)
    before, given = to_torch_state_dict(model), to_torch_state_dict(static)
    with pytest.raises(ValueError, match="fc.kernel"):  # of three classes
        init_from_static(model, static)
    init_from_static(model, static, ignore=("fc", "stage2", "stem.1.bias"))
    after = to_torch_state_dict(model)
    routers_of_sigmoids = {key for key in after if "routing_fn" in key}
    moved = {key for key in after if not np.array_equal(after[key], before[key])}
    assert not any(key.startswith(("fc.", "stage2.")) for key in moved)
    assert "stem.1.bias" not in moved
    for key in ("stem.0.weight", "stem.1.weight", "stage3.bn.running_var"):
        np.testing.assert_array_equal(after[key], given[key])
    # Of the warehouses, one a stage, that of the ignored layer stays too.
    experts = {
        "decomposed": ("stage{}.dyn.conv.weight",),
        "kernel_warehouse": ("warehouses.{}.cells",),
        "fdconv": ("stage{}.dyn.dft_weight",),
    }.get(member, ("stage{}.dyn.weight",))
    first = 0 if member == "kernel_warehouse" else 1
    keys = [experts[0].format(first + stage) for stage in range(3)]
    assert [key in moved for key in keys] == [True, False, True]
    assert (member == "condconv") == bool(moved & routers_of_sigmoids)


def test_part_that_only_the_static_model_has_can_be_ignored():
    class Holder(nnx.Module):
        def __init__(self, conv: Any):
            self.conv = conv(**GEOMETRY, use_bias=False, **OPTIONS)

    model, static = Holder(DynamicConv), cast(Any, Holder(nnx.Conv))
    static.aux = nnx.Linear(3, 2, **OPTIONS)
    with pytest.raises(ValueError, match="aux.kernel: only in the static model"):
        init_from_static(model, static)
    init_from_static(model, static, ignore=("aux",))
    assert (model.conv.kernel[...] == static.conv.kernel[...]).all()


def test_name_that_neither_model_has_is_refused(trained):
    static, _, _ = trained
    model = create_model("dynamic_net", num_classes=3, **OPTIONS)
    before = to_torch_state_dict(model)
    with pytest.raises(ValueError, match=r"`ignore` \(='classifier'\) names nothing"):
        init_from_static(model, static, ignore=("classifier",))
    with pytest.raises(TypeError, match="`ignore`"):
        init_from_static(model, static, ignore="fc")
    for key, value in to_torch_state_dict(model).items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("member", ["condconv", "dynamic", "odconv"])
def test_equal_experts_part_in_training_without_noise(member):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9, 8, 6)))
    conv: Any = dict(condconv=CondConv, dynamic=DynamicConv, odconv=ODConv)[member]
    block = DynamicConvBlock(6, 8, padding=1, conv=conv, **OPTIONS)
    init_from_static(block, DynamicConvBlock(6, 8, padding=1, conv=nnx.Conv, **OPTIONS))
    graphdef, params, rest = nnx.split(evaluated(block), nnx.Param, ...)

    @jax.jit
    def step(params):
        def loss(params):
            return jnp.square(nnx.merge(graphdef, params, rest)(images) - 1).mean()

        return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params))

    for _ in range(3):
        params = step(params)
    trained: Any = nnx.merge(graphdef, params, rest)
    experts = trained.dyn.kernel[...]
    assert float(jnp.abs(experts[0] - experts[1]).max()) > 1e-6


def test_a_router_that_layers_share_stands_for_itself(rng):
    class Shared(nnx.Module):
        def __init__(self, conv: Any, router: Any):
            options = {} if router is None else {"router": router}
            self.router = router
            self.first = conv(6, 6, (3, 3), use_bias=False, **options, **OPTIONS)
            self.second = conv(6, 6, (3, 3), use_bias=False, **options, **OPTIONS)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.second(self.first(x))

    images = jnp.asarray(rng.normal(size=(2, 5, 4, 6)))
    model = Shared(DynamicConv, Router(6, **OPTIONS))
    static = Shared(nnx.Conv, None)
    init_from_static(model, static)
    assert_close({"": model(images)}, {"": static(images)}, dtype="float64")


@pytest.mark.slow
def test_one_step_after_the_start_moves_every_expert():
    build: dict[str, Any] = dict(
        num_classes=3,
        param_dtype="float64",
        width_mult=0.25,
        stages=((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2)),
    )
    static, model = (
        create_model("mobilenet_v2", conv=conv, rngs=nnx.Rngs(seed), **build)
        for seed, conv in enumerate(["static", "dynamic"])
    )
    init_from_static(model, static)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 33, 24, 3)))
    graphdef, params, rest = nnx.split(evaluated(model), nnx.Param, ...)

    @jax.jit
    def step(params):
        def loss(params):
            logits = nnx.merge(graphdef, params, rest)(images)
            labels = jnp.arange(3)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    moved = step(params)
    before, after = dict(nnx.to_flat_state(params)), dict(nnx.to_flat_state(moved))
    layers = [path for path, part in nnx.iter_modules(model) if hasattr(part, "router")]
    assert len(layers) >= 14
    for path in layers:
        old, new = (each[(*path, "kernel")].get_value() for each in (before, after))
        changed = [bool((a != b).any()) for a, b in zip(old, new, strict=True)]
        assert all(changed), f"{path}: experts that moved {changed}"


def test_a_mask_is_no_start():
    static = nnx.Conv(3, 4, (3, 3), mask=jnp.ones((3, 3, 3, 4)), **OPTIONS)
    layer = DynamicConv(3, 4, (3, 3), use_bias=True, **OPTIONS)
    with pytest.raises(ValueError, match="has a `mask`; multiply its kernel by that"):
        init_from_static(layer, static)
