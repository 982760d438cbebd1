"""The instrument: does a JAX module compute what a PyTorch module computes?

    from parity_tests.parity import assert_parity

    assert_parity(my_jax_module, my_torch_module, images)

copies the PyTorch module's weights into the JAX module, runs both in evaluation and in
training, and compares outputs, the gradients of the inputs and of every parameter under
a random cotangent, and the buffers after the training pass. `assert_training_parity`
takes N optimiser steps with both and compares the losses and the whole state.

Arrays are named by PyTorch's keys, inputs are channels last. The attributes of a module
of one's own need PyTorch's names, or a row in the table `dynconv_jax.LAYOUT`.
"""

import copy
from collections.abc import Callable, Collection, Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from dynconv_jax.weights import to_torch_state_dict
from parity_tests.passes import (
    Compiled,
    Pass,
    as_numpy,
    as_torch,
    channels_first,
    channels_last,
    copy_weights,
    run_both,
    torch_state,
)
from parity_tests.tolerances import (
    GRADIENT_FLOOR,
    ROUNDING_FLOOR,
    TOLERANCES,
    ParityError,
    assert_close,
)


def assert_parity(
    jax_module: nnx.Module,
    torch_module: torch.nn.Module,
    inputs: np.ndarray,
    *,
    seed: int = 0,
    jit: bool = True,
    gradients_in: Collection[str] = ("eval", "train"),
    **arguments: np.ndarray,
) -> None:
    """Asserts that two modules compute the same, forward and backward.

    The weights of the PyTorch module are copied into the JAX module first. Compared are
    outputs and gradients in evaluation and in training, and the buffers after the
    training pass. The dtype of `inputs` chooses the tolerance; the parameters should
    have it too.

    A gradient that is zero but for rounding, as that of a bias before a batch norm, is
    other rounding in each framework. So a float32 pair whose gradients are further
    apart than the table allows is computed in float64 too: if it agrees there, they are
    measured against the largest gradient of the module.

    Args:
        jax_module: The JAX module. It takes the weights of the other.
        torch_module: The PyTorch module. Its buffers take one training pass.
        inputs: Channels last, (B, *S, C).
        seed: Draws the cotangent.
        jit: Whether to compile the JAX module's pass as a whole.
        gradients_in: The modes whose gradients are compared. Those of evaluation take
            as long as those of training, in a deep network most of the time.
        **arguments: Further arrays that both modules take by that name, unchanged in
            layout; their gradients are compared too.

    Raises:
        ParityError: If anything differs.
        ValueError: If the weights do not fit.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> from dynconv_torch import DynamicConv2d
        >>> assert_parity(
        ...     DynamicConv(3, 8, (3, 3), padding=1, rngs=nnx.Rngs(0)),
        ...     DynamicConv2d(3, 8, 3, padding=1),
        ...     np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype("float32"),
        ... )
    """
    dtype = _check_dtype(inputs)
    copy_weights(torch_module, jax_module)
    initial = copy.deepcopy(torch_module.state_dict())  # a pass moves the buffers
    with torch.no_grad():
        was_training = torch_module.training
        torch_module.eval()
        shape = torch_module(
            as_torch(channels_first(inputs)),
            **{name: as_torch(value) for name, value in arguments.items()},
        ).shape
        torch_module.train(was_training)
    draw = np.random.default_rng(seed)
    program = Compiled() if jit else False
    for training in (False, True):
        mode = "train" if training else "eval"
        cotangent = None
        if mode in gradients_in:
            cotangent = channels_last(draw.normal(size=shape)).astype(inputs.dtype)
        settings = cotangent, training, program
        both = run_both(jax_module, torch_module, inputs, *settings, **arguments)
        try:
            _compare(*both, dtype, GRADIENT_FLOOR)
        except ParityError as error:
            if dtype == "float32" and _differs_by_rounding(
                *(both, jax_module, torch_module, initial, inputs, *settings),
                **arguments,
            ):
                continue
            raise ParityError(f"in {mode} mode, {error}") from None


