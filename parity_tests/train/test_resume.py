"""A run that dies goes on as if it had not."""

import pytest

from parity_tests.tools.kill_and_resume import Config, main

SMALL = ("--preset=digits", "--num-experts=2", "--batch-size=16", "--log-every=2")


@pytest.mark.slow
def test_run_killed_while_it_saves_ends_in_the_same_parameters(tmp_path):
    page = tmp_path / "resume.md"
    config = Config(kills=1, steps=12, checkpoint_every=3, flags=SMALL, out=page)
    assert main(config) == 0
    assert "1 of 1 runs" in page.read_text()
