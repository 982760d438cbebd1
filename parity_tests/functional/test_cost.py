"""The work of each form, counted by hand for small convolutions."""

import dataclasses
from typing import Any

import pytest
import torch

from dynconv_jax.functional.chips import KINDS, chips
from dynconv_jax.functional.cost import Plan, Problem, Work, work_of
from dynconv_jax.functional.geometry import Geometry
from dynconv_torch.functional import Geometry as TorchGeometry
from dynconv_torch.functional import choice as torch_choice
from dynconv_torch.functional.transpose_geometry import TransposeGeometry

B, K, C, O, HIDDEN = 6, 4, 3, 2, 5  # noqa: E741
# A window of 3×2 on images of 5×4 leaves 3×3 pixels.
TAPS, PIXELS, OUT_PIXELS = 3 * 2, 5 * 4, 3 * 3
GIGABYTES = 4e-9  # of a number
FLOPS = 3 * 2e-9  # in Gflop: a multiply-add, forward and in both gradients
IMAGES = B * (PIXELS * C + OUT_PIXELS * O) * GIGABYTES
WINDOWS = B * OUT_PIXELS * TAPS * C * GIGABYTES
KERNEL = TAPS * C * O * GIGABYTES
ARITHMETIC = FLOPS * B * OUT_PIXELS * TAPS * C * O


def problem(**changes: Any) -> Problem:
    made = Problem(
        geometry=Geometry.create(C, O, (3, 2), padding="VALID"),
        spatial=(5, 4),
        batch=B,
        num_experts=K,
        itemsize=4,
        chip=dataclasses.replace(chips()["zen4"], lanes=1),
        device_count=1,
    )
    return dataclasses.replace(made, **changes)


def assert_work(found: Any, expected: Any) -> None:
    names = KINDS if isinstance(found, Work) else found._fields
    for name in names:
        wanted = getattr(expected, name)
        assert getattr(found, name) == pytest.approx(wanted, rel=1e-12), name


def test_windows_and_kernels_are_written_read_and_have_gradients():
    expected = Work(
        arithmetic=ARITHMETIC,
        windows=5 * WINDOWS,
        kernels=6 * B * KERNEL,
        experts=2 * K * KERNEL,
        images=3 * IMAGES,
        memory=IMAGES + 2 * (WINDOWS + B * KERNEL),
    )
    assert_work(work_of(problem(), Plan("patches"), cache=0.0), expected)


def test_a_loop_keeps_its_share_in_cache_and_adds_up_the_experts_gradient():
    steps = B / 2
    expected = Work(
        arithmetic=ARITHMETIC,
        cached_windows=5 * WINDOWS,
        cached_kernels=6 * B * KERNEL,
        experts=(2 + 4 * steps) * K * KERNEL,
        images=3 * IMAGES,
        steps=steps,
        memory=IMAGES + 2 * (2 * WINDOWS / B + 2 * KERNEL) + 2 * K * KERNEL,
    )
    assert_work(work_of(problem(), Plan("patches", 2), cache=1.0), expected)


@pytest.mark.parametrize("share", ["windows", "kernels"])
def test_what_does_not_fit_the_cache_is_in_memory(share):
    of_step = {"windows": 2 * WINDOWS, "kernels": 2 * B * KERNEL}[share]
    for cache, is_cached in ((0.999 * of_step, False), (1.001 * of_step, True)):
        work = work_of(problem(), Plan("patches"), cache)
        assert bool(getattr(work, f"cached_{share}")) == is_cached
        assert bool(getattr(work, share)) != is_cached


def test_kernels_that_samples_bring_have_no_experts():
    work = work_of(problem(num_experts=None), Plan("patches"), cache=0.0)
    assert work.experts == 0
    expected = IMAGES + 2 * (WINDOWS + B * KERNEL) + 2 * B * KERNEL
    assert work.memory == pytest.approx(expected, rel=1e-12)


def test_all_experts_are_so_many_products_and_outputs():
    outputs = B * K * OUT_PIXELS * O * GIGABYTES
    expected = Work(
        arithmetic=K * ARITHMETIC,
        windows=5 * WINDOWS,
        outputs=5 * outputs,
        experts=4 * K * KERNEL,
        images=3 * IMAGES,
        memory=IMAGES + 2 * (WINDOWS + outputs + K * KERNEL),
    )
    assert_work(work_of(problem(), Plan("experts"), cache=0.0), expected)


@pytest.mark.parametrize(("form", "reads"), [("taps", 2 * TAPS), ("looped taps", 0)])
def test_depthwise_only_a_loop_reads_images_from_the_cache(form, reads):
    geometry = Geometry.create(C, C, (3, 2), padding="VALID", feature_group_count=C)
    images = B * C * (PIXELS + OUT_PIXELS) * GIGABYTES
    kernels = B * C * TAPS * GIGABYTES
    expected = Work(
        taps=FLOPS * B * OUT_PIXELS * C * TAPS,
        windows=reads * images,
        kernels=6 * kernels,
        images=3 * images,
        memory=2 * images + 2 * kernels,
    )
    assert_work(work_of(problem(geometry=geometry), Plan(form), cache=0.0), expected)


def test_sides_of_products_and_channels_of_images_are_filled_up_to_lanes():
    chip = dataclasses.replace(problem().chip, lanes=8)
    work = work_of(problem(chip=chip), Plan("patches"), cache=0.0)
    rows, outputs = 24, 8  # of 3 · 2 · 3 rows, and of 2
    arithmetic = FLOPS * B * OUT_PIXELS * rows * outputs
    assert work.arithmetic == pytest.approx(arithmetic, rel=1e-12)
    images = 3 * B * 8 * (PIXELS + OUT_PIXELS) * GIGABYTES
    assert work.images == pytest.approx(images, rel=1e-12)


TORCH_KERNELS = B * KERNEL
TORCH_FLOPS = ARITHMETIC / 3
TORCH_WORK = {
    "grouped": dict(grouped=TORCH_FLOPS, kernels=TORCH_KERNELS, calls=1),
    "loop": dict(dense=TORCH_FLOPS, kernels=TORCH_KERNELS, calls=B),
    "experts": dict(
        dense=K * TORCH_FLOPS, outputs=B * K * OUT_PIXELS * O * GIGABYTES, calls=1
    ),
}


@pytest.mark.parametrize("form", TORCH_WORK)
def test_work_of_the_pytorch_forms(form):
    geometry = TorchGeometry.create(C, O, (3, 2), rank=2)
    found = torch_choice.work_of(form, torch.empty(B, C, 5, 4), geometry, K)
    assert_work(found, torch_choice.Work(**TORCH_WORK[form]))


def test_a_transposed_convolution_multiplies_each_pixel_by_its_whole_kernel():
    geometry = TransposeGeometry.create(C, O, (3, 2), rank=2, stride=2)
    assert geometry.multiply_adds((5, 4)) == PIXELS * TAPS * C * O
