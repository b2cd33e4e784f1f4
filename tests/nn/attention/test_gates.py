"""Parts of gates, and what every module made of them must stand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detkit.nn.attention import create_attention
from detkit.nn.attention.gates import (
    PooledBatchNorm,
    hidden_channels,
    laid_out_as,
    mean_along,
    mean_and_variance,
    peak,
    peak_along,
    pooling_matrix,
)
from detkit.nn.attention.second_order import GlobalSecondOrderPooling

FORMS = {
    "se": {"reduction": 4},
    "eca": {"kernel_size": 3},
    "fca": {},
    "srm": {},
    "gct": {},
    "gct l1": {"norm": "l1"},
    "gaussian_gct": {},
    "gaussian_gct learnt": {"c": None},
    "gsop": {"reduced": 4},
    "gsop strided": {"reduced": 4, "stride": 2},
    "gsop position": {"reduced": 4, "mode": "position"},
    "cbam": {"reduction": 4},
    "bam": {"reduction": 4},
    "scse": {},
    "scse sum": {"combine": "sum"},
    "triplet": {"kernel_size": 3},
    "coord": {"min_hidden": 4},
    "simam": {},
}
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(params=FORMS)
def module(request, randomise) -> nn.Module:
    """One module of 16 channels, random."""
    name = request.param.split(" ")[0]
    return randomise(create_attention(name, channels=16, **FORMS[request.param]))


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_gradients(module):
    names = [name for name, _ in module.named_parameters()]

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), x)

    x = maps(2, 16, 2, 3).requires_grad_()
    # few directions instead of every element: the matrix of a module has thousands of entries
    assert torch.autograd.gradcheck(run, (x, *module.parameters()), fast_mode=True)
    run(x, *module.parameters()).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("side", [(1, 1), (1, 4), (5, 7), (9, 2)])
@pytest.mark.parametrize("train", [False, True])
def test_any_side(module, side, train):
    x = maps(2, 16, *side).requires_grad_()
    y = module.train(train)(x)
    y.square().sum().backward()
    assert y.shape == x.shape and y.isfinite().all() and x.grad.isfinite().all()


def test_one_image_in_training(module):
    y = module.train()(maps(1, 16, 3, 5))
    assert y.shape == (1, 16, 3, 5) and y.isfinite().all()


def test_images_do_not_see_each_other(module):
    x = maps(3, 16, 3, 5)
    y = torch.cat([module(each) for each in x.split(1)])
    torch.testing.assert_close(module(x), y, rtol=1e-10, atol=1e-12)


def test_no_maps(module):
    assert module(torch.zeros(0, 16, 3, 5, dtype=torch.float64)).shape == (0, 16, 3, 5)


def test_constant_maps_have_a_gradient(module):
    x = torch.zeros(2, 16, 3, 5, dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 300.0])  # 300^2 is more than a half can hold
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(module, dtype, scale):
    x = (scale * maps(2, 16, 6, 7)).to(dtype)
    exact = module(x.double())
    # covariances are of maps that a trained norm has brought to scale
    y = module.to(dtype).train(isinstance(module, GlobalSecondOrderPooling) and scale > 1)(x)
    assert y.dtype == dtype and y.isfinite().all()
    if scale == 1:
        torch.testing.assert_close(y.double(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_dtype_of_the_map(module, dtype):
    x = maps(2, 16, 6, 7).to(dtype)
    exact = module(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        y = module.float()(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_the_map_stays(module, layout):
    x = maps(2, 16, 6, 7).contiguous(memory_format=layout)
    y = module(x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, module(x.contiguous()), rtol=1e-10, atol=1e-12)


def test_map_is_left_alone(module):
    x = maps(2, 16, 3, 5)
    module(x)
    torch.testing.assert_close(x, maps(2, 16, 3, 5), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("channels", "reduction", "width"), [(64, 16, 4), (40, 16, 2), (16, 16, 1), (6, 16, 1)]
)
def test_hidden_channels(channels, reduction, width):
    assert hidden_channels(channels, reduction) == width


@pytest.mark.parametrize("size", [1, 3, 8, 13, 56])
@pytest.mark.parametrize("pooled", [1, 7, 8, 14])
def test_pooling_matrix_is_torchs_adaptive_pooling(size, pooled):
    x = maps(4, size)
    expected = F.adaptive_avg_pool1d(x, pooled)
    torch.testing.assert_close(x @ pooling_matrix(size, pooled, like=x).T, expected)


def test_pooling_matrix_by_hand():
    # bins of 5 places in 3: 0-1, 1-3, 3-4
    matrix = pooling_matrix(5, 3, like=torch.zeros(1))
    third = 1 / 3
    expected = [[0.5, 0.5, 0, 0, 0], [0, third, third, third, 0], [0, 0, 0, 0.5, 0.5]]
    torch.testing.assert_close(matrix, torch.tensor(expected))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_along(dim, layout, gradient):
    x = maps(2, 4, 3, 5).contiguous(memory_format=layout).requires_grad_(gradient)
    torch.testing.assert_close(mean_along(x, dim), x.mean(dim, keepdim=True))
    torch.testing.assert_close(peak_along(x, dim), x.amax(dim, keepdim=True))
    torch.testing.assert_close(peak(x), x.amax((2, 3), keepdim=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_a_peak_goes_to_its_place(layout):
    x = maps(2, 4, 3, 5).contiguous(memory_format=layout).requires_grad_()
    (peak(x).sum() + sum(peak_along(x, dim).sum() for dim in (1, 2, 3))).backward()
    tops = [x.amax((2, 3), keepdim=True), *(x.amax(dim, keepdim=True) for dim in (1, 2, 3))]
    torch.testing.assert_close(x.grad, sum((x == top).double() for top in tops))


def test_one_of_equal_places_gets_the_gradient():
    for pooled in (peak, lambda x: peak_along(x, 2)):
        x = torch.zeros(1, 2, 3, 1, requires_grad=True)
        pooled(x).sum().backward()
        assert sorted(x.grad.flatten().tolist()) == [0, 0, 0, 0, 1, 1]


def test_mean_and_variance():
    x = maps(2, 4, 3, 5)
    mean, variance = mean_and_variance(x)
    torch.testing.assert_close(mean, x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(variance, x.var((2, 3), keepdim=True))
    mean, variance = mean_and_variance(torch.full((1, 1, 1, 1), 300.0, dtype=torch.half))
    assert (mean.item(), variance.item(), variance.dtype) == (300, 0, torch.float32)


def test_variance_of_halves_does_not_overflow():
    x = torch.tensor([-400.0, 400.0], dtype=torch.half).view(1, 1, 1, 2)
    assert mean_and_variance(x)[1].item() == 320_000


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gate_is_laid_out_as_the_map(layout):
    x = torch.zeros(2, 4, 3, 5, dtype=torch.half).contiguous(memory_format=layout)
    turned = torch.randn(2, 3, 1, 4).permute(0, 3, 1, 2)  # [2, 4, 3, 1]
    gate = laid_out_as(x, turned.transpose(2, 3).transpose(2, 3))
    assert gate.is_contiguous(memory_format=layout) and gate.dtype == torch.half
    torch.testing.assert_close(gate, turned.half())


def test_one_vector_is_normalised_by_the_running_statistics(randomise):
    norm = randomise(PooledBatchNorm(3))
    x = maps(1, 3)
    expected = norm(x)
    torch.testing.assert_close(norm.train()(x), expected)
    assert norm.num_batches_tracked == 0
    pair = maps(2, 3)
    plain = nn.BatchNorm1d(3).double()
    plain.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(pair), plain(pair))
    assert norm.num_batches_tracked == 1
