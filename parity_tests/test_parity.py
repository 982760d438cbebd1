"""The instrument itself: it must refuse every fault, and say where it is."""

from collections import OrderedDict
from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import BatchNorm, DynamicConvBlock, DynamicNet
from dynconv_jax.weights import torch_layout
from dynconv_jax.weights.arrangements import permuted
from parity_tests.parity import (
    OPTIMIZERS,
    as_numpy,
    as_torch,
    assert_parity,
    assert_training_parity,
)
from parity_tests.tolerances import TOLERANCES, ParityError, assert_close


def check_blocks():
    """Holds the two blocks against each other; passes unless a fault is planted."""
    options: dict[str, Any] = dict(padding=1, reduction=1)
    ours = DynamicConvBlock(
        4, 4, (3, 3), 2, param_dtype="float64", rngs=nnx.Rngs(0), **options
    )
    theirs = dynconv_torch.DynamicConvBlock(4, 4, 3, 2, **options).double()
    torch.nn.init.normal_(theirs.dyn.weight)
    inputs = np.random.default_rng(0).normal(size=(2, 7, 6, 4))
    assert_parity(ours, theirs, inputs)


def test_sound_modules_pass():
    check_blocks()


def test_a_scaled_softmax_is_noticed(monkeypatch):
    softmax = jax.nn.softmax
    monkeypatch.setattr(
        jax.nn, "softmax", lambda z, *a, **k: softmax(z, *a, **k) * (1 + 1e-6)
    )
    with pytest.raises(ParityError, match="eval mode.*\n  output"):
        check_blocks()


def test_a_stopped_gradient_of_the_softmax_is_noticed(monkeypatch):
    softmax = jax.nn.softmax
    monkeypatch.setattr(
        jax.nn, "softmax", lambda *a, **k: jax.lax.stop_gradient(softmax(*a, **k))
    )
    with pytest.raises(ParityError, match="gradient of dyn.fc2.weight"):
        check_blocks()


class WithoutGradient(BatchNorm):
    """A batch norm that has no gradients in evaluation."""

    def __call__(self, x, **options):
        """Normalises."""
        outputs = super().__call__(x, **options)
        return jax.lax.stop_gradient(outputs) if self.use_running_average else outputs


def test_a_gradient_in_evaluation_is_compared_unless_it_is_left_out(rng):
    ours = WithoutGradient(3, param_dtype="float64", rngs=nnx.Rngs(0))
    theirs = torch.nn.BatchNorm1d(3).double()
    x = rng.normal(size=(4, 3))
    assert_parity(ours, theirs, x, gradients_in=("train",))
    for modes in (("eval", "train"), ("eval",)):
        with pytest.raises(ParityError, match="eval mode.*\n  gradient of weight"):
            assert_parity(ours, theirs, x, gradients_in=modes)


@pytest.mark.parametrize(
    ("part", "twin", "sizes", "traces"),
    [
        (nnx.Linear, torch.nn.Linear, (3, 3), 1),
        (BatchNorm, torch.nn.BatchNorm1d, (3,), 2),
    ],
    ids=["one for both", "one for each"],
)
def test_modes_are_traced_apart_only_where_modules_differ(
    part, twin, sizes, traces, rng
):
    traced = []

    class Holder(nnx.Module):
        def __init__(self):
            self.part = part(*sizes, param_dtype="float64", rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.0)

        def __call__(self, x):
            traced.append(x)
            return self.dropout(self.part(x))

    theirs = torch.nn.Sequential(OrderedDict(part=twin(*sizes))).double()
    assert_parity(Holder(), theirs, rng.normal(size=(4, 3)))
    assert len(traced) == traces


def test_a_leaking_relu_is_noticed(monkeypatch):
    monkeypatch.setattr(jax.nn, "relu", lambda x: jnp.maximum(x, 1e-3 * x))
    with pytest.raises(ParityError, match="output"):
        check_blocks()


def test_a_convolution_that_is_off_in_pytorch_is_noticed(monkeypatch):
    conv2d = torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional, "conv2d", lambda *a, **k: conv2d(*a, **k) * (1 + 1e-8)
    )
    with pytest.raises(ParityError):
        check_blocks()


