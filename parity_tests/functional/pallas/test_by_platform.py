"""Kernels of Pallas as a form: where they are in a program, and where others are.

What they compute is tested beside each platform's own, interpreted.
"""

import contextlib
import types

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from dynconv_jax import (
    DynamicConv,
    dynamic_conv,
    dynamic_conv_transpose,
    explain,
    per_sample_conv,
)
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.pallas import by_platform
from parity_tests.tools.chips import an_h100

# What a kernel of Pallas is in a lowered program.
CALLS = {"tpu": "tpu_custom_call", "cuda": "triton"}
SHAPES = ((2, 8, 6, 16), (2, 3), (3, 3, 3, 16, 8))


def arrays(dtype="bfloat16"):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in SHAPES]


def by_kernels(*operands):
    return dynamic_conv(*operands, implementation="pallas")


def loss(*operands):
    return jnp.sum(jnp.sin(by_kernels(*operands).astype(jnp.float32)))


def lowered(function, platform, *operands, axis="chip"):
    use = jax.sharding.use_abstract_mesh
    with use(an_h100(axis)) if platform == "cuda" else contextlib.nullcontext():
        traced = jax.jit(function).trace(*(operands or arrays()))
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", CALLS)
def test_outputs_and_gradients_are_kernels(platform):
    forward = lowered(by_kernels, platform).count(CALLS[platform])
    gradient = lowered(jax.grad(loss, argnums=(0, 1, 2)), platform)
    assert 0 < forward < gradient.count(CALLS[platform])
    assert "stablehlo.convolution" not in gradient


@pytest.mark.parametrize("platform", CALLS)
def test_inside_shard_map_each_device_has_kernels_for_its_samples(platform):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    if platform == "cuda":
        mesh = an_h100("data")
    data, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        by_kernels, mesh=mesh, in_specs=(data, data, whole), out_specs=data
    )

    def total(*operands):
        return jnp.sum(mapped(*operands).astype(jnp.float32))

    program = lowered(jax.grad(total, argnums=(0, 1, 2)), platform, axis="data")
    assert CALLS[platform] in program


STEPPED_ASIDE = {
    "mapped": jax.vmap(by_kernels, in_axes=(0, 0, 0)),
    "forward mode": lambda *each: jax.jvp(by_kernels, each, each)[1],
}


@pytest.mark.parametrize("name", STEPPED_ASIDE)
def test_they_step_aside(name):
    leading = (2,) if name == "mapped" else ()
    operands = [
        jax.ShapeDtypeStruct((*leading, *each.shape), each.dtype) for each in arrays()
    ]
    transformed = STEPPED_ASIDE[name]
    assert CALLS["tpu"] not in lowered(transformed, "tpu", *operands)


def test_a_second_gradient_is_that_of_another_form():
    def length(*operands):
        parts = jax.grad(loss, argnums=(0, 1, 2))(*operands)
        return sum(jnp.sum(jnp.sin(part.astype(jnp.float32))) for part in parts)

    program = lowered(jax.grad(length, argnums=(0, 1, 2)), "tpu")
    assert "stablehlo.dot_general" in program


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_single_expert_without_attention_has_the_weight_1(platform, monkeypatch):
    seen = []

    def convolve(inputs, attention, *_, **__):
        seen.append(attention)
        return inputs[..., :2]

    kernels = types.SimpleNamespace(
        pallas_refuses=lambda *_, **__: None,
        arrange=lambda kernel, geometry: kernel,
        convolve=convolve,
    )
    monkeypatch.setitem(by_platform._KERNELS, platform, kernels)
    by_platform.conv_by_pallas(
        by_platform.form_for(platform),
        jnp.ones((2, 5, 4, 3), "bfloat16"),
        None,
        jnp.ones((1, 3, 3, 3, 2)),
        Geometry.create(3, 2, (3, 3)),
        Numerics(),
    )
    (attention,) = seen
    assert attention.dtype == "bfloat16"
    assert attention.tolist() == [[1.0], [1.0]]


def test_a_cpu_refuses_by_name():
    with pytest.raises(ValueError, match="'pallas'.*for TPUs and GPUs.*a CPU.*'auto'"):
        jax.jit(by_kernels)(*(jnp.ones(each.shape, each.dtype) for each in arrays()))


REFUSED = {
    "another dtype": (
        lambda: jax.eval_shape(by_kernels, *arrays("float64")),
        "'pallas'.*bfloat16 and float32, not in float64",
    ),
    "another rank": (
        lambda: DynamicConv(4, 4, (3,), implementation="pallas", rngs=nnx.Rngs(0)),
        "'pallas'.*2 spatial dimensions, not 1",
    ),
    "groups": (
        lambda: dynamic_conv(
            jnp.ones((2, 8, 6, 16), "float32"),
            jnp.ones((2, 3), "float32"),
            jnp.ones((3, 3, 3, 4, 8), "float32"),
            feature_group_count=4,
            implementation="pallas",
        ),
        "'pallas'.*4 groups",
    ),
    "no experts": (
        lambda: per_sample_conv(
            jnp.ones((2, 8, 6, 4)), jnp.ones((2, 3, 3, 4, 8)), implementation="pallas"
        ),
        "'pallas'.*needs their attention",
    ),
    "transposed": (
        lambda: dynamic_conv_transpose(
            jnp.ones((2, 8, 6, 4)),
            jnp.ones((2, 3)),
            jnp.ones((3, 3, 3, 4, 8)),
            implementation="pallas",
        ),
        "'pallas'.*no transposed form",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_batch_of_unknown_size_is_refused():
    batch, *rest = jax.export.symbolic_shape("b, 8, 6, 16")
    operands = [
        jax.ShapeDtypeStruct((batch, *rest), jnp.float32),
        jax.ShapeDtypeStruct((batch, 3), jnp.float32),
        jax.ShapeDtypeStruct(SHAPES[2], jnp.float32),
    ]
    with pytest.raises(ValueError, match="'pallas'.*batch whose size is known"):
        jax.eval_shape(by_kernels, *operands)


@pytest.mark.parametrize(
    ("options", "is_there"),
    [
        (dict(chip="v5e", device_count=1), True),
        (dict(chip="v5e", device_count=4), False),
        (dict(chip="v5e", device_count=1, dtype="float16"), False),
        # Nobody has measured it on a GPU.
        (dict(chip="h100", device_count=1), False),
    ],
)
def test_where_it_may_be_chosen(options, is_there):
    options = dict(dtype="bfloat16") | options
    found = explain((32, 14, 14, 256), (4, 3, 3, 256, 256), **options)
    plans = {each.plan.implementation for each in found.estimates}
    assert ("pallas" in plans) == is_there
