"""Small modules of both frameworks, with random values in them, and their bits."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from parity_tests.parity import as_torch, torch_state

DTYPES = ["float32", "float64", "bfloat16"]


def build(make, seed=0):
    """Returns the module that `make` builds, with random values in it.

    Initialisers are not run: they would compile a program for every shape.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # of a dropout
            return jax.random.key(seed)
        value = rng.uniform(0.1, 100, leaf.shape).astype(leaf.dtype)
        return jax.device_put(value)

    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, jax.tree.map(draw, state))


def jax_conv(rank, dtype="float64", seed=0, **options):
    """A dynamic convolution of JAX."""
    return build(
        lambda: dynconv_jax.DynamicConv(
            4,
            6,
            (5, 3, 2)[:rank],
            param_dtype=jnp.dtype(dtype),
            rngs=nnx.Rngs(0),
            **options,
        ),
        seed,
    )


def torch_conv(rank, dtype="float64", **options):
    """The twin of `jax_conv`."""
    cls = getattr(dynconv_torch, f"DynamicConv{rank}d")
    return cls(4, 6, (5, 3, 2)[:rank], dtype=getattr(torch, dtype), **options)


def make_block(dtype="float64"):
    """A block of JAX whose parameters are drawn."""
    return dynconv_jax.DynamicConvBlock(
        4, 6, (5, 3), param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)
    )


def jax_block(dtype="float64", seed=0):
    """A block of JAX."""
    return build(lambda: make_block(dtype), seed)


def torch_block(dtype="float64"):
    """The twin of `jax_block`."""
    return dynconv_torch.DynamicConvBlock(4, 6, (5, 3), dtype=getattr(torch, dtype))


def jax_net(dtype, seed=0):
    """A network of JAX."""
    return build(
        lambda: dynconv_jax.DynamicNet(
            2, 7, num_experts=3, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)
        ),
        seed,
    )


def torch_net(dtype):
    """The twin of `jax_net`."""
    return dynconv_torch.DynamicNet(2, 7, num_experts=3, dtype=getattr(torch, dtype))


def randomise(module, rng):
    """Fills a PyTorch module's parameters and buffers, the temperature included."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith("num_batches_tracked"):
                value.fill_(int(rng.integers(1, 1000)))
            elif key.endswith("temperature"):
                value.fill_(float(rng.uniform(0.1, 30)))
            else:
                value.copy_(torch.from_numpy(rng.normal(size=tuple(value.shape))))
    return module


def torch_copy(state_dict, module):
    """Loads NumPy arrays into a PyTorch module as strictly as PyTorch can."""
    tensors = {key: as_torch(value) for key, value in state_dict.items()}
    module.load_state_dict(tensors, strict=True)
    return torch_state(module)


def bits(arrays):
    """Returns dtype, shape and bytes of named arrays."""
    return {
        key: (np.asarray(value).dtype, np.shape(value), np.asarray(value).tobytes())
        for key, value in arrays.items()
    }


def module_bits(module):
    """Returns the bits of all that a JAX module consists of."""
    state = dict(nnx.to_flat_state(nnx.state(module)))
    return bits({path: variable.get_value() for path, variable in state.items()})


class TwoLayers(nnx.Module):
    """Two layers that share one router."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        router = dynconv_jax.Router(4, 3, rngs=rngs)
        self.conv1 = dynconv_jax.DynamicConv(
            4, 6, (5, 3), num_experts=3, router=router, rngs=rngs
        )
        self.conv2 = dynconv_jax.DynamicConv(
            4, 5, (1, 3), num_experts=3, router=router, rngs=rngs
        )


class TorchTwoLayers(torch.nn.Module):
    """Two layers that share one router."""

    def __init__(self):
        super().__init__()
        router = dynconv_torch.Router(4, 3)
        self.conv1 = dynconv_torch.DynamicConv2d(
            4, 6, (5, 3), num_experts=3, router=router
        )
        self.conv2 = dynconv_torch.DynamicConv2d(
            4, 5, (1, 3), num_experts=3, router=router
        )


class Holder(nnx.Module):
    """A module that is what its part is, one level below."""

    def __init__(self, part):
        self.part = part

    def __call__(self, x, memory=None):
        """Returns what the part does."""
        return self.part(x) if memory is None else self.part(x, memory)
