"""Mixed kernels: the two ways to mix, and how what they give is sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from dynconv_jax.functional import mix_kernels
from dynconv_jax.functional.mixing import mix_by_product, mix_by_sum
from parity_tests.tolerances import assert_close


@pytest.mark.parametrize("batch", [(), (5,), (5, 2)], ids=str)
def test_sums_and_products_are_those_of_the_definition(batch, rng):
    attention = rng.normal(size=(*batch, 3))
    kernel = rng.normal(size=(3, 2, 4, 6))
    expected = {"": np.tensordot(attention, kernel, 1)}
    operands = jnp.asarray(attention), jnp.asarray(kernel)
    by_product = mix_by_product(*operands, jnp.dtype("float64"), None)
    by_sum = mix_by_sum(*operands, jnp.dtype("float64"))
    assert_close({"": by_product}, expected, dtype="float64")
    assert_close({"": by_sum}, expected, dtype="float64")


@pytest.mark.parametrize(
    ("of_kernel", "expected"),
    [
        ((), ("data",)),
        ((None, None, None, "model"), ("data", None, None, "model")),
        ((None, "model"), ("data", "model")),
        ((None, None, "data"), ("data",)),  # no axis of a mesh shards two
    ],
)
def test_samples_and_channels_stay_where_they_lie(of_kernel, expected):
    mesh = AbstractMesh(
        (4, 3), ("data", "model"), axis_types=(AxisType.Explicit, AxisType.Explicit)
    )

    def typed(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    with jax.sharding.use_abstract_mesh(mesh):
        mixed = jax.eval_shape(
            mix_kernels, typed((8, 3), "data"), typed((3, 6, 4, 9), *of_kernel)
        )
    spec = (*mixed.sharding.spec, *(None,) * 4)[:4]
    assert spec == (*expected, *(None,) * 4)[:4]
