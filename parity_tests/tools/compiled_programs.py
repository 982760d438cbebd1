"""python -m parity_tests.tools.compiled_programs SHARDING: what 8 devices exchange.

How many devices a process has is settled when it starts, so `test_sharding.py` runs
this as a program of its own. It prints one JSON object: by the name of the program,
what the devices exchange in it, by kind; "narrow" are all-reduces of fewer bits than
float32 has.
"""

import collections
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynconv_jax import (
    BatchNorm,
    DynamicConv,
    DynamicConvBlock,
    DynamicConvTranspose,
    DynamicNet,
    KernelWarehouse,
    ODConv,
    WarehouseConv,
    dynamic_conv,
    dynamic_conv_transpose,
)
from dynconv_jax.functional.cost import Plan
from dynconv_jax.functional.dynamic import dynamic_conv_by_plan
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.registry import CONVOLUTIONS
from dynconv_jax.models.warehouses import with_warehouses

DEVICES = 8
# What the process must be started with.
ENVIRONMENT = {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
    "JAX_PLATFORMS": "cpu",
}

# The ways to shard.
SHARDINGS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}

# What moves a batch between devices; an all-reduce only adds up.
MOVES = ("all-gather", "all-to-all", "collective-permute", "collective-broadcast")

# name: (spatial, C, experts (K, *k, C/g, O), options of the function)
SHAPES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "dense": ((9, 7), 6, (3, 3, 3, 6, 8), {}),
    "pointwise": ((9, 7), 6, (3, 1, 1, 6, 8), {}),
    "strided": ((9, 7), 6, (3, 3, 3, 6, 8), {"strides": 2, "padding": 1}),
    "few pixels": ((2, 2), 64, (3, 3, 3, 64, 64), {"strides": 2, "padding": 1}),
    "grouped": ((9, 7), 6, (3, 3, 3, 3, 8), {"feature_group_count": 2}),
    "depthwise": ((9, 7), 6, (3, 5, 5, 1, 6), {"feature_group_count": 6}),
    "1-D": ((11,), 6, (3, 3, 6, 8), {}),
    "3-D": ((5, 4, 3), 6, (3, 3, 3, 3, 6, 8), {}),
    # Some of its outputs see no tap.
    "transposed": ((5, 4), 6, (3, 2, 2, 6, 8), {"strides": 3}),
}
FORMS = ("auto", "patches", "rows", "experts", "taps", "vmap")
# Forms that have no name of their own to be asked for by.
BY_PLAN = ("experts by convolution", "batched taps")
# The others of the family compute what `dynamic_conv` does, or nothing dynamic.
FAMILY = ("condconv", "decomposed", "kernel_warehouse", "odconv")
NARROW = (
    *("auto", "patches", "rows", "experts", "vmap", "taps"),
    *("transposed", "odconv", "kernel_warehouse"),
)
# The automatic form is compiled for every shape, each of the others for some.
ONLY_FOR = {
    "patches": ("strided", "grouped"),
    "rows": ("strided", "grouped"),
    "experts": ("strided", "grouped"),
    "experts by convolution": ("strided", "pointwise"),
    "batched taps": ("depthwise",),
    "taps": ("depthwise",),
    "vmap": ("dense",),
}


def collectives(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Counts what the devices exchange in a program, and its loops, by kind."""
    kinds = (*MOVES, "all-reduce", "reduce-scatter", "while")
    pattern = rf" ({'|'.join(kinds)})(?:-start)?\("
    text = compiled.as_text() or ""
    found = re.findall(pattern, text)
    # On a CPU they are computed in float32, by sums of another name.
    narrow = re.findall(r" all-reduce\(.*to_apply=%\S*promoted", text)
    return dict(collections.Counter([*found, *("narrow" for _ in narrow)]))


def outlines(tree: Any, mesh: jax.sharding.Mesh, *axes: str | None) -> Any:
    """Returns what arrays look like whose first axes are laid out by those of the mesh.

    A program is compiled for shapes; values would only have to be computed.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def outline(array: jax.typing.ArrayLike) -> jax.ShapeDtypeStruct:
        kind = jax.typeof(array)
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=sharding)

    return jax.tree.map(outline, tree)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Returns what an array of float32 looks like."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def mesh_of(sharding: str) -> jax.sharding.Mesh:
    """Returns a mesh over all devices, for a way to shard."""
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(SHARDINGS[sharding],))


