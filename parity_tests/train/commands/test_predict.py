"""`predict` tells the classes and the routing of image files."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dynconv_jax.diagnostics import capture_attention
from parity_tests.parity import TOLERANCES
from parity_tests.tools.runs import write_trained
from train.commands.predict import main
from train.data import presets
from train.errors import TrainError
from train.learning.augment import normalize

DEFAULT_NUMERICS = True


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    dataset, model = write_trained(path, num_experts=2)
    for index in range(2):
        picture = Image.fromarray(dataset.test.image(index).squeeze(-1))
        picture.save(path.parent / f"{index}.png")
    return path, dataset, model


@pytest.fixture(scope="module")
def expected(trained):
    _, dataset, model = trained
    evaluating = nnx.view(
        model, use_running_average=True, deterministic=True, raise_if_not_found=False
    )
    images = normalize(dataset.test.images[:2], dataset.mean, dataset.std)
    graphdef, state = nnx.split(evaluating)
    logits, attention = jax.jit(
        lambda state: capture_attention(nnx.merge(graphdef, state), images)
    )(state)
    return np.asarray(jax.nn.softmax(logits)), attention


def test_predictions_are_those_of_the_model(trained, expected, capsys):
    path, _, _ = trained
    probabilities, attention = expected
    main([str(path), *(str(path.parent / f"{i}.png") for i in range(2)), "--json"])
    predictions = json.loads(capsys.readouterr().out)
    tolerance = TOLERANCES["float32"].relative
    for row, prediction in enumerate(predictions):
        found = [each["probability"] for each in prediction["classes"]]
        names = [each["class"] for each in prediction["classes"]]
        order = np.argsort(-probabilities[row])[:5]
        assert names == [str(number) for number in order]
        np.testing.assert_allclose(found, probabilities[row][order], rtol=tolerance)
        for router, shares in prediction["attention"].items():
            np.testing.assert_allclose(shares, attention[router][row], rtol=tolerance)


def test_the_data_need_not_be_there(trained, monkeypatch, capsys):
    path, _, _ = trained
    monkeypatch.delattr(presets.digits, "load")
    main([str(path), str(path.parent / "0.png"), "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_unreadable_image_is_named(trained, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(TrainError, match=r"torn\.png cannot be read"):
        main([str(trained[0]), str(tmp_path / "torn.png")])


def test_run_without_images_is_refused(trained):
    with pytest.raises(TrainError, match="RUN IMAGE"):
        main([str(trained[0])])
