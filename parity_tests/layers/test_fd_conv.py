"""FDConv: parity, plain convolutions, weights, starts."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import dynconv_torch
from dynconv_jax import (
    FDConv,
    count_parameters,
    init_from_static,
    load_torch_state_dict,
    set_temperature,
    to_torch_state_dict,
)
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.torch_layout import torch_shapes
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.fd_pairs import CASES, FEW, layers, torch_layer
from parity_tests.tools.modules import jax_twin
from parity_tests.tools.slow import thinned


@pytest.mark.parametrize("name", thinned(CASES, "grouped"))
def test_layers_agree(name, rng):
    shape, outputs, kernel_size, options = CASES[name]
    pair = layers(
        shape[-1], outputs, kernel_size, temperature=0.6, **{"padding": 0, **options}
    )
    assert_parity(*pair, rng.normal(size=shape))


@pytest.mark.slow
@settings(max_examples=2, deadline=None, derandomize=True)
@given(data=st.data())
def test_layers_agree_with_options_crossed(data):
    draw = data.draw
    groups = draw(st.integers(1, 2))
    pair = layers(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        (draw(st.sampled_from([1, 3])),) * 2,
        padding=draw(st.sampled_from([1, 2])),
        stride=draw(st.integers(1, 2)),
        groups=groups,
        num_experts=draw(st.integers(1, 4)),
        num_spectra=draw(st.integers(1, 2)),
        min_channels=1,
        norm=draw(st.sampled_from(["batch", "layer", "none"])),
        min_hidden=draw(st.integers(3, 5)),
    )
    shape = (draw(st.integers(2, 3)), 7, 5, pair[0].in_features)
    assert_parity(*pair, np.random.default_rng(groups).normal(size=shape))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_agree_in_narrower_dtypes(dtype, rng):
    pair = layers(6, 4, (3, 3), dtype, padding=1)
    # The gradient of a number, a sum of both signs, is but rounding.
    pair[1].KSM_Global.relu.requires_grad_(False)
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    assert_parity(*pair, rng.normal(size=(3, 4, 3, 6)).astype(narrow))


# Weights


def published(channels, outputs, side, experts, spectra=1, hidden=16):
    """The keys and shapes of a layer in published checkpoints."""
    columns = channels * side // 2 + 1
    taps = round(math.log2(channels) / 2 + 0.5) // 2 * 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "dft_weight": (spectra, outputs * side, columns, 2),
        "bias": (outputs,),
        "KSM_Global.fc.weight": (hidden, channels, 1, 1),
        "KSM_Global.relu.scale": (1,),
        "KSM_Global.relu.bias": (1,),
        "KSM_Local.conv.weight": (outputs * side * side, 1, taps),
        "KSM_Local.norm.weight": (channels,),
        "KSM_Local.norm.bias": (channels,),
    }
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"KSM_Global.bn.{name}"] = (hidden,)
    heads = {"channel": channels, "filter": outputs, "kernel": experts * spectra}
    if side > 1:
        heads["spatial"] = side * side
        for index in range(3):
            shapes[f"FBM.freq_weight_conv_list.{index}.weight"] = (1, channels, 3, 3)
            shapes[f"FBM.freq_weight_conv_list.{index}.bias"] = (1,)
    for name, size in heads.items():
        shapes[f"KSM_Global.{name}_fc.weight"] = (size, hidden, 1, 1)
        shapes[f"KSM_Global.{name}_fc.bias"] = (size,)
    return shapes


@pytest.mark.parametrize(
    ("channels", "outputs", "side", "experts", "spectra"),
    [(18, 24, 3, 8, 1), (32, 20, 1, 4, 2)],
)
def test_published_state_dicts_come_back_bit_for_bit(
    channels, outputs, side, experts, spectra, rng
):
    shapes = published(channels, outputs, side, experts, spectra)
    state = {
        key: np.array(rng.random(shape), np.float32) for key, shape in shapes.items()
    }
    state["KSM_Global.bn.num_batches_tracked"] = np.array(7)
    options = dict(num_experts=experts, num_spectra=spectra, bias=True, min_channels=17)
    ours, theirs = layers(channels, outputs, (side, side), "float32", **options)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert returned.keys() == {*state, "KSM_Global.temperature"}
        for key, value in state.items():
            if key != "KSM_Global.bn.num_batches_tracked":
                assert returned[key].tobytes() == value.tobytes()


def test_layer_has_the_parameters_that_are_published():
    layer = abstract_module(
        lambda rngs: FDConv(64, 64, (3, 3), use_bias=True, rngs=rngs)
    )
    twin = dynconv_torch.FDConv2d(64, 64, 3, bias=True, device="meta")
    assert count_parameters(layer) == 46526
    assert sum(each.numel() for each in twin.parameters()) == 46526
    shapes = {name: tuple(each.shape) for name, each in twin.state_dict().items()}
    expected = published(64, 64, 3, 64)
    assert {key: shapes[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "is_plain"),
    [
        ((16, 32, (3, 3)), True),
        ((17, 32, (3, 3)), False),
        ((32, 16, (1, 1)), True),
        ((32, 32, (5, 5)), True),
        ((32, 32, (3, 1)), True),
    ],
)
def test_few_channels_and_other_windows_are_plain_convolutions(arguments, is_plain):
    layer = abstract_module(lambda rngs: FDConv(*arguments, rngs=rngs))
    twin = dynconv_torch.FDConv2d(*arguments, device="meta")
    for found in (layer.attention is None, twin.is_plain):
        assert found == is_plain
    assert set(twin.state_dict()) == set(torch_shapes(layer))


@pytest.mark.slow
@pytest.mark.parametrize("spectra", [1, 2])
def test_layer_begins_as_a_static_convolution_but_for_a_millionth(spectra, rng):
    options: dict[str, Any] = dict(padding=1, num_spectra=spectra)
    twin = dynconv_torch.FDConv2d(6, 4, 3, **FEW, **options).double()
    layer = jax_twin(twin, FDConv, 6, 4, (3, 3), **FEW, **options)
    x = torch.from_numpy(rng.normal(size=(2, 6, 8, 7)))
    assert twin.dft_weight is not None
    whole = torch.fft.irfft2(torch.view_as_complex(twin.dft_weight).sum(0), s=(12, 18))
    kernel = whole.reshape(4, 3, 6, 3).transpose(1, 2) * twin.scale
    expected = F.conv2d(x, kernel, padding=1).detach().numpy()
    actual = layer(x.movedim(1, -1).numpy())
    error = np.abs(np.moveaxis(np.asarray(actual), -1, 1) - expected).max()
    assert 0 < error < 1e-3 * np.abs(expected).max()
    # As torch.nn.Conv2d draws its kernel, whatever the number of spectra.
    assert 0.7 < kernel.std() * 54**0.5 * 3**0.5 < 1.3


def test_published_start_has_lively_gates_of_filters():
    deviations = {}
    for init in ("default", "published"):
        layer = FDConv(64, 32, (1, 1), use_bias=True, init=init, rngs=nnx.Rngs(0))
        twin = dynconv_torch.FDConv2d(64, 32, 1, bias=True, init=init)
        states = to_torch_state_dict(layer), torch_state(twin)
        deviations[init] = [
            state["KSM_Global.filter_fc.weight"].std() for state in states
        ]
        for state in states:  # of 64 inputs
            largest = abs(state["bias"]).max()
            assert 0.1 < largest <= 1 / 8 if init == "published" else largest == 0
    assert max(deviations["default"]) < 2e-6
    expected = (2 / 32) ** 0.5  # Kaiming-normal by fan-out
    assert all(0.8 < each / expected < 1.2 for each in deviations["published"])


@pytest.mark.parametrize(
    "name", thinned(["grouped", "spectra", "pointwise", "plain"], "pointwise")
)
def test_static_convolution_is_kept_whole_in_a_layer(name, rng):
    shape, outputs, kernel_size, options = CASES[name]
    options = {"padding": 0, **options, "bias": True}
    arguments: Any = shape[-1], outputs, kernel_size
    geometry: Any = {k: options[k] for k in ("padding", "groups") if k in options}
    trained = torch.nn.Conv2d(*arguments, **geometry).double()
    own = {k: v for k, v in (FEW | options).items() if k not in (*geometry, "bias")}
    layer, _ = layers(*arguments, **options)
    static = nnx.Conv(
        *arguments,
        padding=geometry["padding"],
        feature_group_count=geometry.get("groups", 1),
        param_dtype="float64",
        rngs=nnx.Rngs(0),
    )
    load_torch_state_dict(static, torch_state(trained))
    init_from_static(layer, static)
    twin = dynconv_torch.FDConv2d.from_conv(trained, **own)
    x = torch.from_numpy(rng.normal(size=shape)).movedim(-1, 1)
    expected = trained(x).detach().movedim(1, -1).numpy()
    outputs = twin(x).detach().movedim(1, -1).numpy()
    for actual in (layer(x.movedim(1, -1).numpy()), outputs):
        assert_close({"": actual}, {"": expected}, dtype="float64")


def test_padding_that_is_not_of_zeros_is_no_start():
    conv = torch.nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect")
    with pytest.raises(ValueError, match="pads by 'reflect'"):
        dynconv_torch.FDConv2d.from_conv(conv)


@pytest.mark.parametrize(
    "conv", [torch.nn.ConvTranspose2d(32, 32, 3), torch.nn.Linear(32, 32), "conv"]
)
def test_what_is_no_convolution_is_no_start(conv):
    with pytest.raises(TypeError, match=r"`conv` \(a \w+\) must be an nn.Conv2d"):
        dynconv_torch.FDConv2d.from_conv(conv)


def test_temperature_evens_gates_out_but_for_that_of_bands(rng):
    layer, twin = layers(6, 4, (1, 1), kernel_temperature=0.5)
    inputs = rng.normal(size=(3, 4, 5, 6))
    before = np.asarray(layer.routing(inputs))
    set_temperature(layer, 1e6)
    dynconv_torch.set_temperature(twin, 1e6)
    assert np.abs(layer.attentions(inputs).channel - 1).max() < 1e-4
    assert_close({"": layer.routing(inputs)}, {"": before}, dtype="float64")
    found = twin.routing(torch.from_numpy(inputs).movedim(-1, 1)).detach().numpy()
    assert_close({"": found}, {"": before}, dtype="float64")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(init="zeros"), "`init` .='zeros'. must be one of 'default', 'published'"),
        (dict(num_spectra=0), "`num_spectra` .=0. must be"),
        (dict(norm="group"), "`norm` .='group'. must be one of"),
        (dict(low_pass="soft"), "`low_pass` .='soft'. must be one of 'ideal', 'str"),
        (dict(kernel_temperature=0.0), "`kernel_temperature` .=0.0. must be one"),
        (dict(implementation="experts"), "`implementation` .='experts'. sums"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FDConv(32, 32, (3, 3), rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match=message):
        dynconv_torch.FDConv2d(32, 32, 3, **options)


def test_one_sample_in_training_is_refused_with_the_way_out():
    layer, twin = layers(6, 4, (1, 1))
    trained = nnx.view(layer, use_running_average=False)
    with pytest.raises(ValueError, match="norm='layer'"):
        trained(np.ones((1, 4, 4, 6)))
    with pytest.raises(ValueError, match="norm='layer'"):
        twin.train()(torch.ones(1, 6, 4, 4).double())


def test_a_batch_of_none_is_answered_with_none():
    layer, twin = layers(6, 4, (1, 1))
    assert layer(np.ones((0, 4, 5, 6))).shape == (0, 4, 5, 4)
    assert twin.eval()(torch.ones(0, 6, 4, 5).double()).shape == (0, 4, 4, 5)


def test_inputs_of_another_dtype_are_refused_by_the_twin():
    twin = torch_layer(6, 4, (1, 1)).eval()
    with pytest.raises(ValueError, match="`x` .torch.float32. .* same dtype; cast"):
        twin(torch.ones(2, 6, 4, 5))
