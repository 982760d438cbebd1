"""Layers on a mesh of explicit axes: batch, images and kernels sharded alike."""

import pytest
from flax import nnx

from dynconv_jax import DynamicConv
from parity_tests.tolerances import TOLERANCES
from parity_tests.tools.explicit_programs import (
    FEW,
    FORMS,
    KERNELS,
    OF_FLAX,
    SPECS,
    TAKEN_BY_FLAX,
)
from parity_tests.tools.family import LAYERS
from parity_tests.tools.on_devices import found_by
from parity_tests.tools.slow import thinned

# What the output of 6 × 4 pixels and 6 channels can keep of it on 4 × 2 devices.
KEPT = {
    "batch": ["data", None, None, None],
    "height": [None, "space", None, None],
    "width": [None, None, "data", None],
    "batch and height": ["data", "space", None, None],
    "batch and channels": ["data", None, None, None],
}


def programs(part: str) -> dict:
    """What came of each program of a part; see explicit_programs.py."""
    return found_by("explicit_programs", part)


def of_part(name: str) -> dict:
    """The programs among which those of a layer or form are."""
    return programs("few" if name in FEW else "others")


PROGRAMS = [(name, spec) for name in (*LAYERS, *FORMS) for spec in SPECS]
PROGRAMS = [
    (name, spec)
    for name, spec in PROGRAMS
    if name not in OF_FLAX or spec in TAKEN_BY_FLAX
]
OF_FEW = [(name, spec) for name, spec in PROGRAMS if name in FEW]


@pytest.mark.parametrize(("name", "spec"), thinned(PROGRAMS, *OF_FEW))
def test_layer_and_form_take_sharded_inputs_and_keep_what_divides(name, spec):
    program = of_part(name)[f"{name}, {spec}"]
    assert isinstance(program, dict), program
    assert program["spec"] == KEPT[spec]


@pytest.mark.parametrize("name", thinned(LAYERS, *FEW))
def test_sharded_layer_computes_what_one_device_does(name):
    program = of_part(name)[f"{name}, batch and height"]
    assert isinstance(program, dict), program
    assert program["difference"] <= TOLERANCES["float64"].relative


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_sharded_as_named_and_compute_the_same(name):
    axes = KERNELS[name]
    program = programs("few")[f"kernel, {name}"]
    assert isinstance(program, dict), program
    assert program["kernel"] == [*(None,) * (5 - len(axes)), *axes]
    assert program["difference"] <= TOLERANCES["float64"].relative


def test_functions_keep_the_sharding_of_kernels():
    found = programs("few")
    assert found["mixed"]["spec"] == ["data", None, "space"]
    assert found["per sample"]["spec"] == ["data", None, None, "space"]


def test_names_of_too_many_axes_are_refused():
    init = nnx.with_partitioning(nnx.initializers.normal(), (None,) * 6)
    with pytest.raises(ValueError, match="names 6 axes.*the 4 of an expert.*or 5"):
        DynamicConv(4, 6, (3, 3), kernel_init=init, rngs=nnx.Rngs(0))