def _compare(actual: Pass, expected: Pass, dtype: str, floor: float) -> None:
    """Compares outputs, gradients and states, the gradients with a floor."""
    assert_close({"output": actual[0]}, {"output": expected[0]}, dtype=dtype)
    assert_close(
        # A parameter that is frozen in PyTorch has no gradient there.
        _label("gradient of", _only(actual[1], expected[1])),
        _label("gradient of", expected[1]),
        dtype=dtype,
        floor=floor,
    )
    _compare_states(actual[2], expected[2], dtype)


def _differs_by_rounding(
    both: tuple[Pass, Pass],
    jax_module: nnx.Module,
    torch_module: torch.nn.Module,
    initial: Mapping[str, torch.Tensor],
    inputs: np.ndarray,
    cotangent: np.ndarray | None,
    *settings: Any,
    **arguments: np.ndarray,
) -> bool:
    """Whether only small gradients of a float32 pair differ, and none in float64."""
    try:
        _compare(*both, "float32", ROUNDING_FLOOR)
        with jax.enable_x64(True):
            wide = _in_float64(jax_module, torch_module, initial)
            inputs = _widen(inputs)
            cotangent = None if cotangent is None else _widen(cotangent)
            arguments = {name: _widen(array) for name, array in arguments.items()}
            passes = run_both(*wide, inputs, cotangent, *settings, **arguments)
            _compare(*passes, "float64", GRADIENT_FLOOR)
    # What has a dtype of its own may not compute in another.
    except (ParityError, TypeError, ValueError, RuntimeError):
        return False
    return True


def _in_float64(
    jax_module: nnx.Module,
    torch_module: torch.nn.Module,
    initial: Mapping[str, torch.Tensor],
) -> tuple[nnx.Module, torch.nn.Module]:
    """Returns copies of two modules in float64, PyTorch's in its initial state."""
    wide = copy.deepcopy(torch_module).double()
    wide.load_state_dict(initial)
    graphdef, state = nnx.split(jax_module)
    return nnx.merge(graphdef, jax.tree.map(_widen, state)), wide


def _widen(array: Any) -> Any:
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    return np.asarray(array, np.float64) if is_float else array


def _check_dtype(inputs: np.ndarray) -> str:
    """Returns the row of the table for `inputs`, or says how to get to one."""
    dtype = str(inputs.dtype)
    if dtype not in TOLERANCES:
        raise ValueError(
            f"`inputs` ({dtype}) must be of a dtype in TOLERANCES: {list(TOLERANCES)}"
        )
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "`inputs` (float64) need `jax.config.update('jax_enable_x64', True)`, and "
            "parameters of float64 in both modules"
        )
    return dtype


def _only(arrays: Mapping[str, np.ndarray], names: Container[str]) -> dict:
    return {name: array for name, array in arrays.items() if name in names}


def _label(label: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{label} {key}": value for key, value in arrays.items()}


# The same optimisers twice, the defaults in which the frameworks differ said outright:
# optax.adamw decays by 1e-4, torch's by 1e-2; torch's SGD couples decay and momentum.
OPTIMIZERS: dict[str, tuple[optax.GradientTransformation, Callable]] = {
    "sgd": (
        optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.05, momentum=0.9)),
        lambda parameters: torch.optim.SGD(
            parameters, lr=0.05, momentum=0.9, weight_decay=5e-4
        ),
    ),
    "adamw": (
        optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2),
        lambda parameters: torch.optim.AdamW(
            parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2
        ),
    ),
}


