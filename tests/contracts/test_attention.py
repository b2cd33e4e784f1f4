"""What holds for every attention module, whatever it computes."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.attention import create_attention, list_attentions

CHANNELS = 64
EVERY = pytest.mark.parametrize("name", list_attentions())
# A constant added to all keys does not change a softmax over them: these learn nothing.
UNSEEN = {("dual", "position.key.bias"), ("nonlocal", "phi.bias")}


def build(name: str, *, batch: int) -> nn.Module:
    """A module with random state, so that none is the identity or has dead units; evaluation."""
    settings = {"frames": batch} if name == "tam" else {}
    module = create_attention(name, channels=CHANNELS, **settings).eval()
    generator = torch.Generator().manual_seed(0)
    learned = dict(module.named_parameters())
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if key in learned and tensor.ndim > 1:
                fan_in = math.prod(tensor.shape[1:])
                tensor.normal_(std=fan_in**-0.5, generator=generator)
            elif key in learned or key.endswith(("running_mean", "running_var")):
                tensor.uniform_(0.3, 0.9, generator=generator)
    return module


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, CHANNELS, 14, 14), (1, CHANNELS, 7, 9), (1, CHANNELS, 1, 1)])
def test_shape_and_dtype_are_kept(name, shape, dtype):
    x = noise(*shape, dtype=dtype)
    given = x.clone()
    y = build(name, batch=shape[0]).to(dtype)(x)
    assert y.shape == shape and y.dtype == dtype and y.isfinite().all()
    assert torch.equal(x, given)  # the residual branch of a block goes on with it
    if shape[2] > 1:
        assert (y - x).abs().max() > 1e-3


@EVERY
def test_memory_format_does_not_matter(name):
    module = build(name, batch=2).double()
    x = noise(2, CHANNELS, 7, 9, dtype=torch.float64)
    y = module.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, module(x), rtol=1e-9, atol=1e-9)


@EVERY
def test_every_parameter_learns(name):
    module = build(name, batch=2).double()
    x = noise(2, CHANNELS, 7, 9, dtype=torch.float64).requires_grad_()
    (module(x) * noise(2, CHANNELS, 7, 9).flip(-1)).sum().backward()
    largest = {key: p.grad.abs().max().item() for key, p in module.named_parameters()}
    largest["the input"] = x.grad.abs().max().item()
    assert all(math.isfinite(value) for value in largest.values())
    idle = {(name, key) for key, value in largest.items() if value < 1e-9}
    assert idle == {each for each in UNSEEN if each[0] == name}


@EVERY
def test_trains_from_its_initial_state(name):
    settings = {"frames": 2} if name == "tam" else {}
    module = create_attention(name, channels=CHANNELS, **settings).train()
    y = module(noise(4, CHANNELS, 7, 9).requires_grad_())
    y.square().mean().backward()
    assert y.isfinite().all()
    # some parameters wait behind a weight that starts at zero, but none may be cut off
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@EVERY
def test_state_is_all_there_is(name):
    module, x = build(name, batch=2), noise(2, CHANNELS, 7, 9)
    settings = {"frames": 2} if name == "tam" else {}
    other = create_attention(name, channels=CHANNELS, **settings).eval()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 1000])
def test_half_precision_is_finite(name, dtype, scale):
    x = (scale * noise(2, CHANNELS, 14, 14)).to(dtype)
    y = build(name, batch=2).to(dtype)(x)
    assert y.dtype == dtype and y.isfinite().all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_autocast_does_not_widen_the_map(name, dtype, device):
    module, x = build(name, batch=2).to(device), noise(2, CHANNELS, 7, 9).to(device, dtype)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = module(x)
    # like a convolution a module may narrow the map
    assert y.dtype in (dtype, torch.bfloat16) and y.isfinite().all()


@pytest.mark.parametrize("name", [each for each in list_attentions() if each != "tam"])
def test_maps_of_a_batch_do_not_see_each_other(name):
    module, x = build(name, batch=3).double(), noise(3, CHANNELS, 7, 9, dtype=torch.float64)
    alone = torch.cat([module(one) for one in x.split(1)])
    torch.testing.assert_close(module(x), alone, rtol=1e-9, atol=1e-9)


@EVERY
def test_compiles_to_one_graph(name):
    module, x = build(name, batch=2), noise(2, CHANNELS, 5, 6)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), module(x))


class Together(nn.ModuleList):
    """Every module on the same map: to export each alone takes seconds of start."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(x) for module in self)


@pytest.fixture(scope="module")
def exported() -> tuple[torch.export.ExportedProgram, Tensor, dict[str, Tensor]]:
    """All modules as one program for maps of any size, a map, and what each computes of it."""
    modules = Together(build(name, batch=2) for name in list_attentions()).eval()
    any_side = torch.export.Dim.DYNAMIC
    example, x = noise(2, CHANNELS, 12, 10), noise(2, CHANNELS, 5, 6)
    with torch.no_grad():
        program = torch.export.export(
            modules, (example,), dynamic_shapes=({2: any_side, 3: any_side},)
        )
        return program, x, dict(zip(list_attentions(), modules(x), strict=True))


@pytest.fixture(scope="module")
def program_outputs(exported) -> dict[str, Tensor]:
    """What the program computes."""
    program, x, _ = exported
    return dict(zip(list_attentions(), program.module()(x), strict=True))


@EVERY
def test_export_computes_the_same(exported, program_outputs, name):
    torch.testing.assert_close(program_outputs[name], exported[2][name])


@pytest.fixture(scope="module")
def onnx_outputs(exported) -> dict[str, Tensor]:
    """What onnxruntime computes from the program."""
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module)
    runtime = pytest.importorskip("onnxruntime")
    program, x, _ = exported
    file = io.BytesIO()
    torch.onnx.export(program, f=None, dynamo=True, verbose=False).save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return dict(zip(list_attentions(), map(torch.from_numpy, outputs), strict=True))


@EVERY
def test_onnx_computes_the_same(exported, onnx_outputs, name):
    torch.testing.assert_close(onnx_outputs[name], exported[2][name], rtol=1e-4, atol=1e-4)
