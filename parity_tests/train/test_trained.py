"""The network of a run, loaded into a program of one's own."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from parity_tests.tolerances import TOLERANCES
from parity_tests.tools.runs import write_trained
from train.errors import TrainError
from train.trained import load_run

DEFAULT_NUMERICS = True


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    given = {"mean": (0.25,), "std": (0.5,)}
    return path, *write_trained(path, conv="static", batch_size=64, **given)


def test_run_gives_network_classes_and_preprocessing(trained):
    path, dataset, model = trained
    run = load_run(str(path))
    assert run.class_names == dataset.class_names
    images = dataset.test.images[:3]
    pixels = images.astype(np.float32) / 255
    inputs = run.preprocess(images)
    tolerance = TOLERANCES["float32"].relative
    np.testing.assert_allclose(
        inputs, (pixels - 0.25) / 0.5, rtol=tolerance, atol=tolerance
    )
    expected = nnx.view(model, use_running_average=True)(inputs)
    np.testing.assert_array_equal(run.model(inputs), expected)


def test_pictures_are_read_as_in_evaluation(trained, tmp_path):
    path = shutil.copytree(trained[0], tmp_path / "run")
    told = json.loads((path / "domain.json").read_text())
    (path / "domain.json").write_text(json.dumps(told | {"crop_pct": 0.5}))
    pixels = np.pad(trained[1].test.image(0)[..., 0], 4)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    run = load_run(path)
    images = run.read_pictures([tmp_path / "0.png", str(tmp_path / "0.png")])
    np.testing.assert_array_equal(images, trained[1].test.images[[0, 0]])
    assert run.read_pictures([]).shape == (0, 8, 8, 1)
    with pytest.raises(TrainError, match=r"1\.png cannot be read as an image"):
        run.read_pictures([tmp_path / "1.png"])


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 1), np.float32),
    ],
)
def test_images_of_another_shape_or_dtype_are_refused(trained, images):
    run = load_run(trained[0])
    with pytest.raises(TrainError, match=r"`images` .* must be \(batch, 8, 8, 1\)"):
        run.preprocess(jnp.asarray(images))


def test_weights_that_are_not_there_are_refused(trained):
    with pytest.raises(TrainError, match=r"--weights \(=ema\) must be there"):
        load_run(trained[0], "ema")
