"""What is measured of each subject.

The times of a subject are taken in turn with each other and with a product of two
1024×1024 matrices, whose rate is the floor that they are compared with. Each framework
computes in a process of its own (`worker.py`), since the threads of one take a core
from the other, and each finds in the allocator what the other has left there. The
functions here that start with `measure` run in the process that asks, the others in
those that compute.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from benchmarks import layers, machine, nets
from benchmarks.shapes import DEPTHWISE, LAYERS, Shape
from benchmarks.timing import Function, Timing, in_turn_and_in_a_row

# A mapped convolution of more Gflop would take minutes in the gradient.
_SMALL_FOR_VMAP = 2.0
# Compiling each of the others by PyTorch takes half a minute, on a CPU for nothing.
_COMPILED = (LAYERS[0], LAYERS[4], DEPTHWISE[1])
_FLOOR = "1024³ product"

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        rounds: How often to time each call.
        quick: Leave out what takes long: most shapes, the references that are slow,
            and how cost grows.
        dtype: Of the computation.
    """

    rounds: int
    quick: bool
    dtype: str


class Floor(NamedTuple):
    """The product that all is compared with, under the name of each pass."""

    forward: Function
    gradient: Function
    step: Function


def subjects(quick: bool) -> list[tuple[str, Any]]:
    """Returns what is measured: the part of the page, and what of it.

    Each is measured in processes of its own, so that none finds what another has left
    in the allocator.
    """
    if quick:
        return [
            ("layers", LAYERS[4]),
            ("layers", LAYERS[6]),
            ("depthwise", DEPTHWISE[2]),
            ("nets", 32),
        ]
    return [
        *(("layers", shape) for shape in LAYERS),
        *(("depthwise", shape) for shape in DEPTHWISE),
        *(("nets", batch) for batch in (32, 128)),
        *(("scaling", name) for name in SCALING),
    ]


PASSES = {
    "layers": layers.Calls._fields[:2],
    "depthwise": layers.Calls._fields[:2],
    "nets": nets.NetCalls._fields,
    "scaling": ("gradient",),
}


def calls(part: str, subject: Any, framework: str, settings: Settings) -> Record:
    """Builds what a framework computes of one of `subjects`.

    Returns:
        By name, beginning with the framework's, what has a function for each of the
        `PASSES` of the part; in JAX's the product of matrices as well.
    """
    builders = {
        "layers": _layer_calls,
        "depthwise": _layer_calls,
        "nets": _net_calls,
        "scaling": _scaling_calls,
    }
    found: Record = {
        name: build()
        for name, build in builders[part](subject, settings).items()
        if name.startswith(framework)
    }
    if framework == "jax":
        found[_FLOOR] = Floor(*[machine.product(settings.dtype)] * len(Floor._fields))
    return found


def _layer_calls(shape: Shape, settings: Settings) -> dict[str, Callable[[], Any]]:
    dtype, is_depthwise = settings.dtype, shape.groups > 1
    jax_dynamic = functools.partial(layers.jax_dynamic, shape, dtype=dtype)
    torch_dynamic = functools.partial(layers.torch_dynamic, shape, dtype=dtype)
    found: dict[str, Callable[[], Any]] = {
        "jax auto": functools.partial(jax_dynamic, "auto"),
        "jax static": functools.partial(layers.jax_static, shape, dtype),
        "torch grouped": functools.partial(torch_dynamic, "grouped"),
        "torch loop": functools.partial(torch_dynamic, "loop"),
        "torch auto": functools.partial(torch_dynamic, "auto"),
        "torch static": functools.partial(layers.torch_static, shape, dtype),
    }
    if settings.quick:
        return found
    forms = ("taps",) if is_depthwise else ("patches", "rows", "scan", "experts")
    for form in forms:
        found[f"jax {form}"] = functools.partial(jax_dynamic, form)
    if shape in _COMPILED or jax.default_backend() == "gpu":
        found["torch compiled"] = functools.partial(
            torch_dynamic, "grouped", compiled=True
        )
    if not is_depthwise and shape.gigaflops < _SMALL_FOR_VMAP:
        found["jax vmap"] = functools.partial(jax_dynamic, "vmap")
    return found


