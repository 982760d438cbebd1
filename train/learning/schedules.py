"""What changes from step to step by plan: learning rate, temperature, assignment.

Each is a function of the steps taken before, which may be traced.
"""

import itertools

import jax.numpy as jnp
import optax

from train.flags.config import Config


def _in_floats(schedule: optax.Schedule) -> optax.Schedule:
    """Counts steps in the widest float that JAX is configured for.

    As a share of 32-bit whole numbers, progress would be a float32 always.
    """
    return lambda step: schedule(jnp.asarray(step, float))


def learning_rate_schedule(config: Config) -> optax.Schedule:
    """Returns the learning rate by step: a linear warm-up, then `--schedule`.

    The first step already moves: the warm-up starts one notch above 0. The schedule
    "step" counts its decays from the first step of the run, as PyTorch's `StepLR` does.
    A cosine and a line start anew at each of `--restarts`, as in Loshchilov & Hutter,
    "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, after a warm-up;
    the others, which have no end, go on.

    Args:
        config: The flags.

    Example:
        >>> config = Config(steps=19, warmup_steps=3, learning_rate=0.5)
        >>> schedule = learning_rate_schedule(config)
        >>> [round(float(schedule(step)), 3) for step in (0, 3, 11, 19)]
        [0.125, 0.5, 0.25, 0.0]
    """
    first = _rising_and_falling(config, config.first_steps, config.warmup)
    if config.schedule in ("step", "constant"):
        return _in_floats(first)
    phases = [first]
    for start, stop in itertools.pairwise((*config.restarts, config.total_steps)):
        steps = stop - start
        warmup = min(config.warmup, steps // 10)
        phases.append(_rising_and_falling(config, steps, warmup))
    return _in_floats(optax.join_schedules(phases, list(config.restarts)))


def _rising_and_falling(config: Config, steps: int, warmup: int) -> optax.Schedule:
    """Returns the learning rate of a run of so many steps, warm-up among them."""
    peak, last = config.learning_rate, config.final_learning_rate

    def staircase(step):
        decays = (step + warmup) // config.decaying
        return peak * config.decay_factor**decays

    falling = {
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup, alpha=last / peak),
        "linear": optax.linear_schedule(peak, last, steps - warmup),
        "step": staircase,
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if not warmup:
        return falling
    rising = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rising, falling], [warmup])


def temperature_schedule(config: Config) -> optax.Schedule:
    """Returns the temperature by step: a line or an exponential, level from its end on.

    Args:
        config: The flags.

    Example:
        >>> config = Config(steps=8, temperature_start=30.0, temperature_end=1.0)
        >>> schedule = temperature_schedule(config)
        >>> [float(schedule(step)) for step in (0, 2, 4, 8)]
        [30.0, 15.5, 1.0, 1.0]
    """
    start, end = map(config.recipe, ("temperature_start", "temperature_end"))
    if config.temperature_schedule == "linear":
        return _in_floats(optax.linear_schedule(start, end, config.annealing))
    falling = optax.exponential_decay(
        start, config.annealing, decay_rate=end / start, end_value=end
    )
    return _in_floats(falling)


def assignment_schedule(config: Config) -> optax.Schedule:
    """Returns τ of a warehouse by step: a line from 1 to 0, level from its end on.

    Li & Yao, "KernelWarehouse", ICML 2024, section 3.3.

    Args:
        config: The flags.

    Example:
        >>> schedule = assignment_schedule(Config(assignment_steps=4))
        >>> [float(schedule(step)) for step in (0, 1, 4, 5)]
        [1.0, 0.75, 0.0, 0.0]
    """
    return _in_floats(optax.linear_schedule(1.0, 0.0, config.assigning))
