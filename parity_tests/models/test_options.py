"""The options that builders of networks pass on are those of the networks' classes."""

import inspect
import typing
from typing import Any

import pytest

from dynconv_jax.models import registry
from dynconv_jax.models.kw_networks import SharedOptions
from dynconv_jax.models.options import option_names
from dynconv_torch.models import kw_networks as torch_kw_networks
from dynconv_torch.models import registry as torch_registry
from dynconv_torch.models.options import option_names as torch_option_names


def builders(models) -> dict[str, Any]:
    """The functions of a registry that build a network of some class."""
    found = {name: getattr(build, "func", build) for name, build in models.items()}
    return {name: build for name, build in found.items() if inspect.isfunction(build)}


JAX, TORCH = builders(registry.MODELS), builders(torch_registry.MODELS)


@pytest.mark.parametrize("name", JAX)
@pytest.mark.parametrize("models", [JAX, TORCH], ids=["jax", "torch"])
def test_a_builder_says_of_which_kind_each_option_of_its_class_is(models, name):
    signature = inspect.signature(models[name])
    (options,) = typing.get_args(signature.parameters["options"].annotation)
    said = typing.get_type_hints(options)
    parameters = inspect.signature(signature.return_annotation.__init__).parameters
    expected = {
        name: parameter.annotation
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    of_warehouses = SharedOptions.__annotations__ if name.startswith("kw_") else {}
    assert said == expected | dict(of_warehouses)
    assert options.__required_keys__ <= {"rngs"}


@pytest.mark.parametrize("name", JAX)
def test_builders_of_both_frameworks_take_the_same_options(name):
    ours, theirs = option_names(JAX[name]), torch_option_names(TORCH[name])
    assert ours is not None and theirs is not None
    renamed = [each.replace("features", "channels") for each in ours]
    of_one = {"param_dtype", "rngs"}
    assert [each for each in renamed if each not in of_one] == [
        each for each in theirs if each != "device"
    ]


def test_networks_of_warehouses_share_the_same_options():
    assert (
        SharedOptions.__annotations__ == torch_kw_networks.SharedOptions.__annotations__
    )
