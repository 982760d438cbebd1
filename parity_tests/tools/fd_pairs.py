"""Layers of FDConv in both frameworks, whose gates are lively."""

from typing import Any

import torch

import dynconv_torch
from dynconv_jax import FDConv
from parity_tests.tools.modules import jax_twin

FEW: dict[str, Any] = {"min_channels": 2, "num_experts": 5}


def torch_layer(channels, outputs, kernel_size, dtype=torch.float64, **options):
    """A layer of PyTorch whose gates are not those of the beginning."""
    options = {**FEW, **options}
    layer = dynconv_torch.FDConv2d(channels, outputs, kernel_size, **options).to(dtype)
    for name, parameter in layer.named_parameters():
        if "dft" not in name and name != "weight":
            torch.nn.init.normal_(parameter, std=0.5)
    return layer


def layers(channels, outputs, kernel_size, dtype="float64", **options):
    """The same layer in both frameworks, with the same parameters."""
    options = {**FEW, **options}
    width = getattr(torch, dtype)
    theirs = torch_layer(channels, outputs, kernel_size, width, **options)
    arguments = (channels, outputs, kernel_size)
    return jax_twin(theirs, FDConv, *arguments, dtype, **options), theirs


# name: (shape of the inputs, outputs, kernel, options)
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "fewer samples than bands": ((2, 9, 6, 5), 4, (3, 3), dict(padding=1, bias=True)),
    "more samples": ((4, 5, 8, 3), 6, (3, 3), dict(padding=1, num_spectra=1)),
    "spectra": ((3, 5, 6, 3), 4, (3, 3), dict(num_experts=2, num_spectra=2)),
    "strided, dilated": ((2, 9, 8, 4), 3, (3, 3), dict(stride=2, dilation=2)),
    "grouped": ((2, 6, 7, 6), 4, (3, 3), dict(groups=2, padding=1)),
    "depthwise": ((2, 6, 7, 4), 4, (3, 3), dict(groups=4, padding=1)),
    "stretched": ((2, 9, 6, 5), 4, (3, 3), dict(padding=1, low_pass="stretched")),
    "one-sided": ((2, 6, 9, 5), 4, (3, 3), dict(padding=1, low_pass="one_sided")),
    "pointwise": ((3, 5, 4, 5), 6, (1, 1), dict(kernel_temperature=3.0)),
    "one band": ((2, 5, 6, 3), 4, (3, 3), dict(num_experts=1)),
    "plain": ((2, 5, 6, 3), 4, (3, 3), dict(min_channels=4, bias=True)),
    "plain window": ((2, 5, 6, 3), 4, (3, 1), dict(padding=1)),
    "batch 1, layer norm": ((1, 5, 6, 3), 4, (3, 3), dict(padding=1, norm="layer")),
    "batch 1, no norm": ((1, 5, 6, 3), 4, (1, 1), dict(norm="none")),
}
