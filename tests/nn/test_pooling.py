"""Fractional max pooling: fixed windows in evaluation, random ones in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.nn import FractionalMaxPool2d


def test_windows_in_evaluation_by_hand():
    pool = FractionalMaxPool2d(2, output_size=(1, 4)).eval()
    # 10 cells, 4 windows of 2: a = 8 / 3; floor((i + 1/2) a) - floor(a / 2) = 0, 3, 5, then 8
    ramp = torch.arange(10.0).expand(1, 1, 3, 10)
    assert pool(ramp).flatten().tolist() == [1, 4, 6, 9]  # the right cell of each


def test_random_in_training_only():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 25, 25)
    pool = FractionalMaxPool2d(2, output_ratio=0.7)
    assert not torch.equal(pool(x), pool(x))
    pool.eval()
    assert torch.equal(pool(x), pool(x))
    assert torch.equal(pool(x)[1:], pool(x[1:]))  # whatever else is in the batch
    theirs = nn.FractionalMaxPool2d(2, output_ratio=0.7).eval()
    assert not torch.equal(theirs(x), theirs(x))


def test_windows_in_training_are_torchs():
    x = torch.rand(2, 3, 12, 15)
    torch.manual_seed(0)
    ours = FractionalMaxPool2d(3, output_size=(5, 7))(x)
    torch.manual_seed(0)
    assert torch.equal(ours, nn.FractionalMaxPool2d(3, output_size=(5, 7))(x))


def test_evaluation_lies_where_training_lies_on_average():
    torch.manual_seed(0)
    pool = FractionalMaxPool2d(2, output_size=9)
    ramp = torch.arange(25.0).expand(500, 1, 25, 25)
    average = pool(ramp).mean((0, 1, 2))
    fixed = pool.eval()(ramp)[0, 0, 0]
    assert (average - fixed).abs().max() <= 0.5


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"output_size": 5}, (5, 5)),
        ({"output_size": (5, 8)}, (5, 8)),
        ({"output_ratio": 0.5}, (6, 8)),
        ({"output_ratio": (0.5, 0.75)}, (6, 12)),
    ],
)
def test_output_size(settings, expected, training):
    pool = FractionalMaxPool2d(2, **settings).train(training)
    for dtype in (torch.float32, torch.float64):
        assert pool(torch.rand(2, 3, 13, 16, dtype=dtype)).shape == (2, 3, *expected)
    assert pool(torch.rand(0, 3, 13, 16)).shape == (0, 3, *expected)


def test_gradient_goes_to_the_largest():
    x = torch.rand(1, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    pool = FractionalMaxPool2d(2, output_size=4).eval()
    assert torch.autograd.gradcheck(pool, x)


def test_compiles_without_a_break():
    pool = FractionalMaxPool2d(2, output_ratio=0.6).eval()
    x = torch.rand(1, 2, 9, 11)
    assert torch.equal(torch.compile(pool, fullgraph=True, backend="eager")(x), pool(x))


def test_a_size_and_a_ratio():
    with pytest.raises(ValueError, match="only one of output_size and output_ratio"):
        FractionalMaxPool2d(2, output_size=4, output_ratio=0.5)
