"""The layout of Chen et al.'s port: its checkpoints load into both and come back."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import DynamicConv, load_torch_state_dict, to_torch_state_dict
from parity_tests.parity import as_torch, assert_parity, torch_state
from parity_tests.tolerances import assert_close

SIZES = {1: (3,), 2: (3, 2), 3: (2, 1, 3)}
IMAGES = {1: (9,), 2: (7, 6), 3: (4, 5, 3)}


class PlainLayer(torch.nn.Module):
    """The port's layer, written from its definition: names, shapes and what it does."""

    def __init__(self, rank, channels, outputs, experts=4, temperature=34.0, bias=True):
        super().__init__()
        conv = getattr(torch.nn, f"Conv{rank}d")
        hidden = experts if channels == 3 else int(channels * 0.25) + 1
        self.rank, self.temperature = rank, temperature
        self.weight = torch.nn.Parameter(
            torch.randn(experts, outputs, channels, *SIZES[rank])
        )
        self.bias = torch.nn.Parameter(torch.randn(experts, outputs)) if bias else None
        self.attention = torch.nn.ModuleDict(
            {
                "fc1": conv(channels, hidden, 1, bias=False),
                "fc2": conv(hidden, experts, 1, bias=rank != 3),
            }
        )

    def forward(self, x):
        convolve = getattr(F, f"conv{self.rank}d")
        pooled = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        hidden = F.relu(self.attention["fc1"](pooled))
        logits = self.attention["fc2"](hidden).flatten(1)
        attention = torch.softmax(logits / self.temperature, dim=1)
        outputs = []
        for sample, weights in zip(x, attention, strict=True):
            kernel = torch.einsum("k,k...->...", weights, self.weight)
            bias = None if self.bias is None else weights @ self.bias
            outputs.append(convolve(sample[None], kernel, bias))
        return torch.cat(outputs)


def jax_layer(rank, channels, outputs, **options):
    return DynamicConv(
        channels,
        outputs,
        SIZES[rank],
        padding="VALID",
        param_dtype="float64",
        rngs=nnx.Rngs(0),
        **{
            "use_bias": True,
            **dynconv_jax.chen_options(channels, rank=rank),
            **options,
        },
    )


def torch_layer(rank, channels, outputs, **options):
    cls = getattr(dynconv_torch, f"DynamicConv{rank}d")
    chen = dynconv_torch.chen_options(channels, rank=rank)
    options = {"bias": True, **chen, **options}
    return cls(channels, outputs, SIZES[rank], **options).double()


@pytest.mark.parametrize(("rank", "channels"), [(1, 16), (2, 3), (3, 10)])
def test_checkpoints_load_into_both_which_compute_the_same(rank, channels, rng):
    plain = PlainLayer(rank, channels, 5).double()
    ours = jax_layer(rank, channels, 5, temperature=34.0)
    theirs = torch_layer(rank, channels, 5, temperature=34.0)
    theirs.load_state_dict(plain.state_dict(), strict=True)
    load_torch_state_dict(ours, torch_state(plain))
    inputs = rng.normal(size=(3, *IMAGES[rank], channels))
    expected = plain(as_torch(inputs).movedim(-1, 1)).detach()
    actual = {"output": ours(jnp.asarray(inputs))}
    assert_close(actual, {"output": expected.movedim(1, -1)}, dtype="float64")
    assert_parity(ours, theirs, inputs)


class JaxPair(nnx.Module):
    """A layer under a name, beside one that is not dynamic."""

    def __init__(self, rank, **options):
        self.conv = jax_layer(rank, 16, 8, **options)
        self.fc1 = nnx.Linear(8, 2, param_dtype="float64", rngs=nnx.Rngs(0))


