"""The names of all models, for tests of each: those built as another one are slow."""

import pytest

from dynconv_jax import list_models
from dynconv_jax.models.published import PUBLISHED

# Of published networks, those with a head or a layout of their own.
QUICK = "dcd_resnet18", "dcd_mobilenet_v2"
# Larger ones of a kind, and what is built twice.
LARGE = "resnet101", "dymn10", "dymn20", "mobilenet_v3_large"
BUILT_TWICE = "kw_convnext_tiny", "kw_mobilenet_v2", "kw_resnet50"
SLOW = {*LARGE, *BUILT_TWICE, *PUBLISHED} - {*QUICK}


def marked(name: str, *values: object) -> object:
    """Returns a case of a test, slow if its model is."""
    marks = [pytest.mark.slow] if name in SLOW else []
    return pytest.param(name, *values, marks=marks)


# One of each architecture: the others are deeper, or have other settings.
ARCHITECTURES = (
    "dynamic_net",
    "dymn04",
    "efficientnet_cc_b0_4e",
    "fdy_cnn",
    "kw_convnext_tiny",
    "kw_mobilenet_v2",
    "kw_resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnet18",
    "resnet50",
    "tf_efficientnet_cc_b0_4e",
)

# Others are deeper, or have other settings.
KINDS = *ARCHITECTURES, *QUICK

NAMES = [marked(name) for name in list_models()]
