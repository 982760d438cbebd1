"""What flax has and PyTorch, too, computes the same; what it has alone is refused."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dynconv_jax import LAYOUT, load_torch_state_dict, to_torch_state_dict
from dynconv_jax.weights import Arrangement, same
from parity_tests.parity import as_torch, assert_parity, torch_state
from parity_tests.passes import run_jax, run_torch
from parity_tests.tolerances import assert_close
from parity_tests.tools.jax_modules import Holder
from parity_tests.tools.modules import bits, randomise, torch_copy


def options() -> dict[str, Any]:
    """Returns the options of all modules."""
    return dict(param_dtype="float64", rngs=nnx.Rngs(0))


class Whole(torch.nn.Module):
    """A PyTorch module between two functions of arrays."""

    def __init__(self, part, before=lambda x: x, after=lambda x: x):
        super().__init__()
        self.part, self.before, self.after = part, before, after

    def forward(self, x, **others):
        return self.after(self.part(self.before(x), **others))


class Attending(torch.nn.Module):
    """An attention; what `assert_parity` gives has its channels first."""

    def __init__(self, **options):
        super().__init__()
        self.part = torch.nn.MultiheadAttention(6, 3, batch_first=True, **options)

    def forward(self, x, memory=None):
        x = x.transpose(1, 2)
        memory = x if memory is None else memory
        return self.part(x, memory, memory)[0].transpose(1, 2)


class Pair(NamedTuple):
    """A module of flax and one of PyTorch that compute the same, and their inputs."""

    ours: Callable[[], Any]
    theirs: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]
    others: dict[str, tuple[int, ...]] = {}
    dtype: str = "float64"


def norm(cls, **more):
    return lambda: cls(6, epsilon=1e-5, **options(), **more)


PAIRS: dict[str, Pair] = {
    "PReLU": Pair(
        lambda: nnx.PReLU(param_dtype="float64"), torch.nn.PReLU, (3, 5, 4, 6)
    ),
    "LayerNorm": Pair(norm(nnx.LayerNorm), lambda: torch.nn.LayerNorm(6), (3, 6)),
    "RMSNorm": Pair(norm(nnx.RMSNorm), lambda: torch.nn.RMSNorm(6, eps=1e-5), (3, 6)),
    "GroupNorm": Pair(
        norm(nnx.GroupNorm, num_groups=2),
        lambda: torch.nn.GroupNorm(2, 6),
        (3, 5, 4, 6),
    ),
    "InstanceNorm": Pair(
        norm(nnx.InstanceNorm),
        lambda: torch.nn.InstanceNorm2d(6, affine=True),
        (3, 5, 4, 6),
    ),
    "LinearGeneral, as a linear layer": Pair(
        lambda: nnx.LinearGeneral(6, 4, **options()),
        lambda: torch.nn.Linear(6, 4),
        (3, 6),
    ),
    "LinearGeneral to two axes": Pair(
        lambda: nnx.LinearGeneral(6, (2, 5), **options()),
        # Channels first: the last axis of flax is the second here.
        lambda: Whole(
            torch.nn.Linear(6, 10), after=lambda y: y.unflatten(1, (2, 5)).mT
        ),
        (3, 6),
    ),
    "LinearGeneral of two axes": Pair(
        lambda: nnx.LinearGeneral(
            (5, 6), 4, axis=(-2, -1), use_bias=False, **options()
        ),
        lambda: Whole(
            torch.nn.Linear(30, 4, bias=False), before=lambda x: x.mT.flatten(1)
        ),
        (3, 5, 6),
    ),
}


def attention(more, shapes=None, **of_torch) -> Pair:
    return Pair(
        lambda: nnx.MultiHeadAttention(3, 6, decode=False, rngs=nnx.Rngs(0), **more),
        lambda: Attending(**of_torch),
        (2, 5, 6),
        shapes or {},
        "float32",  # in which JAX has the logits, whatever the dtype
    )


PAIRS |= {
    "MultiHeadAttention": attention({}),
    "MultiHeadAttention without bias": attention({"use_bias": False}, bias=False),
    "MultiHeadAttention to other features": attention(
        {"in_kv_features": 4}, {"memory": (2, 7, 4)}, kdim=4, vdim=4
    ),
}


def transposed(kernel_size, strides, padding, dilation, flipped, theirs) -> Pair:
    rank = len(kernel_size)
    return Pair(
        lambda: nnx.ConvTranspose(
            4,
            6,
            kernel_size,
            strides,
            padding=padding,
            kernel_dilation=dilation,
            transpose_kernel=flipped,
            use_bias=theirs.get("bias", True),
            **options(),
        ),
        lambda: getattr(torch.nn, f"ConvTranspose{rank}d")(
            4, 6, kernel_size, strides, dilation=dilation or 1, **theirs
        ),
        (2, *(5, 4, 3)[:rank], 4),
    )


PAIRS |= {
    f"ConvTranspose {index}": transposed(*case)
    for index, case in enumerate(
        [
            ((4, 2), (2, 1), "VALID", None, False, {}),
            ((4, 2), 2, "SAME", None, True, {"padding": (1, 0)}),
            ((3,), 1, "SAME", None, False, {"padding": 1}),
            ((2,), 3, "VALID", None, False, {"output_padding": 1}),
            (
                (3, 5),
                2,
                ((1, 2), (3, 3)),
                1,
                False,
                {"padding": 1, "output_padding": (1, 0)},
            ),
            ((3, 2), 1, 1, (2, 1), True, {"padding": (3, 0)}),
            ((2, 1, 3), (2, 1, 1), "VALID", None, False, {"bias": False}),
        ]
    )
}  # fmt: skip


def both(name, rng):
    """Returns the modules of a pair, that of PyTorch with random weights."""
    theirs = PAIRS[name].theirs()
    if not isinstance(theirs, (Whole, Attending)):
        theirs = Whole(theirs)
    theirs = theirs.to(getattr(torch, PAIRS[name].dtype))
    return Holder(PAIRS[name].ours()), randomise(theirs, rng)


@pytest.mark.parametrize("name", PAIRS)
def test_a_module_of_flax_computes_what_its_twin_does(name, rng):
    ours, theirs = both(name, rng)
    pair = PAIRS[name]
    inputs, *others = (
        rng.normal(size=shape).astype(pair.dtype)
        for shape in (pair.shape, *pair.others.values())
    )
    arrays = dict(zip(pair.others, others, strict=True))
    assert_parity(ours, theirs, inputs, **arrays)


@pytest.mark.parametrize("name", PAIRS)
def test_its_weights_come_back_bit_for_bit(name, rng):
    ours, theirs = both(name, rng)
    expected = torch_state(theirs)
    load_torch_state_dict(ours, expected)
    assert bits(torch_copy(to_torch_state_dict(ours), theirs)) == bits(expected)


@pytest.mark.parametrize("name", PAIRS)
def test_an_abstract_module_takes_its_weights(name, rng):
    _, theirs = both(name, rng)
    abstract = nnx.eval_shape(lambda: Holder(PAIRS[name].ours()))
    load_torch_state_dict(abstract, torch_state(theirs))
    assert bits(to_torch_state_dict(abstract)) == bits(torch_state(theirs))


# Batch norm, whose statistics flax keeps otherwise.


@pytest.fixture
def norms(rng):
    """A batch norm of flax that has the weights of PyTorch's."""
    theirs = randomise(torch.nn.BatchNorm2d(6).double(), rng)
    assert theirs.running_var is not None
    theirs.running_var.abs_()
    ours = nnx.BatchNorm(6, **options())
    for statistic in (ours.mean, ours.var):
        statistic.set_value(statistic[...].astype("float64"))
    load_torch_state_dict(ours, torch_state(theirs))
    return ours, theirs


