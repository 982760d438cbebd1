"""Tags sounds with DyMN: from waves to log-mel spectrograms, and a few steps on them.

A sound may hold a tone, a sweep, clicks and noise, any of them at once. The front end
is that of DyMN's weights, so a file of these is a place to start from:

    python -m examples.audio_tagging --checkpoint dymn04_as.pt --blocks 15
"""

import argparse

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.signal.windows import hann

from dynconv_jax import BatchNorm, DyMN, set_temperature, two_slope_temperature
from dynconv_jax.models.mobilenet_v3 import LARGE
from dynconv_jax.weights import load_weights

RATE, TAGS = 32_000, ("tone", "sweep", "clicks", "noise")


def mel_filters(mels=128, size=1024, high=15_000):
    """Returns triangles over the bins of a Fourier transform, (mels, size // 2 + 1).

    They are even and overlap by half on the mel scale, 1127 ln(1 + f / 700).
    """
    edges = np.linspace(0, 1127 * np.log1p(high / 700), mels + 2)[:, None]
    bins = 1127 * np.log1p(np.arange(size // 2 + 1) * RATE / size / 700)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (center - left), (right - bins) / (right - center)
    return np.maximum(0, np.minimum(rising, falling))


def log_mel(waves, size=1024, window=800, hop=320):
    """Returns the log-mel spectrograms of waves at 32 kHz, as DyMN's weights want them.

    Args:
        waves: Shape (B, samples), between −1 and 1.
        size: Of the Fourier transform.
        window: The samples of the Hann window in its middle.
        hop: The samples between two frames.

    Returns:
        Shape (B, 128, frames, 1), in float32; a second has 100 frames.
    """
    sharp = waves[:, 1:] - 0.97 * waves[:, :-1]  # high frequencies are made louder
    padded = np.pad(sharp, ((0, 0), (size // 2, size // 2)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::hop]
    margin = (size - window) // 2
    weights = np.pad(hann(window, sym=True), (margin, size - window - margin))
    power = np.abs(np.fft.rfft(frames * weights)) ** 2
    logs = np.log(np.tensordot(power, mel_filters(size=size), (2, 1)) + 1e-5)
    return ((logs + 4.5) / 5).astype(np.float32).swapaxes(1, 2)[..., None]


def draw_sounds(rng, count, seconds=0.2):
    """Returns waves (count, samples) and which of `TAGS` each has, (count, 4)."""
    time = np.arange(int(seconds * RATE)) / RATE
    tags = rng.random((count, len(TAGS))) < 0.5
    waves = 0.01 * rng.normal(size=(count, len(time)))
    for wave, (tone, sweep, clicks, noise) in zip(waves, tags, strict=True):
        loud = rng.uniform(0.1, 0.3)
        if tone:
            wave += loud * np.sin(2 * np.pi * rng.uniform(200, 2000) * time)
        if sweep:
            wave += loud * np.sin(2 * np.pi * (3000 + 9000 * time) * time)
        if clicks:
            wave[rng.integers(1000) :: 2000] += 5 * loud
        if noise:
            wave += loud * rng.normal(size=len(time))
    return waves, tags.astype(np.float32)


def main():
    """Fine-tunes, and says how many tags are right before and after."""
    parser = argparse.ArgumentParser(description="Tags synthetic sounds with DyMN.")
    parser.add_argument("--steps", type=int, default=60, help="of fine-tuning")
    parser.add_argument("--blocks", type=int, default=2, help="of fifteen")
    parser.add_argument("--checkpoint", help="a file of dymn04's weights")
    flags = parser.parse_args()
    rng, rngs, blocks = np.random.default_rng(0), nnx.Rngs(0), LARGE[: flags.blocks]
    net = DyMN(len(TAGS), blocks=blocks, width_mult=0.4, rngs=rngs)
    if flags.checkpoint:  # its last layer is of other classes
        load_weights(net, flags.checkpoint, ignore=("classifier.5",))
    for _, part in nnx.iter_modules(net):
        if isinstance(part, BatchNorm):
            part.momentum = 0.9  # with the published 0.99 few steps move too little
    held_out, expected = draw_sounds(rng, 64)
    answer = nnx.jit(lambda net, inputs: net(inputs))
    adam = optax.adamw(3e-3 if flags.checkpoint else 0.01)
    optimizer = nnx.Optimizer(net, adam, wrt=nnx.Param)

    def accuracy():
        evaluated = nnx.view(net, deterministic=True, use_running_average=True)
        return ((answer(evaluated, log_mel(held_out)) > 0) == expected).mean()

    @nnx.jit
    def step(net, optimizer, inputs, tags, temperature):
        set_temperature(net, temperature)

        def loss(net):
            return optax.sigmoid_binary_cross_entropy(net(inputs), tags).mean()

        optimizer.update(net, nnx.grad(loss)(net))

    print(f"before: {accuracy():.3f} of the tags are right")
    for number in range(flags.steps):
        waves, tags = draw_sounds(rng, 32)
        # A step is an epoch of the schedule; AudioSet's weights are at its end.
        epoch = jnp.asarray(1e3 if flags.checkpoint else number)
        step(net, optimizer, log_mel(waves), tags, two_slope_temperature(epoch))
    print(f"after {flags.steps} steps: {accuracy():.3f} of the tags are right")
    temperature = net.layers[0].depth_conv.attention.temperature[...]
    print(f"temperature at the end: {float(temperature):g}")


if __name__ == "__main__":
    main()
