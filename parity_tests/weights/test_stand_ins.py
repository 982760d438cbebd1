"""What scripts save beside weights does not keep the weights from being read."""

import argparse
import os

import numpy as np
import pytest
import torch

import dynconv_jax.weights.files
import dynconv_torch.weights.files
from dynconv_jax.weights import stand_ins
from dynconv_torch.weights import stand_ins as torch_stand_ins

READERS = {
    "jax": lambda path: dynconv_jax.weights.files.read_weights(path)[0],
    "torch": dynconv_torch.weights.files.read_weights,
}
READER = pytest.mark.parametrize("reader", READERS)
LEGACY = {"_use_new_zipfile_serialization": False}


def as_numpy_1(content: bytes) -> bytes:
    """A file of the older format, with the name that NumPy 1 had for its function."""
    renamed = content.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    assert renamed != content
    return renamed


@READER
@pytest.mark.parametrize(
    ("format", "rewrite"),
    [({}, bytes), (LEGACY, bytes), (LEGACY, as_numpy_1)],
    ids=["zip", "legacy", "numpy 1"],
)
def test_weights_are_read_past_arguments_and_numbers_of_numpy(
    reader, format, rewrite, tmp_path
):
    """As ConvNeXt's script writes them, and KernelWarehouse's, which is made of it."""
    path = tmp_path / "checkpoint-best.pth"
    group = {"lr": np.float64(0.1), "steps": np.int64(3), "decay": np.float32(0.5)}
    checkpoint = {
        "model": {"weight": torch.arange(3.0)},
        "optimizer": {"param_groups": [group]},
        "args": argparse.Namespace(lr=0.1, opt_betas=None, sharing=["layer"]),
    }
    torch.save(checkpoint, path, **format)
    path.write_bytes(rewrite(path.read_bytes()))
    allowed = torch.serialization.get_safe_globals()
    read = READERS[reader](path)
    assert torch.equal(read["model"]["weight"], torch.arange(3.0))
    assert type(read["args"]).__name__ == "StandIn" and not vars(read["args"])
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


class Named(argparse.Namespace):
    """Of another name than what is passed over."""


@READER
@pytest.mark.parametrize("beside", [Named(lr=0.1), os.getcwd, np.ones(2)])
def test_what_is_not_known_to_be_harmless_is_refused(reader, beside, tmp_path):
    torch.save({"model": {}, "beside": beside}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        READERS[reader](tmp_path / "net.pth")


@READER
def test_a_number_of_numpy_among_the_weights_is_no_array(reader, tmp_path):
    torch.save({"weight": np.float64(1)}, tmp_path / "net.pth")
    assert not hasattr(READERS[reader](tmp_path / "net.pth")["weight"], "shape")


def test_both_packages_pass_over_the_same():
    ours, theirs = stand_ins.stand_ins(), torch_stand_ins.stand_ins()
    assert [name for _, name in ours] == [name for _, name in theirs]