def test_a_wrong_momentum_is_noticed(monkeypatch):
    init = flax.nnx.BatchNorm.__init__

    def slower(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.momentum = 0.99

    monkeypatch.setattr(flax.nnx.BatchNorm, "__init__", slower)
    with pytest.raises(ParityError, match="train mode.*\n.*state bn.running_mean"):
        check_blocks()


def test_a_biased_running_variance_is_noticed(monkeypatch):
    monkeypatch.setattr(
        BatchNorm,
        "__call__",
        lambda self, x, **k: flax.nnx.BatchNorm.__call__(self, x, **k),
    )
    with pytest.raises(ParityError, match="state bn.running_var"):
        check_blocks()


def test_a_swapped_kernel_axis_is_noticed(monkeypatch):
    layout = torch_layout.LAYOUT[torch_layout.DynamicConv]

    swapped = permuted(
        lambda ndim: (0, ndim - 1, ndim - 2, ndim - 3, *range(1, ndim - 3))
    )
    monkeypatch.setitem(layout, "kernel", ("weight", swapped))
    with pytest.raises(ParityError, match="output"):
        check_blocks()


@pytest.mark.slow
def test_another_weight_decay_is_noticed(rng):
    theirs = dynconv_torch.DynamicNet(1, 3, width_mult=0.25).double()
    ours = DynamicNet(1, 3, width_mult=0.25, param_dtype="float64", rngs=nnx.Rngs(0))
    faulty = (optax.adamw(1e-3), OPTIMIZERS["adamw"][1])  # optax decays by 1e-4
    with pytest.raises(ParityError, match="step|steps"):
        assert_training_parity(
            ours,
            theirs,
            rng.normal(size=(1, 2, 9, 8, 1)),
            rng.integers(3, size=(1, 2)),
            optimizer=faulty,
            steps=2,
        )


def test_the_message_gives_index_values_error_and_tolerance():
    expected = {"weight": np.ones((2, 3)), "bias": np.ones(2)}
    actual = {"weight": np.ones((2, 3)), "bias": np.ones(2)}
    actual["weight"][1, 2] = 1.5
    message = r"1 of 2 arrays.*\n  weight\[1, 2\] is 1.5, expected 1.0: .* 5.0e-01, .*"
    with pytest.raises(ParityError, match=message + "1.0e-10"):
        assert_close(actual, expected, dtype="float64")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_value_not_finite_in_one_array_only_is_noticed(wrong):
    for pair in (([1.0, wrong], [1.0, 2.0]), ([1.0, 2.0], [1.0, wrong])):
        actual, expected = ({"x": np.array(values)} for values in pair)
        with pytest.raises(ParityError, match=r"x\[1\]"):
            assert_close(actual, expected, dtype="float64")


def test_values_not_finite_in_both_arrays_agree():
    array = {"x": np.array([np.nan, np.inf, 1.0])}
    assert_close(array, array, dtype="float64")


def test_names_and_shapes_that_differ_are_noticed():
    one = {"x": np.ones(2)}
    with pytest.raises(ParityError, match=r"missing \['x'\], unexpected \['y'\]"):
        assert_close({"y": np.ones(2)}, one, dtype="float64")
    with pytest.raises(ParityError, match=r"shape \(3,\), not \(2,\)"):
        assert_close({"x": np.ones(3)}, one, dtype="float64")


def test_a_difference_from_zero_is_noticed():
    with pytest.raises(ParityError):
        assert_close({"x": np.full(2, 1e-30)}, {"x": np.zeros(2)}, dtype="float64")


@pytest.mark.parametrize("dtype", [name for name in TOLERANCES if name != "curve"])
def test_arrays_cross_between_the_frameworks_bit_for_bit(dtype, rng):
    array = np.asarray(jnp.asarray(rng.normal(size=(3, 4)), dtype))
    back = as_numpy(as_torch(array))
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def test_a_pair_of_ones_own_can_be_compared(rng):
    class Ours(nnx.Module):
        def __init__(self):
            self.norm = nnx.LayerNorm(
                3, epsilon=1e-5, param_dtype="float64", rngs=nnx.Rngs(0)
            )
            self.head = nnx.Linear(3, 2, param_dtype="float64", rngs=nnx.Rngs(0))
            self.scale = nnx.Param(jnp.ones(2, "float64"))

        def __call__(self, x):
            return self.head(self.norm(x)) * self.scale

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(3)
            self.head = torch.nn.Linear(3, 2)
            self.scale = torch.nn.Parameter(torch.tensor([2.0, 3.0]))

        def forward(self, x):
            return self.head(self.norm(x)) * self.scale

    assert_parity(Ours(), Theirs().double(), rng.normal(size=(4, 3)))


def test_a_frozen_parameter_is_left_out(rng):
    ours = DynamicConvBlock(4, 4, padding=1, param_dtype="float64", rngs=nnx.Rngs(0))
    theirs = dynconv_torch.DynamicConvBlock(4, 4, 3, padding=1).double()
    theirs.dyn.weight.requires_grad_(False)
    assert_parity(ours, theirs, rng.normal(size=(2, 5, 6, 4)))


def test_a_dtype_or_optimizer_that_is_not_in_the_tables_is_refused():
    ours, theirs = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="inputs.*float16.*float64"):
        assert_parity(ours, theirs, np.ones((1, 2), np.float16))
    with pytest.raises(ValueError, match="optimizer.*'adam'.*'adamw'"):
        labels = np.zeros((1, 1), int)
        inputs = np.ones((1, 1, 2), np.float32)
        assert_training_parity(ours, theirs, inputs, labels, optimizer="adam")


