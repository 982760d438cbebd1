"""A run that dies goes on as if it had not."""

import pytest

from parity_tests.tools import kill_and_resume
from parity_tests.tools.clothes import write_clothes
from parity_tests.tools.small_runs import NARROW, save_static

SMALL = (NARROW, "--num-experts=2", "--batch-size=16", "--log-every=2")
# What a run keeps beside parameters and moments: averages, half a step, what is frozen.
FINE_TUNED = (
    *("--new-head", "--freeze=backbone", "--layer-decay=0.7", "--ema-decay=0.9"),
    "--accumulate=2",
)


@pytest.mark.slow
def test_run_killed_while_it_saves_ends_in_the_same_parameters(tmp_path):
    start, page = tmp_path / "start.safetensors", tmp_path / "resume.md"
    save_static(start)
    config = kill_and_resume.Config(
        kills=1,
        steps=12,
        checkpoint_every=3,
        flags=(*SMALL, *FINE_TUNED, *write_clothes(tmp_path), f"--init-from={start}"),
        out=page,
    )
    assert kill_and_resume.main(config) == 0
    assert "1 of 1 runs" in page.read_text()
