"""FDConv computes its equations, written once more, a sample at a time."""

import pytest
import torch
import torch.nn.functional as F

from parity_tests.tolerances import assert_close
from parity_tests.tools.fd_pairs import CASES, torch_layer
from parity_tests.tools.reference import sorted_frequencies
from parity_tests.tools.slow import thinned

EQUATIONS = [name for name in CASES if "plain" not in name and "1" not in name]


def plain_kernel(state, weights, shape, alpha):
    """The mixed kernel of a sample: its spectrum, frequency by frequency."""
    outputs, width, height, _ = shape
    rows, columns = outputs * height, width * height
    frequencies = [(i, j) for i in range(rows) for j in range(columns // 2 + 1)]
    ranked = [frequencies[index] for index in sorted_frequencies(rows, columns)]
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


def plain_mask(low_pass, height, width, k):
    """Which frequencies a low-pass keeps."""

    def largest(height, width, **options):
        vertical = torch.fft.fftfreq(height, **options)
        vertical = vertical if low_pass == "one_sided" else vertical.abs()
        return torch.maximum(
            vertical[:, None], torch.fft.rfftfreq(width, **options)[None]
        )

    if low_pass == "ideal":
        return largest(height, width, dtype=torch.float64) < 0.5 / k + 1e-8
    if low_pass == "one_sided":
        return largest(height, width) < 0.5 / k
    mask = (largest(64, 64) < 0.5 / k + 1e-8).float()
    return F.interpolate(mask[None, None], size=(height, width // 2 + 1))[0, 0]


def plain_modulation(x, state, low_pass):
    """Bands of the frequencies of an image (C, H, W), cut from its transform."""
    height, width = x.shape[1:]
    transformed = torch.fft.rfft2(x, norm="ortho")
    previous, total = x, 0
    for index, k in enumerate((2, 4, 8)):
        kept = transformed * plain_mask(low_pass, height, width, k)
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
        low_pass = options.get("low_pass", "ideal")
        is_modulated = size[0] == 3
        image = plain_modulation(sample, state, low_pass) if is_modulated else sample
        geometry = (
            *(options.get("stride", 1), options.get("padding", 0)),
            *(options.get("dilation", 1), groups),
        )
        own_bias = state.get("bias")
        rows.append(F.conv2d(image[None], torch.stack(kernel), own_bias, *geometry)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name", thinned(EQUATIONS, "spectra", "grouped", "stretched", "one-sided")
)
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