def assert_training_parity(
    jax_net: nnx.Module,
    torch_net: torch.nn.Module,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    optimizer: str | tuple[optax.GradientTransformation, Callable] = "sgd",
    steps: int = 3,
) -> None:
    """Asserts that two classifiers train alike: losses and the whole state.

    Rounding moves what has no gradient but rounding, such as a bias before a batch
    norm, and AdamW scales it up. So a float32 pair with the same losses whose states
    are further apart than the table allows is trained in float64 too, and passes if it
    agrees there.

    Args:
        jax_net: The JAX network. It takes the weights of the other, and is left as it
            was with them.
        torch_net: The PyTorch network; it is trained.
        inputs: One batch an entry, (N, B, *S, C), used in turn.
        labels: Integer classes, (N, B).
        optimizer: `"sgd"` (momentum and weight decay), `"adamw"`, or a pair of an optax
            transformation and a function from parameters to a PyTorch optimiser.
        steps: How many steps to take.

    Raises:
        ParityError: If the losses, a parameter or a buffer differ.
        ValueError: If the weights do not fit.
    """
    dtype = _check_dtype(inputs)
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        raise ValueError(
            f"`optimizer` (={optimizer!r}) must be one of {sorted(OPTIMIZERS)}, or a "
            "pair of an optax transformation and a function from parameters to a "
            "PyTorch optimizer"
        )
    copy_weights(torch_net, jax_net)
    pair = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    initial = copy.deepcopy(torch_net.state_dict())
    batches = [
        (inputs[number % len(inputs)], labels[number % len(labels)])
        for number in range(steps)
    ]
    states = _train_both(jax_net, torch_net, batches, pair, dtype)
    try:
        _compare_states(*states, dtype)
    except ParityError as error:
        if dtype == "float32" and _trains_alike_in_float64(
            jax_net, torch_net, initial, batches, pair
        ):
            return
        raise ParityError(f"after {steps} steps, {error}") from None


Batches = list[tuple[np.ndarray, np.ndarray]]
State = dict[str, np.ndarray]


def _train_both(
    jax_net: nnx.Module,
    torch_net: torch.nn.Module,
    batches: Batches,
    optimizers: tuple[optax.GradientTransformation, Callable],
    dtype: str,
) -> tuple[State, State]:
    """Takes a step a batch with both, and compares losses; returns the states."""
    transformation, torch_optimizer = (
        optimizers[0],
        optimizers[1](torch_net.parameters()),
    )
    trained = nnx.view(
        jax_net,
        use_running_average=False,
        deterministic=False,
        raise_if_not_found=False,
    )
    graphdef, params, rest = nnx.split(trained, nnx.Param, ...)
    moments = transformation.init(params)

    def loss_of(params, rest, inputs, labels):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        logits = merged(inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), nnx.state(merged, nnx.Not(nnx.Param))

    @jax.jit
    def step(params, rest, moments, inputs, labels):
        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(
            params, rest, inputs, labels
        )
        with jax.numpy_dtype_promotion("standard"):  # which optax relies on
            updates, moments = transformation.update(grads, moments, params)
        return optax.apply_updates(params, updates), rest, moments, loss

    torch_net.train()
    for number, (batch, classes) in enumerate(batches):
        torch_optimizer.zero_grad()
        logits = torch_net(as_torch(channels_first(batch)))
        torch_loss = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(np.asarray(classes, np.int64))
        )
        torch_loss.backward()
        torch_optimizer.step()
        params, rest, moments, jax_loss = step(
            params, rest, moments, jnp.asarray(batch), jnp.asarray(classes)
        )
        name = f"loss of step {number}"
        assert_close({name: jax_loss}, {name: as_numpy(torch_loss)}, dtype=dtype)
    state = to_torch_state_dict(nnx.merge(graphdef, params, rest))
    return state, torch_state(torch_net)


def _compare_states(
    actual: State, expected: State, dtype: str, floor: float = 0.0
) -> None:
    labelled = _label("state", actual), _label("state", expected)
    assert_close(*labelled, dtype=dtype, floor=floor)


def _trains_alike_in_float64(
    jax_net: nnx.Module,
    torch_net: torch.nn.Module,
    initial: Mapping[str, torch.Tensor],
    batches: Batches,
    optimizers: tuple[optax.GradientTransformation, Callable],
) -> bool:
    """Whether a float32 pair has the same losses and state where it is of float64."""
    try:
        with jax.enable_x64(True):
            wide = _in_float64(jax_net, torch_net, initial)
            batches = [(_widen(inputs), labels) for inputs, labels in batches]
            states = _train_both(*wide, batches, optimizers, "float64")
            _compare_states(*states, "float64", ROUNDING_FLOOR)
    except (ParityError, TypeError, ValueError, RuntimeError):
        return False
    return True
