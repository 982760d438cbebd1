"""The network of the FDY-CRNN, by the keys and shapes of its checkpoints."""

import re

from dynconv_jax.models.dynamic_net import scaled_widths
from dynconv_jax.models.fdy_cnn import WIDTHS
from dynconv_jax.weights.member import Place
from dynconv_jax.weights.shapes import Shapes, without
from dynconv_jax.weights.trunks import Call, Trunk, Widths, read


def _sound_place(match: re.Match[str]) -> Place:
    index = int(match["index"])
    return Place("body", index) if index else Place("stem")


_FDY_CNN = Trunk(
    re.compile(r"cnn\.conv(?P<index>[0-6])(?=\.)"),
    _sound_place,
    stem="cnn.conv0",
    head="fc.weight",
    stages=len(WIDTHS) - 1,
    dynamic="paper",
    conv="frequency_dynamic",
    stem_router="routing_fn0",
    widths=Widths(
        [f"cnn.batchnorm{index}" for index in range(len(WIDTHS))], WIDTHS, scaled_widths
    ),
)


def call_of(shapes: Shapes) -> Call:
    """Returns the call that a checkpoint may be of."""
    activation = "glu" if "cnn.glu0.linear.weight" in shapes else "cg"
    options = without(dict(activation="cg"), activation=activation)
    call = read(shapes, _FDY_CNN, "fdy_cnn", **options)
    # Spectrograms have one channel, where images have three.
    found = dict(in_channels=3) | call.options
    return call._replace(options=without(dict(in_channels=1), **found))
