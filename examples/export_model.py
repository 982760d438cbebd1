"""Exports a network with an open batch, for CPUs, GPUs and TPUs, and calls it.

`jax.export` writes the compiled form of a function, StableHLO, to bytes, which need
neither Flax nor this library to be called. The size of the batch is a symbol in it; so
one file serves every batch. The weights are in the file.

    python -m examples.export_model --file /tmp/net.stablehlo
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from dynconv_jax import DynamicNet
from dynconv_jax.weights import write_file

SIZE = 32


def exported(net):
    """Returns the network in evaluation as bytes."""
    net.eval()
    graphdef, state = nnx.split(net)

    @jax.jit
    def probabilities(images):
        return jax.nn.softmax(nnx.merge(graphdef, state)(images), axis=-1)

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, SIZE, SIZE, 3), jnp.float32)
    # What is chosen for a platform is chosen in the file, for each of them.
    platforms = ("cpu", "cuda", "tpu")
    program = export.export(probabilities, platforms=platforms)(images)
    return bytes(program.serialize())


def main():
    """Exports, reads the file back, and compares with the network."""
    parser = argparse.ArgumentParser(
        description="Exports a network with an open batch."
    )
    parser.add_argument("--file", type=Path, help="where the file goes and stays")
    parser.add_argument("--width", type=float, default=0.25, help="of the network")
    options = parser.parse_args()
    net = DynamicNet(3, 10, width_mult=options.width, rngs=nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as folder:
        file = options.file or Path(folder) / "net.stablehlo"
        write_file(file, exported(net))
        content = file.read_bytes()

    # From here on, JAX alone.
    program = export.deserialize(bytearray(content))
    print(f"{len(content) / 1e6:.1f} MB, for {', '.join(program.platforms)}")
    images = np.random.default_rng(0).normal(size=(7, SIZE, SIZE, 3)).astype("float32")
    expected = jax.nn.softmax(net(jnp.asarray(images)), axis=-1)
    for batch in (1, 3, 7):
        answered = program.call(images[:batch])
        apart = float(jnp.abs(answered - expected[:batch]).max())
        print(f"batch {batch}: {answered.shape}, apart by {apart:.0e} at most")


if __name__ == "__main__":
    main()
