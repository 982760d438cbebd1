"""Times on a chip that is here: the CPU, which stands for one."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from benchmarks.compiled.chips import CHIPS, Chip
from benchmarks.compiled.clock import device_microseconds, microseconds
from benchmarks.compiled.jobs import PASSES, Job
from benchmarks.compiled.measure import comparison
from benchmarks.compiled.timed import time_job
from benchmarks.shapes import Shape

CPU = Chip("cpu", "cpu", 1e11, 1e10, "cpu")


def layer(form: str, variant: str = PASSES[1]) -> Job:
    subject = dict(vars(Shape(2, 5, 3, 4, experts=3)))
    return Job("layer", subject, form, variant)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "variant"),
    [("static", PASSES[1]), ("auto", PASSES[0]), ("experts", PASSES[1])],
)
def test_a_layer_is_timed_where_the_profiler_sees_no_device(form, variant):
    record = time_job(layer(form, variant), CPU)
    assert record["by"] == "wall" and 0 < record["time"] < 1e6


def test_a_chip_that_is_not_here_is_refused():
    record = time_job(layer("static"), CHIPS["v5e"])
    assert record["refused"].startswith(
        "ValueError: --chip (=v5e) is not what JAX finds"
    )


def test_more_chips_than_there_are_are_refused():
    step = Job("step", ["dynamic_net", "dynamic", 32, 10], "auto", "4000")
    assert "4000 chips are needed" in time_job(step, CPU)["refused"]


def test_the_wall_clock_waits_for_the_result():
    matrix = jnp.ones((300, 300))
    multiply = jax.jit(jnp.matmul)
    time, by = microseconds(lambda: multiply(matrix, matrix))
    assert by == "wall" and time > 1


def span(start: int, duration: int) -> str:
    return f"events {{ offset_ps: {start}000000 duration_ps: {duration}000000 }}"


def profile(plane: str, *lines: tuple[str, list[str]]) -> Any:
    inside = " ".join(
        f'lines {{ name: "{name}" {" ".join(spans)} }}' for name, spans in lines
    )
    return ProfileData.from_text_proto(f'planes {{ name: "{plane}" {inside} }}')


def test_of_a_tpu_the_modules_count_and_the_operations_in_them_do_not():
    found = profile(
        "/device:TPU:0",
        ("XLA Modules", [span(0, 10), span(20, 10)]),
        ("XLA Ops", [span(0, 4), span(5, 4)]),
    )
    assert device_microseconds(found, 2) == pytest.approx(10)


def test_of_a_gpu_kernels_side_by_side_count_once():
    found = profile(
        "/device:GPU:0",
        ("Stream #7(Compute)", [span(0, 10), span(20, 10)]),
        ("Stream #8(MemcpyD2D)", [span(5, 10)]),
    )
    assert device_microseconds(found, 1) == pytest.approx(25)


def test_of_a_cpu_there_is_no_device_time():
    assert (
        device_microseconds(profile("/host:CPU", ("python", [span(0, 9)])), 1) is None
    )


def test_the_comparison_stands_bounds_beside_times_and_ranks_them():
    def each(title: str, bound: float | None, **found) -> dict:
        return dict(title=title, variant=PASSES[0], bound=bound, **found)

    text = comparison(
        {
            "a | forward | rows": each("a", 10.0, time=30.0, by="profiler"),
            "a | forward | taps": each("a", 20.0, time=40.0, by="profiler"),
            "b | forward | rows": each("b", 15.0, time=50.0, by="wall"),
            "b | forward | taps": each("b", None, time=9.0, by="wall"),
            "b | forward | vmap": each("b", 99.0, late=60.0),
        },
        CHIPS["v5e"],
    )
    assert "| a, forward, rows | 10.0 | 30.0 | profiler |" in text
    assert "| b, forward, vmap | 99.0 | none within 60 s |  |" in text
    assert "Spearman's rank correlation of bound and time: 3 programs, 0.50." in text
    assert "- a, forward: 2 programs, 1.00" in text
    assert "- b, forward: 1 programs, –" in text
