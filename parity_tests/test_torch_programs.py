"""Programs that PyTorch traces of the twin: one for every batch, and every size."""

import warnings
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage]

import dynconv_torch
from parity_tests.parity import as_numpy
from parity_tests.tolerances import assert_close
from parity_tests.tools.slow import thinned
from parity_tests.tools.torch_layers import ALL, MEMBERS, SPATIAL, build, images

BATCH = torch.export.Dim("batch")
OTHER_BATCHES = (1, 2, 5)
FORMS = ["auto", "loop", "grouped", "patches", "experts"]

# That there is `torch.export` now; which category says so depends on PyTorch's version.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.torch.jit.trace:{category}")
    for category in ("DeprecationWarning", "FutureWarning")
]


def assert_same(actual, expected):
    assert_close(
        {"output": as_numpy(actual)},
        {"output": as_numpy(expected)},
        dtype=str(expected.dtype).removeprefix("torch."),
    )


def assert_program_is(program, module, name, dtype=torch.float64, larger=0):
    """Asserts that a program answers as a module, for other batches."""
    for batch in OTHER_BATCHES:
        x = images(name, batch, dtype, larger)
        assert_same(program(x), module(x))


def export(module, name, open_spatial=(), **options):
    sizes = {axis: torch.export.Dim(f"s{axis}", min=9) for axis in open_spatial}
    shapes = ({0: BATCH, **sizes},)
    x = images(name, 3, larger=len(sizes) * 9)
    return torch.export.export(module, (x,), dynamic_shapes=shapes, **options).module()


# Variants that compute as others do, but for numbers; and what is there twice.
SIMILAR = (
    *("adaptive, grouped", "odconv, one expert", "odconv, layer norm", "net"),
    *("decomposed, uneven", "warehouse, layer norm", "odconv, pointwise, no norm"),
)
FAST = [
    name
    for name in ALL
    if "3d" not in name and "1d" not in name and name not in SIMILAR
]


@pytest.mark.parametrize("name", thinned(ALL, *FAST))
def test_exported_with_an_open_batch(name):
    module = build(name)
    assert_program_is(export(module, name), module, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynamic 2d", "odconv 2d", "decomposed 2d"])
def test_exported_by_the_symbolic_interpreter_too(name):
    module = build(name)
    assert_program_is(export(module, name, strict=True), module, name)


OF_ANY_SIZE = [name for name in MEMBERS if "3d" not in name]
OF_ANY_SIZE += ["decomposed 3d", "padded as TensorFlow", "decomposed, uneven"]


@pytest.mark.parametrize(
    "name", thinned(OF_ANY_SIZE, *(name for name in OF_ANY_SIZE if "2d" in name))
)
def test_exported_with_open_sizes(name):
    module = build(name)
    axes = range(2, 2 + len(SPATIAL[ALL[name][1]]))
    program = export(module, name, open_spatial=axes)
    for larger in (7, 12):
        assert_program_is(program, module, name, larger=larger)


@pytest.mark.slow
def test_net_exported_with_open_sizes():
    module = build("net")
    sizes = {axis: torch.export.Dim(f"s{axis}", min=20) for axis in (2, 3)}
    x = images("net", 3, larger=30)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: BATCH, **sizes},))
    assert_program_is(program.module(), module, "net", larger=17)


@pytest.mark.parametrize("form", FORMS)
def test_exported_form_asked_for_serves_every_batch_or_says_that_it_cannot(form):
    module = build("dynamic 2d")
    module.implementation = form
    if form == "loop":
        message = "'loop'.*would fix the batch.*'auto'.*'patches'"
        with pytest.raises(ValueError, match=message):
            export(module, "dynamic 2d")
    else:
        assert_program_is(export(module, "dynamic 2d"), module, "dynamic 2d")