def test_batch_norm_of_flax_evaluates_as_its_twin(norms, rng):
    ours, theirs = norms
    inputs = rng.normal(size=(3, 5, 4, 6))
    run = functools.partial(run_jax, ours, inputs, inputs, training=False, jit=False)
    expected = run_torch(theirs, inputs, inputs, training=False)
    actual = run()
    assert_close({"": actual[0]}, {"": expected[0]}, dtype="float64")
    assert_close(actual[1], expected[1], dtype="float64")


def test_batch_norm_of_flax_comes_back_except_for_the_count_it_has_not(norms):
    ours, theirs = norms
    state_dict = to_torch_state_dict(ours)
    expected = torch_state(theirs) | {"num_batches_tracked": np.int64(0)}
    assert bits(state_dict) == bits(expected)
    tensors = theirs.state_dict()  # strict about the count, as it knows its version
    tensors.update({key: as_torch(value) for key, value in state_dict.items()})
    theirs.load_state_dict(tensors, strict=True)


def test_batch_norm_of_flax_loads_without_a_count(norms):
    ours, theirs = norms
    state_dict = torch_state(theirs)
    del state_dict["num_batches_tracked"]
    load_torch_state_dict(
        nnx.BatchNorm(6, **options()),
        {key: value.astype("float32") for key, value in state_dict.items()},
    )


