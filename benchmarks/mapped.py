"""python -m benchmarks.mapped: convolutions that are mapped over their kernels.

Stacks of models, per-example gradients and an ensemble of networks, by `conv` under
`jax.vmap`, and by what one would write without it: `jax.vmap` of XLA's convolution, a
loop by `jax.lax.map`, `torch.func.vmap`. Each way has a process of its own; they are
called in turn, in rows of calls, and compared by their medians.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
import tyro
from flax import nnx

import dynconv_jax
from benchmarks.machine import describe
from benchmarks.processes import process_of
from benchmarks.stacks import (
    BY_MAP,
    BY_VMAP,
    GOAL,
    IN_TORCH,
    OURS,
    STACKS,
    Stack,
    by_conv,
    by_xla,
    stack_functions,
)
from benchmarks.timing import Function, in_turn
from dynconv_jax.weights import write_file

EXAMPLES, MEMBERS = 64, 8


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to measure, and where the page goes."""

    rounds: int = 9
    """How many turns each way has."""

    out: Path = Path("runs/benchmarks")
    """The directory for `mapped.md` and `mapped.json`."""


def _random(shapes: Any) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)
    ]


def _called(function: Callable[..., Any], *operands: Any) -> Function:
    return lambda: jax.block_until_ready(function(*operands))


def stack_calls(stack: Stack, way: str) -> dict[str, Function]:
    """Returns forward, and forward with both gradients, of a stack, one way."""
    if way == IN_TORCH:
        return _stack_calls_in_torch(stack)
    inputs, kernel, cotangent = _random(stack.shapes())
    forward, gradient = stack_functions(stack, way)
    return {
        "forward": _called(forward, inputs, kernel),
        "gradient": _called(gradient, inputs, kernel, cotangent),
    }


def memory(stack: Stack, way: str) -> float:
    """Returns the GB of temporaries of the compiled gradient."""
    types = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in stack.shapes()]
    compiled = stack_functions(stack, way)[1].lower(*types).compile()
    return 1e-9 * compiled.memory_analysis().temp_size_in_bytes


