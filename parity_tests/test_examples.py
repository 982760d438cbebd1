"""The examples: each runs as a program, and says what it promises."""

import contextlib
import io
import re
import runpy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401, since an example that runs here needs it

from parity_tests.tolerances import TOLERANCES, assert_close
from parity_tests.tools.checkout import ROOT

DEFAULT_NUMERICS = True

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def run_example(name: str, *arguments: str) -> str:
    """Runs an example as a program, in this process, and returns what it prints."""
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as said:
        patch.setattr(sys, "argv", [name, *arguments])
        with contextlib.redirect_stdout(said):
            runpy.run_module(f"examples.{name}", run_name="__main__")
        return said.getvalue()


def run_apart(name: str, *arguments: str) -> str:
    """Runs an example in a process of its own, and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figure(pattern: str, text: str) -> float:
    """Returns the number that a pattern finds in a text."""
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


@pytest.mark.slow
def test_a_swapped_network_starts_as_accurate_as_the_static_one():
    said = run_example("swap_layer", "--steps", "20")
    before = figure(r"static: .* accuracy (\S+)", said)
    assert before > 0.5
    # The noise on the experts may turn an image or two.
    assert figure(r"swapped: .* accuracy (\S+)", said) == pytest.approx(
        before, abs=0.02
    )
    assert figure(r"two experts of the last layer: (\S+)", said) < 1


def test_a_ported_checkpoint_predicts_alike_and_comes_back(tmp_path):
    said = run_example("port_checkpoint", "--folder", str(tmp_path))
    assert (
        figure(r"largest relative difference (\S+)", said)
        < TOLERANCES["float32"].relative
    )
    assert "predictions agree: True" in said
    assert "bit for bit the same: True" in said
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.pth",
        "back.safetensors",
    }


@pytest.mark.slow
def test_eight_devices_train_as_one_does():
    said = run_apart("eight_devices", "--steps", "4", "--batch", "16")
    assert "8 devices, exchanges in a step: {'all-reduce':" in said
    assert "all-gather" not in said
    assert figure(r"apart by (\S+)", said) < TOLERANCES["curve"].relative


@pytest.mark.slow
def test_routers_are_watched_while_the_temperature_falls(tmp_path):
    picture = tmp_path / "routers.png"
    said = run_example("watch_routers", "--steps", "6", "--picture", str(picture))
    temperatures = [float(each) for each in re.findall(r"T (\S+)", said)]
    assert temperatures[0] == 30 and temperatures[-1] == 0.03
    assert temperatures == sorted(temperatures, reverse=True)
    # At 30 the attention is all but even.
    assert figure(r"stage1: entropy (\S+)", said) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_exported_network_answers_any_batch(tmp_path):
    file = tmp_path / "net.stablehlo"
    said = run_example("export_model", "--file", str(file))
    assert "for cpu, cuda, tpu" in said
    apart = re.findall(r"batch (\d): .* apart by (\S+)", said)
    assert [batch for batch, _ in apart] == ["1", "3", "7"]
    assert all(float(each) < TOLERANCES["float32"].relative for _, each in apart)


@pytest.mark.slow
def test_eight_seeds_are_trained_by_one_step():
    said = run_example("ensemble", "--steps", "40")
    each = [float(x) for x in re.findall(r" (0\.\d+)", said.splitlines()[0])]
    assert len(each) == len(set(each)) == 8 and min(each) > 0.5
    assert figure(r"of their mean: (\S+)", said) > np.mean(each)


@pytest.mark.slow
def test_gradients_of_examples_are_clipped_and_made_private():
    said = run_example("dp_sgd", "--steps", "40")
    assert figure(r"norms of the gradients of examples: (\S+)", said) > 1
    with_noise = figure(r"clipped to 1, with noise: accuracy (\S+)", said)
    assert 0.4 < with_noise < figure(r"without privacy: accuracy (\S+)", said)


@pytest.mark.slow
def test_a_hypernetwork_learns_the_kernels_behind_the_pictures():
    said = run_example("hypernetwork")
    off = figure(r"kernels are off by ([\d.]+)", said)
    assert off < figure(r"one for all would be by ([\d.]+)", said)


@pytest.mark.slow
def test_where_kernels_start_is_learned():
    said = run_example("maml", "--steps", "15")
    before, after = (float(x) for x in re.findall(r"after one step (\S+)", said))
    assert after > before + 0.2


@pytest.mark.slow
def test_sounds_are_tagged():
    said = run_example("audio_tagging", "--steps", "40")
    before, after = (figure(rf"{name}.*: (\S+) of the", said) for name in WHEN)
    assert after > max(before, 0.7)
    assert figure(r"temperature at the end: (\S+)", said) == 1


WHEN = "before", "after"


def test_log_mel_is_that_of_the_authors(rng):
    from examples.audio_tagging import log_mel, mel_filters

    waves = rng.uniform(-1, 1, size=(2, 4000))
    x = torch.from_numpy(waves)
    x = torch.nn.functional.conv1d(x[:, None], torch.tensor([[[-0.97, 1.0]]]).to(x))
    window = torch.hann_window(800, periodic=False, dtype=x.dtype)
    options: Any = dict(hop_length=320, win_length=800, return_complex=True)
    spectrum = torch.stft(x[:, 0], 1024, window=window, **options)
    # Triangles with corners that lie evenly on the mel scale, a bin at a time.
    filters = np.zeros((128, 513))
    for band in range(128):
        step = 1127 * np.log(1 + 15_000 / 700) / 129
        low, mid, high = step * band, step * (band + 1), step * (band + 2)
        for index in range(512):
            mel = 1127 * np.log(1 + index * 31.25 / 700)
            slope = (mel - low) / (mid - low), (high - mel) / (high - mid)
            filters[band, index] = max(0, min(slope))
    assert_close({"": mel_filters()}, {"": filters}, dtype="float64")
    power = torch.from_numpy(filters) @ spectrum.abs() ** 2
    expected = ((power + 1e-5).log() + 4.5) / 5
    found = log_mel(waves)
    assert found.shape == (2, 128, 13, 1)
    named = {"": expected.numpy().astype("float32")[..., None]}
    assert_close({"": found}, named, dtype="float32")


def test_each_example_is_tested_and_short():
    source = (ROOT / "parity_tests/test_examples.py").read_text()
    for name in EXAMPLES:
        assert re.search(rf'run_(example|apart)\("{name}"', source), name
        assert len((ROOT / f"examples/{name}.py").read_text().splitlines()) <= 120, name
