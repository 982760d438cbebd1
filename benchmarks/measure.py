"""What is measured of each subject.

The times of a subject are taken in turn with each other and with a product of two
1024×1024 matrices, whose rate is the floor that they are compared with.
"""

import dataclasses
from typing import Any

import jax

from benchmarks import layers, machine, nets
from benchmarks.breakdown import breakdown
from benchmarks.shapes import DEPTHWISE, LAYERS, Shape
from benchmarks.timing import Function, Timing, interleave

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


def subjects(quick: bool) -> list[tuple[str, Any]]:
    """Returns what is measured: the part of the page, and what of it.

    Each is measured in a process of its own, so that none finds what another has left
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


def measure(part: str, subject: Any, settings: Settings) -> Record:
    """Measures one of `subjects`; returns timings and memory, ready for JSON."""
    measured = {
        "layers": _layer,
        "depthwise": _layer,
        "nets": _net,
        "scaling": _growth,
    }
    return measured[part](subject, settings)


def _timed(functions: dict[str, Function], settings: Settings) -> dict[str, Timing]:
    functions = {_FLOOR: machine.product(settings.dtype), **functions}
    return interleave(functions, settings.rounds)


def _gigaflops_a_second(timings: dict[str, Timing]) -> float:
    return 1e3 * machine.PRODUCT_GIGAFLOPS / timings[_FLOOR].median


def _layer(shape: Shape, settings: Settings) -> Record:
    dtype, is_depthwise = settings.dtype, shape.groups > 1
    calls = {
        "jax auto": layers.jax_dynamic(shape, "auto", dtype),
        "jax static": layers.jax_static(shape, dtype),
        "torch grouped": layers.torch_dynamic(shape, "grouped", dtype),
        "torch loop": layers.torch_dynamic(shape, "loop", dtype),
        "torch auto": layers.torch_dynamic(shape, "auto", dtype),
        "torch static": layers.torch_static(shape, dtype),
    }
    is_small = shape.gigaflops < _SMALL_FOR_VMAP
    if not settings.quick:
        forms = ("taps",) if is_depthwise else ("patches", "rows", "scan", "experts")
        for form in forms:
            calls[f"jax {form}"] = layers.jax_dynamic(shape, form, dtype)
        if shape in _COMPILED or jax.default_backend() == "gpu":
            calls["torch compiled"] = layers.torch_dynamic(
                shape, "grouped", dtype, compiled=True
            )
        if not is_depthwise and is_small:
            calls["jax vmap"] = layers.jax_dynamic(shape, "vmap", dtype)
    forward = _timed({name: call.forward for name, call in calls.items()}, settings)
    gradient = _timed({name: call.gradient for name, call in calls.items()}, settings)
    rate = _gigaflops_a_second(gradient)
    return {
        "shape": str(shape),
        "gigaflops": shape.gigaflops,
        "floor_ms": 1e3 * shape.gigaflops / rate,
        "forward": _plain(forward),
        "gradient": _plain(gradient),
        "memory": {
            name: call.memory for name, call in calls.items() if call.memory is not None
        },
    }


def _net(batch: int, settings: Settings) -> Record:
    calls = {
        "jax auto": nets.jax_net(batch, "auto", settings.dtype),
        "torch grouped": nets.torch_net(batch, "grouped", settings.dtype),
        "torch auto": nets.torch_net(batch, "auto", settings.dtype),
    }
    if batch <= 32 and not settings.quick:  # they take minutes
        calls["torch loop"] = nets.torch_net(batch, "loop", settings.dtype)
        calls["jax vmap"] = nets.jax_net(batch, "vmap", settings.dtype)
    subjects = {
        subject: _timed(
            {name: getattr(call, subject) for name, call in calls.items()}, settings
        )
        for subject in nets.NetCalls._fields
    }
    rate = _gigaflops_a_second(subjects["step"])
    return {
        "batch": batch,
        "gigaflops": nets.gigaflops(batch),
        "floor_ms": 1e3 * nets.gigaflops(batch) / rate,
        "breakdown": breakdown(calls["jax auto"].step),
        **{subject: _plain(timings) for subject, timings in subjects.items()},
    }


SCALING: dict[str, dict[int, Shape]] = {
    "batch": {value: Shape(value, 14, 128, 128) for value in (1, 4, 16, 64)},
    "experts": {
        value: Shape(16, 14, 128, 128, experts=value) for value in (1, 2, 4, 8, 16)
    },
    "channels": {value: Shape(16, 14, value, value) for value in (16, 64, 128, 256)},
    "size": {value: Shape(8, value, 64, 64) for value in (4, 7, 14, 28, 56, 112)},
}


def _growth(name: str, settings: Settings) -> Record:
    points = []
    for value, shape in SCALING[name].items():
        calls = {
            "jax auto": layers.jax_dynamic(shape, "auto", settings.dtype),
            "torch grouped": layers.torch_dynamic(shape, "grouped", settings.dtype),
        }
        timings = _timed(
            {name: call.gradient for name, call in calls.items()}, settings
        )
        floor = 1e3 * shape.gigaflops / _gigaflops_a_second(timings)
        points.append({"value": value, "floor_ms": floor, "gradient": _plain(timings)})
    return {"name": name, "points": points}


def _plain(timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    """Returns timings as JSON has them, without the floor."""
    return {
        name: dataclasses.asdict(timing)
        for name, timing in timings.items()
        if name != _FLOOR
    }


def default_dtypes() -> tuple[str, ...]:
    """Returns the dtypes that are measured: bfloat16 too, where it is fast."""
    return ("float32",) if jax.default_backend() == "cpu" else ("float32", "bfloat16")
