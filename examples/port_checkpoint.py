"""Ports a PyTorch checkpoint to JAX, checks that predictions agree, and goes back.

The model is one's own: a dynamic convolution, a batch norm, a linear head, written once
for each framework with the same attribute names. The PyTorch one takes a few steps, so
that its buffers are not those of a new model, and is saved as training programs do.

    python -m examples.port_checkpoint --folder /tmp
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.torch
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import load_weights, save_weights


class TorchNet(torch.nn.Module):
    """The model, channels first."""

    def __init__(self):
        """Draws the weights."""
        super().__init__()
        self.conv = dynconv_torch.DynamicConv2d(3, 16, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(16)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x):
        """Classifies images (B, 3, H, W)."""
        return self.head(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))


class JaxNet(nnx.Module):
    """The same, channels last. Explicit padding: "SAME" is another with strides."""

    def __init__(self, *, rngs):
        """Draws weights, which the checkpoint replaces."""
        self.conv = dynconv_jax.DynamicConv(
            3, 16, (3, 3), strides=2, padding=1, rngs=rngs
        )
        self.norm = dynconv_jax.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        """Classifies images (B, H, W, 3)."""
        return self.head(nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2)))


def train_a_little(net, draw):
    """Takes five steps on noise."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(5):
        images = torch.from_numpy(draw.normal(size=(8, 3, 15, 12)).astype("float32"))
        labels = torch.from_numpy(draw.integers(0, 5, size=8))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval()


def main():
    """Saves in PyTorch, loads in JAX, compares, and the same the other way round."""
    parser = argparse.ArgumentParser(description="Ports a PyTorch checkpoint to JAX.")
    parser.add_argument("--folder", type=Path, help="where the files go and stay")
    folder = parser.parse_args().folder
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            port(Path(temporary))
    else:
        port(folder)


def port(folder):
    """Does so with the files in a folder."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    theirs = train_a_little(TorchNet(), draw)
    checkpoint = folder / "checkpoint.pth"
    torch.save({"epoch": 5, "state_dict": theirs.state_dict()}, checkpoint)

    ours = JaxNet(rngs=nnx.Rngs(0))
    with warnings.catch_warnings():
        # It says that it took the state dict out of the checkpoint, which is meant.
        warnings.simplefilter("ignore")
        load_weights(ours, checkpoint)
    ours.eval()

    images = draw.normal(size=(4, 15, 12, 3)).astype("float32")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).movedim(-1, 1)).numpy()
    actual = np.asarray(ours(jnp.asarray(images)))
    apart = np.abs(actual - expected).max() / np.abs(expected).max()
    print(f"logits {actual.shape}, largest relative difference {apart:.1e}")
    print("predictions agree:", bool((actual.argmax(1) == expected.argmax(1)).all()))

    save_weights(ours, folder / "back.safetensors")
    back = safetensors.torch.load_file(folder / "back.safetensors")
    TorchNet().load_state_dict(back, strict=True)
    same = all(
        torch.equal(back[key], each) for key, each in theirs.state_dict().items()
    )
    print(f"back in PyTorch: {len(back)} entries, bit for bit the same: {same}")


if __name__ == "__main__":
    main()
