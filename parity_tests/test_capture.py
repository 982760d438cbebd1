"""The attention of every router, recorded while a model computes as ever."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import (
    DynamicConv,
    DynamicNet,
    Router,
    SigmoidRouter,
    capture_attention,
    capture_routers,
    capture_routing,
    load_balance_loss,
    router_z_loss,
    to_torch_state_dict,
    with_warehouses,
)
from parity_tests.parity import as_numpy, as_torch, channels_first, copy_weights
from parity_tests.tolerances import GRADIENT_FLOOR, assert_close
from parity_tests.tools.routed import assert_untouched, snapshot
from parity_tests.tools.slow import thinned


class OwnModel(nnx.Module):
    """A model of a user's own: one router answers for a layer that has none."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.router = Router(3, 4, param_dtype=jnp.float64, rngs=rngs)
        self.conv = DynamicConv(
            3, 5, (1, 3), param_dtype=jnp.float64, router=lambda x: x, rngs=rngs
        )

    def __call__(self, inputs):
        return self.conv(inputs, self.router(inputs)).mean()


class SharedRouter(nnx.Module):
    """Two layers of different kernels ask one router."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        options: dict[str, Any] = dict(
            router=Router(3, 4, param_dtype=jnp.float64, rngs=rngs),
            param_dtype=jnp.float64,
            rngs=rngs,
        )
        self.conv1 = DynamicConv(3, 3, (1, 3), **options)
        self.conv2 = DynamicConv(3, 5, (1, 1), **options)

    def __call__(self, inputs):
        return self.conv2(self.conv1(inputs))


def test_capture_returns_the_result_of_the_model(two_blocks, images):
    expected = np.asarray(nnx.clone(two_blocks)(images))
    result, _ = capture_attention(two_blocks, images)
    assert_close({"result": result}, {"result": expected}, dtype="float64")


def test_capture_names_each_router_by_its_path(two_blocks, images):
    _, attention = capture_attention(two_blocks, images)
    assert {path: array.shape for path, array in attention.items()} == {
        "blocks.0.dyn.router": (6, 4),
        "blocks.1.dyn.router": (6, 2),
    }


def test_captured_attention_is_what_the_routers_answer(two_blocks, images):
    twin = nnx.clone(two_blocks)
    _, attention = capture_attention(two_blocks, images)
    first, second = twin.blocks
    expected = {
        "blocks.0.dyn.router": first.routing(images),
        "blocks.1.dyn.router": second.routing(first(images)),
    }
    assert_close(attention, expected, dtype="float64")


def test_capture_works_on_a_router_alone(images):
    router = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    result, attention = capture_attention(router, images)
    assert attention.keys() == {""}
    np.testing.assert_array_equal(attention[""], result)


def test_capture_sees_a_router_called_by_a_model_of_ones_own(images):
    model = OwnModel()
    _, attention = capture_attention(model, images)
    assert_close(attention, {"router": model.router(images)}, dtype="float64")


def test_capture_passes_keyword_arguments_on(images):
    layer = DynamicConv(3, 5, (1, 3), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    given = jnp.full((6, 4), 0.25)
    result, attention = capture_attention(layer, images, attention=given)
    assert_close({"y": result}, {"y": layer(images, given)}, dtype="float64")
    assert attention == {}


def test_capture_inside_jit(two_blocks, images):
    _, expected = capture_attention(nnx.clone(two_blocks), images)
    graphdef, state = nnx.split(two_blocks)

    @jax.jit
    def attention_of(state, images):
        return capture_attention(nnx.merge(graphdef, state), images)[1]

    assert_close(attention_of(state, images), expected, dtype="float64")


def test_capture_inside_grad(images):
    model = OwnModel()
    graphdef, params = nnx.split(model)

    def share_of_first(params):
        _, attention = capture_attention(nnx.merge(graphdef, params), images)
        return attention["router"][:, 0].sum()

    def expected(params):
        return nnx.merge(graphdef, params).router(images)[:, 0].sum()

    gradient, reference = (jax.grad(f)(params) for f in (share_of_first, expected))
    assert np.any(gradient.router.fc2.bias[...])
    assert_close(named(gradient), named(reference), dtype="float64")


def named(state):
    return {str(path): v[...] for path, v in nnx.to_flat_state(state)}


def test_shared_router_has_one_path_and_the_calls_of_both_layers(images):
    model = SharedRouter()
    _, attention = capture_attention(model, images)
    router = model.conv1.router
    expected = jnp.concatenate([router(images), router(model.conv1(images))])
    assert_close(attention, {"conv1.router": expected}, dtype="float64")


def test_router_called_twice_has_its_calls_concatenated(images):
    class Twice(nnx.Module):
        def __init__(self):
            self.router = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

        def __call__(self, inputs):
            return self.router(inputs), self.router(-inputs[:2])

    result, attention = capture_attention(Twice(), images)
    assert_close(attention, {"router": jnp.concatenate(result)}, dtype="float64")


def test_router_that_is_not_called_has_no_attention(images):
    class OneOfTwo(nnx.Module):
        def __init__(self):
            self.called = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            self.other = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

        def __call__(self, inputs):
            return self.called(inputs)

    _, attention = capture_attention(OneOfTwo(), images)
    assert attention.keys() == {"called"}


def test_capture_updates_the_statistics_of_a_model_in_training(two_blocks, images):
    capture_attention(two_blocks, images)
    assert int(two_blocks.blocks[0].bn.num_batches_tracked[...]) == 1


def test_capture_leaves_nothing_in_the_model(images):
    model = OwnModel()
    before = snapshot(model)
    capture_attention(model, images)
    assert_untouched(model, before)


def test_model_called_after_a_capture_records_nothing(images):
    model = OwnModel()
    capture_attention(model, images)
    before = snapshot(model)
    model(images)
    assert_untouched(model, before)


def test_router_under_a_key_of_digits_is_found(images):
    class Numbered(nnx.Module):
        def __init__(self):
            router = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            self.routers = nnx.Dict({"0": router})

        def __call__(self, inputs):
            return self.routers["0"](inputs)

    _, attention = capture_attention(Numbered(), images)
    assert attention.keys() == {"routers.0"}


def test_capture_sees_a_router_of_sigmoids(images):
    router = SigmoidRouter(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    model = nnx.Sequential(lambda x: 2 * x, router)
    _, attention = capture_attention(model, images)
    assert_close(attention, {"layers.1": router(2 * images)}, dtype="float64")


def test_routing_has_the_mixtures_of_warehouses_too(images):
    model = with_warehouses(
        lambda conv, rngs: nnx.Sequential(
            conv(3, 4, (3, 3), rngs=rngs), DynamicConv(4, 5, (1, 1), rngs=rngs)
        ),
        rngs=nnx.Rngs(0),
    )
    _, routing = capture_routing(model, images)
    assert set(routing) == {"layers.0.mixture", "layers.1.router"}
    mixture = model.layers[0].mixture(images)
    np.testing.assert_array_equal(routing["layers.0.mixture"], mixture)


def twins(rng) -> tuple[DynamicNet, dynconv_torch.DynamicNet, np.ndarray]:
    options: dict[str, Any] = dict(width_mult=0.1, top_k=1, temperature=0.3)
    twin = dynconv_torch.DynamicNet(3, 5, **options).double()
    net = DynamicNet(3, 5, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options)
    copy_weights(twin, net)
    return net, twin, rng.normal(size=(4, 9, 8, 3))


def test_both_frameworks_capture_the_same_of_their_routers(rng):
    net, twin, x = twins(rng)
    result, ours = capture_routers(net, jnp.asarray(x))
    expected, theirs = dynconv_torch.capture_routers(twin, as_torch(channels_first(x)))
    assert {path.removesuffix(".router") for path in ours} == theirs.keys()
    assert len(theirs) == 3
    found, wanted = {"": result}, {"": as_numpy(expected)}
    for path, output in theirs.items():
        for name, values in output._asdict().items():
            assert values is not None
            found[f"{path} {name}"] = getattr(ours[f"{path}.router"], name)
            wanted[f"{path} {name}"] = as_numpy(values)
    assert_close(found, wanted, dtype="float64")


def test_losses_on_captured_routers_have_the_same_gradients(rng):
    net, twin, x = twins(rng)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def loss_of(params):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        routers: dict[str, Any]
        result, routers = capture_routers(merged, jnp.asarray(x))
        return jnp.square(result).mean() + sum(
            0.1 * load_balance_loss(each.attention, each.probabilities)
            + 0.1 * router_z_loss(each.logits)
            for each in routers.values()
        )

    gradients = to_torch_state_dict(
        nnx.merge(graphdef, jax.jit(jax.grad(loss_of))(params), rest)
    )
    result, routers = dynconv_torch.capture_routers(twin, as_torch(channels_first(x)))
    loss = result.square().mean()
    for each in routers.values():
        assert each.logits is not None
        loss += 0.1 * dynconv_torch.load_balance_loss(*each[:2])
        loss += 0.1 * dynconv_torch.router_z_loss(each.logits)
    loss.backward()
    expected = {
        name: as_numpy(parameter.grad)
        for name, parameter in twin.named_parameters()
        if parameter.grad is not None
    }
    found = {name: gradients[name] for name in expected}
    assert "stage1.dyn.fc2.weight" in expected
    assert_close(found, expected, dtype="float64", floor=GRADIENT_FLOOR)


FAMILY: dict[str, tuple[dict[str, Any], set[str]]] = {
    "dynamic": (dict(), {"attention", "logits"}),
    "condconv": (dict(), {"attention"}),
    "odconv": (dict(norm="layer"), {"attention", "logits"}),
}


@pytest.mark.parametrize("conv", thinned(FAMILY, "odconv"))
def test_members_of_the_family_give_what_losses_need(conv, rng):
    options, expected = FAMILY[conv]
    x = rng.normal(size=(4, 9, 8, 3)).astype("float32")
    shared: dict[str, Any] = dict(conv=conv, conv_options=options, width_mult=0.1)
    net = dynconv_jax.create_model("dynamic_net", 5, rngs=nnx.Rngs(0), **shared)
    twin = dynconv_torch.create_model("dynamic_net", 5, **shared)
    _, ours = capture_routers(net, jnp.asarray(x))
    _, theirs = dynconv_torch.capture_routers(twin, as_torch(channels_first(x)))
    for found in (ours, theirs):
        assert len(found) == 3
        for output in found.values():
            given = {
                name for name, each in output._asdict().items() if each is not None
            }
            assert given == expected


def test_router_of_the_twin_called_twice_has_its_calls_concatenated():
    router = dynconv_torch.Router(3)
    one, two = torch.randn(2, 3, 5), torch.randn(4, 3, 5)
    _, found = dynconv_torch.capture_routers(torch.nn.Sequential(router), one)
    assert found["0"].attention.shape == (2, 4)
    model = torch.nn.ModuleList([router])
    model.forward = lambda: (router(one), router(two))  # pyright: ignore
    result, found = dynconv_torch.capture_routers(model)
    assert torch.equal(found["0"].attention, torch.cat(result))


def test_twin_that_raises_is_left_as_it_was():
    router = dynconv_torch.Router(3)
    before = dict(vars(router))
    with pytest.raises(ValueError, match="in_channels"):
        dynconv_torch.capture_routers(router, torch.ones(2, 4, 5))
    assert vars(router) == before


def test_model_that_raises_is_left_as_it_was(images):
    class Raises(nnx.Module):
        def __init__(self):
            self.router = Router(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

        def __call__(self, inputs):
            raise RuntimeError(f"no use for {self.router(inputs).shape}")

    model = Raises()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no use for"):
        capture_attention(model, images)
    assert_untouched(model, before)
