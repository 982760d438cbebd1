"""Routers for the blocks of networks."""

import pytest


@pytest.fixture
def routers(monkeypatch):
    """Puts a router where blocks look for theirs."""
    # Here, since tests of models that need no PyTorch are beside those that do.
    import dynconv_jax
    import dynconv_torch
    from parity_tests.tools import networks

    for package, router in (
        (dynconv_jax, networks.LinearRouter),
        (dynconv_torch, networks.LinearRouter2d),
    ):
        monkeypatch.setattr(package.routing, "SigmoidRouter", router, raising=False)
