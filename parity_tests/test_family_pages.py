"""The pages of the family: figures are those measured, options exist."""

import inspect
import re

import pytest

import dynconv_jax
from dynconv_jax.layers.expert_conv import ExpertOptions
from parity_tests.tools.checkout import ROOT

FOLDER = ROOT / "docs/family"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
MEASURED = (ROOT / "docs/benchmarks/family.md").read_text().splitlines()

# Whose constructor has the options of a page, beside those of `ExpertConv`.
MEMBERS = {
    "cond-conv": ["CondConv"],
    "decomposed-conv": ["DecomposedConv"],
    "dymn": [
        *("ContextConv", "ContextGenerator", "CoordinateAttention", "DynamicReLU"),
        "DyMN",
    ],
    "dynamic-conv": ["DynamicConv"],
    "dynamic-conv-transpose": ["DynamicConvTranspose"],
    "modulated-conv": ["ModulatedConv"],
    "adaptive-conv": ["AdaptiveConv"],
    "kernel-warehouse": ["KernelWarehouse", "WarehouseConv"],
    "od-conv": ["ODConv"],
    "fd-conv": ["FDConv"],
    "frequency-dynamic-conv": ["FrequencyDynamicConv"],
}

NOT_TIMED = {"dynamic-conv-transpose"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pages
def test_costs_are_those_that_were_measured(page):
    rows = re.findall(
        r"^\| (?:static|[A-Z]\w+(?:, one expert)?) \|.*$", page.read_text(), re.M
    )
    assert (len(rows) >= 4) is (page.stem not in NOT_TIMED)
    assert set(rows) <= set(MEASURED)


def options_of(page) -> dict[str, str]:
    """Returns the defaults that a page names, by option."""
    row = r"^\| `(\w+)` \| ?`?([^|`]*?)`? ?\|"
    return dict(re.findall(row, page.read_text(), re.MULTILINE))


@pages
def test_options_are_those_of_the_constructor(page):
    defaults = {}
    for name in MEMBERS[page.stem]:
        signature = inspect.signature(getattr(dynconv_jax, name).__init__)
        defaults.update(signature.parameters)
    for name, default in options_of(page).items():
        if name in defaults and default.strip():
            actual = defaults[name].default
            assert default.strip() in (str(actual), f'"{actual}"'), name
        else:
            assert name in defaults or name in ExpertOptions.__annotations__, name


def test_the_options_that_all_share_are_all_listed():
    listed = options_of(FOLDER / "index.md")
    named = set(ExpertOptions.__annotations__)
    assert set(listed) <= named
    # The others are for those who know them from nnx.Conv, which explains them.
    assert named - set(listed) == {
        "promote_dtype",
        "preferred_element_type",
        "kernel_metadata",
        "bias_metadata",
    }


def test_there_is_a_page_for_each_member():
    assert {page.stem for page in PAGES} == MEMBERS.keys()
    contents = (FOLDER / "index.md").read_text()
    assert all(f"]({page.name})" in contents for page in PAGES)