def by_plan(form, inputs, attention, kernel, **options) -> jax.Array:
    """Convolves in a form that is a plan's alone."""
    size, width = kernel.shape[1:-2], kernel.shape[-1]
    geometry = Geometry.create(inputs.shape[-1], width, size, **options)
    return dynamic_conv_by_plan(
        Plan(form), inputs, attention, kernel, geometry, Numerics()
    )


def layer_programs(mesh: jax.sharding.Mesh) -> Iterator[tuple[str, Callable, tuple]]:
    """Yields name, function and operands for each shape, form and direction."""
    for name, (spatial, features, kernel_shape, options) in SHAPES.items():
        inputs = floats(2 * DEVICES, *spatial, features)
        attention = floats(2 * DEVICES, kernel_shape[0])
        operands = (
            *outlines((inputs, attention), mesh, "data"),
            outlines(floats(*kernel_shape), mesh),
        )
        function = dynamic_conv_transpose if name == "transposed" else dynamic_conv
        for form in (*FORMS, *BY_PLAN):
            if name not in ONLY_FOR.get(form, (name,)):
                continue

            def forward(*operands, function=function, form=form, options=options):
                if form in BY_PLAN:
                    return by_plan(form, *operands, **options)
                return function(*operands, implementation=form, **options)

            def gradient(*operands, forward=forward):
                def loss(*operands):
                    return jnp.square(forward(*operands)).mean()

                return jax.grad(loss, argnums=(0, 1, 2))(*operands)

            yield f"{name}, {form}, forward", forward, operands
            yield f"{name}, {form}, gradient", gradient, operands


def local_programs(mesh: jax.sharding.Mesh) -> Iterator[tuple[str, Callable, tuple]]:
    """Yields gradients of layers inside of `jax.shard_map`, by the automatic form."""
    by_sample, everywhere = PartitionSpec("data"), PartitionSpec()
    for name, features, kernel_shape in (
        ("dense", 64, (4, 3, 3, 64, 64)),
        ("depthwise", 64, (4, 5, 5, 1, 64)),
    ):
        groups = features // kernel_shape[-2]
        inputs = floats(16 * DEVICES, 28, 28, features)
        attention = floats(16 * DEVICES, 4)

        def loss(*operands, groups=groups):
            outputs = jax.shard_map(
                lambda *operands: dynamic_conv(*operands, feature_group_count=groups),
                mesh=mesh,
                in_specs=(by_sample, by_sample, everywhere),
                out_specs=by_sample,
            )(*operands)
            return jnp.square(outputs).mean()

        gradient = jax.grad(loss, argnums=(0, 1, 2))
        operands = (
            *outlines((inputs, attention), mesh, "data"),
            outlines(floats(*kernel_shape), mesh),
        )
        yield name, gradient, operands


def family_programs(mesh: jax.sharding.Mesh) -> Iterator[tuple[str, Callable, tuple]]:
    """Yields the gradient of a block of each member of the family, in training."""
    images = outlines(floats(2 * DEVICES, 9, 7, 3), mesh, "data")
    for name in FAMILY:
        conv = CONVOLUTIONS[name] or nnx.Conv

        def build(conv, rngs):
            return DynamicConvBlock(3, 8, strides=2, padding=1, conv=conv, rngs=rngs)

        def whole(rngs, conv=conv, build=build):
            if conv is with_warehouses:
                return with_warehouses(build, rngs=rngs)
            return build(conv, rngs)

        block = abstract_module(whole)
        graphdef, params, rest = nnx.split(block, nnx.Param, ...)

        def loss(params, rest, images, graphdef=graphdef):
            block: Any = nnx.merge(graphdef, params, rest, copy=True)
            return jnp.square(block(images)).mean(), nnx.state(block, nnx.BatchStat)

        state = outlines((params, rest), mesh)
        yield name, jax.grad(loss, (0, 2), has_aux=True), (*state, images)


def narrow_programs(mesh: jax.sharding.Mesh) -> Iterator[tuple[str, Callable, tuple]]:
    """Yields the gradient of bfloat16 layers with float32 parameters."""
    images = jax.ShapeDtypeStruct((2 * DEVICES, 9, 7, 6), jnp.bfloat16)
    layers: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
        (form, DynamicConv, {"implementation": form, "use_bias": True})
        for form in ("auto", "patches", "rows", "experts", "vmap")
    ]
    depthwise = {"implementation": "taps", "feature_group_count": 6}
    layers.append(("taps", DynamicConv, depthwise))
    layers.append(("transposed", DynamicConvTranspose, {"strides": 2}))
    layers.append(("odconv", ODConv, {"norm": "none"}))
    for name, layer, options in layers:

        def build(rngs, layer=layer, options=options):
            return layer(6, 6, (3, 3), dtype=jnp.bfloat16, rngs=rngs, **options)

        yield name, *_gradient_of(abstract_module(build), images, mesh)
    geometry = Geometry.create(6, 8, (3, 3))
    tiled = abstract_module(lambda rngs: _Tiled(geometry, rngs))
    yield "kernel_warehouse", *_gradient_of(tiled, images, mesh)


