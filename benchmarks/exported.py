"""python -m benchmarks.exported: what the files of `train export` cost to run.

Of each network there are the programs that `python -m train export` writes, and what
they were written of: the jitted model of JAX, and the twin's forward in PyTorch. Each
has a process of its own, with the threads that its runtime takes by itself; they are
called in turn, in rows of calls, and what is compared are medians of one measurement.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
import torch
import tyro
from flax import nnx

import dynconv_jax
from benchmarks.machine import describe
from benchmarks.processes import process_of
from benchmarks.timing import Function, in_turn
from dynconv_jax.weights import write_file
from dynconv_torch.export import Classifier
from dynconv_torch.weights import from_pretrained
from train.commands.export import twin
from train.commands.export.programs import (
    classifier,
    fold,
    load_stablehlo,
    to_stablehlo,
)
from train.data.dataset import Domain

BATCHES = (1, 32)
# What each program is compared with, and how many times its time it may take.
GOALS = {"model.stablehlo": ("JAX, jitted", 1.05), "model.onnx": ("the twin", 1.5)}
COMPARED = {name: beside for name, (beside, _) in GOALS.items()}
COMPARED["model.pt2"] = "the twin"
PROGRAMS = ("JAX, jitted", "model.stablehlo", "the twin", "model.onnx", "model.pt2")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and the side of the pictures that it takes."""

    model: str
    side: int
    channels: int = 3
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    has_goal: bool = True
    """Whether ONNX is to be within its limit here, as StableHLO is everywhere."""

    def build(self) -> nnx.Module:
        """Returns the network, as it is initialised."""
        return dynconv_jax.create_model(
            self.model,
            10,
            in_features=self.channels,
            rngs=nnx.Rngs(0),
            **self.options,
        )

    @property
    def domain(self) -> Domain:
        """What its pictures are like."""
        return Domain(
            class_names=tuple("0123456789"),
            image_shape=(self.side, self.side, self.channels),
            mean=(0.5,) * self.channels,
            std=(0.25,) * self.channels,
        )


