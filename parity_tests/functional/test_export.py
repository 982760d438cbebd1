"""Export: one artifact, any batch size, every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynconv_jax import DynamicNet, dynamic_conv, per_sample_conv
from dynconv_jax.functional import Geometry
from dynconv_jax.functional.forms import conv_by_vmap
from dynconv_jax.functional.numerics import Numerics
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES
from parity_tests.tools.exported import PLATFORMS, exported
from parity_tests.tools.slow import thinned

BATCHES = (1, 3, 17)
NAMES = ("1d", "2d", "2d strided", "2d pointwise", "2d grouped", "2d depthwise", "3d")
STRIDED = [("2d strided", form) for form in ("patches", "rows", "experts")]
FORMS = [*((name, "auto") for name in NAMES), *STRIDED, ("2d depthwise", "taps")]
QUICK = [*((name, "auto") for name in ("1d", "2d grouped", "2d depthwise")), *STRIDED]


def text(*sizes):
    return ", ".join(map(str, sizes))


@pytest.mark.parametrize(("name", "implementation"), thinned(FORMS, *QUICK))
def test_dynamic_convolution_with_a_free_batch(name, implementation, rng):
    case = CASES[name]
    kernel = rng.normal(
        size=(case.num_experts, *case.kernel_size, case.width, case.outputs)
    )

    def gradient(inputs, attention):
        def loss(inputs, attention):
            outputs = dynamic_conv(
                inputs,
                attention,
                jnp.asarray(kernel),
                implementation=implementation,
                **case.jax_geometry,
            )
            return jnp.sin(outputs).sum(), outputs

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(inputs, attention)

    artifact = exported(
        gradient,
        text("b", *case.spatial, case.channels),
        text("b", case.num_experts),
        dtype="float64",
    )
    assert artifact.platforms == PLATFORMS
    operands = (
        rng.normal(size=(max(BATCHES), *case.spatial, case.channels)),
        rng.normal(size=(max(BATCHES), case.num_experts)),
    )
    whole = jax.tree.leaves(jax.jit(gradient)(*operands))
    for batch in BATCHES:
        few = artifact.call(*(operand[:batch] for operand in operands))
        names = ("inputs", "attention", "output")
        assert_close(
            dict(zip(names, jax.tree.leaves(few), strict=True)),
            {key: part[:batch] for key, part in zip(names, whole, strict=True)},
            dtype="float64",
        )


@pytest.mark.slow
def test_net_with_a_free_batch(rng):
    net = DynamicNet(width_mult=0.1, param_dtype="float64", rngs=nnx.Rngs(0))
    net = nnx.view(net, use_running_average=True, raise_if_not_found=False)
    graphdef, state = nnx.split(net)

    def apply(images):
        return nnx.merge(graphdef, state)(images)

    artifact = exported(apply, text("b", 12, 9, 3), dtype="float64")
    images = rng.normal(size=(max(BATCHES), 12, 9, 3))
    whole = jax.jit(apply)(images)
    for batch in BATCHES:
        actual = {"logits": artifact.call(images[:batch])}
        assert_close(actual, {"logits": whole[:batch]}, dtype="float64")


def test_scan_needs_to_know_the_batch_and_says_what_does_not():
    with pytest.raises(ValueError, match="'scan'.*how many.*'patches'.*'rows'"):
        exported(
            lambda inputs, kernel: per_sample_conv(
                inputs, kernel, implementation="scan"
            ),
            "b, 5, 4, 3",
            "b, 3, 3, 3, 2",
        )


def test_mapped_convolution_cannot_be_exported_and_says_so():
    shapes = "b, 5, 4, 3", "b, 3, 3, 3, 2"
    with pytest.raises(ValueError, match="'vmap'.*how many.*'patches', 'rows'"):
        exported(
            lambda inputs, kernel: per_sample_conv(
                inputs, kernel, implementation="vmap"
            ),
            *shapes,
        )
    geometry = Geometry.create(3, 2, (3, 3))
    with pytest.raises(Exception, match="(?i)feature_group_count"):
        exported(
            lambda inputs, kernel: conv_by_vmap(inputs, kernel, geometry, Numerics()),
            *shapes,
        )


def test_artifact_keeps_float32(rng):
    artifact = exported(
        lambda x: dynamic_conv(x, x[:, 0, :2], jnp.ones((2, 3, 4, 5), x.dtype)),
        "b, 6, 4",
        dtype="float32",
    )
    inputs = rng.normal(size=(3, 6, 4)).astype(np.float32)
    assert artifact.call(inputs).dtype == jnp.float32
