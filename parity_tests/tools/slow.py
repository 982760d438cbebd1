"""Which cases of a test are for the slow ones."""

import pytest


def thinned(cases, *kept):
    """Returns cases as parameters, of which all but some are for the slow tests.

    A case is a name, or a tuple of several parameters.
    """
    return [
        case
        if case in kept
        else pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow
        )
        for case in cases
    ]
