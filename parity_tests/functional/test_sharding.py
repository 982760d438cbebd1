"""Arrays over a mesh, and programs: devices add up gradients and exchange no more."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from dynconv_jax.functional import sharding as of_arrays
from parity_tests.tools import compiled_programs
from parity_tests.tools.on_devices import found_by
from parity_tests.tools.slow import thinned

SHAPES = compiled_programs.SHAPES
# Explicit axes are for the slow tests, but for what test_explicit_sharding.py asks.
SHARDINGS = thinned(compiled_programs.SHARDINGS, "automatic")
DIRECTIONS = ("forward", "gradient")
PROGRAMS = [(shape, "auto") for shape in SHAPES]
PROGRAMS += [
    (shape, form)
    for form, shapes in compiled_programs.ONLY_FOR.items()
    for shape in shapes
    if form != "vmap"
]


MESH = AbstractMesh((4, 3), ("data", "model"))

# How the axes of an array are sharded; over how many devices the first is, and whether
# another is.
SPECS = [
    ((), 1, False),
    (("data",), 4, False),
    ((None, "model"), 1, True),
    ((("data", "model"),), 12, False),
    (("model", None, "data"), 3, True),
]


@pytest.mark.parametrize(("spec", "shards", "is_inside"), SPECS)
def test_explicit_axes_say_over_how_many_devices_an_array_lies(spec, shards, is_inside):
    explicit = MESH.update(axis_types=(AxisType.Explicit,) * 2)
    for mesh, expected in ((explicit, (shards, is_inside)), (MESH, (1, False))):
        found = []

        def ask(array, found=found):
            of_batch = of_arrays.batch_shards(array)
            found.append((of_batch, of_arrays.is_sharded_inside(array)))

        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        with jax.sharding.use_abstract_mesh(mesh):
            jax.eval_shape(
                ask, jax.ShapeDtypeStruct((24, 12, 12), float, sharding=sharding)
            )
        assert found == [expected]


def test_arrays_are_made_to_vary_over_the_axes_that_any_of_them_varies_over():
    seen = []

    def product(*arrays):
        alike = of_arrays.vary_alike(*arrays)
        seen.append([of_arrays.manual_axes(array).varying for array in alike])
        return jnp.prod(jnp.stack(alike), axis=0)

    specs = PartitionSpec("data"), PartitionSpec("model"), PartitionSpec()
    shared = jax.shard_map(
        product, in_specs=specs, out_specs=PartitionSpec(("data", "model"))
    )
    with jax.sharding.use_abstract_mesh(MESH):
        gradient = jax.grad(lambda *arrays: shared(*arrays).sum(), argnums=(0, 1, 2))
        program = str(jax.make_jaxpr(gradient)(jnp.ones(8), jnp.ones(6), jnp.ones(2)))
    assert seen == [[{"data", "model"}] * 3]
    # Each is the same on some devices, and its gradient a sum over those.
    for axes in ("'model',", "'data',", "'data', 'model'"):
        assert program.count(f"psum_invariant[axes=({axes})]") == 1


def test_outside_of_shard_map_arrays_stay_as_they_are():
    arrays = [jnp.ones(2), jnp.ones(3)]
    assert of_arrays.manual_axes(arrays[0]) is None
    assert list(map(jax.typeof, of_arrays.vary_alike(*arrays))) == list(
        map(jax.typeof, arrays)
    )


@pytest.fixture
def exchanged(sharding) -> dict[str, dict[str, int]]:
    """What the devices exchange in each program, by kind; see compiled_programs.py."""
    return found_by("compiled_programs", sharding)


def moves(kinds: dict[str, int]) -> dict[str, int]:
    assert isinstance(kinds, dict), kinds  # else it did not compile
    return {kind: kinds[kind] for kind in compiled_programs.MOVES if kind in kinds}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("shape", "form"), PROGRAMS)
def test_batch_stays_where_it_is(shape, form, direction, sharding, exchanged):
    assert moves(exchanged[f"{shape}, {form}, {direction}"]) == {}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_exchanges_nothing(shape, sharding, exchanged):
    assert exchanged[f"{shape}, auto, forward"] == {}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("shape", ["dense", "depthwise"])
def test_devices_loop_over_their_own_samples_in_shard_map(shape, sharding, exchanged):
    kinds = exchanged[f"local, {shape}"]
    assert moves(kinds) == {}
    assert kinds["while"] >= 1


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("member", compiled_programs.FAMILY)
def test_no_member_of_the_family_moves_the_batch(member, sharding, exchanged):
    assert moves(exchanged[f"family, {member}"]) == {}


@pytest.mark.parametrize(
    ("layer", "sharding"),
    [
        *((layer, "automatic") for layer in compiled_programs.NARROW),
        pytest.param("patches", "explicit", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_narrow_layers_are_added_up_in_float32(layer, sharding, exchanged):
    kinds = exchanged[f"narrow, {layer}"]
    assert isinstance(kinds, dict), kinds
    assert kinds["all-reduce"] >= 1
    assert "narrow" not in kinds


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("inputs", ["images", "features"])
def test_batch_norm_exchanges_once_in_either_direction(inputs, sharding, exchanged):
    assert exchanged[f"norm, {inputs}, forward"] == {"all-reduce": 1}
    assert exchanged[f"norm, {inputs}, gradient"] == {"all-reduce": 2}


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_training_step_exchanges_only_sums(sharding, exchanged):
    kinds = exchanged["training step, auto"]
    assert moves(kinds) == {}
    assert kinds["all-reduce"] >= 1


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_mapped_convolution_gathers_the_batch(direction, sharding, exchanged):
    assert moves(exchanged[f"dense, vmap, {direction}"])


@pytest.mark.parametrize("sharding", ["automatic"])
def test_training_step_of_mapped_convolutions_gathers_the_batch(sharding, exchanged):
    assert moves(exchanged["training step, vmap"])
