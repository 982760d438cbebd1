"""FDYCNN: parity, published keys and counts, what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import FDYCNN, create_model, to_torch_state_dict
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.torch_layout import torch_shapes
from parity_tests.parity import copy_weights, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools import whole
from parity_tests.tools.networks import assert_networks_agree
from parity_tests.tools.slow import thinned

TINY: dict[str, Any] = dict(width_mult=1 / 32, dropout=0.0)  # 1, 2, 4, 8 channels


def networks(activation="cg", **options):
    """The same small network in both frameworks."""
    options = {**TINY, "activation": activation, **options}
    theirs = dynconv_torch.FDYCNN(3, **options, dtype=torch.float64)
    for name, parameter in theirs.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = abstract_module(
        lambda rngs: FDYCNN(3, **options, param_dtype="float64", rngs=rngs)
    )
    copy_weights(theirs, ours)
    return ours, theirs


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["cg", "glu"])
def test_networks_agree(activation, rng):
    assert_networks_agree(*networks(activation), rng.normal(size=(2, 4, 128, 1)))


@pytest.mark.slow
def test_a_whole_network_agrees(rng):
    whole.assert_whole_parity("fdy_cnn", rng)


def test_outputs_and_features_agree(rng):
    ours, theirs = networks()
    evaluated = nnx.view(ours, use_running_average=True)
    inputs = rng.normal(size=(2, 9, 130, 1))
    x = torch.from_numpy(inputs).movedim(-1, 1)
    theirs.eval()
    with torch.no_grad():
        features = theirs.features(x).movedim(1, -1).numpy()
        logits = theirs(x).numpy()
    found = jax.jit(evaluated.features)(inputs)
    assert found.shape == (2, 2, 1, 8)
    assert_close({"": found}, {"": features}, dtype="float64")
    # Of features the head is the mean and a linear layer.
    own = evaluated.fc(found.mean((1, 2)))
    assert_close({"": own}, {"": logits}, dtype="float64")


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """The keys and shapes of the published network, but for its recurrent part."""
    widths = (1, 32, 64, 128, 256, 256, 256, 256)
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (width, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        conv, norm = f"cnn.conv{index}", f"cnn.batchnorm{index}"
        if index == 0:
            shapes |= {f"{conv}.weight": (out, width, 3, 3), f"{conv}.bias": (out,)}
        else:
            hidden = max(width // 4, 4)
            shapes |= {
                f"{conv}.weight": (4, out, width, 3, 3),
                f"{conv}.attention.conv1d1.weight": (hidden, width, 3),
                f"{conv}.attention.conv1d2.weight": (4, hidden, 1),
                f"{conv}.attention.conv1d2.bias": (4,),
                f"{conv}.attention.temperature": (),
            }
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{conv}.attention.bn.{name}"] = (hidden,)
            shapes[f"{conv}.attention.bn.num_batches_tracked"] = ()
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = (out,)
        shapes[f"{norm}.num_batches_tracked"] = ()
        shapes |= {
            f"cnn.cg{index}.linear.weight": (out, out),
            f"cnn.cg{index}.linear.bias": (out,),
        }
    return shapes | {"fc.weight": (10, 256), "fc.bias": (10,)}


def test_keys_and_shapes_are_those_of_the_published_network():
    ours = abstract_module(lambda rngs: create_model("fdy_cnn", rngs=rngs))
    theirs = dynconv_torch.create_model("fdy_cnn", device="meta")
    expected = expected_shapes()
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert shapes == expected
    assert torch_shapes(ours) == expected
    # 11,061,468 with the two recurrent layers and the two heads of the authors.
    assert dynconv_jax.count_parameters(ours) - 2570 == 9_078_984


def of_the_twin(**options):
    torch.manual_seed(0)
    return torch_state(dynconv_torch.FDYCNN(**options))


def of_jax(**options):
    return to_torch_state_dict(FDYCNN(**options, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("draw", thinned([of_the_twin, of_jax], of_the_twin))
def test_static_convolutions_are_drawn_as_pytorch_does(draw):
    state = draw(width_mult=1 / 4)
    for part in ("weight", "bias"):
        largest = abs(state[f"cnn.conv0.{part}"]).max()
        assert 0.2 < largest <= 1 / 3  # of nine taps


def test_norms_are_the_published_ones():
    ours: Any = abstract_module(lambda rngs: FDYCNN(rngs=rngs))
    theirs = dynconv_torch.FDYCNN(device="meta")
    norm, twin = ours.block3.norm, theirs.cnn.get_submodule("batchnorm3")
    assert (norm.epsilon, norm.momentum) == (1e-3, pytest.approx(0.01))
    assert isinstance(twin, torch.nn.BatchNorm2d)
    assert (twin.eps, twin.momentum) == (1e-3, 0.99)


def test_static_convolutions_have_biases_and_dynamic_ones_none():
    cases: Any = (({"conv": None}, 7), ({"dynamic": "all"}, 0))
    for options, are_biased in cases:
        ours = abstract_module(
            lambda rngs, options=options: FDYCNN(**TINY, **options, rngs=rngs)
        )
        theirs = dynconv_torch.FDYCNN(**TINY, **options, device="meta")
        found = torch_shapes(ours)
        assert found.keys() == theirs.state_dict().keys()
        biases = [f"cnn.conv{index}.bias" in found for index in range(7)]
        assert sum(biases) == are_biased


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 128, 1), "at least 4 frames and 128 frequencies"),
        ((2, 8, 64, 1), "at least 4 frames and 128 frequencies"),
        ((2, 8, 128, 3), "must be .batch,"),
    ],
)
def test_sounds_that_do_not_fit_are_refused(shape, message):
    ours = abstract_module(lambda rngs: FDYCNN(**TINY, rngs=rngs))
    theirs = dynconv_torch.FDYCNN(**TINY, device="meta")
    with pytest.raises(ValueError, match=message):
        ours.features(jnp.ones(shape))
    with pytest.raises(ValueError, match=message):
        theirs(torch.ones(shape).movedim(-1, 1))


def test_activation_that_is_not_known_is_refused():
    for build in (lambda **o: FDYCNN(**o, rngs=nnx.Rngs(0)), dynconv_torch.FDYCNN):
        with pytest.raises(ValueError, match="`activation` .='relu'. must be"):
            build(activation="relu")
