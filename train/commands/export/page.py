"""The README of an exported network: a few lines of code for each runtime."""

from collections.abc import Collection
from typing import Any

STABLEHLO = """\
## model.stablehlo, with JAX

For {platforms}{size}. JAX and flatbuffers are enough.

```python
import jax
from jax import export

with open("model.stablehlo", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
classify = jax.jit(program.call)
probabilities = classify(images)
```
"""

ONNX = """\
## model.onnx, with onnxruntime

Opset {opset}; it ran here with onnxruntime {onnxruntime}.

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(probabilities,) = session.run(None, {{"images": images}})
```
"""

# The same lines, for the file whose weights were rounded.
INT8 = ONNX.replace("model.onnx", "model.int8.onnx").replace(
    "it ran here",
    "weights of 8 bits, whose cost in accuracy is in `export.json`; it ran here",
)

PT2 = """\
## model.pt2, with PyTorch

Written by PyTorch {torch}, whose `torch.export` reads it.

```python
import torch

program = torch.export.load("model.pt2").module()
probabilities = program(torch.from_numpy(images)).detach().numpy()
```
"""

WEIGHTS = """\
## weights.safetensors

The weights in PyTorch's layout, batch norms not folded, for `dynconv_torch` and
`dynconv_jax`; the model and its options are in `model.json`.

```python
import dynconv_torch, json, safetensors.torch

with open("model.json") as file:
    made = json.load(file)["create_model"]
net = dynconv_torch.create_model(**made)
net.load_state_dict(safetensors.torch.load_file("weights.safetensors"))
net.eval()
```
"""

PAGE = """\
# {model}, exported

Pictures in, probabilities out: `images` is an array (B, {shape}) of uint8, with any B,
and `probabilities` one of float32, (B, {classes}), in the order of `class_names` in
`model.json`. The normalisation of training is in the programs. Accuracy of
{accurate} on {pictures} test pictures: {accuracy:.4f}. What each file was held
against, and how far it is from the network: `export.json`.

{sections}"""


def page(description: dict[str, Any], formats: Collection[str]) -> str:
    """Returns the text of the README.

    Args:
        description: What `model.json` holds.
        formats: Of `stablehlo`, `onnx`, `int8` and `pt2` those that were written.
    """
    versions = description["versions"]
    platforms = ", ".join(description["platforms"])
    size = ", and any height and width" if description["has_open_size"] else ""
    sections = [
        text.format(platforms=platforms, size=size, **versions)
        for name, text in (
            ("stablehlo", STABLEHLO),
            ("onnx", ONNX),
            ("int8", INT8),
            ("pt2", PT2),
        )
        if name in formats
    ]
    return PAGE.format(
        model=description["create_model"]["name"],
        shape=", ".join(map(str, description["image_shape"])),
        classes=len(description["class_names"]),
        accurate=description["accuracy"]["of"],
        accuracy=description["accuracy"]["test_accuracy"],
        pictures=f"{description['accuracy']['images']:,}",
        sections="\n".join([*sections, WEIGHTS]),
    )