def test_loop_is_exported_for_a_batch_that_is_fixed():
    module = build("dynamic 2d")
    module.implementation = "loop"
    x = images("dynamic 2d", 3)
    program = torch.export.export(module, (x,)).module()
    assert_same(program(x), module(x))


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize(
    ("function", "weight"),
    [
        (dynconv_torch.per_sample_conv, (6, 4, 3, 2)),
        (dynconv_torch.per_sample_conv_transpose, (4, 6, 3, 2)),
    ],
)
def test_kernels_per_sample_are_traced_for_every_batch(function, weight, has_gradient):
    def run(x, kernels):
        output = function(x, kernels, stride=2, padding=1)
        if not has_gradient:
            return output
        return torch.autograd.grad(output.sin().sum(), [x, kernels])[1]

    def operands(batch):
        shapes = ((batch, 4, 7, 6), (batch, *weight))
        return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    # A size that equals that of the batch would be taken for it.
    program = make_fx(run, tracing_mode="symbolic")(*operands(5))
    for batch in (2, 8):
        arrays = operands(batch)
        assert_same(program(*arrays), run(*arrays))


COMPILED = ["dynamic 2d", "transposed 1d", "condconv 1d", "odconv 2d", "warehouse 1d"]
COMPILED += ["decomposed 2d", "depthwise, top-k"]


@pytest.mark.parametrize("name", thinned(COMPILED, "odconv 2d", "depthwise, top-k"))
def test_compiled_once_for_every_batch(name):
    module, graphs = build(name), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    program = torch.compile(module, dynamic=True, fullgraph=True, backend=count)
    for batch in (3, 2, 5):
        x = images(name, batch)
        assert_same(program(x), module(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("form", ["loop", "grouped"])
def test_compiled_form_asked_for_stays_right_for_other_batches(form):
    module = build("dynamic 2d")
    module.implementation = form
    torch.compiler.reset()
    program = torch.compile(module, dynamic=True, backend="eager")
    assert_program_is(program, module, "dynamic 2d")


@pytest.mark.parametrize("name", ALL)
def test_traced_for_other_batches_without_a_warning(name):
    module = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TracerWarning)
        program = torch.jit.trace(
            module, images(name, 3), check_inputs=[(images(name, 2),)]
        )
    assert_program_is(program, module, name)
    assert_program_is(program, module, name, larger=5)


@pytest.mark.parametrize("form", ["loop", "grouped"])
def test_trace_refuses_forms_that_would_fix_the_batch(form):
    module = build("dynamic 2d")
    module.implementation = form
    with pytest.raises(ValueError, match=f"{form!r}.*would fix the batch.*'patches'"):
        torch.jit.trace(module, images("dynamic 2d", 3))


@pytest.mark.parametrize("name", ALL)
def test_tracer_without_shapes_is_refused_with_what_to_take(name):
    with pytest.raises(TypeError, match="torch.fx.symbolic_trace.*torch.export.export"):
        torch.fx.symbolic_trace(build(name))


class LeafTracer(torch.fx.Tracer):
    """Looks into no layer of the library."""

    def is_leaf_module(self, m, module_qualified_name):
        return type(m).__module__.startswith("dynconv_torch")


def test_layers_may_be_leaves_of_a_tracer_without_shapes():
    layer = build("dynamic 2d")
    net = torch.nn.Sequential(layer, torch.nn.ReLU())
    program = torch.fx.GraphModule(net, LeafTracer().trace(net))
    assert_program_is(program, net, "dynamic 2d")


def test_trace_hears_the_temperature():
    module = build("dynamic 2d")
    x = images("dynamic 2d", 2)
    program: Any = torch.jit.trace(module, x)
    dynconv_torch.set_temperature(module, 7.0)
    program.temperature.fill_(7.0)
    assert_same(program(x), module(x))


def test_without_a_tracer_the_choice_is_by_cost():
    module = build("dynamic 2d")
    with torch.profiler.profile() as profile:
        module(images("dynamic 2d", 64))
    assert "aten::bmm" not in {event.key for event in profile.key_averages()}


@pytest.mark.slow
def test_a_large_net_exported_with_an_open_batch():
    net = dynconv_torch.create_model("efficientnet_cc_b0_4e", 10).eval().double()
    x = torch.randn(3, 3, 64, 48, dtype=torch.float64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: BATCH},)).module()
    for batch in (1, 2):
        x = torch.randn(batch, 3, 64, 48, dtype=torch.float64)
        assert_same(program(x), net(x))
