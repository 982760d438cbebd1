"""Evaluation: every image once, in order, and none that cannot be read."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from parity_tests.tools.runs import make_dataset
from train.data.dataset import ArraySource
from train.flags.config import Config
from train.learning.evaluation import Evaluation, evaluate
from train.machines import devices


def answer(state, images, labels, mask):
    """Predicts the class that the first pixel gives, with the loss that it gives."""
    first = images[:, 0, 0, 0].astype(jnp.float32)
    wins = jnp.array([mask.sum(), 0.0])
    by_class = jnp.zeros((4, 2)).at[labels].add(mask[:, None] * jnp.array([0.75, 0.25]))
    return {
        "loss": first,
        "prediction": first.astype(int) % 4,
        "confidence": first / 255,
        "attention": {"router": by_class},
        "entropy": {"router": 0.5 * mask.sum()},
        "wins": {"router": wins},
        "shares": {"router": mask.sum() * jnp.array([0.99, 0.01])},
        "peak": {"router": jnp.array([first[0] / 255, 0.01])},
        "least": {"router": jnp.array([first[0] / 255, 0.01])},
    }


class Torn(ArraySource):
    """Images of which the second cannot be read."""

    def gather(self, indices):
        images, _ = super().gather(indices)
        rows = {int(row): "torn" for row in np.flatnonzero(indices == 1)}
        return np.where((indices == 1)[:, None, None, None], 0, images), rows


def evaluate_images(source_type: type[ArraySource]) -> tuple[ArraySource, Evaluation]:
    dataset = make_dataset(classes=4, images=11)
    images, _ = dataset.test.gather(np.arange(11))
    source = source_type(images, dataset.test.labels)
    dataset = dataclasses.replace(dataset, test=source)
    config = Config(batch_size=4, on_bad_image="skip")
    return source, evaluate(answer, None, dataset, config, devices.make_mesh())


@pytest.fixture(scope="module")
def whole() -> tuple[ArraySource, Evaluation]:
    return evaluate_images(ArraySource)


def test_each_image_is_evaluated_once_and_in_order(whole):
    source, evaluation = whole
    first = source.images[:, 0, 0, 0]
    np.testing.assert_array_equal(evaluation.losses, first)
    np.testing.assert_array_equal(evaluation.predictions, first % 4)


def test_scores_are_means_over_the_images(whole):
    source, evaluation = whole
    first = source.images[:, 0, 0, 0]
    assert evaluation.scores() == {
        "test_loss": first.mean(),
        "test_accuracy": (first % 4 == source.labels).mean(),
    }


def test_confusion_counts_classes_by_predictions(whole):
    source, evaluation = whole
    first = source.images[:, 0, 0, 0] % 4
    expected = [
        [int(((source.labels == row) & (first == column)).sum()) for column in range(4)]
        for row in range(4)
    ]
    assert evaluation.confusion.tolist() == expected


def test_routing_is_averaged_over_images_and_classes(whole):
    _, evaluation = whole
    assert evaluation.attention["router"].tolist() == [[0.75, 0.25]] * 4
    assert evaluation.routing() == {
        "entropy": {"router": 0.5},
        "usage": {"router": [1.0, 0.0]},
        "shares": {"router": pytest.approx([0.99, 0.01])},
        "dead_experts": {"router": 1},
    }


def test_extremes_of_all_batches_are_kept(whole):
    source, evaluation = whole
    firsts = source.images[[0, 4, 8], 0, 0, 0] / 255
    assert evaluation.spread["router"] == pytest.approx(np.ptp(firsts))
    assert evaluation.dead["router"] == (1,)


def test_images_that_cannot_be_read_count_nowhere(capsys):
    source, evaluation = evaluate_images(Torn)
    first = np.delete(source.images[:, 0, 0, 0], 1)
    assert evaluation.loss == first.mean()
    assert evaluation.predictions[1] == -1
    assert evaluation.confusion.sum() == 10
    assert "torn" in capsys.readouterr().err