DYNAMIC = {"conv": "dynamic"}
NETWORKS = {
    "DynamicNet of half the width, 8×8": Network(
        "dynamic_net", 8, 1, {"width_mult": 0.5}
    ),
    "DynamicNet, 32×32": Network("dynamic_net", 32),
    "ResNet-18, dynamic, 64×64": Network("resnet18", 64, options=DYNAMIC),
    "ResNet-18, dynamic, 224×224": Network("resnet18", 224, options=DYNAMIC),
    "MobileNetV2, dynamic, 64×64": Network(
        "mobilenet_v2", 64, options=DYNAMIC, has_goal=False
    ),
    "EfficientNet-CondConv-B0 (4 experts), 64×64": Network(
        "efficientnet_cc_b0_4e", 64, has_goal=False
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, how long, and where the page goes."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which, by their names in the page."""

    rounds: int = 9
    """How many turns each program has at each batch."""

    out: Path = Path("runs/benchmarks")
    """The directory for `exported.md` and `exported.json`."""


def write_programs(network: Network, folder: Path) -> dict[str, int]:
    """Writes the programs of a network; returns the bytes of each file."""
    domain, model = network.domain, network.build()
    dynconv_jax.save_pretrained(model, folder / "net")
    folded, _ = fold(model, domain)
    program = to_stablehlo(classifier(folded, domain), domain, open_size=False)
    (folder / "model.stablehlo").write_bytes(program)
    pictures = _pictures(network, 3)
    written = twin.write(folder, domain, pictures, None)
    weights = folder / "net" / "model.safetensors"
    files = [folder / "model.stablehlo", *written.files.values(), weights]
    return {file.name: file.stat().st_size for file in files}


def _pictures(network: Network, batch: int) -> np.ndarray:
    shape = (batch, network.side, network.side, network.channels)
    return np.random.default_rng(batch).integers(0, 256, shape, np.uint8)


def load(name: str, network: Network, folder: Path) -> Callable[[np.ndarray], Any]:
    """Returns what computes probabilities by one of the programs."""
    match name:
        case "JAX, jitted":
            function = classifier(network.build(), network.domain)
            return lambda pictures: np.asarray(function(pictures))
        case "model.stablehlo":
            program = jax.jit(load_stablehlo((folder / name).read_bytes()).call)
            return lambda pictures: np.asarray(program(pictures))
        case "model.onnx":
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(folder / name, options)
            return lambda pictures: session.run(None, {"images": pictures})
        case "model.pt2":
            module: Any = torch.export.load(folder / name).module()
        case _:
            net = from_pretrained(folder / "net")
            module = Classifier(net, network.domain.mean, network.domain.std).eval()
    return lambda pictures: torch.no_grad()(module)(torch.from_numpy(pictures))


def calls(network: Network, folder: Path, name: str) -> dict[int, Function]:
    """Returns the calls of one of the programs, by batch."""
    function = load(name, network, folder)
    return {
        batch: functools.partial(function, _pictures(network, batch))
        for batch in BATCHES
    }


def measure(network: Network, rounds: int) -> dict[str, Any]:
    """Writes the programs of a network and times them.

    Returns:
        `bytes` by file, and `milliseconds` by batch and program: the median over turns,
        and the quartiles.
    """
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as processes:
        folder = Path(place)
        sizes = write_programs(network, folder)
        asked = {
            name: processes.enter_context(process_of(calls, network, folder, name))
            for name in PROGRAMS
        }
        times = {}
        for batch in BATCHES:
            callers = {name: callers[batch] for name, callers in asked.items()}
            found = in_turn(callers, rounds)
            times[str(batch)] = {
                name: {"median": each.median, "quartiles": [each.low, each.high]}
                for name, each in found.items()
            }
    return {"bytes": sizes, "milliseconds": times}


def ratios(measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns by batch and file how many times the time of its model it takes."""
    return {
        batch: {
            name: times[name]["median"] / times[beside]["median"]
            for name, beside in COMPARED.items()
        }
        for batch, times in measured["milliseconds"].items()
    }


def page(record: Mapping[str, Any]) -> str:
    """Returns the page of what was measured."""
    networks: dict[str, Any] = record["networks"]
    machine = record["machine"]
    parts = [
        "# Exported programs",
        f"Measured on {record['date']} by `python -m benchmarks.exported`, in float32 "
        "and with the weights as initialised: what [the files of an export]"
        "(../deploy.md) take, as a multiple of what they were written of. "
        "`model.stablehlo` beside the jitted model of JAX, its batch norms not folded; "
        "`model.onnx` in onnxruntime, and `model.pt2`, beside the forward of the twin. "
        "Everything is from pictures of uint8 to probabilities, on "
        f"{machine['PyTorch threads']} threads, each program in a process of its own; "
        f"medians of {record['rounds']} turns, each a row of calls.",
        _table(networks),
        "## Goals",
        _goals(networks),
        "## Sizes",
        _sizes(networks),
        "Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(networks: Mapping[str, Any]) -> str:
    lines = [
        "| | B | jitted model | `model.stablehlo` | twin | `model.onnx` "
        "| `model.pt2` |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, measured in networks.items():
        for batch, by_file in ratios(measured).items():
            times = measured["milliseconds"][batch]
            jitted, of_twin = (
                f"{times[each]['median']:.2f} ms"
                for each in ("JAX, jitted", "the twin")
            )
            shown = {file: f"{ratio:.2f}×" for file, ratio in by_file.items()}
            lines.append(
                f"| {name} | {batch} | {jitted} | {shown['model.stablehlo']} "
                f"| {of_twin} | {shown['model.onnx']} | {shown['model.pt2']} |"
            )
    return "\n".join(lines)


def _goals(networks: Mapping[str, Any]) -> str:
    lines = []
    for file, (beside, limit) in GOALS.items():
        found = {
            f"{name}, B {batch}": by_file[file]
            for name, measured in networks.items()
            if file == "model.stablehlo" or NETWORKS[name].has_goal
            for batch, by_file in ratios(measured).items()
        }
        missed = [
            f"{name} ({ratio:.2f}×)" for name, ratio in found.items() if ratio > limit
        ]
        verdict = f"missed by {len(missed)} of {len(found)}" if missed else "met"
        of = "DynamicNet and ResNet-18" if file == "model.onnx" else "all networks"
        told = f"- `{file}` within {limit} times {beside}, for {of}: **{verdict}**"
        lines.append(told + (f": {'; '.join(missed)}." if missed else "."))
    return "\n".join(lines)


def _sizes(networks: Mapping[str, Any]) -> str:
    files = [*next(iter(networks.values()))["bytes"]]
    lines = [
        f"| MB | {' | '.join(f'`{file}`' for file in files)} |",
        "|---" + "|---:" * len(files) + "|",
        *(
            f"| {name} | "
            + " | ".join(f"{measured['bytes'][file] / 1e6:.2f}" for file in files)
            + " |"
            for name, measured in networks.items()
        ),
    ]
    return "\n".join(lines)


def main(config: Config) -> None:
    """Measures and writes the page."""
    unknown = [name for name in config.networks if name not in NETWORKS]
    if unknown or not config.networks:
        raise SystemExit(
            f"--networks ({'=' + unknown[0] if unknown else 'none'}) must be of: "
            + "; ".join(NETWORKS)
        )
    networks = {}
    for name in config.networks:
        print(name, flush=True)
        networks[name] = measure(NETWORKS[name], config.rounds)
    record = {
        "date": datetime.date.today().isoformat(),
        "rounds": config.rounds,
        "machine": describe() | {"onnxruntime": onnxruntime.__version__},
        "networks": networks,
    }
    config.out.mkdir(parents=True, exist_ok=True)
    text = page(record)
    write_file(
        config.out / "exported.json", (json.dumps(record, indent=1) + "\n").encode()
    )
    write_file(config.out / "exported.md", text.encode())
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
