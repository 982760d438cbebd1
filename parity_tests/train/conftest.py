"""What tests of whole runs share: each program is compiled once."""

import jax
import numpy as np
import pytest

from train import loop


@pytest.fixture(scope="module")
def compilation_cache(tmp_path_factory):
    """Runs with the same flags compile once, which is most of the time of a test."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def quick_runs(compilation_cache):
    """Runs share one picture of a router; to draw theirs is a sixth of a short run."""
    picture = loop.draw_routing({"router": np.full((2, 2), 0.5)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_routing", lambda *_: picture)
        yield
