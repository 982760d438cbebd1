"""WarehouseConv: what a user of nnx.Conv or torch.nn.Conv2d expects of a layer."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynconv_jax import KernelWarehouse, WarehouseConv
from dynconv_jax.functional import Geometry
from dynconv_jax.gating import Attention
from parity_tests.parity import assert_parity
from parity_tests.tolerances import assert_close
from parity_tests.tools.warehouse_pairs import (
    CASES,
    JaxPair,
    TorchPair,
    abstractly,
    jax_layer,
    outlined_pair,
    pairs,
    torch_layer,
)
from parity_tests.tools.warehouse_reference import Case


def test_layers_agree_in_bfloat16(rng):
    case = Case(1, ((1,), (1,)), assignment=0.5)
    inputs = jnp.asarray(rng.normal(size=(4, 6, 4)), "bfloat16")
    twin = TorchPair(case, torch.bfloat16)
    assert_parity(outlined_pair(case, "bfloat16"), twin, np.asarray(inputs))


def test_the_attention_is_float32_for_narrower_layers():
    case = CASES["2d"]
    x = jnp.ones((2, 5, 4, 4), jnp.bfloat16)
    mixture = nnx.eval_shape(lambda: JaxPair(case, "bfloat16").first.mixture(x))
    assert mixture.dtype == jnp.float32
    twin = TorchPair(case, torch.bfloat16)
    y = torch.ones(2, 4, 5, 4, dtype=torch.bfloat16)
    assert twin.first.mixture(y).dtype == torch.float32
    assert twin(y).dtype == torch.bfloat16
    single = TorchPair(case, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert single.first(y.float()).dtype == torch.bfloat16
        assert single.first.mixture(y.float()).dtype == torch.float32


def test_gradients_of_wide_cells_are_not_rounded_where_a_layer_is_narrow(rng):
    geometry = Geometry.create(4, 8, (3, 3), padding=1)
    warehouse = KernelWarehouse([geometry], rngs=nnx.Rngs(0))
    layer = WarehouseConv(warehouse, norm="layer", dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    inputs = jnp.asarray(rng.normal(size=(3, 9, 7, 4)), jnp.bfloat16)
    graphdef, cells, rest = nnx.split(layer, nnx.PathContains("cells"), ...)

    def loss(cells):
        outputs = nnx.merge(graphdef, cells, rest)(inputs)
        return jnp.sum(outputs.astype(jnp.float32))

    (gradient,) = jax.tree.leaves(jax.grad(loss)(cells))
    assert gradient.dtype == jnp.float32
    assert (gradient != gradient.astype(jnp.bfloat16).astype(jnp.float32)).any()


def test_any_number_of_batch_dimensions_is_accepted(rng):
    graphdef, state = nnx.split(jax_layer())
    inputs = jnp.asarray(rng.normal(size=(2, 3, 5, 4)))

    @jax.jit
    def run(state, x):
        layer = nnx.merge(graphdef, state)
        flat = x.reshape(6, 5, 4)
        actual = dict(y=layer(x), mixture=layer.mixture(x), one=layer(x[0, 0]))
        expected = dict(
            y=layer(flat).reshape(2, 3, 5, 8),
            mixture=layer.mixture(flat).reshape(2, 3, 1, 1),
            one=layer(flat)[0],
        )
        return actual, expected, layer(x[:0, 0])

    actual, expected, empty = run(state, inputs)
    assert_close(actual, expected, dtype="float64")
    assert empty.shape == (0, 5, 8)


def test_the_twin_takes_one_sample_and_none():
    pair = TorchPair(CASES["2d"]).eval()
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    assert torch.equal(pair.first(x), pair.first(x[None])[0])
    assert torch.equal(pair.first.mixture(x), pair.first.mixture(x[None])[0])
    assert pair(x[None][:0]).shape == (0, 6, 4, 3)


def test_one_sample_trains_with_layer_norm_and_is_refused_with_batch_norm():
    def check():
        x = jnp.ones((1, 5, 4))
        layer = jax_layer(norm="batch")
        with pytest.raises(ValueError, match="norm='layer'"):
            layer(x)
        assert nnx.view(layer, use_running_average=True)(x).shape == (1, 5, 8)
        assert jax_layer(norm="layer")(x).shape == (1, 5, 8)

    abstractly(check)
    one = torch.randn(1, 4, 6, 5).double()
    with pytest.raises(ValueError, match="norm='layer'"):
        torch_layer(norm="batch")[0](one)
    assert torch_layer(norm="batch")[0].eval()(one).shape == (1, 8, 4, 3)
    assert torch_layer(norm="layer")[0](one).isfinite().all()


def test_no_convolution_is_grouped_over_the_batch():
    pair, _ = pairs("2d, half the cells, groups")
    graphdef, state = nnx.split(pair)

    def gradient(state, x):
        def loss(state, x):
            return jnp.sin(nnx.merge(graphdef, state)(x)).sum()

        return jax.grad(loss, argnums=(0, 1), allow_int=True)(state, x)

    program = jax.jit(gradient).lower(state, jnp.ones((5, 6, 5, 4))).as_text()
    counts = re.findall(r"(?:feature|batch)_group_count = (\d+)", program)
    assert "dot_general" in program
    assert all(int(count) <= 2 for count in counts)  # the groups of the layers


@pytest.mark.parametrize("name", ["2d, half the cells, groups", "3d, whole windows"])
def test_a_batch_may_be_sharded_over_explicit_axes(name):
    graphdef, state = nnx.split(pairs(name)[0])

    def loss(state, x):
        return jnp.sin(nnx.merge(graphdef, state)(x)).sum()

    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    shape = (2, *(6, 5, 4)[: CASES[name].rank], 4)
    with jax.set_mesh(mesh):
        by_sample = NamedSharding(mesh, PartitionSpec("data"))
        x = jax.device_put(jnp.ones(shape), by_sample)
        gradient = jax.grad(loss, argnums=1, allow_int=True)
        assert jax.jit(gradient).eval_shape(state, x).sharding.spec[0] == "data"


def test_layers_work_under_vmap_remat_and_export_with_a_free_batch(rng):
    layer = nnx.view(jax_layer(norm="batch"), use_running_average=True)
    graphdef, state = nnx.split(layer)
    x = jnp.asarray(rng.normal(size=(2, 5, 4)))

    @jax.jit
    def forward(state, x):
        return nnx.merge(graphdef, state)(x)

    ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 5, 4"), x.dtype)
    exported = jax.export.export(forward)(state, symbolic)
    actual = {
        "vmap": jax.vmap(forward, in_axes=(0, None))(ensemble, x)[1],
        "remat": jax.checkpoint(forward)(state, x),
        "export": exported.call(state, x),
    }
    assert_close(actual, dict.fromkeys(actual, forward(state, x)), dtype="float64")


def test_the_mixture_can_be_captured(rng):
    layer = jax_layer()
    x = jnp.asarray(rng.normal(size=(2, 5, 4)))
    capture: Any = nnx.capture(layer, Attention)
    _, captured = capture(x)
    (seen,) = captured["mixture"].get_value()
    assert_close({"α": seen}, {"α": layer.mixture(x)}, dtype="float64")
