"""ContextGenerator: parity, its equations once more, state, what it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import ContextGenerator, to_torch_state_dict
from dynconv_jax.models.abstract import abstract_module
from parity_tests.parity import assert_parity, torch_state
from parity_tests.passes import copy_weights
from parity_tests.tolerances import assert_close


class All(nnx.Module):
    """What a generator answers, in one array."""

    def __init__(self, strides, dtype, rngs):
        self.net = ContextGenerator(
            3, 5, 4, strides=strides, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, inputs):
        """Lays vector and logits side by side, (B, N)."""
        parts = self.net(inputs)
        return jnp.concatenate([each.reshape(len(inputs), -1) for each in parts], 1)


class TorchAll(torch.nn.Module):
    """The twin of `All`."""

    def __init__(self, stride, dtype):
        super().__init__()
        self.net = dynconv_torch.ContextGenerator(3, 5, 4, stride=stride, dtype=dtype)

    def forward(self, x):
        """Lays vector and logits side by side, channels last."""
        vector, *logits = self.net(x)
        rows = [each.movedim(1, -1).flatten(1) for each in logits]
        return torch.cat([vector, *rows], 1)


def layers(strides=1, dtype="float64"):
    """The same generator in both frameworks, with lively parameters."""
    theirs = TorchAll(strides, getattr(torch, dtype))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.uniform_(theirs.net.get_buffer("joint_norm.running_var"), 0.5, 2)
    ours = abstract_module(lambda rngs: All(strides, dtype, rngs))
    copy_weights(theirs, ours)
    return ours, theirs


@pytest.mark.parametrize(
    ("strides", "shape"), [(1, (2, 5, 4, 3)), (2, (1, 5, 6, 3)), (3, (2, 4, 7, 3))]
)
def test_layers_agree(strides, shape, rng):
    assert_parity(*layers(strides), rng.normal(size=shape))


def test_layers_agree_in_float32(rng):
    inputs = rng.normal(size=(2, 5, 4, 3)).astype("float32")
    assert_parity(*layers(2, "float32"), inputs)


@pytest.mark.parametrize("stride", [1, 2])
def test_layer_computes_the_equations(stride):
    _, both = layers(stride)
    layer = both.net.train()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    means = [[*x[b].mean(2).T, *x[b].mean(1).T] for b in range(2)]
    joint = state["joint_conv.weight"][:, :, 0, 0]
    hidden = torch.stack([torch.stack([joint @ m for m in each]) for each in means])
    # Of the batch, for it is training: over samples, rows and columns.
    mean = hidden.mean((0, 1))
    deviation = torch.sqrt(((hidden - mean) ** 2).mean((0, 1)) + 1e-3)
    hidden = (hidden - mean) / deviation * state["joint_norm.weight"]
    hidden = hidden + state["joint_norm.bias"]
    hidden = hidden * torch.clamp(hidden + 3, 0, 6) / 6

    def logits(sequence, name):
        if stride > 1:
            padded = torch.cat([0 * sequence[:1], sequence, 0 * sequence[:1]])
            starts = range(0, len(padded) - 2, stride)
            sequence = torch.stack([padded[i : i + 3].sum(0) / 3 for i in starts])
        weight = state[f"{name}.weight"][:, :, 0, 0]
        return sequence @ weight.T + state[f"{name}.bias"]

    expected = {
        "vector": hidden.mean(1),
        "rows": torch.stack([logits(each[:5], "conv_f") for each in hidden]),
        "columns": torch.stack([logits(each[5:], "conv_t") for each in hidden]),
    }
    vector, rows, columns = layer(x)
    actual = {
        "vector": vector,
        "rows": rows[..., 0].movedim(1, -1),
        "columns": columns[:, :, 0].movedim(1, -1),
    }
    assert_close(
        {name: value.detach().numpy() for name, value in actual.items()},
        {name: value.numpy() for name, value in expected.items()},
        dtype="float64",
    )


def test_names_are_those_of_the_authors(rng):
    ours, theirs = layers(dtype="float32")
    shapes = {
        "joint_conv.weight": (5, 3, 1, 1),
        **{f"joint_norm.{part}": (5,) for part in ("weight", "bias")},
        **{f"joint_norm.running_{part}": (5,) for part in ("mean", "var")},
        "joint_norm.num_batches_tracked": (),
        **{f"conv_{axis}.weight": (4, 5, 1, 1) for axis in "ft"},
        **{f"conv_{axis}.bias": (4,) for axis in "ft"},
    }
    state = to_torch_state_dict(ours.net)
    assert {key: value.shape for key, value in state.items()} == shapes
    for key, value in torch_state(theirs.net).items():
        assert state[key].tobytes() == value.tobytes()


def test_its_norm_moves_slowly(rng):
    net = ContextGenerator(3, 5, 4, rngs=nnx.Rngs(0))
    net(jnp.asarray(rng.normal(size=(2, 5, 4, 3)), "float32"))
    moved = net.joint_norm.var[...]
    assert ((moved > 0.98) & (moved < 1.05)).all() and (moved != 1).all()


def test_what_does_not_fit_is_refused():
    ours, theirs = layers()
    with pytest.raises(ValueError, match="`inputs` .* with 3 features"):
        ours(np.ones((2, 5, 4, 4)))
    with pytest.raises(ValueError, match="`x` .* with 3 channels"):
        theirs(torch.ones(2, 4, 5, 4).double())
    with pytest.raises(ValueError, match="`strides` .=0."):
        ContextGenerator(3, 5, 4, strides=0, rngs=nnx.Rngs(0))
