"""python -m benchmarks.family: what each member of the family costs, in one table.

Each member takes the place of the same static convolution, in both frameworks. Counted
are parameters and multiply-adds; measured are the times of forward and of forward and
backward, and the memory of the compiled gradient. Each framework has a process of its
own, and all are called in turn. Times are given as multiples of the static layer of the
same framework, in the same rounds.
"""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch
import tyro
from flax import nnx

import dynconv_jax
import dynconv_torch
from benchmarks.layers import (
    jax_arguments,
    jax_calls,
    torch_arguments,
    torch_calls,
)
from benchmarks.machine import describe
from benchmarks.processes import process_of
from benchmarks.shapes import Shape
from benchmarks.timing import Function, in_turn
from dynconv_jax.weights import write_file
from dynconv_torch.functional.geometry import Geometry as TorchGeometry

SHAPES = (Shape(16, 28, 128, 128), Shape(16, 14, 256, 256, 1))
SUBJECTS = ("forward", "gradient")


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to measure, and where the page goes."""

    rounds: int = 7
    """How many turns each call has."""

    out: Path = Path("runs/benchmarks")
    """The directory for `family.md` and `family.json`."""


class _Routed(nnx.Module):
    """A layer with attention from outside, and the router that gives it."""

    def __init__(self, layer: Any, router: Any):
        self.layer = layer
        self.routing_fn = router

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.layer(inputs, self.routing_fn(inputs))


class _Steered(nnx.Module):
    """A layer that a vector from outside steers: the means of its own inputs."""

    def __init__(self, layer: Any):
        self.layer = layer

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.layer(inputs, inputs.mean((1, 2)))


class _TorchRouted(torch.nn.Module):
    """A layer with attention from outside, in PyTorch."""

    def __init__(self, layer: Any, router: Any):
        super().__init__()
        self.layer = layer
        self.routing_fn = router

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, self.routing_fn(x))


class _TorchSteered(torch.nn.Module):
    """A layer that a vector steers, in PyTorch."""

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x.mean((2, 3)))


class _WithWarehouse(torch.nn.Module):
    """A layer and its warehouse, whose cells are no parameters of the layer."""

    def __init__(self, layer: Any, warehouse: Any):
        super().__init__()
        self.layer = layer
        self.warehouse = warehouse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def jax_members(shape: Shape) -> dict[str, nnx.Module]:
    """Returns a layer of each member, by name, the static one first."""
    options = jax_arguments(shape)
    rngs, width = options["rngs"], shape.in_features
    warehouse = dynconv_jax.KernelWarehouse([shape.geometry], rngs=rngs)
    return {
        "static": nnx.Conv(**options, use_bias=False),
        "CondConv": _Routed(
            dynconv_jax.CondConv(**options),
            dynconv_jax.SigmoidRouter(width, rngs=rngs),
        ),
        "DynamicConv": dynconv_jax.DynamicConv(**options),
        "ContextConv": _Steered(
            dynconv_jax.ContextConv(**options, context_features=width)
        ),
        "ODConv, one expert": dynconv_jax.ODConv(**options, num_experts=1),
        "ODConv": dynconv_jax.ODConv(**options),
        "KernelWarehouse": dynconv_jax.WarehouseConv(warehouse, rngs=rngs),
        "DecomposedConv": dynconv_jax.DecomposedConv(**options),
        "ModulatedConv": _Steered(
            dynconv_jax.ModulatedConv(**options, style_features=width)
        ),
        "AdaptiveConv": _Steered(
            dynconv_jax.AdaptiveConv(**options, style_features=width)
        ),
        "FDConv": dynconv_jax.FDConv(**options),
        "FrequencyDynamicConv": dynconv_jax.FrequencyDynamicConv(**options),
    }


def torch_members(shape: Shape) -> dict[str, torch.nn.Module]:
    """Returns the same in PyTorch."""
    options = torch_arguments(shape)
    width = shape.in_features
    geometry = TorchGeometry.create(**options, rank=2)
    warehouse = dynconv_torch.KernelWarehouse([geometry])
    return {
        "static": torch.nn.Conv2d(**options, bias=False),
        "CondConv": _TorchRouted(
            dynconv_torch.CondConv2d(**options), dynconv_torch.SigmoidRouter(width)
        ),
        "DynamicConv": dynconv_torch.DynamicConv2d(**options),
        "ContextConv": _TorchSteered(
            dynconv_torch.ContextConv2d(**options, context_channels=width)
        ),
        "ODConv, one expert": dynconv_torch.ODConv2d(**options, num_experts=1),
        "ODConv": dynconv_torch.ODConv2d(**options),
        "KernelWarehouse": _WithWarehouse(
            dynconv_torch.WarehouseConv2d(warehouse), warehouse
        ),
        "DecomposedConv": dynconv_torch.DecomposedConv2d(**options),
        "ModulatedConv": _TorchSteered(
            dynconv_torch.ModulatedConv2d(**options, style_channels=width)
        ),
        "AdaptiveConv": _TorchSteered(
            dynconv_torch.AdaptiveConv2d(**options, style_channels=width)
        ),
        "FDConv": dynconv_torch.FDConv2d(**options),
        "FrequencyDynamicConv": dynconv_torch.FrequencyDynamicConv2d(**options),
    }


def calls(shape: Shape, framework: str) -> dict[tuple[str, str], Function]:
    """Returns the forward and the gradient of every member, in one framework."""
    if framework == "jax":
        layers = jax_members(shape).items()
        built = {name: jax_calls(shape, layer) for name, layer in layers}
    else:
        layers = torch_members(shape).items()
        built = {name: torch_calls(shape, layer) for name, layer in layers}
    return {
        (name, subject): getattr(each, subject)
        for name, each in built.items()
        for subject in SUBJECTS
    }


def counts(shape: Shape) -> dict[str, dict[str, float]]:
    """Returns what is counted of every member, by its name."""
    one = jax.ShapeDtypeStruct((1, *shape.input_shape[1:]), "float32")
    return {
        name: {
            "parameters": dynconv_jax.count_parameters(layer),
            "multiply_adds": dynconv_jax.count_multiply_adds(layer, one),
            "megabytes": 1e3 * (jax_calls(shape, layer).memory or float("nan")),
        }
        for name, layer in jax_members(shape).items()
    }


def measure(shape: Shape, rounds: int) -> dict[str, dict[str, float]]:
    """Counts and measures every member in one place, by its name."""
    rows = counts(shape)
    with contextlib.ExitStack() as processes:
        asked = {
            framework: processes.enter_context(process_of(calls, shape, framework))
            for framework in ("jax", "torch")
        }
        for subject in SUBJECTS:
            callers = {
                f"{framework} {name}": each[name, subject]
                for name in rows
                for framework, each in asked.items()
            }
            for name, timing in in_turn(callers, rounds).items():
                framework, member = name.split(" ", 1)
                rows[member][f"{framework} {subject}"] = timing.median
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """Returns the Markdown table of one place."""
    static = rows["static"]
    lines = [
        "| | parameters | multiply-adds | memory | forward | forward + backward "
        "| PyTorch forward | PyTorch forward + backward |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    columns: dict[str, Callable[[float], str]] = {
        "parameters": "{:.2f}".format,
        "multiply_adds": "{:.3f}".format,
        "megabytes": "{:.2f}".format,
        "jax forward": "{:.2f}".format,
        "jax gradient": "{:.2f}".format,
        "torch forward": "{:.2f}".format,
        "torch gradient": "{:.2f}".format,
    }
    lines.append(
        f"| static | {static['parameters']:,.0f} "
        f"| {static['multiply_adds'] / 1e6:.1f} M | {static['megabytes']:.0f} MB "
        + "".join(f"| {static[column]:.1f} ms " for column in list(columns)[3:])
        + "|"
    )
    for name, row in rows.items():
        if name != "static":
            cells = [
                f"{show(row[column] / static[column])}×"
                for column, show in columns.items()
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    """Measures and writes the page."""
    config.out.mkdir(parents=True, exist_ok=True)
    measured = {str(shape): measure(shape, config.rounds) for shape in SHAPES}
    machine = describe()
    parts = [
        "# What each member of the family costs",
        f"Measured on {datetime.date.today()} by `python -m benchmarks.family`, in "
        "float32: the static layer in figures, each member as a multiple of it. K = 4 "
        "where there are experts, 64 bands of FDConv; a warehouse of this one layer, "
        "ratio 1. Parameters and multiply-adds (of one image, forward) are counted, "
        "memory is that of the temporaries of the compiled gradient in JAX, times are "
        f"medians of {config.rounds} turns, in training mode, each framework in a "
        "process of its own. What steers `ContextConv`, `ModulatedConv` and "
        "`AdaptiveConv` is as wide as their inputs.",
        *(f"## {shape}\n\n{table(rows)}" for shape, rows in measured.items()),
        "Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()),
    ]
    write_file(config.out / "family.md", ("\n\n".join(parts) + "\n").encode())
    record = {"machine": machine, "rounds": config.rounds, "places": measured}
    write_file(config.out / "family.json", json.dumps(record, indent=1).encode())
    print("\n\n".join(parts))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
