"""FDConv: parity, its equations once more, plain convolutions, weights, starts."""

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
from parity_tests.tools.modules import jax_twin, thinned

FEW: dict[str, Any] = {"min_channels": 2, "num_experts": 5}


def torch_layer(channels, outputs, kernel_size, dtype=torch.float64, **options):
    """A layer of PyTorch whose gates are not those of the beginning."""
    options = {**FEW, **options}
    layer = dynconv_torch.FDConv2d(channels, outputs, kernel_size, **options).to(dtype)
    for name, parameter in layer.named_parameters():
        if "dft" not in name and name != "weight":
            torch.nn.init.normal_(parameter, std=0.5)
    return layer


def layers(channels, outputs, kernel_size, dtype="float64", **options):
    """The same layer in both frameworks, with the same parameters."""
    options = {**FEW, **options}
    width = getattr(torch, dtype)
    theirs = torch_layer(channels, outputs, kernel_size, width, **options)
    arguments = (channels, outputs, kernel_size)
    return jax_twin(theirs, FDConv, *arguments, dtype, **options), theirs


# name: (shape of the inputs, outputs, kernel, options)
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "fewer samples than bands": ((2, 9, 6, 5), 4, (3, 3), dict(padding=1, bias=True)),
    "more samples": ((4, 5, 8, 3), 6, (3, 3), dict(padding=1, num_spectra=1)),
    "spectra": ((3, 5, 6, 3), 4, (3, 3), dict(num_experts=2, num_spectra=2)),
    "strided, dilated": ((2, 9, 8, 4), 3, (3, 3), dict(stride=2, dilation=2)),
    "grouped": ((2, 6, 7, 6), 4, (3, 3), dict(groups=2, padding=1)),
    "depthwise": ((2, 6, 7, 4), 4, (3, 3), dict(groups=4, padding=1)),
    "pointwise": ((3, 5, 4, 5), 6, (1, 1), dict(kernel_temperature=3.0)),
    "one band": ((2, 5, 6, 3), 4, (3, 3), dict(num_experts=1)),
    "plain": ((2, 5, 6, 3), 4, (3, 3), dict(min_channels=4, bias=True)),
    "plain window": ((2, 5, 6, 3), 4, (3, 1), dict(padding=1)),
    "batch 1, layer norm": ((1, 5, 6, 3), 4, (3, 3), dict(padding=1, norm="layer")),
    "batch 1, no norm": ((1, 5, 6, 3), 4, (1, 1), dict(norm="none")),
}


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


# The equations once more


EQUATIONS = [name for name in CASES if "plain" not in name and "1" not in name]


