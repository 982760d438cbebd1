"""What PyTorch writes of a network: in a process of its own, from files alone."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from train.data.dataset import Domain
from train.errors import TrainingFailed
from train.storage.read_json import read_json

PROGRAM = "dynconv_torch.export"
# The checkout, from which the process is started: the library may not be installed.
ROOT = Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class Written:
    """What came out.

    Attributes:
        files: By format, `onnx`, `pt2` and perhaps `int8`, where the file lies.
        answers: By format the probabilities of the pictures, (N, classes); not of
            `int8`, which rounds.
        trial: By format, `onnx` and `int8`, the classes of the pictures of the trial.
        versions: Of what wrote and ran them; `opset` among them.
    """

    files: dict[str, Path]
    answers: dict[str, np.ndarray]
    trial: dict[str, np.ndarray]
    versions: dict[str, Any]


def write(
    folder: Path, domain: Domain, pictures: np.ndarray, trial: np.ndarray | None
) -> Written:
    """Has PyTorch write a network.

    Args:
        folder: Where to. It holds `net`, the network as of `save_pretrained`.
        domain: What its images are like.
        pictures: Shape (N, H, W, C), uint8, to try the files on.
        trial: Such pictures, to tell what weights of 8 bits cost; None writes none.

    Raises:
        TrainingFailed: If PyTorch, or what writes ONNX, fails; with its last word.
    """
    (folder / "domain.json").write_text(json.dumps(domain.to_json()))
    np.save(folder / "pictures.npy", pictures)
    if trial is not None:
        np.save(folder / "trial.npy", trial)
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM, str(folder.resolve())],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        # An error may go on for lines after its name.
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        raise TrainingFailed(
            "--formats onnx, int8 and pt2 cannot be written: "
            f"{(named or lines)[-1].strip()}; mend PyTorch or ONNX here, or give "
            "--formats stablehlo"
        )
    files = {"onnx": folder / "model.onnx", "pt2": folder / "model.pt2"}
    with np.load(folder / "answers.npz") as found:
        answers = dict(found)
    classes = {}
    if trial is not None:
        files["int8"] = folder / "model.int8.onnx"
        with np.load(folder / "trial.npz") as found:
            classes = dict(found)
    return Written(
        files,
        answers,
        classes,
        read_json(folder / "versions.json", dict[str, Any]),
    )