def test_batch_norm_of_ones_own_that_counts_keeps_its_count():
    class Counting(nnx.BatchNorm):
        def __init__(self):
            super().__init__(6, rngs=nnx.Rngs(0))
            self.num_batches_tracked = nnx.BatchStat(jnp.asarray(7))

    assert to_torch_state_dict(Counting())["num_batches_tracked"] == 7


# What has no counterpart.

NO_COUNTERPART = {
    "LSTMCell": lambda **o: nnx.LSTMCell(3, 4, **o),
    "OptimizedLSTMCell": lambda **o: nnx.RNN(nnx.OptimizedLSTMCell(3, 4, **o)),
    "GRUCell": lambda **o: nnx.GRUCell(3, 4, **o),
    "SimpleCell": lambda **o: nnx.SimpleCell(3, 4, **o),
    "SpectralNorm": lambda **o: nnx.SpectralNorm(nnx.Linear(3, 4, **o), **o),
    "WeightNorm": lambda **o: nnx.WeightNorm(nnx.Linear(3, 4, **o), **o),
    "LoRA": lambda **o: nnx.LoRA(3, 2, 4, **o),
    "LoRALinear": lambda **o: nnx.LoRALinear(3, 4, lora_rank=2, **o),
    "Einsum": lambda **o: nnx.Einsum("ab,bc->ac", (3, 4), **o),
    "LinearGeneral": lambda **o: nnx.LinearGeneral(3, 4, batch_axis={0: 2}, **o),
    "MultiHeadAttention": lambda **o: nnx.MultiHeadAttention(
        2, 8, normalize_qk=True, **o
    ),
}
NO_TWIN = {
    "heads that share keys": lambda **o: nnx.MultiHeadAttention(
        4, 8, num_kv_heads=2, **o
    ),
    "another width inside": lambda **o: nnx.MultiHeadAttention(2, 8, 12, **o),
    "another width outside": lambda **o: nnx.MultiHeadAttention(
        2, 8, out_features=6, **o
    ),
    **{
        f"padding {padding}, {size} over {strides}": functools.partial(
            nnx.ConvTranspose, 3, 4, (size,), strides, padding=padding
        )
        for padding, size, strides in (
            ("SAME", 3, 2),
            ("CIRCULAR", 3, 1),
            (3, 3, 1),
            (((0, 2),), 3, 2),
            (((1, 0),), 3, 2),
        )
    },
}