def plain_kernel(state, weights, shape, alpha):
    """The mixed kernel of a sample: its spectrum, frequency by frequency."""
    outputs, width, height, _ = shape
    rows, columns = outputs * height, width * height
    frequencies = [(i, j) for i in range(rows) for j in range(columns // 2 + 1)]

    def radius(frequency):
        i, j = frequency
        return (min(i, rows - i) * columns) ** 2 + (j * rows) ** 2

    ranked = sorted(frequencies, key=radius)
    spectra = state["dft_weight"]
    bands = len(weights) // len(spectra)
    rank = {each: index * bands // len(ranked) for index, each in enumerate(ranked)}
    total = []
    for i, j in frequencies:
        value = 0
        for index, spectrum in enumerate(spectra):
            weight = weights[index * bands + rank[i, j]]
            value = value + weight * alpha * torch.complex(*spectrum[i, j])
        total.append(value)
    matrix = torch.stack(total).reshape(rows, -1)
    kernel = torch.fft.irfft2(matrix, s=(rows, columns))
    return kernel.reshape(outputs, height, width, height).transpose(1, 2)


def plain_modulation(x, state):
    """Bands of the frequencies of an image (C, H, W), cut from its transform."""
    height, width = x.shape[1:]
    transformed = torch.fft.rfft2(x, norm="ortho")
    vertical = torch.fft.fftfreq(height, dtype=x.dtype).abs()
    horizontal = torch.fft.rfftfreq(width, dtype=x.dtype)
    largest = torch.maximum(vertical[:, None], horizontal[None])
    previous, total = x, 0
    for index, k in enumerate((2, 4, 8)):
        kept = transformed * (largest < 0.5 / k + 1e-8)
        low = torch.fft.irfft2(kept, s=(height, width), norm="ortho")
        name = f"FBM.freq_weight_conv_list.{index}"
        logits = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
        total = total + 2 * torch.sigmoid(logits) * (previous - low)
        previous = low
    return total + previous


def plain_fd_conv(x, state, training, temperature, shape, options):
    """The equations, a sample at a time, over published keys; batch norm by hand."""
    groups = options.get("groups", 1)
    outputs, width, *size = shape

    def linear(name, features):
        weight = state[f"KSM_Global.{name}.weight"].flatten(1)
        return weight @ features + state.get(f"KSM_Global.{name}.bias", 0)

    trunk = torch.stack([linear("fc", sample.mean((1, 2))) for sample in x])
    mean, variance = trunk.mean(0), trunk.var(0, correction=0)
    if not training:
        mean = state["KSM_Global.bn.running_mean"]
        variance = state["KSM_Global.bn.running_var"]
    normed = (trunk - mean) / torch.sqrt(variance + 1e-5)
    normed = normed * state["KSM_Global.bn.weight"] + state["KSM_Global.bn.bias"]
    squares = normed.clamp(min=0) ** 2
    activated = state["KSM_Global.relu.scale"] * squares + state["KSM_Global.relu.bias"]
    rows = []
    for sample, hidden in zip(x, activated, strict=True):

        def gate(name, temperature=temperature, hidden=hidden):
            if f"KSM_Global.{name}_fc.weight" not in state:
                return torch.ones(1).to(x)
            return 2 * torch.sigmoid(linear(f"{name}_fc", hidden) / temperature)

        pooled = sample.mean((1, 2))
        centred = (pooled - pooled.mean()) / torch.sqrt(pooled.var(correction=0) + 1e-5)
        centred = centred * state["KSM_Local.norm.weight"]
        centred = centred + state["KSM_Local.norm.bias"]
        taps = state["KSM_Local.conv.weight"].shape[-1]
        logits = F.conv1d(
            centred[None], state["KSM_Local.conv.weight"], padding=taps // 2
        )
        local = 2 * torch.sigmoid(logits).reshape(outputs, *size, -1)
        weights = gate("kernel", options.get("kernel_temperature", temperature))
        alpha = min(len(sample), outputs) // 2 * len(weights)
        mixed = plain_kernel(state, weights / len(weights), shape, alpha)
        channel, filters, taps = gate("channel"), gate("filter"), gate("spatial")
        kernel = []
        for index in range(outputs):
            first = index // (outputs // groups) * width
            own = mixed[index] * local[index].permute(2, 0, 1)[first : first + width]
            own = own * channel[first : first + width].reshape(-1, 1, 1)
            own = own * taps.reshape(size if len(taps) > 1 else (1, 1))
            kernel.append(own * filters[index if len(filters) > 1 else 0])
        image = plain_modulation(sample, state) if size[0] == 3 else sample
        geometry = (
            *(options.get("stride", 1), options.get("padding", 0)),
            *(options.get("dilation", 1), groups),
        )
        own_bias = state.get("bias")
        rows.append(F.conv2d(image[None], torch.stack(kernel), own_bias, *geometry)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", thinned(EQUATIONS, "spectra", "grouped"))
def test_layer_computes_the_equations(name, training):
    shape, outputs, kernel_size, options = CASES[name]
    if name == "one band":
        options = {**options, "num_spectra": 2}
    layer = torch_layer(shape[-1], outputs, kernel_size, **options, temperature=1.7)
    torch.nn.init.normal_(layer.get_buffer("KSM_Global.bn.running_mean"))
    layer.train(training)
    x = torch.randn(shape, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    state = dict(layer.named_parameters())
    leaves = [x, *state.values()]
    everything = {**layer.state_dict(), **state}
    expected = plain_fd_conv(x, everything, training, 1.7, layer.weight_shape, options)
    actual = layer(x)
    cotangent = torch.randn_like(actual)

    def results(outputs):
        gradients = torch.autograd.grad(outputs, leaves, cotangent)
        named = zip(("input", *state), gradients, strict=True)
        found = {"output": outputs.detach()} | {f"of {n}": g for n, g in named}
        return {name: value.numpy() for name, value in found.items()}

    assert_close(results(actual), results(expected), dtype="float64", floor=1e-4)


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
        layer = FDConv(64, 32, (1, 1), init=init, rngs=nnx.Rngs(0))
        twin = dynconv_torch.FDConv2d(64, 32, 1, init=init)
        deviations[init] = [
            state["KSM_Global.filter_fc.weight"].std()
            for state in (to_torch_state_dict(layer), torch_state(twin))
        ]
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