class BiasBeforeNorm(nnx.Module):
    """A net with a bias whose gradient in training is zero but for rounding."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs)
        self.bn = BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.bn(self.conv(x))).mean((1, 2)))


class TorchBiasBeforeNorm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def test_a_gradient_that_is_rounding_alone_passes_in_float32(rng):
    inputs = rng.normal(size=(8, 16, 15, 3)).astype(np.float32)
    assert_parity(BiasBeforeNorm(), TorchBiasBeforeNorm(), inputs)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_rounding_alone_moves_passes_in_float32(optimizer, rng):
    inputs = rng.normal(size=(2, 6, 16, 15, 3)).astype(np.float32)
    labels = rng.integers(0, 5, size=(2, 6))
    ours, theirs = BiasBeforeNorm(), TorchBiasBeforeNorm()
    assert_training_parity(ours, theirs, inputs, labels, optimizer=optimizer)


class Shifted(nnx.Module):
    """A product and a small term, whose gradient is small as well."""

    def __init__(self, share=1e-6):
        self.weight = nnx.Param(jnp.ones(3, jnp.float32))
        self.shift = nnx.Param(jnp.ones(3, jnp.float32))
        self.share = share

    def __call__(self, x):
        return x * self.weight + self.share * self.shift


class TorchShifted(torch.nn.Module):
    def __init__(self, only=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.shift = torch.nn.Parameter(torch.ones(3))
        self.only = only

    def forward(self, x):
        if self.only not in (None, x.dtype):
            raise RuntimeError(f"{x.dtype} is not computed here")
        return x * self.weight + 1e-6 * self.shift


def test_a_small_gradient_that_is_wrong_is_noticed_in_float32(rng):
    inputs = rng.normal(size=(5, 3)).astype(np.float32)
    assert_parity(Shifted(), TorchShifted(), inputs)
    with pytest.raises(ParityError, match="gradient of shift"):
        assert_parity(Shifted(share=2e-6), TorchShifted(), inputs)


def test_a_net_that_trains_otherwise_is_noticed_in_float32(rng):
    inputs = rng.normal(size=(2, 6, 16, 15, 3)).astype(np.float32)
    labels = rng.integers(0, 5, size=(2, 6))
    decaying = optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=2e-2)
    pair = decaying, OPTIMIZERS["adamw"][1]
    with pytest.raises(ParityError, match="after 3 steps.*\n.*state"):
        assert_training_parity(
            *(BiasBeforeNorm(), TorchBiasBeforeNorm(), inputs, labels), optimizer=pair
        )


def test_a_pair_that_no_float64_speaks_for_is_refused(rng):
    inputs = rng.normal(size=(5, 3)).astype(np.float32)
    theirs = TorchShifted(only=torch.float32)
    with pytest.raises(ParityError, match="gradient of shift"):
        assert_parity(Shifted(share=2e-6), theirs, inputs)
