"""Networks are recognised by keys and shapes, with their options, at full size."""

import numpy as np
import pytest

import dynconv_jax
from dynconv_jax.weights.identify import identify, in_flax
from dynconv_jax.weights.loading import prepare
from dynconv_jax.weights.networks import NETWORKS
from dynconv_jax.weights.recognize import candidates
from dynconv_torch.weights.identify import identify as identify_torch
from parity_tests.tools import registered
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.checkpoints import as_published, shapes_of, zeros
from parity_tests.tools.slow import thinned

NAMES = registered.NAMES
# Of one text with the twin's, which is asked for all.
OF_JAX = thinned(
    [name for name in registered.KINDS if not name.startswith("tf_")],
    *("dynamic_net", "kw_resnet18", "dcd_resnet18", "mobilenet_v2", "fdy_cnn"),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_recognised_whatever_its_classes_and_images(name):
    state_dict = zeros(shapes_of(name, num_classes=7, in_channels=5))
    match = identify_torch(state_dict)
    assert match is not None and match.problems == []
    # What pads as TensorFlow does has the same arrays.
    assert match.call.name == name.removeprefix("tf_")
    expected = {"num_classes": 7, "in_channels": 5}
    assert expected.items() <= match.call.options.items()


@pytest.mark.parametrize("name", OF_JAX)
def test_every_network_is_recognised_by_jax_in_its_own_words(name):
    state_dict = zeros(shapes_of(name, num_classes=7, in_channels=5))
    match = identify(as_published(state_dict), prepare)
    assert match is not None and match.problems == []
    assert match.call.name == name
    assert in_flax(match.call.options)["in_features"] == 5


def test_nothing_is_found_where_no_network_is():
    assert candidates({}) == []
    assert candidates({"encoder.weight": (8, 3)}) == []
    assert identify_torch({"encoder.weight": np.ones((8, 3))}) is None


@pytest.mark.parametrize(
    "shape", [(), (0, 512), (10**15, 512), (10,), (10, 512, 1, 1), (10**400, 512)]
)
@pytest.mark.parametrize("key", ["fc.weight", "conv1.weight", "bn1.weight"])
def test_absurd_shapes_are_no_network_and_take_no_time(key, shape):
    shapes = shapes_of("resnet18") | {key: shape}
    candidates(shapes)  # an error would be one


@pytest.mark.parametrize("conv", dynconv_jax.list_convolutions())
@pytest.mark.parametrize("shape", [(), (3,), (1,) * 6])
def test_absurd_shapes_of_any_convolution_are_no_error(conv, shape):
    shapes = shapes_of("dynamic_net", width_mult=0.25, conv=conv)
    for key in shapes:
        candidates(shapes | {key: shape})


def test_the_two_packages_have_one_text():
    """Of what reads foreign checkpoints and builds nothing."""
    names = ["member", "members", "trunks", "shapes", "recognize", "relatives"]
    names += ["refusals", "wrappers", "archives"]
    own = ROOT / "dynconv_jax" / "weights"
    files = [own / f"{name}.py" for name in names] + [*own.glob("networks/*.py")]
    for path in files:
        twin = ROOT / "dynconv_torch" / path.relative_to(ROOT / "dynconv_jax")
        text = path.read_text().replace("dynconv_jax", "dynconv_torch")
        assert text == twin.read_text(), path.name
    assert len(files) > len(names)


def test_families_have_titles_and_signs_of_their_own():
    assert len({network.title for network in NETWORKS}) == len(NETWORKS)
    signs = [network.signs for network in NETWORKS if network.signs]
    assert len({*signs}) == len(signs) > 6
