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

import functools
from collections.abc import Callable, Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import torch
from flax import nnx

import dynconv_jax
from dynconv_jax.weights import to_torch_state_dict, torch_variables
from parity_tests.tolerances import (
    GRADIENT_FLOOR,
    TOLERANCES,
    ParityError,
    assert_close,
)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Returns a tensor as a NumPy array of the same dtype, bfloat16 included."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def as_torch(array: np.ndarray) -> torch.Tensor:
    """Returns a NumPy array as a tensor of the same dtype, bfloat16 included."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def channels_first(array: np.ndarray) -> np.ndarray:
    """(B, *S, C) → (B, C, *S); arrays of two axes or fewer stay as they are."""
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def channels_last(array: np.ndarray) -> np.ndarray:
    """(B, C, *S) → (B, *S, C); arrays of two axes or fewer stay as they are."""
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


def torch_state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns a PyTorch module's state dict as NumPy arrays."""
    return {key: as_numpy(value) for key, value in module.state_dict().items()}


def copy_weights(torch_module: torch.nn.Module, jax_module: nnx.Module) -> None:
    """Copies every parameter and buffer of a PyTorch module into a JAX module.

    Raises:
        ValueError: If the keys or shapes of the two differ; it lists them.
    """
    dynconv_jax.load_torch_state_dict(jax_module, torch_state(torch_module))


_compiled: dict[str, Any] = {}


def _compile(function: Callable, *arguments: Any) -> Callable:
    """Compiles a function; one that lowers to a program seen before costs nothing.

    Training and evaluation are the same program where nothing depends on the mode.
    """
    lowered = jax.jit(function).lower(*arguments)
    program = f"{lowered.as_text()}{lowered.in_tree}{lowered.out_tree}"
    if program not in _compiled:
        _compiled[program] = lowered.compile()
    return _compiled[program]