def _net_calls(batch: int, settings: Settings) -> dict[str, Callable[[], Any]]:
    names = ["jax auto", "torch grouped", "torch auto"]
    if batch <= 32 and not settings.quick:  # they take minutes
        names += ["torch loop", "jax vmap"]
    build = {"jax": nets.jax_net, "torch": nets.torch_net}
    return {
        name: functools.partial(build[framework], batch, form, settings.dtype)
        for name in names
        for framework, form in (name.split(),)
    }


SCALING: dict[str, dict[int, Shape]] = {
    "batch": {value: Shape(value, 14, 128, 128) for value in (1, 4, 16, 64)},
    "experts": {
        value: Shape(16, 14, 128, 128, experts=value) for value in (1, 2, 4, 8, 16)
    },
    "channels": {value: Shape(16, 14, value, value) for value in (16, 64, 128, 256)},
    "size": {value: Shape(8, value, 64, 64) for value in (4, 7, 14, 28, 56, 112)},
}


def _scaling_calls(name: str, settings: Settings) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    for value, shape in SCALING[name].items():
        found[f"jax auto {value}"] = functools.partial(
            layers.jax_dynamic, shape, "auto", settings.dtype
        )
        found[f"torch grouped {value}"] = functools.partial(
            layers.torch_dynamic, shape, "grouped", settings.dtype
        )
    return found


def measure(
    part: str, subject: Any, workers: Mapping[str, Any], settings: Settings
) -> Record:
    """Measures one of `subjects`; returns timings and memory, ready for JSON.

    Args:
        part: The part of the page.
        subject: What of it.
        workers: For each framework its `worker.Worker`, which has the calls.
        settings: What to measure.
    """
    timings = {}
    for each in PASSES[part]:
        callers = {
            name: functools.partial(worker.call, name, each)
            for worker in workers.values()
            for name in worker.names
        }
        timings[each] = in_turn_and_in_a_row(callers, settings.rounds)
    measured = {
        "layers": _layer_record,
        "depthwise": _layer_record,
        "nets": _net_record,
        "scaling": _growth_record,
    }
    return measured[part](subject, timings, workers)


Timings = Mapping[str, Mapping[str, Timing]]


def _layer_record(shape: Shape, timings: Timings, workers: Mapping[str, Any]) -> Record:
    rate = _gigaflops_a_second(timings["gradient"])
    return {
        "shape": str(shape),
        "gigaflops": shape.gigaflops,
        "floor_ms": 1e3 * shape.gigaflops / rate,
        **{subject: _plain(each) for subject, each in timings.items()},
        "memory": workers["jax"].memory,
    }


def _net_record(batch: int, timings: Timings, workers: Mapping[str, Any]) -> Record:
    rate = _gigaflops_a_second(timings["step"])
    return {
        "batch": batch,
        "gigaflops": nets.gigaflops(batch),
        "floor_ms": 1e3 * nets.gigaflops(batch) / rate,
        "breakdown": workers["jax"].breakdown("jax auto", "step"),
        **{subject: _plain(each) for subject, each in timings.items()},
    }


def _growth_record(name: str, timings: Timings, workers: Mapping[str, Any]) -> Record:
    gradient = timings["gradient"]
    rate = _gigaflops_a_second(gradient)
    points = []
    for value, shape in SCALING[name].items():
        own = {
            form: gradient[f"{form} {value}"] for form in ("jax auto", "torch grouped")
        }
        floor = 1e3 * shape.gigaflops / rate
        points.append({"value": value, "floor_ms": floor, "gradient": _plain(own)})
    return {"name": name, "points": points}


def _gigaflops_a_second(timings: Mapping[str, Timing]) -> float:
    return 1e3 * machine.PRODUCT_GIGAFLOPS / timings[_FLOOR].median


def _plain(timings: Mapping[str, Timing]) -> dict[str, dict[str, float | None]]:
    """Returns timings as JSON has them, without the floor."""
    return {
        name: dataclasses.asdict(timing)
        for name, timing in timings.items()
        if name != _FLOOR
    }


def default_dtypes() -> tuple[str, ...]:
    """Returns the dtypes that are measured: bfloat16 too, where it is fast."""
    return ("float32",) if jax.default_backend() == "cpu" else ("float32", "bfloat16")
