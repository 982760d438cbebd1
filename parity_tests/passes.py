"""A pass of each module, forward and backward; arrays and weights of both."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx

import dynconv_jax
from dynconv_jax.logit_noise import LogitNoise
from dynconv_jax.weights import to_torch_state_dict, torch_variables

# Outputs; gradients by name; the state by PyTorch's keys.
Pass = tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]


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


class Compiled:
    """The last pass that was compiled, for those that are the same.

    Training and evaluation are the same program where nothing depends on the mode,
    and need not even be traced twice where the modules are equal. What the code of a
    module reads elsewhere must not change meanwhile: there is one for each comparison.

    Example:
        >>> linear, compiled = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), Compiled()
        >>> for training in (False, True):  # traced and compiled once
        ...     outputs, gradients, state = run_jax(
        ...         linear,
        ...         np.ones((4, 2), "float32"),
        ...         np.ones((4, 3), "float32"),
        ...         training=training,
        ...         jit=compiled,
        ...     )
        >>> sorted(gradients)
        ['bias', 'inputs', 'weight']
    """

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._traced: Any = None
        self._program: Any = None
        self._run: Any = None

    def __call__(
        self, function: Callable, graphdef: nnx.GraphDef, *operands: Any
    ) -> Callable:
        """Returns a compiled function of a module, which `graphdef` describes."""
        types = [jax.typeof(each) for each in jax.tree.leaves(operands)]
        traced = graphdef, jax.tree.structure(operands), types
        if not _are_equal(traced, self._traced):
            lowered = jax.jit(function).lower(*operands)
            program = f"{lowered.as_text()}{lowered.in_tree}{lowered.out_tree}"
            if program != self._program:
                self._run = lowered.compile()
            self._traced, self._program = traced, program
        return self._run


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two descriptions are equal; arrays in them are if they are the same."""
    try:
        return one == other
    except ValueError:  # which arrays do not tell in a word
        return False


def _depends_on_mode(path: Any, module: Any) -> bool:
    """Whether a module may do otherwise in training; dropout of nothing does not."""
    if type(module) is nnx.Dropout:
        return module.rate != 0
    return type(module) is not LogitNoise or module.std != 0


def run_jax(
    module: nnx.Module,
    inputs: np.ndarray,
    cotangent: np.ndarray | None,
    *,
    training: bool,
    jit: bool | Compiled = True,
    **arguments: np.ndarray,
) -> Pass:
    """Runs a JAX module forward and backward.

    Args:
        module: The module; it is not changed.
        inputs: Channels last.
        cotangent: Of the outputs' shape; None leaves the gradients out.
        training: Whether batch norm and dropout act as in training.
        jit: Whether to compile the computation as a whole; or what holds that of the
            other mode, to use it again if it is the same.
        **arguments: Further arrays to pass by name, differentiated too.

    Returns:
        The outputs; the gradients, under PyTorch's keys and `inputs` and the names of
        the arguments; the state after the pass, under PyTorch's keys.
    """
    module = nnx.view(
        module,
        only=_depends_on_mode,
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
    run = forward_backward
    if jit:
        compiled = jit if isinstance(jit, Compiled) else Compiled()
        run = compiled(forward_backward, graphdef, *operands)
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
) -> Pass:
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


def run_both(
    jax_module: nnx.Module,
    torch_module: torch.nn.Module,
    inputs: np.ndarray,
    cotangent: np.ndarray | None,
    training: bool,
    jit: bool | Compiled = True,
    **arguments: np.ndarray,
) -> tuple[Pass, Pass]:
    """Runs both modules by `run_jax` and `run_torch`; returns what JAX gives first."""
    expected = run_torch(
        torch_module, inputs, cotangent, training=training, **arguments
    )
    actual = run_jax(
        jax_module, inputs, cotangent, training=training, jit=jit, **arguments
    )
    return actual, expected
