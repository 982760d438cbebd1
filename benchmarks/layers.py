"""One convolution: forward, and forward and backward, in both frameworks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import Tensor

from benchmarks.shapes import Shape
from benchmarks.timing import Function
from dynconv_jax import DynamicConv
from dynconv_torch import DynamicConv2d


class Calls(NamedTuple):
    """What is timed of a layer.

    Attributes:
        forward: A call that computes the outputs.
        gradient: A call that computes the outputs and, under a random cotangent, the
            gradients of the input and of all parameters.
        memory: GB that the compiled gradient needs beside its operands and results;
            None where the framework does not say.
    """

    forward: Function
    gradient: Function
    memory: float | None = None


def jax_dynamic(shape: Shape, implementation: str, dtype: str = "float32") -> Calls:
    """Returns the calls of a `DynamicConv`."""
    layer = DynamicConv(
        **jax_arguments(shape, dtype),
        num_experts=shape.experts,
        implementation=implementation,
    )
    return jax_calls(shape, layer, dtype)


def jax_static(shape: Shape, dtype: str = "float32") -> Calls:
    """Returns the calls of the `nnx.Conv` of a shape."""
    layer = nnx.Conv(**jax_arguments(shape, dtype), use_bias=False)
    return jax_calls(shape, layer, dtype)


def jax_arguments(shape: Shape, dtype: str = "float32") -> dict[str, Any]:
    """Returns what builds a layer of a shape."""
    return dict(
        in_features=shape.in_features,
        out_features=shape.out_features,
        kernel_size=(shape.kernel, shape.kernel),
        strides=shape.stride,
        padding=shape.kernel // 2,
        feature_group_count=shape.groups,
        dtype=jnp.dtype(dtype),
        rngs=nnx.Rngs(0),
    )


def jax_calls(shape: Shape, layer: nnx.Module, dtype: str = "float32") -> Calls:
    """Returns the calls of a layer, as it is set, on the inputs of a shape."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    x = jnp.asarray(shape.inputs(), dtype)
    cotangent = jnp.asarray(shape.cotangent(), dtype)

    def apply(params, x):
        called: Any = nnx.merge(graphdef, params, rest, copy=True)
        return called(x)

    def differentiate(params, x, cotangent):
        outputs, pull = jax.vjp(apply, params, x)
        return outputs, pull(cotangent)

    forward = jax.jit(apply)
    gradient = jax.jit(differentiate).lower(params, x, cotangent).compile()
    analysis = gradient.memory_analysis()
    return Calls(
        lambda: jax.block_until_ready(forward(params, x)),
        lambda: jax.block_until_ready(gradient(params, x, cotangent)),
        1e-9 * analysis.temp_size_in_bytes if analysis else None,
    )


def torch_dynamic(
    shape: Shape, implementation: str, dtype: str = "float32", compiled: bool = False
) -> Calls:
    """Returns the calls of a `DynamicConv2d`, eager or by `torch.compile`."""
    layer = DynamicConv2d(
        **torch_arguments(shape),
        num_experts=shape.experts,
        implementation=implementation,
    )
    return torch_calls(shape, layer, dtype, compiled)


def torch_static(shape: Shape, dtype: str = "float32") -> Calls:
    """Returns the calls of the `torch.nn.Conv2d` of a shape."""
    layer = torch.nn.Conv2d(**torch_arguments(shape), bias=False)
    return torch_calls(shape, layer, dtype)


def torch_arguments(shape: Shape) -> dict[str, Any]:
    """Returns what builds a layer of a shape."""
    return dict(
        in_channels=shape.in_features,
        out_channels=shape.out_features,
        kernel_size=shape.kernel,
        stride=shape.stride,
        padding=shape.kernel // 2,
        groups=shape.groups,
    )


def torch_calls(
    shape: Shape, layer: torch.nn.Module, dtype: str = "float32", compiled: bool = False
) -> Calls:
    """Returns the calls of a layer, as it is set, on the inputs of a shape."""
    device = torch_device()
    layer = layer.to(device, getattr(torch, dtype))

    def tensor(array) -> Tensor:
        channels_first = torch.from_numpy(array).movedim(-1, 1).contiguous()
        return channels_first.to(device, getattr(torch, dtype))

    x = tensor(shape.inputs()).requires_grad_()
    cotangent = tensor(shape.cotangent())
    call = torch.compile(layer, dynamic=False) if compiled else layer

    def forward() -> None:
        with torch.no_grad():
            call(x)
        wait(device)

    def gradient() -> None:
        wanted = [*layer.parameters(), x]
        torch.autograd.grad(call(x), wanted, cotangent, allow_unused=True)
        wait(device)

    return Calls(forward, gradient)


def torch_device() -> torch.device:
    """Returns the device that PyTorch computes on: that of JAX, if it can."""
    is_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return torch.device("cuda" if is_gpu else "cpu")


def wait(device: torch.device) -> None:
    """Returns when the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
