"""The FDY-CRNN's checkpoints: their convolutional part, with and without its prefix."""

import pytest

import dynconv_jax
import dynconv_torch
from parity_tests.tools.checkpoints import refusal, shapes_of, zeros

BOTH = pytest.mark.parametrize("package", [dynconv_jax, dynconv_torch])
SMALL = dict(width_mult=0.125)


def body():
    """Returns the shapes of all but the head."""
    shapes = shapes_of("fdy_cnn", **SMALL)
    return {key: shape for key, shape in shapes.items() if not key.startswith("fc.")}


@BOTH
@pytest.mark.parametrize("prefix", ["", "net."])
def test_keys_without_their_outer_prefix_are_those_of_the_network(package, prefix):
    inner = {prefix + key.removeprefix("cnn."): each for key, each in body().items()}
    message = refusal(package, zeros(inner))
    assert "looks like fdy_cnn with Freq" in message and "width_mult=0.125" in message
    assert "2 missing keys (fc.weight, of shape (10, 32), fc.bias" in message
    assert message.endswith("before, the prefix 'cnn.' was put before all keys")


@BOTH
def test_of_a_whole_crnn_the_part_is_told(package):
    whole = {f"cnn.{key}": shape for key, shape in body().items()}
    message = refusal(package, zeros(whole | {"rnn.rnn.weight_ih_l0": (384, 32)}))
    assert "of no network that is known; its keys are cnn.cnn.batchnorm0" in message
    assert "Its part 'cnn' looks like fdy_cnn with Frequency" in message
    assert "`{key.removeprefix('cnn.'): value for key" in message
