"""The kernels for GPUs, interpreted, against the patches; and what they refuse."""

import dataclasses
import re
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from dynconv_jax.functional.dynamic import dynamic_conv
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.pallas import gpu, gpu_experts, gpu_product
from dynconv_jax.functional.pallas.gpu import arrange, convolve, pallas_refuses
from dynconv_jax.functional.pallas.gpu_tiles import Layer, gradient_tile, product_tile
from parity_tests.tolerances import assert_close
from parity_tests.tools.chips import an_h100


@dataclasses.dataclass(frozen=True)
class Small:
    """A convolution, and what it is computed in."""

    shape: tuple[int, int, int, int]  # (B, H, W, C)
    out_features: int
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: str | tuple = "SAME"
    dilation: tuple[int, int] = (1, 1)
    depthwise: bool = False
    experts: int = 2
    dtype: str = "float32"
    spatial: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return dict(
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.dilation,
            feature_group_count=self.shape[-1] if self.depthwise else 1,
        )

    @property
    def geometry(self):
        return Geometry.create(
            self.shape[-1], self.out_features, self.kernel, **self.options
        )

    def operands(self, rng):
        size = self.shape[0]
        return tuple(
            jnp.asarray(rng.normal(size=shape), self.dtype)
            for shape in (
                self.shape,
                (size, self.experts),
                (self.experts, *self.geometry.kernel_shape),
                *(((size, *self.kernel),) if self.spatial else ()),
            )
        )

    def by_kernel(self, *operands):
        return self.on_a_gpu(*operands, interpret=True)

    def on_a_gpu(self, inputs, attention, kernel, spatial=None, interpret=False):
        geometry = self.geometry
        return convolve(
            *(inputs, attention, arrange(kernel, geometry), geometry, Numerics()),
            spatial_attention=spatial,
            interpret=interpret,
        )

    def by_patches(self, inputs, attention, kernel, spatial=None):
        return dynamic_conv(
            *(inputs, attention, kernel),
            spatial_attention=spatial,
            implementation="patches",
            **self.options,
        )


CASES = {
    "strided, more than a tile": Small((3, 9, 16, 20), 35, strides=(2, 2)),
    "one image, pointwise": Small((1, 5, 3, 6), 9, kernel=(1, 1), experts=3),
    "depthwise": Small((3, 7, 5, 18), 18, depthwise=True),
    "bfloat16": Small((3, 7, 5, 6), 9, dtype="bfloat16"),
}
MORE_CASES = {
    "3x3": Small((3, 7, 5, 6), 9, experts=4),
    "pointwise, strided": Small((3, 7, 4, 6), 40, kernel=(1, 1), strides=(2, 2)),
    "dilated, cropped": Small(
        *((3, 9, 10, 6), 9, (3, 2), (2, 1), ((1, 2), (-1, 0)), (2, 1))
    ),
    "dilated, strided": Small((2, 9, 8, 6), 9, strides=(2, 3), dilation=(2, 3)),
    "depthwise, strided": Small((3, 9, 5, 18), 18, (5, 5), (2, 2), depthwise=True),
    "spatial attention": Small((3, 7, 5, 6), 9, spatial=True),
    "many experts": Small((5, 3, 5, 6), 9, experts=17),
    "few pixels, whole tiles": Small((5, 4, 4, 64), 32),
    "kernel beyond the input": Small((3, 2, 1, 6), 9, (5, 4), (1, 1), ((2, 2), (2, 1))),
}
NAMES: tuple[str, ...] = (
    "outputs",
    "inputs",
    "attention",
    "kernel",
    "spatial attention",
)


def lower(function, case, mesh=None) -> str:
    """The program of a sum of squares and all its gradients, for a GPU."""
    operands = case.operands(np.random.default_rng(0))
    arguments = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in operands]

    def loss(*operands):
        return jnp.sum(jnp.square(function(*operands)))

    differentiated = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    with jax.sharding.use_abstract_mesh(mesh or an_h100()):
        traced = differentiated.trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def results(function, operands) -> dict[str, jax.Array]:
    """Outputs and all gradients under a random cotangent."""

    @jax.jit
    def run(*operands):
        outputs, pull = jax.vjp(function, *operands)
        cotangent = np.random.default_rng(1).normal(size=outputs.shape)
        return outputs, *pull(jnp.asarray(cotangent, outputs.dtype))

    return dict(zip(NAMES, run(*operands), strict=False))


