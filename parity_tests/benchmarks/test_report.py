"""The page of a machine, and its tables, are what the measurements give."""

import csv
import json

import pytest

from benchmarks import nets
from benchmarks.report import write_report
from parity_tests.tools.checkout import ROOT

PAGES = sorted(path.parent for path in ROOT.glob("docs/benchmarks/*/results.json"))


@pytest.fixture(scope="module", params=PAGES, ids=lambda folder: folder.name)
def written(request, tmp_path_factory):
    """Returns the folder of a machine, and what is written of its measurements."""
    folder = tmp_path_factory.mktemp("report")
    write_report(json.loads((request.param / "results.json").read_text()), folder)
    return request.param, folder


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_there_is_a_machine():
    assert PAGES


@pytest.mark.parametrize(
    "name", ["index.md", "summary.md", "layers.csv", "networks.csv", "results.json"]
)
def test_what_is_committed_is_what_the_measurements_give(written, name):
    committed, folder = written
    assert (folder / name).read_text() == (committed / name).read_text()


def test_a_layer_has_a_row_for_each_pass_and_form(written):
    _, folder = written
    results = json.loads((folder / "results.json").read_text())
    rows = rows_of(folder / "layers.csv")
    wanted = {
        (environment, dtype, layer["shape"], which, form): layer[which][form]["median"]
        for environment, by_dtype in results["environments"].items()
        for dtype, record in by_dtype.items()
        for layer in (*record["layers"], *record["depthwise"])
        for which in ("forward", "gradient")
        for form in layer[which]
    }
    names = "environment", "dtype", "layer", "pass", "form"
    found = {tuple(row[name] for name in names): float(row["median"]) for row in rows}
    assert len(rows) == len(wanted)
    assert found == pytest.approx(wanted, abs=5e-4)


def test_columns_of_networks_are_timms_and_agree_among_themselves(written):
    _, folder = written
    rows = rows_of(folder / "networks.csv")
    assert len({(row["environment"], row["form"]) for row in rows}) > 2
    for row in rows:
        for prefix in ("infer", "train"):
            rate, time, batch, size = (
                float(row[f"{prefix}_{name}"])
                for name in ("samples_per_sec", "step_time", "batch_size", "img_size")
            )
            assert rate == pytest.approx(1e3 * batch / time, rel=1e-3)
            assert size == nets.IMAGE_SIZE
        assert float(row["param_count"]) == pytest.approx(1.558, abs=1e-3)  # millions


def test_multiply_adds_of_the_net_are_those_of_its_convolutions_and_routers():
    # From the step's arithmetic, in which the stem has two products and not three.
    stem = 2e-9 * nets.IMAGE_SIZE**2 * 9 * 3 * 32
    convolutions = (nets.gigaflops(1) + stem) / 3
    assert convolutions < 2e-9 * nets.costs().multiply_adds < 1.2 * convolutions
