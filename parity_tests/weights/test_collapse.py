"""From a dynamic model to a static one, at an attention."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynconv_jax import AdaptiveConv, DynamicConv, ODConv, collapse, create_model
from parity_tests.tolerances import assert_close
from parity_tests.tools.trained import GEOMETRY, evaluated, layer_of, warmed

OPTIONS: dict[str, Any] = dict(param_dtype="float64", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_layer_collapses_to_what_it_computes_at_an_attention(groups, rng):
    options: dict[str, Any] = dict(use_bias=True, feature_group_count=groups)
    layer = DynamicConv(**GEOMETRY, **OPTIONS, **options)
    assert layer.bias is not None
    layer.bias[...] = jnp.asarray(rng.normal(size=(4, 8)))
    static = nnx.Conv(**GEOMETRY, **OPTIONS, **options)
    attention = jnp.asarray(rng.dirichlet(np.ones(4)))
    collapse(layer, static, attention)
    images = jnp.asarray(rng.normal(size=(2, 9, 8, 6)))
    expected = layer(images, jnp.stack([attention, attention]))
    assert_close({"output": static(images)}, {"output": expected}, dtype="float64")


@pytest.mark.parametrize("groups", [1, 2])
def test_an_omni_dimensional_layer_collapses_with_its_four_attentions(groups, rng):
    options: dict[str, Any] = dict(feature_group_count=groups, norm="none")
    layer = ODConv(**GEOMETRY, **OPTIONS, **options)
    static = nnx.Conv(**GEOMETRY, **OPTIONS, feature_group_count=groups, use_bias=False)
    image = jnp.asarray(rng.normal(size=(1, 9, 8, 6)))
    collapse(layer, static, jax.tree.map(lambda each: each[0], layer.attentions(image)))
    assert_close({"output": static(image)}, {"output": layer(image)}, dtype="float64")


def test_a_layer_of_a_warehouse_collapses_at_a_mixture(rng):
    layer = evaluated(layer_of("kernel_warehouse", use_bias=True))
    static = nnx.Conv(**GEOMETRY, **OPTIONS)
    image = jnp.asarray(rng.normal(size=(1, 9, 8, 6)))
    collapse(layer, static, layer.mixture(image)[0])
    assert_close({"output": static(image)}, {"output": layer(image)}, dtype="float64")


def test_a_network_collapses_by_the_attention_of_each_layer(rng):
    build: dict[str, Any] = dict(num_classes=3, width_mult=0.1, **OPTIONS)
    even = jnp.full(4, 0.25)
    model: Any = create_model(
        "dynamic_net", temperature=1e30, **build
    )  # even attention
    static: Any = create_model("dynamic_net", conv="static", **build)
    images = jnp.asarray(rng.normal(size=(2, 12, 9, 3)))
    warmed(model)
    paths = ["stage1.dyn", "stage2.dyn.router", "stage3.dyn"]
    collapse(model, static, dict.fromkeys(paths, even))
    assert_close(
        {"logits": evaluated(static)(images)},
        {"logits": evaluated(model)(images)},
        dtype="float64",
    )
    with pytest.raises(ValueError, match="stage2.dyn: no attention is given"):
        collapse(model, static, {path: even for path in paths if "2" not in path})


def test_what_is_not_one_convolution_does_not_collapse(rng):
    static = nnx.Conv(**GEOMETRY, use_bias=False, **OPTIONS)
    with pytest.raises(ValueError, match="not one convolution"):
        collapse(layer_of("decomposed"), static, jnp.ones(4))
    with pytest.raises(ValueError, match=r"\(3,\), not \(num_experts,\) = \(4,\)"):
        collapse(layer_of("dynamic"), static, jnp.ones(3))
    styled = AdaptiveConv(**GEOMETRY, style_features=5, **OPTIONS)
    with pytest.raises(ValueError, match="depends on the styles too"):
        collapse(styled, static, jnp.ones(4))
