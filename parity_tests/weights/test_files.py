"""Weights in files: the same bits, never half a file, and refusals by path."""

import errno
import functools
import os
import pickle
import re
import stat
import sys
import tarfile
import warnings
from pathlib import PurePosixPath

import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

from dynconv_jax import (
    load_torch_state_dict,
    load_weights,
    save_weights,
    to_torch_state_dict,
)
from dynconv_jax.weights.files import read_weights
from dynconv_torch.weights.files import read_weights as read_by_torch
from parity_tests.parity import torch_state
from parity_tests.tools.jax_modules import build
from parity_tests.tools.modules import (
    DTYPES,
    TwoLayers,
    bits,
    jax_block,
    jax_conv,
    module_bits,
    randomise,
    torch_block,
    torch_copy,
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_file_of_jax_opens_in_torch(dtype, rng, tmp_path):
    expected = torch_state(randomise(torch_block(dtype), rng))
    module, twin = jax_block(dtype), torch_block(dtype)
    load_torch_state_dict(module, expected)
    save_weights(module, tmp_path / "block.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "block.safetensors")
    twin.load_state_dict(tensors, strict=True)
    assert bits(torch_state(twin)) == bits(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_file_of_torch_opens_in_jax(dtype, rng, tmp_path):
    torch_module = randomise(torch_block(dtype), rng)
    safetensors.torch.save_file(
        torch_module.state_dict(), tmp_path / "block.safetensors"
    )
    module = jax_block(dtype)
    load_weights(module, tmp_path / "block.safetensors")
    actual = torch_copy(to_torch_state_dict(module), torch_block(dtype))
    assert bits(actual) == bits(torch_state(torch_module))


@pytest.mark.parametrize("dtype", DTYPES)
def test_file_of_jax_opens_in_jax(dtype, tmp_path):
    block, twin = jax_block(dtype, seed=1), jax_block(dtype)
    save_weights(block, str(tmp_path / "block.safetensors"))
    load_weights(twin, str(tmp_path / "block.safetensors"))
    assert module_bits(twin) == module_bits(block)


def test_shared_router_survives_a_file(tmp_path):
    module, twin = build(TwoLayers, seed=1), build(TwoLayers, seed=0)
    save_weights(module, tmp_path / "layers.safetensors")
    load_weights(twin, tmp_path / "layers.safetensors")
    assert module_bits(twin) == module_bits(module)


def file_refusal(module, path, error: type[Exception] = ValueError):
    """Returns the message of the refusal, and asserts that nothing was loaded."""
    before = module_bits(module)
    with pytest.raises(error) as caught:
        load_weights(module, path)
    assert module_bits(module) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.5, 0.999])
def test_truncated_file_is_refused(kept, tmp_path):
    path = tmp_path / "block.safetensors"
    save_weights(jax_block(seed=1), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "is truncated" in file_refusal(jax_block(), path)


# Files of `torch.save`.

TORCH_FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


@pytest.mark.parametrize("name", ["block.pth", "block.pt", "block.bin", "safetensors"])
@pytest.mark.parametrize("format", TORCH_FORMATS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_file_of_torch_save_opens_in_jax(name, format, dtype, rng, tmp_path):
    torch_module = randomise(torch_block(dtype), rng)
    torch.save(torch_module.state_dict(), tmp_path / name, **TORCH_FORMATS[format])
    module = jax_block(dtype)
    load_weights(module, tmp_path / name)
    actual = torch_copy(to_torch_state_dict(module), torch_block(dtype))
    assert bits(actual) == bits(torch_state(torch_module))


def test_safetensors_under_a_name_of_torch_opens(tmp_path):
    block, twin = jax_block(seed=1), jax_block()
    save_weights(block, tmp_path / "block.pth")
    load_weights(twin, tmp_path / "block.pth")
    assert module_bits(twin) == module_bits(block)


def test_checkpoint_of_a_training_script_opens_aloud(rng, tmp_path):
    torch_module = randomise(torch_block(), rng)
    wrapped = torch.nn.DataParallel(torch_module)
    optimizer = torch.optim.AdamW(torch_module.parameters())
    checkpoint = {
        "epoch": 3,
        "state_dict": wrapped.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, tmp_path / "last.pth")
    module = jax_block()
    with pytest.warns(UserWarning) as caught:
        load_weights(module, tmp_path / "last.pth")
    assert [each.filename for each in caught] == [__file__] * 2
    assert "'state_dict'" in str(caught[0].message)
    assert "'module.'" in str(caught[1].message)
    assert bits(to_torch_state_dict(module)) == bits(torch_state(torch_module))


@pytest.mark.parametrize("format", TORCH_FORMATS)
def test_file_of_torch_save_needs_pytorch(format, tmp_path, monkeypatch):
    path = tmp_path / "block.pt"
    torch.save(torch_block().state_dict(), path, **TORCH_FORMATS[format])
    monkeypatch.setitem(sys.modules, "torch", None)
    message = file_refusal(jax_block(), path)
    assert "needs PyTorch, which is not installed" in message
    assert "pip install 'dynconv[torch]'" in message
    assert "safetensors.torch.save_file(torch.load(path" in message


@pytest.mark.parametrize("name", ["block.safetensors", "block.pth"])
def test_part_of_a_file_can_be_ignored(name, rng, tmp_path):
    source, module = randomise(torch_block("float32"), rng), jax_block("float32")
    save = torch.save if name.endswith("pth") else safetensors.torch.save_file
    save(source.state_dict(), tmp_path / name)
    bias = to_torch_state_dict(module)["bn.bias"]
    load_weights(module, tmp_path / name, ignore=("bn.bias",))
    expected = {**torch_state(source), "bn.bias": bias}
    assert bits(to_torch_state_dict(module)) == bits(expected)
    with pytest.raises(ValueError, match=r"`path` .*`ignore` \(='fc'\) names nothing"):
        load_weights(module, tmp_path / name, ignore=("fc",))
    with pytest.raises(TypeError, match="^`ignore`"):
        load_weights(module, tmp_path / name, ignore="bn")


class Malicious:
    """Runs a program when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (torch.save, "holds more than tensors, such as `posix.mkdir`"),
        (
            functools.partial(torch.save, **TORCH_FORMATS["legacy"]),
            "holds more than tensors, such as `posix.mkdir`",
        ),
        (save_pickle, "a pickle that is not of `torch.save`"),
    ],
    ids=["zip", "legacy", "pickle"],
)
def test_program_in_a_file_is_refused_and_not_run(save, words, tmp_path):
    path, mark = tmp_path / "weights.pth", tmp_path / "was_run"
    save({"weight": Malicious(mark)}, path)
    message = file_refusal(jax_block(), path)
    assert not mark.exists()
    assert words in message
    assert "weights_only" not in message and "\n" not in message


def test_checkpoint_with_an_object_is_refused_by_its_class(tmp_path):
    path = tmp_path / "last.pth"
    torch.save({"model": {}, "path": PurePosixPath("runs")}, path)
    assert "such as `pathlib.PurePosixPath`" in file_refusal(jax_block(), path)


def test_module_that_was_saved_whole_is_refused_by_its_class(tmp_path):
    path = tmp_path / "whole.pth"
    torch.save(torch.nn.Linear(2, 3), path)
    message = file_refusal(jax_block(), path)
    assert "such as `torch.nn.modules.linear.Linear`" in message


def test_a_changed_bit_of_a_file_of_torch_save_is_found(tmp_path):
    path = tmp_path / "block.pth"
    state = {"weight": torch.arange(4096.0), "bias": torch.ones(3)}
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    place = content.index(state["weight"].numpy().tobytes()[400:440])
    content[place] ^= 1
    path.write_bytes(content)
    for read in (read_weights, read_by_torch):
        with pytest.raises(ValueError, match="damaged, in block/data/0: Bad CRC-32"):
            read(path)


def test_a_file_without_checksums_is_read(tmp_path):
    path = tmp_path / "block.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"bias": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    for state in (read_weights(path)[0], read_by_torch(path)):
        assert [*state] == ["bias"]


@pytest.mark.parametrize("format", TORCH_FORMATS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_file_of_torch_save_is_refused(format, kept, tmp_path):
    path = tmp_path / "block.pth"
    torch.save(torch_block().state_dict(), path, **TORCH_FORMATS[format])
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    message = file_refusal(jax_block(), path)
    assert "truncated" in message or "damaged" in message
    assert "\n" not in message


def write_npz(path):
    with path.open("wb") as file:
        np.savez(file, weight=np.ones(3))


def write_script(path):
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # PyTorch's own
            warnings.simplefilter("ignore", category)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)


def write_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_npz, "zip archive that `torch.save` did not write"),
        (write_script, "TorchScript program"),
        (write_tar, "not of `torch.save`"),
        (functools.partial(save_pickle, [1, 2]), "not of `torch.save`"),
        (functools.partial(torch.save, torch.ones(3)), "not a Tensor"),
        (functools.partial(torch.save, {0: torch.ones(3)}), "0 is no such key"),
    ],
)
def test_file_of_another_kind_is_refused_by_what_it_is(write, words, tmp_path):
    path = tmp_path / "weights.pth"
    write(path)
    message = file_refusal(jax_block(), path)
    assert re.search(words, message) and "\n" not in message


def test_module_that_is_none_is_no_fault_of_the_file(tmp_path):
    torch.save(torch_block().state_dict(), tmp_path / "block.pth")
    with pytest.raises(TypeError, match="^`module` must be an `nnx.Module`"):
        load_weights(nnx.Linear, tmp_path / "block.pth")  # pyright: ignore


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (None, "`path` .a NoneType. must be a path"),
        ({"weight": np.ones(3)}, "`path` .a dict.*`load_torch_state_dict`"),
        (nnx.Dropout(0.5), "`path` .a Dropout.*`load_weights.module, path.`"),
    ],
)
def test_path_that_is_none_is_refused(path, words):
    with pytest.raises(TypeError, match=words):
        load_weights(jax_conv(2), path)


def test_file_of_a_jax_module_has_its_defaults_in_silence(tmp_path):
    """Of PyTorch's it is told that `epsilon` may differ; of one's own it does not."""
    norm, path = nnx.LayerNorm(4, rngs=nnx.Rngs(0)), tmp_path / "norm"
    save_weights(norm, path)
    load_weights(norm, path)
    safetensors.torch.save_file(torch.nn.LayerNorm(4).state_dict(), path)
    with pytest.warns(UserWarning, match="epsilon=1e-5"):
        load_weights(norm, path)


def test_text_file_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no weights in here")
    assert "no safetensors file" in file_refusal(jax_block(), path)


def test_file_of_a_dtype_unknown_to_numpy_is_refused(tmp_path):
    path = tmp_path / "narrow.safetensors"
    narrow = torch.ones(3).to(torch.float8_e5m2)
    safetensors.torch.save_file({"weight": narrow}, path)
    assert "dtype" in file_refusal(jax_block(), path)


def test_missing_file_is_refused(tmp_path):
    file_refusal(jax_block(), tmp_path / "none.safetensors", FileNotFoundError)


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    file_refusal(jax_block(), tmp_path, IsADirectoryError)


def test_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe'.: the file is no regular one; copy"):
        load_weights(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), tmp_path / "pipe")


def test_file_that_does_not_fit_is_refused_by_path_and_key(tmp_path):
    path = tmp_path / "layer.safetensors"
    save_weights(jax_conv(2), path)
    message = file_refusal(jax_block(), path)
    assert "missing key: dyn.weight" in message
    assert "unexpected key: fc1.weight" in message


def raise_no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_failed_save_keeps_the_old_file_and_leaves_no_other(
    function, tmp_path, monkeypatch
):
    path = tmp_path / "block.safetensors"
    save_weights(jax_block(), path)
    content = path.read_bytes()
    monkeypatch.setattr(os, function, raise_no_space)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        save_weights(jax_block(seed=1), path)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [path.name]


def test_save_replaces_an_existing_file(tmp_path):
    path = tmp_path / "block.safetensors"
    block, twin = jax_block(seed=1), jax_block()
    save_weights(twin, path)
    save_weights(block, path)
    load_weights(twin, path)
    assert module_bits(twin) == module_bits(block)
    assert os.listdir(tmp_path) == [path.name]


def test_save_into_an_unwritable_folder_leaves_nothing(tmp_path, monkeypatch):
    def refuse(path, *_):  # permissions would not stop root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(PermissionError, match=str(tmp_path)):
            save_weights(jax_block(), tmp_path / "block.safetensors")
    assert os.listdir(tmp_path) == []


def test_save_into_a_missing_folder_leaves_nothing(tmp_path):
    folder = tmp_path / "none"
    with pytest.raises(FileNotFoundError, match=str(folder)):
        save_weights(jax_block(), folder / "block.safetensors")
    assert os.listdir(tmp_path) == []


def test_save_over_a_folder_leaves_nothing(tmp_path):
    folder = tmp_path / "block.safetensors"
    folder.mkdir()
    with pytest.raises(IsADirectoryError, match=str(folder)):
        save_weights(jax_block(), folder)
    assert os.listdir(tmp_path) == [folder.name]
    assert os.listdir(folder) == []


def test_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    save_weights(jax_block(), tmp_path / "block.safetensors")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1
