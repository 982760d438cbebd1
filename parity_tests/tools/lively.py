"""Runs whose network tells pictures apart, as one that was trained long would."""

from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dynconv_jax.weights import save_weights, torch_variables
from parity_tests.tools.runs import write_trained
from parity_tests.tools.trained import warmed
from train.data.dataset import Dataset


def write_lively(path: Path, **flags: Any) -> tuple[Dataset, nnx.Module]:
    """Writes a run, with kernels and statistics that matter; see `write_trained`."""
    dataset, model = write_trained(path, **flags)
    for key, variable in torch_variables(warmed(model)).items():
        value = variable.get_value()
        if value.ndim >= 4:  # a kernel, or a stack of them
            variable.set_value(value * np.float32(0.3 / value.std()))
        elif key.endswith("fc2.weight"):  # of a router
            variable.set_value(value * 20)
    save_weights(model, path / "model.safetensors")
    return dataset, model
