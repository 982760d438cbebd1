"""BatchNorm: PyTorch's running statistics, kept by flax's layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dynconv_jax import BatchNorm
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close


def norms(momentum=0.1):
    theirs = torch.nn.BatchNorm2d(5, momentum=momentum).double()
    for tensor in (theirs.weight, theirs.bias, theirs.running_mean):
        assert tensor is not None
        torch.nn.init.normal_(tensor)
    ours = BatchNorm(5, momentum=1 - momentum, param_dtype="float64", rngs=nnx.Rngs(0))
    return ours, theirs


@pytest.mark.parametrize("shape", [(1, 3, 2, 5), (4, 7, 6, 5), (2, 1, 1, 5)])
@pytest.mark.parametrize("momentum", [0.1, 0.37])
def test_layers_agree(shape, momentum, rng):
    ours, theirs = norms(momentum)
    assert_parity(ours, theirs, 3 + 2 * rng.normal(size=shape))


def test_the_fast_variance_is_that_of_pytorch(rng):
    ours, theirs = norms()
    ours.use_fast_variance = True
    assert_parity(ours, theirs, 3 + 2 * rng.normal(size=(4, 7, 6, 5)))


def test_variance_survives_a_mean_far_from_zero(rng):
    ours, theirs = norms()
    assert_parity(ours, theirs, 1e4 + rng.normal(size=(4, 7, 6, 5)))


def test_float32_gradients_survive_a_mean_of_a_hundred_deviations(rng):
    x = (100 + rng.normal(size=(8, 16, 12, 5))).astype(np.float32)
    narrow = BatchNorm(5, rngs=nnx.Rngs(0))
    wide = BatchNorm(5, param_dtype="float64", rngs=nnx.Rngs(0))
    cotangent = rng.normal(size=x.shape)

    def scale_gradient(norm, x):
        graphdef, params, rest = nnx.split(norm, nnx.Param, ...)

        def loss(params):
            outputs = nnx.merge(graphdef, params, rest, copy=True)(x)
            return jnp.sum(outputs * cotangent.astype(x.dtype))

        return {"scale": jax.grad(loss)(params)["scale"][...]}

    actual = scale_gradient(narrow, jnp.asarray(x))
    expected = scale_gradient(wide, jnp.asarray(x, "float64"))
    assert_close(actual, expected, dtype="float32")


def test_batches_are_counted(rng):
    norm, _ = norms()
    for _ in range(3):
        norm(jnp.asarray(rng.normal(size=(2, 3, 4, 5))))
    norm(jnp.asarray(rng.normal(size=(2, 3, 4, 5))), use_running_average=True)
    assert int(norm.num_batches_tracked[...]) == 3


def test_mask_counts_only_what_it_lets_through(rng):
    x = rng.normal(size=(6, 5))
    masked, short = norms()[0], norms()[0]
    mask = jnp.arange(6)[:, None] < 4
    masked(jnp.asarray(x), mask=mask)
    short(jnp.asarray(x[:4]))
    expected = {"mean": short.mean[...], "var": short.var[...]}
    actual = {"mean": masked.mean[...], "var": masked.var[...]}
    assert_close(actual, expected, dtype="float64")


def test_mask_that_leaves_one_value_keeps_the_variance_finite():
    norm = norms()[0]
    norm(jnp.ones((3, 5)), mask=jnp.arange(3)[:, None] < 1)
    assert jnp.isfinite(norm.var[...]).all()


def test_statistics_over_a_mapped_axis_are_those_of_the_whole_batch(rng):
    x = jnp.asarray(rng.normal(size=(3, 4, 5)))
    options: dict[str, Any] = dict(param_dtype="float64", rngs=nnx.Rngs(0))
    whole = BatchNorm(5, **options)
    whole(x.reshape(12, 5))
    graphdef, state = nnx.split(BatchNorm(5, axis_name="device", **options))

    def update(x):
        norm = nnx.merge(graphdef, state, copy=True)
        norm(x)
        return norm.var[...]

    variances = jax.vmap(update, axis_name="device")(x)
    expected = {"var": np.broadcast_to(whole.var[...], (3, 5))}
    assert_close({"var": variances}, expected, dtype="float64")


def test_bfloat16_statistics_are_those_of_float32(rng):
    x = jnp.asarray(3 + rng.normal(size=(8, 9, 5)), jnp.bfloat16)
    narrow = BatchNorm(5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    wide = BatchNorm(5, rngs=nnx.Rngs(0))
    assert narrow(x).dtype == jnp.bfloat16
    wide(x.astype(jnp.float32))
    actual = {"mean": narrow.mean[...], "var": narrow.var[...]}
    expected = {"mean": wide.mean[...], "var": wide.var[...]}
    assert_close(actual, expected, dtype="float32")


def test_result_has_the_dtype_of_the_input_and_parameters():
    norm = BatchNorm(5, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert norm(jnp.ones((4, 5), jnp.bfloat16)).dtype == jnp.bfloat16
    assert norm.var[...].dtype == jnp.float32


def test_one_value_per_channel_is_refused_as_in_pytorch():
    ours, theirs = norms()
    with pytest.raises(ValueError, match="x.*one value per channel.*larger batch"):
        ours(jnp.ones((1, 1, 1, 5)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        theirs(torch.ones(1, 5, 1, 1, dtype=torch.float64))
    assert int(ours.num_batches_tracked[...]) == 0


def test_an_empty_batch_leaves_the_running_statistics():
    ours, _ = norms()
    before = ours.mean[...], ours.var[...]
    assert ours(jnp.ones((0, 3, 4, 5))).shape == (0, 3, 4, 5)
    np.testing.assert_array_equal(ours.mean[...], before[0])
    np.testing.assert_array_equal(ours.var[...], before[1])


def test_keys_are_those_of_pytorch():
    ours, theirs = norms()
    assert_parity(ours, theirs, np.random.default_rng(0).normal(size=(2, 3, 4, 5)))
    assert set(torch_state(theirs)) == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize("use_fast_variance", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 5), (0, 5)])
def test_an_empty_batch_has_gradients_of_zero_as_in_pytorch(shape, use_fast_variance):
    ours = BatchNorm(5, use_fast_variance=use_fast_variance, rngs=nnx.Rngs(0))
    gradients = nnx.grad(lambda norm, x: norm(x).sum())(ours, jnp.ones(shape))
    assert not any(jnp.any(each != 0) for each in jax.tree.leaves(gradients))
    assert int(ours.num_batches_tracked[...]) > 0
    np.testing.assert_array_equal(ours.mean[...], np.zeros(5))
    np.testing.assert_array_equal(ours.var[...], np.ones(5))


def test_a_mask_that_leaves_nothing_of_a_channel_leaves_its_statistics(rng):
    ours = norms()[0]
    x = jnp.asarray(rng.normal(size=(6, 5)))
    mask = jnp.arange(5) > 1
    before = ours.mean[...], ours.var[...]
    gradients = nnx.grad(lambda norm, x: norm(x, mask=mask).sum())(ours, x)
    assert all(jnp.isfinite(each).all() for each in jax.tree.leaves(gradients))
    for old, new in zip(before, (ours.mean[...], ours.var[...]), strict=True):
        np.testing.assert_array_equal(old[:2], new[:2])
        assert (old[2:] != new[2:]).all()


def test_masks_of_several_devices_count_together(rng):
    x, mask = rng.normal(size=(3, 4, 5)), np.arange(12).reshape(3, 4) < 6
    options: dict[str, Any] = dict(param_dtype="float64", rngs=nnx.Rngs(0))
    whole = BatchNorm(5, **options)
    whole(jnp.asarray(x).reshape(12, 5), mask=jnp.asarray(mask).reshape(12, 1))
    graphdef, state = nnx.split(BatchNorm(5, axis_name="device", **options))

    def update(x, mask):
        norm = nnx.merge(graphdef, state, copy=True)
        norm(x, mask=mask[:, None])
        return norm.mean[...], norm.var[...]

    mean, var = jax.vmap(update, axis_name="device")(jnp.asarray(x), jnp.asarray(mask))
    expected = {"mean": whole.mean[...], "var": whole.var[...]}
    assert_close({"mean": mean[0], "var": var[0]}, expected, dtype="float64")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(epsilon=-1e-5), r"^`epsilon` \(=-1e-05\)"),
        (dict(epsilon=float("nan")), "^`epsilon` .=nan"),
        (dict(momentum=None), "^`momentum` .=None"),
        (dict(momentum=1.5), "^`momentum` .=1.5"),
        (dict(num_features=0), "^`num_features` .=0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchNorm(**{"num_features": 5, **options}, rngs=nnx.Rngs(0))


def test_other_features_than_its_own_are_refused():
    with pytest.raises(ValueError, match=r"^`x` .*`num_features` \(=5\)"):
        norms()[0](jnp.ones((2, 3, 4)))