def run_jax(
    module: nnx.Module,
    inputs: np.ndarray,
    cotangent: np.ndarray | None,
    *,
    training: bool,
    jit: bool = True,
    **arguments: np.ndarray,
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs a JAX module forward and backward.

    Args:
        module: The module; it is not changed.
        inputs: Channels last.
        cotangent: Of the outputs' shape; None leaves the gradients out.
        training: Whether batch norm and dropout act as in training.
        jit: Whether to compile the computation as a whole.
        **arguments: Further arrays to pass by name, differentiated too.

    Returns:
        The outputs; the gradients, under PyTorch's keys and `inputs` and the names of
        the arguments; the state after the pass, under PyTorch's keys.
    """
    module = nnx.view(
        module,
        use_running_average=not training,
        deterministic=not training,
        raise_if_not_found=False,
    )
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def forward(rest, params, inputs, arguments):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        outputs = merged(inputs, **arguments)
        return outputs, nnx.state(merged)

    def forward_backward(params, inputs, arguments, rest, cotangent):
        if cotangent is None:
            return *forward(rest, params, inputs, arguments), None
        outputs, pullback, state = jax.vjp(
            functools.partial(forward, rest),
            params,
            inputs,
            arguments,
            has_aux=True,
        )
        return outputs, state, pullback(cotangent.astype(outputs.dtype))

    inputs, arguments, cotangent = jax.tree.map(
        jnp.asarray, (inputs, arguments, cotangent)
    )
    operands = params, inputs, arguments, rest, cotangent
    run = _compile(forward_backward, *operands) if jit else forward_backward
    outputs, state, gradients = run(*operands)
    buffers = to_torch_state_dict(nnx.merge(graphdef, state))
    if gradients is None:
        return np.asarray(outputs), {}, buffers
    of_params, of_inputs, of_arguments = gradients
    differentiated = nnx.merge(graphdef, of_params, rest)
    variables = torch_variables(differentiated)
    named = {
        key: value
        for key, value in to_torch_state_dict(differentiated).items()
        if isinstance(variables.get(key), nnx.Param)
    }
    named["inputs"] = np.asarray(of_inputs)
    named.update({name: np.asarray(value) for name, value in of_arguments.items()})
    return np.asarray(outputs), named, buffers


def run_torch(
    module: torch.nn.Module,
    inputs: np.ndarray,
    cotangent: np.ndarray | None,
    *,
    training: bool,
    **arguments: np.ndarray,
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs a PyTorch module forward and backward; the counterpart of `run_jax`.

    Arrays go in and come out channels last. The module's buffers change as they do in
    PyTorch, its `grad` attributes and its mode do not.
    """
    was_training = module.training
    module.train(training)
    leaf = as_torch(channels_first(inputs)).requires_grad_()
    others = {
        name: as_torch(value).requires_grad_() for name, value in arguments.items()
    }
    outputs = module(leaf, **others)
    gradients: dict[str, np.ndarray] = {}
    if cotangent is not None:
        names = {
            name: parameter
            for name, parameter in module.named_parameters(remove_duplicate=False)
            if parameter.requires_grad
        }
        wanted = [*names.values(), leaf, *others.values()]
        found = torch.autograd.grad(
            outputs,
            wanted,
            as_torch(channels_first(cotangent)).to(outputs.dtype),
            allow_unused=True,
        )
        values = [
            as_numpy(torch.zeros_like(tensor) if grad is None else grad)
            for tensor, grad in zip(wanted, found, strict=True)
        ]
        labels = [*names, "inputs", *others]
        gradients = dict(zip(labels, values, strict=True))
        gradients["inputs"] = channels_last(gradients["inputs"])
    module.train(was_training)
    return channels_last(as_numpy(outputs)), gradients, torch_state(module)


def assert_parity(
    jax_module: nnx.Module,
    torch_module: torch.nn.Module,
    inputs: np.ndarray,
    *,
    seed: int = 0,
    jit: bool = True,
    **arguments: np.ndarray,
) -> None:
    """Asserts that two modules compute the same, forward and backward.

    The weights of the PyTorch module are copied into the JAX module first. Compared are
    outputs and gradients in evaluation and in training, and the buffers after the
    training pass. The dtype of `inputs` chooses the tolerance; the parameters should
    have it too.

    Args:
        jax_module: The JAX module. It takes the weights of the other.
        torch_module: The PyTorch module. Its buffers take one training pass.
        inputs: Channels last, (B, *S, C).
        seed: Draws the cotangent.
        jit: Whether to compile the JAX module's pass as a whole.
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
    draw = np.random.default_rng(seed)
    for training in (False, True):
        mode = "train" if training else "eval"
        with torch.no_grad():
            was_training = torch_module.training
            torch_module.eval()
            shape = torch_module(
                as_torch(channels_first(inputs)),
                **{name: as_torch(value) for name, value in arguments.items()},
            ).shape
            torch_module.train(was_training)
        cotangent = channels_last(draw.normal(size=shape)).astype(inputs.dtype)
        expected = run_torch(
            torch_module, inputs, cotangent, training=training, **arguments
        )
        actual = run_jax(
            jax_module, inputs, cotangent, training=training, jit=jit, **arguments
        )
        try:
            assert_close({"output": actual[0]}, {"output": expected[0]}, dtype=dtype)
            assert_close(
                # A parameter that is frozen in PyTorch has no gradient there.
                _label("gradient of", _only(actual[1], expected[1])),
                _label("gradient of", expected[1]),
                dtype=dtype,
                floor=GRADIENT_FLOOR,
            )
            assert_close(
                _label("state", actual[2]), _label("state", expected[2]), dtype=dtype
            )
        except ParityError as error:
            raise ParityError(f"in {mode} mode, {error}") from None


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
    transformation, torch_optimizer = pair[0], pair[1](torch_net.parameters())
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
    for number in range(steps):
        batch, classes = inputs[number % len(inputs)], labels[number % len(labels)]
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
    try:
        assert_close(
            _label("state", state),
            _label("state", torch_state(torch_net)),
            dtype=dtype,
        )
    except ParityError as error:
        raise ParityError(f"after {steps} steps, {error}") from None
