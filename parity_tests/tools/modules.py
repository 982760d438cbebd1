"""Small modules of both frameworks, with random values in them, and their bits."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from parity_tests.parity import as_torch, copy_weights, torch_state
from parity_tests.tools.jax_modules import build

DTYPES = ["float32", "float64", "bfloat16"]


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
            2,
            7,
            num_experts=3,
            width_mult=0.25,
            param_dtype=jnp.dtype(dtype),
            rngs=nnx.Rngs(0),
        ),
        seed,
    )


def torch_net(dtype):
    """The twin of `jax_net`."""
    return dynconv_torch.DynamicNet(
        2, 7, num_experts=3, width_mult=0.25, dtype=getattr(torch, dtype)
    )


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


# What PyTorch's layers call otherwise than flax's.
JAX_WORDS = {
    "stride": "strides",
    "dilation": "kernel_dilation",
    "groups": "feature_group_count",
    "bias": "use_bias",
    "context_channels": "context_features",
    "style_channels": "style_features",
}


def jax_twin(
    torch_layer, cls, channels, outputs, kernel_size, dtype="float64", **options
):
    """Builds the JAX layer that a PyTorch layer is the twin of, with its parameters.

    Args:
        torch_layer: The PyTorch layer.
        cls: The class of the JAX layer.
        channels: C.
        outputs: O.
        kernel_size: One per dimension.
        dtype: Of the parameters.
        **options: Those of `torch_layer`, in PyTorch's words.
    """
    named = {JAX_WORDS.get(name, name): value for name, value in options.items()}

    def build():
        rngs = nnx.Rngs(0)
        return cls(
            channels, outputs, kernel_size, param_dtype=dtype, rngs=rngs, **named
        )

    layer = nnx.eval_shape(build)  # what it would draw is not needed
    copy_weights(torch_layer, layer)
    return layer
