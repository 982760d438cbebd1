"""Weights in files: the same bits, never half a file, and refusals by path."""

import errno
import os
import stat

import pytest
import safetensors.torch
import torch

from dynconv_jax import (
    load_torch_state_dict,
    load_weights,
    save_weights,
    to_torch_state_dict,
)
from parity_tests.parity import torch_state
from parity_tests.tools.modules import (
    DTYPES,
    TwoLayers,
    bits,
    build,
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


def test_file_of_torch_save_is_refused(tmp_path):
    path = tmp_path / "block.pt"
    torch.save(torch_block().state_dict(), path)
    assert "no safetensors file" in file_refusal(jax_block(), path)


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
