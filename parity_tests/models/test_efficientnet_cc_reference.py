"""EfficientNet-CondConv from the definition of "same", against both networks."""

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from dynconv_jax import load_torch_state_dict, models
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.efficientnet_cc import STAGES
from dynconv_torch import models as torch_models
from parity_tests.parity import as_torch
from parity_tests.tolerances import assert_close
from parity_tests.tools import networks


def reference_forward(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """EfficientNet-CondConv in evaluation, written from the definition of "same"."""

    def conv(key, x, side, stride=1, groups=1, attention=None):
        pads = []
        for size in reversed(x.shape[2:]):  # F.pad begins with the last dimension
            total = max((-(-size // stride) - 1) * stride + side - size, 0)
            pads += [total // 2, total - total // 2]
        padded, weight = F.pad(x, pads), state[f"{key}.weight"]
        if attention is None:
            bias = state.get(f"{key}.bias")
            return F.conv2d(padded, weight, bias, stride, 0, 1, groups)
        outputs = []
        for sample, mixed in zip(padded, attention @ weight, strict=True):
            kernel = mixed.reshape(-1, x.shape[1] // groups, side, side)
            outputs.append(F.conv2d(sample[None], kernel, None, stride, 0, 1, groups))
        return torch.cat(outputs)

    def norm(key, x):
        part = {name: state[f"{key}.{name}"] for name in ("weight", "bias")}
        mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        return F.batch_norm(x, mean, var, part["weight"], part["bias"], eps=1e-3)

    def gate(key, x):
        pooled = x.mean((2, 3), keepdim=True)
        hidden = F.silu(conv(f"{key}.conv_reduce", pooled, 1))
        return x * torch.sigmoid(conv(f"{key}.conv_expand", hidden, 1))

    x = F.silu(norm("bn1", conv("conv_stem", x, 3, 2)))
    for stage, spec in enumerate(STAGES):
        for index in range(spec.depth):
            block, stride = f"blocks.{stage}.{index}", spec.strides
            stride = stride if index == 0 else 1
            y, a = x, None
            if f"{block}.routing_fn.weight" in state:
                router = (state[f"{block}.routing_fn.{n}"] for n in ("weight", "bias"))
                a = torch.sigmoid(F.linear(x.mean((2, 3)), *router))
            last = "conv_pw" if stage == 0 else "conv_pwl"
            if stage > 0:
                y = F.silu(
                    norm(f"{block}.bn1", conv(f"{block}.conv_pw", y, 1, 1, 1, a))
                )
            side, wide = spec.kernel_size, y.shape[1]
            y = conv(f"{block}.conv_dw", y, side, stride, wide, a)
            y = F.silu(norm(f"{block}.bn{1 if stage == 0 else 2}", y))
            y = conv(f"{block}.{last}", gate(f"{block}.se", y), 1, 1, 1, a)
            y = norm(f"{block}.bn{2 if stage == 0 else 3}", y)
            x = x + y if y.shape == x.shape and stride == 1 else y
    x = F.silu(norm("bn2", conv("conv_head", x, 1)))
    linear = (state[f"classifier.{name}"] for name in ("weight", "bias"))
    return F.linear(x.mean((2, 3)), *linear)


def lively(x, rng) -> torch.nn.Module:
    """The twin with statistics that fit its images."""
    net = torch_models.tf_efficientnet_cc_b0_4e(7, dtype=torch.float64)
    networks.enliven(net, x, rng)
    return net.eval()


def test_network_of_the_twin_pads_by_the_definition_of_same(rng):
    x = rng.normal(size=(1, 70, 65, 3))
    net = lively(x, rng)
    images = as_torch(x).movedim(-1, 1)
    with torch.no_grad():
        actual, expected = net(images), reference_forward(net.state_dict(), images)
    assert_close({"logits": actual}, {"logits": expected}, dtype="float64")


@pytest.mark.slow
def test_network_pads_by_the_definition_of_same(rng):
    x = rng.normal(size=(2, 70, 65, 3))
    state = lively(x, rng).state_dict()
    ours = abstract_module(
        lambda rngs: models.tf_efficientnet_cc_b0_4e(
            7, param_dtype=jnp.float64, rngs=rngs
        )
    )
    load_torch_state_dict(ours, {key: value.numpy() for key, value in state.items()})
    ours = nnx.view(ours, use_running_average=True, raise_if_not_found=False)
    graphdef, variables = nnx.split(ours)
    actual = jax.jit(lambda v, x: nnx.merge(graphdef, v)(x))(variables, x)
    expected = reference_forward(state, as_torch(x).movedim(-1, 1))
    assert_close({"logits": actual}, {"logits": expected}, dtype="float64")
