"""The measurements as CSV, for programs: a row a layer and form, a row a network."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.nets import IMAGE_SIZE, costs
from dynconv_jax.weights import write_file

Record = Mapping[str, Any]
Row = dict[str, Any]

LAYER_PASSES = "forward", "gradient"


def write_tables(results: Record, folder: Path) -> None:
    """Writes `layers.csv` and `networks.csv` into a folder.

    The columns of networks have timm's names: times of a step in milliseconds, counts
    of parameters in millions, multiply-adds of an image in 1e9 (`infer_gmacs`).

    Args:
        results: What the workers measured, by environment and dtype.
        folder: It must be there.
    """
    for name, rows in (("layers", layers), ("networks", networks)):
        write_file(folder / f"{name}.csv", _csv(list(rows(results))).encode())


def _records(results: Record) -> Iterator[tuple[Row, Record]]:
    """Yields the columns that tell an environment and a dtype, and what is of them."""
    for environment, by_dtype in results["environments"].items():
        for dtype, record in by_dtype.items():
            yield {"environment": environment, "dtype": dtype}, record


def layers(results: Record) -> Iterator[Row]:
    """Yields a row for each layer, pass and form; times in ms, memory in MB."""
    for columns, record in _records(results):
        for layer in (*record["layers"], *record["depthwise"]):
            for which in LAYER_PASSES:
                for form, timing in layer[which].items():
                    is_counted = which == "gradient" and form in layer["memory"]
                    memory = 1e3 * layer["memory"][form] if is_counted else None
                    yield {
                        "layer": layer["shape"],
                        "form": form,
                        **columns,
                        "pass": which,
                        **_rounded(timing),
                        "memory": memory if memory is None else round(memory, 3),
                    }


def networks(results: Record) -> Iterator[Row]:
    """Yields a row for each network, batch and form."""
    cost = costs()
    for columns, record in _records(results):
        for net in record["nets"]:
            batch = net["batch"]
            for form in net["step"]:
                row = {"model": "dynamic_net", "form": form, **columns}
                for prefix, which in (("infer", "forward"), ("train", "step")):
                    milliseconds = net[which][form]["median"]
                    rate = 1e3 * batch / milliseconds
                    row |= {
                        f"{prefix}_samples_per_sec": round(rate, 2),
                        f"{prefix}_step_time": round(milliseconds, 3),
                        f"{prefix}_batch_size": batch,
                        f"{prefix}_img_size": IMAGE_SIZE,
                    }
                yield row | {
                    "infer_gmacs": round(1e-9 * cost.multiply_adds, 4),
                    "param_count": round(1e-6 * cost.parameters, 4),
                }


def _rounded(timing: Record) -> Row:
    return {
        name: value if value is None else round(value, 3)
        for name, value in timing.items()
    }


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