def _stack_calls_in_torch(stack: Stack) -> dict[str, Function]:
    torch.manual_seed(0)
    inputs, kernel, cotangent = (torch.randn(shape) for shape in stack.shapes())
    inputs = inputs.movedim(-1, 2).contiguous().requires_grad_()
    kernel = kernel.permute(0, 4, 3, 1, 2).contiguous().requires_grad_()
    cotangent = cotangent.movedim(-1, 2).contiguous()

    def convolve(inputs: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        padding = (stack.window - 1) // 2
        return torch.nn.functional.conv2d(
            inputs, kernel, None, stack.strides, padding, 1, stack.groups
        )

    mapped = torch.func.vmap(convolve)

    def gradient() -> Any:
        return torch.autograd.grad(mapped(inputs, kernel), (inputs, kernel), cotangent)

    forward = torch.no_grad()(lambda: mapped(inputs, kernel))
    return {"forward": forward, "gradient": gradient}


def example_calls(way: str) -> dict[str, Function]:
    """Returns the gradients of single examples of a small network, one way.

    Two convolutions, 1→16 and 16→32, each followed by a mean of 2×2 pixels, and a
    linear head, on images of 28×28.
    """
    shapes = ((3, 3, 1, 16), (3, 3, 16, 32), (7 * 7 * 32, 10))
    if way == IN_TORCH:
        return _example_calls_in_torch(shapes)
    parameters = [0.1 * each for each in _random(shapes)]
    (images,) = _random([(EXAMPLES, 28, 28, 1)])
    labels = jnp.arange(EXAMPLES) % 10
    convolve = functools.partial(
        by_conv if way == OURS else by_xla, strides=1, groups=1
    )

    def halved(features: jax.Array) -> jax.Array:
        batch, height, width, channels = features.shape
        cut = features.reshape(batch, height // 2, 2, width // 2, 2, channels)
        return cut.mean((2, 4))

    def loss(parameters: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        features = image[None]
        for kernel in parameters[:2]:
            features = halved(jax.nn.relu(convolve(features, kernel)))
        logits = features.reshape(-1) @ parameters[2]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))
    return {"gradients": _called(gradients, parameters, images, labels)}


def _example_calls_in_torch(shapes: Any) -> dict[str, Function]:
    torch.manual_seed(0)
    functional = torch.nn.functional
    *kernels, head = (0.1 * torch.randn(shape) for shape in shapes)
    parameters = (
        *(kernel.permute(3, 2, 0, 1).contiguous() for kernel in kernels),
        head,
    )
    images, labels = torch.randn(EXAMPLES, 1, 28, 28), torch.arange(EXAMPLES) % 10

    def loss(parameters: Any, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        features = image[None]
        for kernel in parameters[:2]:
            features = functional.conv2d(features, kernel, padding=1).relu()
            features = functional.avg_pool2d(features, 2)
        return functional.cross_entropy(
            features.reshape(1, -1) @ parameters[2], label[None]
        )

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    return {"gradients": lambda: gradients(parameters, images, labels)}


def ensemble_calls(way: str) -> dict[str, Function]:
    """Returns a step of an ensemble of DynamicNets: all in one, or one by one."""
    images = jax.random.normal(jax.random.key(1), (MEMBERS, 32, 32, 32, 3))
    labels = jnp.zeros((MEMBERS, 32), jnp.int32)

    @nnx.split_rngs(splits=MEMBERS)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> dynconv_jax.DynamicNet:
        return dynconv_jax.DynamicNet(rngs=rngs)

    graph, parameters, rest = nnx.split(create(nnx.Rngs(0)), nnx.Param, ...)

    def step(parameters: Any, rest: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(parameters: Any) -> Any:
            model = nnx.merge(graph, parameters, rest, copy=True)
            logits = model(images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

        gradient, rest = jax.grad(loss, has_aux=True)(parameters)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradient)
        return moved, rest

    if way == OURS:
        together = jax.jit(jax.vmap(step))
        return {"step": _called(together, parameters, rest, images, labels)}
    alone = jax.jit(step)
    members = [
        jax.tree.map(lambda each, at=at: each[at], (parameters, rest, images, labels))
        for at in range(MEMBERS)
    ]
    return {"step": lambda: jax.block_until_ready([alone(*each) for each in members])}


def timed(
    calls: Callable[..., Mapping[str, Function]],
    ways: tuple[str, ...],
    rounds: int,
    *arguments: Any,
) -> dict[str, dict[str, float]]:
    """Times what some ways compute, each in a process of its own.

    Args:
        calls: Returns the functions of a way, from the arguments and the way.
        ways: The ways.
        rounds: How many turns each has.
        *arguments: What is computed.

    Returns:
        Medians in milliseconds, by function and way.
    """
    with contextlib.ExitStack() as processes:
        asked = {
            way: processes.enter_context(process_of(calls, *arguments, way))
            for way in ways
        }
        found = {}
        for name in asked[ways[0]]:
            callers = {way: asked[way][name] for way in ways}
            timings = in_turn(callers, rounds)
            found[name] = {way: each.median for way, each in timings.items()}
    return found


def measure(rounds: int) -> dict[str, Any]:
    """Measures everything."""
    stacks = {}
    for stack in STACKS:
        print(stack, flush=True)
        needed = {way: memory(stack, way) for way in stack.ways if way != IN_TORCH}
        stacks[str(stack)] = {
            **timed(stack_calls, stack.ways, rounds, stack),
            "gigabytes": needed,
        }
    print("per-example gradients, an ensemble", flush=True)
    return {
        "stacks": stacks,
        "examples": timed(example_calls, (OURS, BY_VMAP, IN_TORCH), rounds),
        "ensemble": timed(ensemble_calls, (OURS, "one by one"), rounds),
    }


def goals(found: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Returns for each goal what it says, the least ratio, and the one measured."""
    stack = found["stacks"][str(GOAL)]
    gradient, forward = stack["gradient"], stack["forward"]
    examples, ensemble = found["examples"]["gradients"], found["ensemble"]["step"]
    return [
        (
            f"{GOAL}: forward and backward over `jax.vmap`",
            40,
            gradient[BY_VMAP] / gradient[OURS],
        ),
        (
            f"{GOAL}: forward and backward over `lax.map`",
            20,
            gradient[BY_MAP] / gradient[OURS],
        ),
        (f"{GOAL}: forward over `lax.map`", 1, forward[BY_MAP] / forward[OURS]),
        (
            f"gradients of {EXAMPLES} examples over `jax.vmap`",
            5,
            examples[BY_VMAP] / examples[OURS],
        ),
        (
            f"gradients of {EXAMPLES} examples over `torch.func`",
            1.2,
            examples[IN_TORCH] / examples[OURS],
        ),
        (
            f"a step of {MEMBERS} DynamicNets over {MEMBERS} steps",
            1,
            ensemble["one by one"] / ensemble[OURS],
        ),
    ]


def page(record: Mapping[str, Any]) -> str:
    """Returns the page of what was measured."""
    found = record["found"]
    lines = [
        "| | `conv` | over `jax.vmap` | over `lax.map` | over `torch.func` "
        "| GB: `conv` | `jax.vmap` | `lax.map` |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, stack in found["stacks"].items():
        for subject, told in (("forward", ""), ("gradient", ", and backward")):
            times, needed = stack[subject], stack["gigabytes"]
            ratios = [
                f"{times[way] / times[OURS]:.1f}×" if way in times else "–"
                for way in (BY_VMAP, BY_MAP, IN_TORCH)
            ]
            sizes = [
                f"{needed[way]:.3f}" if subject == "gradient" and way in needed else ""
                for way in (OURS, BY_VMAP, BY_MAP)
            ]
            label = f"{name}: forward{told}"
            cells = [f"{times[OURS]:.2f} ms", *ratios, *sizes]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    rows = ["| | goal | measured | |", "|---|---:|---:|---|"]
    for told, least, ratio in goals(found):
        verdict = "met" if ratio >= least else "missed"
        rows.append(f"| {told} | ≥ {least} | {ratio:.2f} | {verdict} |")
    parts = [
        "# Mapped convolutions",
        f"Measured on {record['date']} by `python -m benchmarks.mapped`, in float32: "
        "`dynconv_jax.conv` under `jax.vmap`, and how many times its time others take: "
        "`jax.vmap` and `jax.lax.map` of XLA's convolution, and `torch.func.vmap` of "
        "PyTorch's. Each is in a process of its own; medians of "
        f"{record['rounds']} turns, each a row of calls. GB are the temporaries of the "
        "compiled gradient. A dash is what was left out, for it takes seconds a call.",
        "\n".join(lines),
        "## Goals",
        "\n".join(rows),
        "Machine: " + ", ".join(f"{k} {v}" for k, v in record["machine"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def main(config: Config) -> None:
    """Measures and writes the page."""
    record = {
        "date": datetime.date.today().isoformat(),
        "rounds": config.rounds,
        "machine": describe(),
        "found": measure(config.rounds),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    text = page(record)
    data = (json.dumps(record, indent=1) + "\n").encode()
    write_file(config.out / "mapped.json", data)
    write_file(config.out / "mapped.md", text.encode())
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
