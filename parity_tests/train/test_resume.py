"""A run that dies goes on as if it had not."""

import pytest
from flax import nnx

from dynconv_jax import save_weights
from parity_tests.tools import kill_and_resume
from train.flags.config import Config
from train.learning.model import create

SMALL = ("--preset=digits", "--num-experts=2", "--batch-size=16", "--log-every=2")
FINE_TUNED = (
    *("--new-head", "--freeze=backbone", "--layer-decay=0.7", "--ema-decay=0.9"),
    "--accumulate=2",
)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), FINE_TUNED], ids=["trained", "fine-tuned"])
def test_run_killed_while_it_saves_ends_in_the_same_parameters(flags, tmp_path):
    if flags:
        model = create(Config(conv="static"), 7, 1, nnx.Rngs(5))
        save_weights(model, tmp_path / "start.safetensors")
        flags += (f"--init-from={tmp_path / 'start.safetensors'}",)
    page = tmp_path / "resume.md"
    config = kill_and_resume.Config(
        kills=1, steps=12, checkpoint_every=3, flags=(*SMALL, *flags), out=page
    )
    assert kill_and_resume.main(config) == 0
    assert "1 of 1 runs" in page.read_text()
