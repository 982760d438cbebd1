"""A classifier of pictures as ONNX and as a program of PyTorch, in its own process.

python -m dynconv_torch.export FOLDER

FOLDER holds `net`, a directory of `save_pretrained`; `domain.json` with the `mean` and
`std` of each channel, white being 1; and `pictures.npy`, (N, H, W, C) uint8, to try the
results on. What comes out lies beside them: `model.onnx` and `model.pt2`, which take
pictures (B, H, W, C) in uint8, whatever B is, and answer probabilities (B, classes);
`answers.npz`, the probabilities of the pictures by each; and `versions.json`. With
`trial.npy`, more pictures, there is also `model.int8.onnx`, whose weights have 8 bits,
and `trial.npz`, the classes that it and `model.onnx` give to them.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dynconv_torch.weights import from_pretrained

# In three batches: one picture, a few, and the rest.
SPLITS = (1, 4)
TRIAL_BATCH = 64


class Classifier(nn.Module):
    """Pictures to probabilities, with the normalisation of training in between."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        """Keeps a network and the mean and standard deviation of its channels."""
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """Answers (B, classes) for images (B, H, W, C), uint8."""
        inputs = (images.to(torch.float32) / 255 - self.mean) / self.std
        return self.net(inputs.permute(0, 3, 1, 2)).softmax(-1)


def export(folder: Path) -> None:
    """Writes and tries the programs.

    Raises:
        ImportError: If what writes or runs ONNX is not installed.
    """
    import onnx
    import onnxruntime

    domain = json.loads((folder / "domain.json").read_text())
    pictures = np.load(folder / "pictures.npy")
    net = from_pretrained(folder / "net").eval()
    classifier = Classifier(net, domain["mean"], domain["std"]).eval()
    # Of two pictures at least: a batch of one would be taken for good.
    example = torch.zeros((3, *pictures.shape[1:]), dtype=torch.uint8)
    shapes = {0: torch.export.Dim("batch")}
    program = torch.export.export(classifier, (example,), dynamic_shapes=(shapes,))
    torch.export.save(program, folder / "model.pt2")
    written = torch.onnx.export(
        classifier,
        (example,),
        dynamo=True,
        dynamic_shapes=(shapes,),
        input_names=["images"],
        output_names=["probabilities"],
        verbose=False,
    )
    assert written is not None
    written.save(folder / "model.onnx", external_data=False)
    by_onnx = _runner(folder / "model.onnx")
    loaded = torch.export.load(folder / "model.pt2").module()

    def by_torch(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return loaded(torch.from_numpy(images)).numpy()

    batches = [batch for batch in np.split(pictures, SPLITS) if len(batch)]
    np.savez(
        folder / "answers.npz",
        pt2=np.concatenate([*map(by_torch, batches)]),
        onnx=np.concatenate([*map(by_onnx, batches)]),
    )
    if (folder / "trial.npy").exists():
        _quantize(folder / "model.onnx", folder / "model.int8.onnx")
        by_int8 = _runner(folder / "model.int8.onnx")
        trial = np.load(folder / "trial.npy")
        parts = np.array_split(trial, -(-len(trial) // TRIAL_BATCH))
        np.savez(
            folder / "trial.npz",
            onnx=np.concatenate([by_onnx(part).argmax(-1) for part in parts]),
            int8=np.concatenate([by_int8(part).argmax(-1) for part in parts]),
        )
    versions = {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "opset": written.model.opset_imports[""],
    }
    (folder / "versions.json").write_text(json.dumps(versions))


def _runner(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from pictures to probabilities in an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    return lambda images: np.asarray(session.run(None, {"images": images})[0])


def _quantize(source: Path, target: Path) -> None:
    """Writes a file whose products are of whole numbers of 8 bits."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        # The experts are weights to the quantizer once they are reshaped beforehand.
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_dynamic(
            prepared, target, weight_type=quantization.QuantType.QUInt8
        )


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        export(Path(sys.argv[1]))