class TorchPair(torch.nn.Module):
    """The same in PyTorch, its layer in this project's layout or in the port's."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.fc1 = torch.nn.Linear(8, 2)


@pytest.mark.parametrize(("rank", "bias"), [(2, False), (2, True), (3, True)])
def test_checkpoints_come_back_bit_for_bit(rank, bias, rng):
    plain = TorchPair(PlainLayer(rank, 16, 8, bias=bias)).double()
    expected = torch_state(plain)
    ours = JaxPair(rank, use_bias=bias)
    theirs = TorchPair(torch_layer(rank, 16, 8, bias=bias)).double()
    load_torch_state_dict(ours, expected)
    theirs.load_state_dict(plain.state_dict(), strict=True)
    returned = dynconv_torch.to_chen_layout(theirs.state_dict())
    plain.load_state_dict(returned, strict=True)
    for actual in (to_torch_state_dict(ours, layout="chen"), torch_state(plain)):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert actual[key].dtype == value.dtype
            np.testing.assert_array_equal(actual[key], value, strict=True)


@pytest.mark.parametrize("rank", [2, 3])
def test_keys_are_those_published(rank):
    layer = torch_layer(rank, 16, 8)
    shapes = {
        key: tuple(value.shape)
        for key, value in dynconv_torch.to_chen_layout(layer.state_dict()).items()
    }
    ones = (1,) * rank
    expected = {
        "weight": (4, 8, 16, *SIZES[rank]),
        "bias": (4, 8),
        "attention.fc1.weight": (5, 16, *ones),
        "attention.fc2.weight": (4, 5, *ones),
        "attention.fc2.bias": (4,),
    }
    if rank == 3:  # whose second layer the port has without
        del expected["attention.fc2.bias"]
    assert shapes == expected


def test_loading_leaves_the_temperature_and_the_state_dict_as_they_are():
    state_dict = PlainLayer(2, 16, 8).double().state_dict()
    keys = list(state_dict)
    ours = jax_layer(2, 16, 8, temperature=7.0)
    theirs = torch_layer(2, 16, 8, temperature=7.0)
    load_torch_state_dict(ours, {k: v.numpy() for k, v in state_dict.items()})
    theirs.load_state_dict(state_dict)
    assert float(ours.router.temperature[...]) == theirs.temperature.item() == 7.0
    assert list(state_dict) == keys


@pytest.mark.parametrize(("channels", "hidden"), [(3, 6), (16, 5), (10, 3), (1, 1)])
def test_options_give_the_hidden_layer_of_the_port(channels, hidden):
    ours = dynconv_jax.chen_options(channels, 6)
    theirs = dynconv_torch.chen_options(channels, 6)
    assert ours["router_hidden_features"] == hidden
    assert theirs["router_hidden_channels"] == hidden
    assert ours["num_experts"] == theirs["num_experts"] == 6


def changed(state_dict, case):
    """Spoils a state dict in one way; returns it with what the refusals say."""
    state_dict = dict(state_dict)
    key = "attention.fc1.weight"
    match case:
        case "axes missing":
            state_dict[key] = state_dict[key][..., 0, 0]
            words = r"(?s)unexpected key.*attention.fc1.weight"
        case "another width":
            state_dict[key] = state_dict[key][:4]
            words = r"(?s)fc1.weight.*4, 16"
        case "missing":
            del state_dict[key]
            words = "(?i)missing key.*fc1.weight"
        case "both layouts":
            state_dict["fc1.weight"] = state_dict[key][..., 0, 0]
            words = r"(?s)unexpected key.*attention.fc2.weight"
        case _:
            state_dict["attention.fc3.weight"] = state_dict[key]
            words = r"(?is)unexpected key.*attention.fc3.weight"
    return state_dict, words.replace("unexpected", "(?i:unexpected)")


@pytest.mark.parametrize(
    "case", ["axes missing", "another width", "missing", "both layouts", "another key"]
)
def test_what_is_not_quite_the_layout_is_refused(case):
    state_dict, words = changed(PlainLayer(2, 16, 8).double().state_dict(), case)
    with pytest.raises(ValueError, match=words):
        arrays = {key: value.numpy() for key, value in state_dict.items()}
        load_torch_state_dict(jax_layer(2, 16, 8), arrays)
    with pytest.raises(RuntimeError, match=words):
        torch_layer(2, 16, 8).load_state_dict(state_dict, strict=True)


def test_refusals_name_the_keys_given_and_the_way_out():
    arrays = torch_state(PlainLayer(2, 16, 8))
    plain = DynamicConv(16, 8, SIZES[2], use_bias=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError) as refusal:
        load_torch_state_dict(plain, arrays)
    message = str(refusal.value)
    assert "wrong shape: attention.fc1.weight has (5, 16)" in message
    assert "wrong shape: fc1.weight" not in message
    assert "in the layout of its public PyTorch port" in message
    assert "Build the layer with `chen_options`" in message


def test_a_router_with_a_bias_has_no_place_in_the_layout():
    ours = DynamicConv(4, 6, (3,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="fc1.bias.*chen_options"):
        to_torch_state_dict(ours, layout="chen")
    theirs = dynconv_torch.DynamicConv1d(4, 6, 3)
    with pytest.raises(ValueError, match="fc1.bias.*chen_options"):
        dynconv_torch.to_chen_layout(theirs.state_dict())


def test_an_unknown_layout_is_refused():
    layer = DynamicConv(4, 6, (3,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"layout` \(='timm'\)"):
        to_torch_state_dict(layer, layout="timm")  # pyright: ignore


@pytest.mark.parametrize("hidden", [0, -1])
def test_a_hidden_layer_without_units_is_refused(hidden):
    with pytest.raises(ValueError, match=rf"hidden_features` \(={hidden}\)"):
        dynconv_jax.Router(4, hidden_features=hidden, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=rf"hidden_channels` \(={hidden}\)"):
        dynconv_torch.Router(4, hidden_channels=hidden)
