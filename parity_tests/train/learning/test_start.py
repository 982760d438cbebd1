"""Where a model starts: weights of other classes, and what is said of them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx

from dynconv_jax import to_torch_state_dict
from train.errors import TrainError
from train.flags.config import Config
from train.learning.fine_tuning import described
from train.learning.model import create

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

SMALL: dict[str, Any] = dict(model_options=("width_mult=0.25",))
HEAD = {"fc.weight", "fc.bias"}


def make(classes: int, seed: int = 0, **flags: Any) -> nnx.Module:
    return create(Config(**SMALL, **flags), classes, 1, nnx.Rngs(seed))


@pytest.fixture(scope="module")
def trained() -> dict[str, dict[str, np.ndarray]]:
    """State dicts of seven classes, of a static and of a dynamic model."""
    return {
        conv: to_torch_state_dict(make(7, seed=3, conv=conv))
        for conv in ("static", "dynamic")
    }


@pytest.fixture(scope="module")
def fresh() -> dict[str, np.ndarray]:
    """A dynamic model of five classes as it is drawn."""
    return to_torch_state_dict(make(5))


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, path)
    else:
        torch.save({key: torch.from_numpy(arrays[key]) for key in arrays}, path)
    return path


def refusal(path: Path, **flags: Any) -> str:
    with pytest.raises(TrainError) as caught:
        make(5, init_from=path, **flags)
    message = str(caught.value)
    assert message.startswith(f"--init-from (={path}) ")
    assert "\n" not in message
    return message


# A new head


@pytest.mark.parametrize("name", ["r.pth", "r.pt", "r.safetensors"])
def test_head_of_other_classes_is_drawn_anew_and_all_else_loaded(
    name, trained, fresh, tmp_path
):
    path = write(tmp_path / name, trained["dynamic"])
    flags: dict[str, Any] = dict(init_from=path, new_head=True)
    model = make(5, **flags)
    for key, value in to_torch_state_dict(model).items():
        expected = fresh if key in HEAD else trained["dynamic"]
        np.testing.assert_array_equal(value, expected[key])
    (line,) = described(model, Config(**SMALL, **flags))
    assert line == "the head (fc.weight, fc.bias) is drawn anew, by --new-head"


def test_dynamic_model_starts_from_a_static_one_of_other_classes(
    trained, fresh, tmp_path
):
    path = write(tmp_path / "r.pth", trained["static"])
    started = to_torch_state_dict(make(5, init_from=path, new_head=True))
    for key in HEAD:
        np.testing.assert_array_equal(started[key], fresh[key])
    kernel = trained["static"]["stage2.dyn.weight"]
    assert all((expert == kernel).all() for expert in started["stage2.dyn.weight"])


def test_head_that_fits_is_said_to_and_drawn_anew_all_the_same(
    trained, fresh, tmp_path, capsys
):
    path = write(tmp_path / "r.safetensors", make_fitting(trained, fresh))
    started = to_torch_state_dict(make(5, init_from=path, new_head=True))
    told = capsys.readouterr().err
    assert f"the head (fc) of --init-from (={path}) fits as it is, and is" in told
    np.testing.assert_array_equal(started["fc.weight"], fresh["fc.weight"])
    started = to_torch_state_dict(make(5, init_from=path))
    assert "the head" not in capsys.readouterr().err
    assert (started["fc.weight"] == 0.5).all()


def make_fitting(trained, fresh) -> dict[str, np.ndarray]:
    head = {key: np.full_like(fresh[key], 0.5) for key in HEAD}
    return trained["dynamic"] | head


@pytest.mark.parametrize("conv", ["static", "dynamic"])
def test_head_of_other_classes_is_refused_without_the_flag(conv, trained, tmp_path):
    message = refusal(write(tmp_path / "r.pth", trained[conv]))
    for words in (
        "has another head than --model dynamic_net for these images",
        "(wrong shape: fc.weight has (7, 64), the module (5, 64))",
        "--new-head draws it anew",
    ):
        assert words in message


def test_weights_without_a_head_are_refused_without_the_flag(trained, tmp_path):
    backbone = {k: v for k, v in trained["static"].items() if k not in HEAD}
    path = write(tmp_path / "backbone.safetensors", backbone)
    message = refusal(path)
    assert "missing key: fc.weight" in message and "--new-head draws" in message
    make(5, init_from=path, new_head=True)


@pytest.mark.parametrize("conv", ["static", "dynamic"])
def test_all_but_the_head_is_as_strict_as_ever(conv, trained, tmp_path):
    arrays = dict(trained[conv])
    del arrays["stem.0.weight"]
    path = write(tmp_path / "r.safetensors", arrays)
    for flags in ({}, {"new_head": True}):
        message = refusal(path, **flags)
        # It is told against the model that it is nearest to.
        assert "missing key: stem.0.weight" in message
        assert "stage1.dyn" not in message
        assert "--new-head" not in message


# Files that hold no weights


@pytest.mark.parametrize("conv", ["static", "dynamic"])
def test_weights_that_are_no_numbers_are_refused_by_key(conv, trained, tmp_path):
    bias = np.full_like(trained[conv]["stage2.bn.bias"], np.inf)
    arrays = {**trained[conv], "stage2.bn.bias": bias}
    path = write(tmp_path / "w.safetensors", arrays)
    message = refusal(path, new_head=True)
    assert "holds what is no finite number in stage2.bn.bias" in message


def test_file_that_holds_no_state_dict_is_refused(tmp_path):
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(3)], path)
    assert "cannot be loaded: `state_dict` must be a dict" in refusal(path)


def test_file_of_torch_without_pytorch_says_what_to_install(
    trained, tmp_path, monkeypatch
):
    path = write(tmp_path / "r.pth", trained["dynamic"])
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refusal(path, new_head=True)
    assert "cannot be loaded: the file is of `torch.save`" in message
    assert "pip install 'dynconv[torch]'" in message
