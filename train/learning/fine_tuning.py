"""What of a model stays as it is, and what moves at a rate of its own."""

from collections.abc import Iterator

from flax import nnx

from dynconv_jax.scheduled import Scheduled
from dynconv_jax.weights.names import match_keys, suggestion
from train.errors import TrainError
from train.flags.checks import flag_of
from train.flags.config import Config
from train.learning.parameters import (
    FROZEN,
    GROUPS,
    depths_of,
    is_frozen,
    keys_of,
    parameters_by_key,
)


def prepare_fine_tuning(model: nnx.Module, config: Config, what: str) -> None:
    """Marks what `--freeze` names, and refuses rates that nothing would have.

    What is frozen is marked in the model itself: a parameter, the statistics of a batch
    norm whose parameters are all frozen, which is set to evaluation; and what schedules
    move, such as a temperature, in a part whose parameters are all frozen.

    Args:
        model: The model.
        config: The flags.
        what: The model in the words of the flags.

    Raises:
        TrainError: If a name means nothing, nothing is left to train, or a learning
            rate is of nothing that is trained.
    """
    parameters = parameters_by_key(model)
    frozen = _frozen_keys(model, config, what)
    for key in frozen:
        for variable in parameters[key]:
            variable.set_metadata(FROZEN, True)
    for _, part in nnx.iter_modules(model) if frozen else ():
        if not _is_frozen_whole(part):
            continue
        if isinstance(part, nnx.BatchNorm):
            part.use_running_average = True
        for variable in vars(part).values():
            if isinstance(variable, (nnx.BatchStat, Scheduled)):
                variable.set_metadata(FROZEN, True)
    _refuse_useless_rates(model, config, what, parameters.keys() - frozen)


def described(model: nnx.Module, config: Config) -> Iterator[str]:
    """Yields what a run is to say of its fine-tuning, a line each.

    Args:
        model: The model, prepared.
        config: The flags.
    """
    parameters = parameters_by_key(model)
    if config.new_head:
        head = keys_of("head", model)
        names = ", ".join(key for key in parameters if key in head)
        yield f"the head ({names}) is drawn anew, by --new-head"
    if config.freeze:
        held = {id(each): each for several in parameters.values() for each in several}
        frozen = sum(v.get_value().size for v in held.values() if is_frozen((), v))
        norms = [
            part
            for _, part in nnx.iter_modules(model)
            if isinstance(part, nnx.BatchNorm) and part.use_running_average
        ]
        yield (
            f"{frozen:,} parameters and {len(norms)} batch norms are frozen, by "
            f"--freeze {' '.join(config.freeze)}"
        )


def _frozen_keys(model: nnx.Module, config: Config, what: str) -> set[str]:
    """Returns the keys of the parameters that `--freeze` names."""
    parameters = parameters_by_key(model)
    frozen: set[str] = set()
    for name in config.freeze:
        if name in GROUPS:
            keys = keys_of(name, model)
        else:
            keys = match_keys([name], parameters)[name]
        if not keys:
            hint = (
                f"{what} has no {name}"
                if name in GROUPS
                else f"{suggestion(name, parameters)}, or one of {', '.join(GROUPS)}"
            )
            raise TrainError(
                f"{flag_of('freeze')} (={name}) must name parameters of {what}; {hint}"
            )
        frozen |= keys
    if frozen == parameters.keys():
        raise TrainError(
            f"{flag_of('freeze')} (={' '.join(config.freeze)}) must leave a parameter "
            f"to train, and names all of {what}; leave one of them out"
        )
    return frozen


def _is_frozen_whole(part: nnx.Module) -> bool:
    """Whether a part has parameters, and all of them are frozen."""
    held = [each for _, each in nnx.iter_graph(part) if isinstance(each, nnx.Param)]
    return bool(held) and all(is_frozen((), each) for each in held)


def _refuse_useless_rates(
    model: nnx.Module, config: Config, what: str, trained: set[str]
) -> None:
    """Refuses what would change nothing, which nobody asks for knowingly."""
    rates = {"head": "head_learning_rate", "routers": "router_learning_rate"}
    for group, name in rates.items():
        rate = getattr(config, name)
        if rate is None or (keys := keys_of(group, model)) & trained:
            continue
        reason = f"whose {group} --freeze names" if keys else f"which has no {group}"
        raise TrainError(
            f"{flag_of(name)} (={rate}) must be left out with {what}, {reason}"
        )
    if config.layer_decay != 1:
        depths = depths_of(model)
        if not any(depths[key] for key in trained):
            raise TrainError(
                f"{flag_of('layer_decay')} (={config.layer_decay}) must be left out "
                "where --freeze leaves only the head, which has the whole learning rate"
            )
