"""What the program needs installed: asked before anything is begun."""

import importlib.util

from train.errors import TrainError

# The module by which each distribution is known that pyproject.toml lists, for the
# library and for its extra `train`.
MODULES = {
    "absl-py": "absl",
    "docstring-parser": "docstring_parser",
    "etils": "etils",
    "flax": "flax",
    "grain": "grain",
    "jax": "jax",
    "jaxtyping": "jaxtyping",
    "matplotlib": "matplotlib",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "optax": "optax",
    "orbax-checkpoint": "orbax.checkpoint",
    "pillow": "PIL",
    "rich": "rich",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "tensorboardX": "tensorboardX",
    "tyro": "tyro",
}


def check_installed() -> None:
    """Refuses to start where something is missing that the run may need at its end.

    Raises:
        TrainError: If a distribution is not installed; it names all of them.
    """
    missing = [name for name, module in MODULES.items() if not _is_found(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise TrainError(
            f"{', '.join(missing)} {verb} not installed, which training needs; in the "
            'checkout, give: pip install -c constraints.txt -e ".[train]"'
        )


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that would hold it
        return False