@pytest.mark.parametrize("name", NO_COUNTERPART)
def test_a_module_without_counterpart_is_refused_by_type_and_path(name):
    module = nnx.Sequential(nnx.relu, NO_COUNTERPART[name](rngs=nnx.Rngs(0)))
    for call in (
        lambda: to_torch_state_dict(module),
        lambda: load_torch_state_dict(module, {}),
    ):
        with pytest.raises(ValueError, match=rf"`layers\.1.*{name}") as caught:
            call()
        assert f"LAYOUT[{name}] = {{" in str(caught.value)


@pytest.mark.parametrize("name", NO_TWIN)
def test_a_module_built_as_no_twin_can_be_is_refused(name):
    with pytest.raises(ValueError, match="no counterpart in PyTorch: its"):
        to_torch_state_dict(NO_TWIN[name](rngs=nnx.Rngs(0)))


# Modules that hold others, and those that the tests above have.
HOLDERS = {"Module", "List", "Dict", "Sequential", "Dropout", "RNN", "Bidirectional"}
TESTED_ELSEWHERE = {"Linear", "Conv", "Embed", "BatchNorm", "RNNCellBase"}
NEWER = {"RoPE"}  # not in the oldest flax; it has no parameters


def test_every_module_of_flax_is_tested_here():
    modules = {
        name
        for name, item in vars(nnx).items()
        if isinstance(item, type) and issubclass(item, nnx.Module)
    }
    named = {name.partition(" ")[0].rstrip(",") for name in PAIRS}
    known = named | set(NO_COUNTERPART) | HOLDERS | TESTED_ELSEWHERE
    assert modules - NEWER == known


def test_a_module_of_flax_that_the_table_does_not_know_is_refused():
    class Later(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.ones((3, 4)))

    Later.__module__ = "flax.nnx.nn.later"
    with pytest.raises(ValueError, match="`part` .a Later. has no counterpart"):
        to_torch_state_dict(Holder(Later()))


def test_a_row_of_its_own_makes_a_module_load(monkeypatch, rng):
    """As the refusal says; here the two biases of PyTorch are summed into one."""
    biases = Arrangement(
        lambda arrays, _: np.stack([arrays[0], np.zeros_like(arrays[0])]),
        lambda array, _: (array.sum(0),),
    )
    row = {
        "dense_i": ("input", same),
        "dense_h": ("hidden", same),
        ("dense_h.bias",): ("biases", biases),
    }
    monkeypatch.setitem(LAYOUT, nnx.OptimizedLSTMCell, row)
    cell = nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0))
    state_dict = to_torch_state_dict(cell)
    shapes = {key: value.shape for key, value in state_dict.items()}
    assert shapes == {
        "biases": (2, 16),
        "input.weight": (16, 3),
        "hidden.weight": (16, 4),
    }
    state_dict["biases"] = rng.normal(size=(2, 16)).astype("float32")
    load_torch_state_dict(cell, state_dict)
    assert cell.dense_h.bias is not None
    np.testing.assert_array_equal(cell.dense_h.bias[...], state_dict["biases"].sum(0))


def test_a_row_may_hold_what_alone_has_no_counterpart(monkeypatch):
    class Projected(nnx.Module):
        def __init__(self):
            self.proj = nnx.Einsum("ab,bc->ac", (3, 4), rngs=nnx.Rngs(0))

    taken = Arrangement(lambda arrays, _: arrays[0].T, lambda array, _: (array.T,))
    row = {("proj.kernel",): ("weight", taken)}
    monkeypatch.setitem(LAYOUT, Projected, row)
    assert to_torch_state_dict(Projected())["weight"].shape == (4, 3)


def test_a_row_of_a_subclass_goes_before_that_of_its_parent(monkeypatch):
    class Many(nnx.Linear):
        """Several in one, and its own idea of that."""

        def __init__(self):
            super().__init__(3, 4, use_bias=False, rngs=nnx.Rngs(0))
            self.kernel.set_value(jnp.ones((2, 3, 4)))

    monkeypatch.setitem(LAYOUT, Many, {"kernel": ("kernels", same)})
    assert to_torch_state_dict(Many())["kernels"].shape == (2, 3, 4)
