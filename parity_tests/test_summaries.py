"""What is said of an attention: shares, entropies, collapse, dead experts."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from dynconv_jax import summarize, summarize_gates
from parity_tests.tolerances import assert_close
from parity_tests.tools.routed import bits


def test_mean_attention_is_the_average_over_samples():
    summary = summarize(np.array([[0.5, 0.25, 0.25], [0.0, 0.75, 0.25]]))
    assert summary.mean_attention.tolist() == [0.25, 0.5, 0.25]


def test_win_share_counts_the_samples_each_expert_leads():
    attention = [[0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.5, 0.1, 0.4], [0.8, 0.2, 0.0]]
    assert summarize(np.array(attention)).win_share.tolist() == [0.75, 0.25, 0.0]


def assert_entropies(attention, entropy, usage_entropy):
    summary = summarize(attention)
    assert_close(
        {"entropy": summary.entropy, "usage_entropy": summary.usage_entropy},
        {"entropy": entropy, "usage_entropy": usage_entropy},
        dtype="float64",
    )


def test_even_attention_has_both_entropies_at_log_k():
    assert_entropies(np.full((7, 4), 0.25), math.log(4), math.log(4))


def test_one_expert_a_sample_has_no_entropy_but_all_usage():
    assert_entropies(np.eye(3)[[0, 1, 2, 2, 1, 0]], 0.0, math.log(3))


def test_one_expert_for_all_samples_has_no_entropy_of_either_kind():
    assert_entropies(np.eye(3)[[1, 1, 1, 1]], 0.0, 0.0)


def test_entropy_is_the_mean_over_samples():
    expected = (math.log(2) + 0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / 2
    usage = 0.375 * math.log(8 / 3) + 0.625 * math.log(8 / 5)
    assert_entropies(np.array([[0.5, 0.5], [0.25, 0.75]]), expected, usage)


@pytest.mark.parametrize("share, collapsed", [(0.96, True), (0.94, False)])
def test_collapse_is_more_than_95_percent_for_one_expert(share, collapsed):
    rest = (1 - share) / 2
    assert summarize(np.array([[rest, share, rest]] * 5)).collapsed is collapsed


def test_95_percent_is_not_yet_collapsed():
    assert not summarize(np.array([[0.95, 0.05]])).collapsed


def test_collapse_is_judged_over_all_samples():
    assert not summarize(np.array([[1.0, 0.0], [0.0, 1.0]])).collapsed


def test_single_expert_is_never_collapsed():
    assert not summarize(np.ones((5, 1))).collapsed


@pytest.mark.parametrize(
    ("attention", "dead"),
    [
        ([[0.5, 0.5, 0.0, 0.0]], (2, 3)),
        ([[0.0, 0.99, 0.01, 0.0], [0.01, 0.0, 0.0, 0.99]], (0, 2)),
        ([[0.98, 0.0, 0.02, 0.0]], (1, 3)),  # 0.02 is more than a twentieth of 1/4
        ([[1.0, 0.0]] * 99 + [[0.0, 1.0]], ()),  # one of a hundred samples uses it
        ([[0.25] * 4], ()),
        ([[1.0], [1.0]], ()),
        ([[0.9, 0.002], [0.8, 0.003]], (1,)),  # of sigmoids
        ([[-0.5, 0.0, 0.5], [0.5, 0.0, -0.5]], (1,)),  # of a warehouse's cells
        ([[math.nan, 0.5], [0.5, 0.5]], ()),
    ],
)
def test_dead_experts_have_next_to_nothing_of_any_sample(attention, dead):
    assert summarize(np.array(attention)).dead_experts == dead


def test_spread_is_the_most_that_two_samples_differ_by():
    summary = summarize(np.array([[0.5, 0.5], [0.25, 0.75], [0.375, 0.625]]))
    assert summary.spread == 0.25
    assert summary.peak.tolist() == [0.5, 0.75]
    assert summarize(np.array([[0.9, 0.1]] * 3)).spread == 0


def test_mean_attention_of_sigmoids_is_as_answered():
    summary = summarize(np.array([[0.9, 0.3], [0.7, 0.7]]))
    assert_close(
        {"mean": summary.mean_attention, "share": summary.share},
        {"mean": [0.8, 0.5], "share": [0.625, 0.375]},
        dtype="float64",
    )


def test_entropies_of_sigmoids_do_not_depend_on_their_scale():
    even = 0.5 * (math.log(2) + 0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    usage = 0.375 * math.log(8 / 3) + 0.625 * math.log(8 / 5)
    assert_entropies(np.array([[0.9, 0.9], [0.1, 0.3]]), even, usage)


def test_collapse_of_sigmoids_is_judged_by_their_shares():
    assert not summarize(np.array([[0.97, 0.96]])).collapsed
    assert summarize(np.array([[0.5, 0.01]])).collapsed


def test_attention_of_zeros_counts_as_even():
    assert_entropies(np.zeros((3, 4)), math.log(4), math.log(4))


def test_nan_is_seen_in_a_summary():
    assert math.isnan(summarize(np.array([[math.nan, 0.5], [0.1, 0.9]])).entropy)


def test_summary_of_a_jax_array_is_that_of_its_values(rng):
    attention = rng.dirichlet(np.ones(4), size=9)
    ours, theirs = summarize(jnp.asarray(attention)), summarize(attention)
    assert bits(vars(ours)) == bits(vars(theirs))


def test_gates_that_treat_all_samples_alike_do_not_vary():
    summary = summarize_gates(np.array([[0.5, 2.0], [0.5, 2.0]]))
    assert summary.variation == 0
    np.testing.assert_array_equal(summary.mean, [0.5, 2.0])


def test_gates_vary_by_their_deviation_as_a_share_of_their_size():
    summary = summarize_gates(np.array([[0.5, 1.0], [1.5, 1.0]]))
    assert summary.variation == 0.25
