"""ONNX: a file for every batch, run by onnxruntime."""

import functools
import pkgutil

import onnxruntime
import pytest
import torch

import dynconv_torch
from parity_tests.parity import as_numpy
from parity_tests.tolerances import assert_close
from parity_tests.tools.slow import thinned
from parity_tests.tools.torch_layers import build, images

BATCH = torch.export.Dim("batch")
EXPORTER = "torch.onnx._internal.exporter"

pytestmark = [
    # By PyTorch's exporter itself, where it copies a program.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]

# Each takes seconds to convert. Of each kind of layer one; its variants, and numbers of
# dimensions, are tried as the programs of PyTorch that are converted.
QUICK = "dynamic 2d", "condconv 1d", "warehouse 1d", "decomposed 1d"
CONVERTED = (
    *QUICK,
    *("transposed 1d", "odconv, layer norm", "padded as TensorFlow", "frequency"),
    *("modulated, to an image", "routed block"),
    # What has operators that those have not.
    *("depthwise, top-k", "steered 2d", "adaptive", "fd", "dynamic 3d", "net"),
)


@pytest.fixture(scope="module", autouse=True)
def one_table_of_operators():
    """PyTorch reads its table of operators once, not for each file."""
    try:
        registry = pkgutil.resolve_name(f"{EXPORTER}._registration:ONNXRegistry")
        read_once = staticmethod(functools.cache(registry.from_torchlib))
    except (ImportError, AttributeError):  # it is PyTorch's own, and may go
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", read_once)
        yield


def exported(module, x, shapes=None):
    """Exports a module, with its batch open at least."""
    shapes = shapes or {0: BATCH}
    program = torch.onnx.export(
        module, (x,), dynamo=True, dynamic_shapes=(shapes,), verbose=False
    )
    assert program is not None
    return program


def run_exported(module, x, shapes=None):
    """Exports a module, and returns what runs the file."""
    return runner(exported(module, x, shapes))


def runner(program):
    """Returns what runs an exported program."""
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (argument,) = session.get_inputs()
    return lambda x: session.run(None, {argument.name: as_numpy(x)})[0]


def assert_same(actual, expected):
    assert_close({"output": actual}, {"output": as_numpy(expected)}, dtype="float32")


@pytest.mark.parametrize("name", thinned(CONVERTED, *QUICK))
def test_file_serves_every_batch(name):
    module = build(name, torch.float32)
    run = run_exported(module, images(name, 3, torch.float32))
    for batch in (1, 5):
        x = images(name, batch, torch.float32)
        assert_same(run(x), module(x))


@pytest.mark.parametrize("name", thinned(["dynamic 2d", "decomposed 2d"], "dynamic 2d"))
def test_file_serves_every_size(name):
    module = build(name, torch.float32)
    sizes = {2: torch.export.Dim("height", min=5), 3: torch.export.Dim("width", min=5)}
    run = run_exported(module, images(name, 3, torch.float32), {0: BATCH, **sizes})
    for batch in (1, 5):
        x = images(name, batch, torch.float32, larger=batch + 1)
        assert_same(run(x), module(x))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["loop", "patches"])
def test_form_asked_for_serves_every_batch(form):
    module = build("dynamic 1d", torch.float32)
    module.implementation = form
    program = exported(module, images("dynamic 1d", 3, torch.float32))
    assert any(node.op_type == "Scan" for node in program.model.graph) == (
        form == "loop"
    )
    run = runner(program)
    for batch in (1, 5):
        x = images("dynamic 1d", batch, torch.float32)
        assert_same(run(x), module(x))


def test_form_with_a_group_for_every_sample_is_refused():
    module = build("dynamic 1d", torch.float32)
    module.implementation = "grouped"
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        run_exported(module, images("dynamic 1d", 3, torch.float32))
    assert "`implementation` (='grouped') would fix the batch" in str(caught.value)


@pytest.mark.slow
def test_a_large_net():
    net = dynconv_torch.create_model("dynamic_net", 10).eval()
    run = run_exported(net, torch.randn(3, 3, 48, 40))
    for batch in (1, 2):
        x = torch.randn(batch, 3, 48, 40)
        assert_same(run(x), net(x))