class _Tiled(nnx.Module):
    def __init__(self, geometry: Geometry, rngs: nnx.Rngs):
        self.warehouse = KernelWarehouse([geometry], rngs=rngs)
        options: dict[str, Any] = dict(norm="none", dtype=jnp.bfloat16, rngs=rngs)
        self.conv = WarehouseConv(self.warehouse, **options)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.conv(inputs)


def _gradient_of(
    module: nnx.Module, inputs: jax.ShapeDtypeStruct, mesh: jax.sharding.Mesh
) -> tuple[Callable, tuple]:
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(params, rest, inputs):
        merged: Any = nnx.merge(graphdef, params, rest, copy=True)
        return jnp.square(merged(inputs).astype(jnp.float32)).mean()

    operands = (*outlines((params, rest), mesh), outlines(inputs, mesh, "data"))
    return jax.grad(loss), operands


def norm_programs(mesh: jax.sharding.Mesh) -> Iterator[tuple[str, Callable, tuple]]:
    """Yields batch norm in training, of images and of features."""
    norm = abstract_module(lambda rngs: BatchNorm(6, rngs=rngs))
    graphdef, params, rest = nnx.split(norm, nnx.Param, ...)

    def forward(params, rest, inputs):
        merged: Any = nnx.merge(graphdef, params, rest, copy=True)
        return merged(inputs), nnx.state(merged, nnx.BatchStat)

    def both(params, rest, inputs):
        outputs, pull, state = jax.vjp(
            lambda params, inputs: forward(params, rest, inputs),
            *(params, inputs),
            has_aux=True,
        )
        return pull(outputs), state

    for name, shape in (("images", (9, 7, 6)), ("features", (6,))):
        inputs = outlines(floats(12 * DEVICES, *shape), mesh, "data")
        operands = (*outlines((params, rest), mesh), inputs)
        yield f"{name}, forward", forward, operands
        yield f"{name}, gradient", both, operands


def training_program(mesh: jax.sharding.Mesh, form: str) -> tuple[Callable, tuple]:
    """Returns a training step of DynamicNet and its operands."""

    def build(rngs):
        net = DynamicNet(implementation=form, rngs=rngs)
        optimizer = nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
        return net, optimizer

    graphdef, state = nnx.split(abstract_module(build))

    def step(state, images, labels):
        net, optimizer = nnx.merge(graphdef, state)

        def loss_of(net):
            losses = optax.softmax_cross_entropy_with_integer_labels(
                net(images), labels
            )
            return losses.mean()

        loss, gradients = nnx.value_and_grad(loss_of)(net)
        optimizer.update(net, gradients)
        return nnx.state((net, optimizer)), loss

    images = floats(2 * DEVICES, 16, 12, 3)
    labels = jax.ShapeDtypeStruct((2 * DEVICES,), jnp.int32)
    return step, (outlines(state, mesh), *outlines((images, labels), mesh, "data"))


def main(sharding: str) -> None:
    """Compiles every program and prints what it exchanges.

    Args:
        sharding: One of `SHARDINGS`.
    """
    assert jax.device_count() == DEVICES, f"start it with {ENVIRONMENT}"
    found: dict[str, dict[str, int] | str] = {}

    def report(name: str, function: Callable, operands: tuple) -> None:
        try:
            found[name] = collectives(jax.jit(function).lower(*operands).compile())
        except Exception as error:  # told to the test, which expects none
            found[name] = f"{type(error).__name__}: {error}"

    mesh = mesh_of(sharding)
    with jax.set_mesh(mesh):
        for name, function, operands in layer_programs(mesh):
            report(name, function, operands)
        for name, function, operands in local_programs(mesh):
            report(f"local, {name}", function, operands)
        for name, function, operands in family_programs(mesh):
            report(f"family, {name}", function, operands)
        for name, function, operands in narrow_programs(mesh):
            if sharding == "automatic" or name == "patches":
                report(f"narrow, {name}", function, operands)
        for name, function, operands in norm_programs(mesh):
            report(f"norm, {name}", function, operands)
        for form in ("auto", "vmap") if sharding == "automatic" else ("auto",):
            step, operands = training_program(mesh, form)
            report(f"training step, {form}", step, operands)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