def check(case, rng):
    operands = case.operands(rng)
    ours = results(case.by_kernel, operands)
    wide = [each.astype(jnp.float32) for each in operands]
    theirs = results(case.by_patches, wide)
    assert {str(each.dtype) for each in ours.values()} == {case.dtype}
    assert_close(ours, theirs, dtype=case.dtype)


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_compute_what_patches_do(name, rng):
    check(CASES[name], rng)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_CASES)
def test_the_kernels_compute_other_convolutions(name, rng):
    check(MORE_CASES[name], rng)


def bent(function, operands) -> dict[str, jax.Array]:
    """The slope of a function of all gradients, in all operands."""
    every = tuple(range(len(operands)))

    def slopes(*operands):
        def loss(*operands):
            return jnp.sum(jnp.sin(function(*operands)))

        gradients = jax.grad(loss, argnums=every)(*operands)
        return sum(jnp.sum(jnp.cos(each)) for each in gradients)

    found = jax.jit(jax.grad(slopes, argnums=every))(*operands)
    return {str(index): each for index, each in enumerate(found)}


@pytest.mark.slow
def test_second_derivatives_are_those_of_patches(rng):
    case = Small((2, 3, 4, 3), 2, kernel=(2, 2))
    operands = case.operands(rng)
    ours, theirs = (bent(each, operands) for each in (case.by_kernel, case.by_patches))
    assert_close(ours, theirs, dtype="float32")


def test_rules_of_second_derivatives_are_those_of_a_product(rng, monkeypatch):
    """With plain products in the place of kernels, which take a minute."""

    def multiply(weights, experts, inputs):
        return jnp.einsum("bk,kco,bhwc->bhwo", weights[:, 0], experts[:, 0], inputs)

    def apply_mixed(call, dtype, weights, experts, source, mirrored=False):
        if mirrored:
            experts = experts.swapaxes(2, 3)
        return multiply(weights, experts, source)

    def pull_experts(call, weights, experts, inputs, cotangent):
        _, pull = jax.vjp(lambda w, e: multiply(w, e, inputs), weights, experts)
        return pull(cotangent)

    monkeypatch.setattr(gpu_product, "apply_mixed", apply_mixed)
    monkeypatch.setattr(gpu_experts, "pull_experts", pull_experts)
    shapes = (2, 1, 3), (3, 1, 4, 5), (2, 3, 2, 4)
    operands = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]

    def by_rules(*operands):
        return gpu._outputs(None, jnp.dtype("float64"), *operands)

    expected = bent(multiply, operands)
    assert_close(bent(by_rules, operands), expected, dtype="float64")


def test_the_kernels_are_mapped(rng):
    case = Small((2, 4, 3, 6), 9)
    stacks = [jnp.stack([each, 2 * each]) for each in case.operands(rng)]

    def mapped(function):
        return {"outputs": jax.jit(jax.vmap(function))(*stacks)}

    assert_close(mapped(case.by_kernel), mapped(case.by_patches), dtype="float32")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (dict(dtype="float64"), "bfloat16 and float32, not in float64"),
        (dict(dtype="float16"), "bfloat16 and float32, not in float16"),
        (dict(kernel=(3,), shape=(3, 7, 6)), "is for 2 spatial dimensions, not 1"),
        (dict(feature_group_count=2), "depthwise .* not for 2 groups of 6→8 channels"),
        (
            dict(feature_group_count=6, out_features=12),
            "not for 6 groups of 6→12 channels",
        ),
        (dict(device_count=8), "over devices; call it inside `jax.shard_map`"),
        (dict(shape=(0, 7, 5, 6)), "has no program for an empty batch"),
        (dict(experts=33), "keeps the sums of at most 32 experts .* not of 33"),
        (
            dict(shape=(2**20, 32, 32, 6)),
            "counts offsets in 32 bits, and an array has 8589934592 numbers",
        ),
        (dict(preferred="float64"), "not in float64"),
    ],
)
def test_what_is_refused_is_named(changed, reason):
    given: dict[str, Any] = dict(
        shape=(3, 7, 5, 6),
        out_features=8,
        kernel=(3, 3),
        feature_group_count=1,
        experts=2,
        dtype="float32",
        preferred=None,
        device_count=1,
    )
    given |= changed
    geometry = Geometry.create(
        *(given["shape"][-1], given["out_features"], given["kernel"]),
        feature_group_count=given["feature_group_count"],
    )
    said = pallas_refuses(
        *(geometry, given["shape"], given["experts"], given["dtype"]),
        numerics=Numerics(None, given["preferred"]),
        device_count=given["device_count"],
    )
    assert said is not None and re.search(reason, said)


