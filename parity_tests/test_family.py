"""Each member of the family has its place wherever members are listed by hand."""

import inspect
from pathlib import Path

import pytest

import dynconv_jax
import dynconv_torch
from benchmarks import family as measured
from dynconv_jax.layers import KernelWarehouse
from dynconv_jax.models.registry import CONVOLUTIONS, STEERED
from dynconv_jax.models.warehouses import with_warehouses
from dynconv_jax.weights.members import MEMBERS
from dynconv_jax.weights.starts import static_start
from dynconv_jax.weights.torch_layout import LAYOUT
from dynconv_torch.models.registry import CONVOLUTIONS as TWINS
from dynconv_torch.models.registry import STEERED as STEERED_TWINS
from parity_tests import test_family_pages
from parity_tests.tools import family, torch_layers
from parity_tests.tools.checkout import ROOT

NAMES = [name for name in [*CONVOLUTIONS, *STEERED] if name != "static"]


def class_of(name: str) -> type:
    """The layer's class, or what its layers share."""
    found = {**CONVOLUTIONS, **STEERED}[name]
    return KernelWarehouse if found is with_warehouses else found  # pyright: ignore[reportReturnType]


def page_of(title: str) -> str:
    pages = test_family_pages.MEMBERS.items()
    return next((page for page, titles in pages if title in titles), "")


@pytest.mark.parametrize("name", NAMES)
def test_a_member_has_its_place_in_every_list(name):
    cls = class_of(name)
    title, file = cls.__name__, Path(inspect.getfile(cls))
    layer = "WarehouseConv" if cls is KernelWarehouse else title
    twin = title if cls is KernelWarehouse else f"{title}2d"
    start = static_start.dispatch(getattr(dynconv_jax, layer))
    texts = {path: (ROOT / path).read_text() for path in PAGES}
    places = {
        "dynconv_jax": hasattr(dynconv_jax, title),
        "dynconv_torch": hasattr(dynconv_torch, twin),
        "the twin's file": (ROOT / f"dynconv_torch/layers/{file.name}").exists(),
        "its tests": (ROOT / f"parity_tests/layers/test_{file.name}").exists(),
        "CONVOLUTIONS of the twin": name in {**TWINS, **STEERED_TWINS},
        "LAYOUT": any(kind in LAYOUT for kind in cls.__mro__),
        "MEMBERS": any(member.conv == name for member in MEMBERS),
        "static_start": start is not static_start.dispatch(object),
        "LAYERS": layer in family.LAYERS,
        "torch_layers": layer in inspect.getsource(torch_layers),
        "benchmarks": f'"{title}":' in inspect.getsource(measured),
        "a page": bool(page_of(title)),
        "mkdocs.yml": f"family/{page_of(title)}.md" in texts.pop("mkdocs.yml"),
        "docs/family/index.md": f"({page_of(title)}.md)" in texts.pop(INDEX),
        **{path: title in text for path, text in texts.items()},
    }
    assert not [place for place, is_there in places.items() if not is_there]


INDEX = "docs/family/index.md"
PAGES = (
    *("README.md", "mkdocs.yml", INDEX, "docs/guides/models.md"),
    *("docs/reference/layers.md", "docs/reference/torch-layers.md"),
)
