"""DecomposedConv: parity, its equations once more, sizes that must agree."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import dynconv_torch
from dynconv_jax import DecomposedConv, load_torch_state_dict, to_torch_state_dict
from dynconv_jax.layers.decomposed_conv import _hard_gate as jax_gate
from dynconv_jax.routing import Attention
from dynconv_torch.layers.decomposed_conv import _hard_gate as torch_gate
from parity_tests.cases import jax_twin
from parity_tests.parity import assert_close, assert_parity, torch_state


def torch_layer(channels, outputs, kernel_size, dtype=torch.float64, **options):
    """A layer of PyTorch whose norms are not those of the beginning."""
    cls = getattr(dynconv_torch, f"DecomposedConv{len(kernel_size)}d")
    layer = cls(channels, outputs, kernel_size, **options).to(dtype)
    for norm in (layer.bn1, layer.bn2):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.normal_(tensor)
    return layer


def layers(channels, outputs, kernel_size, dtype="float64", **options):
    """The same layer in both frameworks, with the same parameters."""
    width = getattr(torch, dtype)
    theirs = torch_layer(channels, outputs, kernel_size, width, **options)
    arguments = (channels, outputs, kernel_size)
    return jax_twin(theirs, DecomposedConv, *arguments, dtype, **options), theirs


# name: (shape of the inputs, outputs, kernel, options)
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "1d dilated": ((3, 9, 5), 4, (3,), dict(padding=2, dilation=2)),
    "1d even": ((2, 8, 5), 3, (4,), dict(padding=((1, 2),), stride=2)),
    "2d": ((2, 7, 6, 5), 4, (3, 3), dict(padding=1, pool=2)),
    "2d strided, grouped": (
        (2, 6, 7, 6),
        4,
        (3, 5),
        dict(padding=(1, 2), stride=2, groups=2, pool=2),
    ),
    "2d pointwise": ((2, 5, 4, 9), 4, (1, 1), dict(stride=2)),
    "3d": ((2, 4, 3, 5, 3), 2, (3, 1, 3), dict(padding=(1, 0, 1))),
    "one pixel": ((3, 1, 1, 5), 4, (3, 3), dict(padding=1)),
    "batch 1": ((1, 5, 6, 3), 4, (3, 3), dict(padding=1)),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_agree(name, rng):
    shape, outputs, kernel_size, options = CASES[name]
    pair = layers(shape[-1], outputs, kernel_size, **options)
    assert_parity(*pair, rng.normal(size=shape))


@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data())
def test_layers_agree_with_options_crossed(data):
    draw = data.draw
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel_size = tuple(draw(st.sampled_from([1, 3])) for _ in range(rank))
    dilation = draw(st.integers(1, 2))
    pair = layers(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel_size,
        padding=tuple((size - 1) // 2 * dilation for size in kernel_size),
        stride=draw(st.integers(1, 2)),
        dilation=dilation,
        groups=groups,
        pool=draw(st.integers(1, 3)),
        reduction=draw(st.integers(1, 4)),
        min_hidden=draw(st.integers(2, 5)),
    )
    sizes = (draw(st.integers(1, 5)) for _ in range(rank))
    shape = (3, *sizes, pair[0].geometry.in_features)
    assert_parity(*pair, np.random.default_rng(rank).normal(size=shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_agree_in_narrower_dtypes(dtype, rng):
    # One latent channel: a wider one divides rounding by what little varies in it.
    pair = layers(6, 4, (3,), dtype, padding=1)
    inputs = rng.normal(size=(4, 9, 6))
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    assert_parity(*pair, inputs.astype(narrow))


# The equations once more


def plain_decomposed_conv(x, state, training, stride, padding, pool, groups=1):
    """The equations, a sample at a time, over published keys; batch norm by hand."""

    def gate(logits):
        return (logits + 3).clamp(0, 6) / 3

    def norm(name, samples):
        """Over a list of (L, pixels), all of the same size."""
        together = torch.stack(samples)
        mean = state[f"{name}.running_mean"]
        variance = state[f"{name}.running_var"]
        if training:
            mean = together.mean((0, 2))
            variance = together.var((0, 2), correction=0)
        normed = (together - mean[:, None]) / torch.sqrt(variance + 1e-5)[:, None]
        return (
            normed * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]
        )

    def pooled(sample):
        """The mean of each quarter, or of all, channel by channel."""
        height, width = sample.shape[1:]
        if pool == 1:
            return sample.mean((1, 2))
        halves = [
            (slice(0, -(-size // 2)), slice(size // 2, None))
            for size in (height, width)
        ]
        return torch.stack(
            [
                channel[rows, columns].mean()
                for channel in sample
                for rows in halves[0]
                for columns in halves[1]
            ]
        )

    matrices = {
        name: value.flatten(1)
        for name, value in state.items()
        if "weight" in name and value.ndim > 1
    }
    steps = slice(None, None, stride)
    latents = [
        matrices["q.weight"] @ sample[:, steps, steps].flatten(1) for sample in x
    ]
    latents = norm("bn1", latents)
    size = len(latents[0])
    scales, mixed = [], []
    for sample, latent in zip(x, latents, strict=True):
        squeezed = matrices["fc.0.weight"] @ pooled(sample)
        squeezed = squeezed * gate(matrices["fc.1.fc.0.weight"] @ squeezed)
        scales.append(gate(matrices["fc_scale.weight"] @ squeezed))
        phi = (matrices["fc_phi.weight"] @ squeezed).reshape(size, size)
        mixed.append(phi @ latent)
    rows = []
    for sample, scale, latent, other in zip(
        x, scales, latents, norm("bn2", mixed), strict=True
    ):
        static = F.conv2d(
            sample[None], state["conv.weight"], None, stride, padding, 1, groups
        )[0]
        dynamic = matrices["p.weight"] @ (other + latent)
        rows.append(scale[:, None, None] * static + dynamic.reshape(static.shape))
    return torch.stack(rows)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["2d", "2d strided, grouped", "2d pointwise"])
def test_layer_computes_the_equations(name, training):
    shape, outputs, kernel_size, options = CASES[name]
    layer = torch_layer(shape[-1], outputs, kernel_size, **options).train(training)
    x = torch.randn(shape, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    state = dict(layer.named_parameters())
    leaves = [x, *state.values()]
    buffers = {key: value.clone() for key, value in layer.named_buffers()}
    options = {"padding": 0, "stride": 1, "pool": 1, **options}
    expected = plain_decomposed_conv(x, {**buffers, **state}, training, **options)
    actual = layer(x)
    cotangent = torch.randn_like(actual)

    def results(outputs):
        gradients = torch.autograd.grad(outputs, leaves, cotangent)
        named = zip(("input", *state), gradients, strict=True)
        found = {"output": outputs.detach()} | {f"of {n}": g for n, g in named}
        return {name: value.numpy() for name, value in found.items()}

    assert_close(results(actual), results(expected), dtype="float64", floor=1e-4)


# Weights


def shapes(channels, outputs, kernel_size, groups, pooled, latent, hidden):
    """The shapes of a published state dict by key."""
    ones = (1,) * len(kernel_size)
    norm = ("weight", "bias", "running_mean", "running_var")
    return {
        "conv.weight": (outputs, channels // groups, *kernel_size),
        "q.weight": (latent, channels, *ones),
        "p.weight": (outputs, latent, *ones),
        **{f"bn1.{name}": (latent,) for name in norm},
        "bn1.num_batches_tracked": (),
        **{f"bn2.{name}": (latent,) for name in norm},
        "bn2.num_batches_tracked": (),
        "fc.0.weight": (hidden, pooled),
        "fc.1.fc.0.weight": (hidden, hidden),
        "fc_phi.weight": (latent**2, hidden),
        "fc_scale.weight": (outputs, hidden),
    }


@pytest.mark.parametrize(
    "arguments, sizes",
    [
        (dict(channels=64, outputs=32, kernel_size=(1, 1)), (64, 8, 4)),
        (dict(channels=80, outputs=6, kernel_size=(1, 1), groups=2), (80, 8, 5)),
        (
            dict(channels=24, outputs=4, kernel_size=(3, 3), padding=1, pool=2),
            (96, 9, 6),
        ),
        (dict(channels=3, outputs=4, kernel_size=(3,), padding=1, pool=2), (6, 2, 4)),
        (dict(channels=24, outputs=4, kernel_size=(3, 3, 3), padding=1), (24, 4, 4)),
    ],
)
def test_published_state_dicts_come_back_bit_for_bit(arguments, sizes, rng):
    expected = shapes(
        arguments["channels"],
        arguments["outputs"],
        arguments["kernel_size"],
        arguments.get("groups", 1),
        *sizes,
    )
    state = {
        key: np.array(7) if not shape else rng.random(shape).astype(np.float32)
        for key, shape in expected.items()
    }
    ours, theirs = layers(dtype="float32", **arguments)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert returned.keys() == state.keys()
        for key, value in state.items():
            assert returned[key].shape == value.shape
            assert returned[key].tobytes() == value.tobytes()


def test_parameters_are_drawn_as_pytorch_draws_them():
    layer = DecomposedConv(16, 32, (3, 3), pool=2, rngs=nnx.Rngs(0))
    twin = dynconv_torch.DecomposedConv2d(16, 32, 3, padding=1, pool=2)
    for state in (to_torch_state_dict(layer), torch_state(twin)):
        for key, fan_in in (("conv.weight", 144), ("p.weight", 8), ("fc.0.weight", 64)):
            bound = fan_in**-0.5
            assert 0.9 * bound < abs(state[key]).max() <= bound * (1 + 1e-6), key


# Batches and dtypes


@pytest.mark.parametrize("batch", [(), (2, 2)])
def test_any_number_of_batch_dimensions_is_accepted(batch, rng):
    layer, _ = layers(3, 4, (3,), padding=1)
    layer = nnx.view(layer, use_running_average=True)
    x = jnp.asarray(rng.normal(size=(*batch, 5, 3)))

    def results(x):
        return {"y": layer(x), **layer.decomposition(x)._asdict()}

    expected = {
        name: value.reshape(*batch, *value.shape[1:])
        for name, value in results(x.reshape(-1, 5, 3)).items()
    }
    assert_close(results(x), expected, dtype="float64")


def test_an_empty_batch_is_accepted():
    ours, theirs = layers(3, 4, (3, 3), padding=1, pool=2)
    assert ours(jnp.ones((0, 5, 6, 3))).shape == (0, 5, 6, 4)
    assert ours.decomposition(jnp.ones((0, 5, 6, 3))).phi.shape == (0, 3, 3)
    assert theirs.eval()(torch.ones(0, 3, 5, 6).double()).shape == (0, 4, 5, 6)


def test_gates_have_the_gradient_of_pytorch_at_their_kinks():
    logits = np.array([-3.0, 0.0, 3.0])
    leaf = torch.tensor(logits, requires_grad=True)
    torch_gate(leaf).sum().backward()
    actual = jax.grad(lambda x: jax_gate(x).sum())(jnp.asarray(logits))
    assert leaf.grad is not None
    np.testing.assert_array_equal(actual, leaf.grad.numpy())


def test_unbatched_input_is_accepted_by_the_twin():
    layer = torch_layer(3, 4, (3,), padding=1).eval()
    x = torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(layer(x), layer(x[None])[0])
    assert torch.equal(layer.decomposition(x).phi, layer.decomposition(x[None]).phi[0])


def test_one_value_a_channel_cannot_be_trained_on():
    ours, theirs = layers(3, 4, (3,), padding=1)
    with pytest.raises(ValueError, match="one value per channel"):
        ours(jnp.ones((1, 1, 3)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        theirs(torch.ones(1, 3, 1).double())


def test_what_is_dynamic_is_computed_in_float32_at_least():
    ours, theirs = layers(3, 4, (3,), "bfloat16", padding=1)
    evaluated = nnx.view(ours, use_running_average=True)
    x = jax.ShapeDtypeStruct((2, 5, 3), "bfloat16")
    found = jax.eval_shape(evaluated.decomposition, x)
    assert {each.dtype for each in found} == {jnp.dtype("float32")}
    assert jax.eval_shape(evaluated, x).dtype == jnp.bfloat16
    tensor = torch.randn(2, 3, 5).bfloat16()
    found = theirs.decomposition(tensor)
    assert {each.dtype for each in found} == {torch.float32}
    assert theirs(tensor).dtype == torch.bfloat16
    wide = dynconv_torch.DecomposedConv1d(3, 4, 3, padding=1).eval()
    expected = wide.decomposition(tensor.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for actual, other in zip(
            wide.decomposition(tensor.float()), expected, strict=True
        ):
            assert torch.equal(actual, other)


# Programs


def loss_of(layer):
    graphdef, state = nnx.split(nnx.view(layer, use_running_average=True))

    def loss(state, x):
        outputs = nnx.merge(graphdef, state)(x)
        return jnp.sin(outputs).sum(), outputs

    return loss, state


def test_layer_exports_with_a_free_batch_and_its_gradient(rng):
    layer, _ = layers(4, 6, (3, 3), padding=1, stride=2, groups=2)
    loss, state = loss_of(layer)
    gradient = jax.jit(lambda x: jax.grad(loss, argnums=1, has_aux=True)(state, x))
    free = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 5, 6, 4"), "float64")
    artifact = jax.export.export(gradient)(free)
    x = rng.normal(size=(3, 5, 6, 4))
    whole = dict(zip("gy", gradient(x), strict=True))
    for batch in (1, 3):
        few = dict(zip("gy", artifact.call(x[:batch]), strict=True))
        expected = {name: value[:batch] for name, value in whole.items()}
        assert_close(few, expected, dtype="float64")


@pytest.mark.parametrize("groups", [1, 2])
def test_no_convolution_is_grouped_over_the_batch(groups):
    layer, _ = layers(4, 4, (3, 3), groups=groups, padding=1)
    loss, state = loss_of(layer)
    gradient = jax.grad(loss, argnums=(0, 1), allow_int=True, has_aux=True)
    program = jax.jit(gradient).lower(state, jnp.ones((5, 6, 7, 4))).as_text()
    found = re.findall(r"(?:feature|batch)_group_count = (\d+)", program)
    assert found and {int(count) for count in found} <= {1, groups}


def test_layer_works_under_vmap_and_remat(rng):
    layer, _ = layers(3, 4, (3,), padding=1)
    graphdef, state = nnx.split(nnx.view(layer, use_running_average=True))
    x = jnp.asarray(rng.normal(size=(2, 5, 3)))

    def forward(state, x):
        return nnx.merge(graphdef, state)(x)

    ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    mapped = jax.jit(jax.vmap(forward, in_axes=(0, None)))(ensemble, x)
    actual = {"vmap": mapped[1], "remat": jax.jit(jax.checkpoint(forward))(state, x)}
    assert_close(actual, dict.fromkeys(actual, forward(state, x)), dtype="float64")


def test_scale_and_phi_are_recorded_by_name(rng):
    layer, _ = layers(3, 4, (3,), padding=1)
    x = jnp.asarray(rng.normal(size=(2, 5, 3)))
    expected = layer.decomposition(x)._asdict()
    _, captured = nnx.capture(layer, Attention)(x)
    recorded = {
        str(path[-1]): variable.get_value()[0]
        for path, variable in nnx.to_flat_state(captured)
    }
    assert_close(recorded, expected, dtype="float64")


def test_twin_compiles_without_graph_breaks():
    layer = torch_layer(3, 4, (3,), padding=1).eval()
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(x).detach().numpy(), layer(x).detach().numpy()
    assert_close({"output": actual}, {"output": expected}, dtype="float64")


# At the door


@pytest.mark.parametrize(
    "kernel_size, padding, dilation",
    [
        ((3, 3), 0, 1),
        ((3, 3), 2, 1),
        ((3, 3), 1, 2),
        ((1, 1), 1, 1),
        ((2, 2), 1, 1),
        ((3, 3), ((1, 1), (1, 0)), 1),
    ],
)
def test_padding_that_gives_another_size_is_refused(kernel_size, padding, dilation):
    with pytest.raises(ValueError, match="padding` .*must add"):
        DecomposedConv(
            3,
            4,
            kernel_size,
            padding=padding,
            kernel_dilation=dilation,
            rngs=nnx.Rngs(0),
        )
    with pytest.raises(ValueError, match="padding` .*must add"):
        dynconv_torch.DecomposedConv2d(
            3, 4, kernel_size, padding=padding, dilation=dilation
        )


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_has_the_size_of_the_latent(size, stride):
    def apply(x):
        layer = DecomposedConv(3, 4, (2,), stride, rngs=nnx.Rngs(0))
        return layer(x)

    assert jax.eval_shape(apply, jnp.ones((2, size, 3))).shape[1] == -(-size // stride)


@pytest.mark.parametrize("size", [4, 5])
def test_padding_of_tensorflow_is_that_of_jax(size, rng):
    theirs = torch_layer(3, 4, (2, 3), stride=2, padding="tf_same")
    ours = DecomposedConv(
        3, 4, (2, 3), 2, padding="SAME", param_dtype="float64", rngs=nnx.Rngs(0)
    )
    assert "tf_same" in repr(theirs.conv)
    assert_parity(ours, theirs, rng.normal(size=(2, size, 6, 3)))


BAD_ARGUMENTS = {
    "pool": (dict(pool=0), ValueError, r"pool` \(=0\)"),
    "reduction": (dict(reduction=0), ValueError, r"reduction` \(=0\)"),
    "hidden": (dict(min_hidden=1.5), TypeError, r"min_hidden` \(=1.5\)"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_at_the_door(name):
    options, error, message = BAD_ARGUMENTS[name]
    with pytest.raises(error, match=message):
        DecomposedConv(3, 4, (1, 1), rngs=nnx.Rngs(0), **options)
    with pytest.raises(error, match=message):
        dynconv_torch.DecomposedConv2d(3, 4, 1, **options)


def test_bad_inputs_are_refused():
    ours, theirs = layers(3, 4, (3, 3), padding=1)
    with pytest.raises(ValueError, match=r"inputs.*in_features` \(=3\)"):
        ours(jnp.ones((2, 5, 6, 2)))
    with pytest.raises(ValueError, match="empty"):
        ours(jnp.ones((2, 0, 6, 3)))
    with pytest.raises(ValueError, match=r"in_channels` \(=3\)"):
        theirs(torch.ones(2, 2, 5, 6))
    with pytest.raises(ValueError, match="empty"):
        theirs(torch.ones(2, 3, 0, 6))
    with pytest.raises(TypeError, match=r"kernel_size` \(=3\).*tuple"):
        DecomposedConv(3, 4, 3, rngs=nnx.Rngs(0))  # pyright: ignore