def test_what_is_refused_is_not_computed():
    geometry = Geometry.create(6, 8, (3, 3))
    experts = arrange(jnp.ones((2, 3, 3, 6, 8)), geometry)
    with pytest.raises(ValueError, match="this form computes in .* use `implem"):
        convolve(
            *(jnp.ones((1, 7, 5, 6)), jnp.ones((1, 2)), experts, geometry, Numerics())
        )


def test_a_symbolic_batch_is_refused():
    (batch,) = jax.export.symbolic_shape("b")
    geometry = Geometry.create(6, 8, (3, 3))
    said = pallas_refuses(geometry, (batch, 7, 5, 6), 2, "float32")
    assert said == "must know all sizes, not b, 7, 5, 6"


@pytest.mark.parametrize("name", ["strided, more than a tile", "depthwise", "bfloat16"])
def test_the_kernels_are_lowered_for_a_gpu_by_a_host_that_has_none(name):
    lowered = lower(CASES[name].on_a_gpu, CASES[name])
    assert lowered.count("__gpu$xla.gpu.triton") == 3


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("experts", [1, 4, 32])
@pytest.mark.parametrize("size", [1, 7, 56])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tiles_cover_what_they_cut(batch, experts, size, dtype):
    geometry = Geometry.create(48, 80, (3, 3), strides=2, padding=1)
    layer = Layer.of(batch, (size, size), experts, geometry)
    for mirrored in (False, True):
        tile, (groups, blocks, across) = product_tile(layer, mirrored, jnp.dtype(dtype))
        (height, width), _ = layer.sides(mirrored)
        assert groups * tile.samples >= batch
        assert blocks * tile.pixels >= height * width
        assert across * tile.features >= layer.features(mirrored)[0]
    tile, splits = gradient_tile(layer, jnp.dtype(dtype))
    assert 1 <= splits <= batch
    assert layer.gradient_parts(tile) * tile.channels * tile.features >= 48 * 80
    sums = (experts + 1) * tile.channels * tile.features
    assert sums <= 2 * 16384 or tile.channels == tile.features == 16


def share(function, mesh=None, **options):
    """A function of a batch whose devices, of which there is one, take shares of it."""
    if mesh is None:
        mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, whole = jax.P("batch"), jax.P()
    specs = dict(in_specs=(batch, batch, whole), out_specs=batch)
    return jax.shard_map(function, mesh=mesh, **specs, **options)


def test_the_kernels_take_a_share_of_the_batch(rng):
    case = Small((2, 3, 2, 3), 2, kernel=(1, 1))
    operands = case.operands(rng)
    # The interpreter's own loops do not say how they vary.
    ours = results(share(case.by_kernel, check_vma=False), operands)
    assert_close(ours, results(case.by_patches, operands), dtype="float32")


def test_the_gradient_of_experts_is_summed_over_the_shares_of_a_batch():
    case = Small((2, 3, 2, 3), 2, kernel=(1, 1))
    mesh = an_h100("batch")
    lowered = lower(share(case.on_a_gpu, mesh), case, mesh)
    assert lowered.count("__gpu$xla.gpu.triton") == 3
    assert lowered.count("stablehlo.all_reduce") == 1
