"""Mean subtraction by data set and by image."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.functional import normalize

from detkit.nn import MeanSubtraction


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mean_of_a_data_set_by_hand(dtype):
    image = torch.tensor([[10, 20], [30, 40]], dtype=dtype).view(1, 2, 1, 2)
    out = MeanSubtraction([20, 30])(image)
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == [-10, 0, 0, 10]
    assert MeanSubtraction([20, 30], [5, 10])(image).flatten().tolist() == [-2, 0, 0, 1]


def test_mean_and_deviation_as_in_torchvision():
    images = torch.rand(2, 3, 4, 5)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    torch.testing.assert_close(MeanSubtraction(mean, std)(images), normalize(images, mean, std))


def test_mean_of_each_image():
    image = torch.tensor([[10, 20], [30, 50]], dtype=torch.uint8).view(1, 2, 1, 2)
    other = image + 7
    subtract = MeanSubtraction()
    out = subtract(torch.cat([image, other]))
    assert out[0].flatten().tolist() == [-5, 5, -10, 10]
    assert torch.equal(out[0], out[1])  # whatever the brightness
    assert MeanSubtraction(std=[5, 10])(image).flatten().tolist() == [-1, 1, -1, 1]
    assert subtract(image[:0]).shape == (0, 2, 1, 2)


def test_settings_are_no_weights():
    module = MeanSubtraction([1, 2, 3], [1, 1, 1]).double()
    assert module.state_dict() == {}
    assert module(torch.rand(1, 3, 2, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("mean", [None, [1, 2, 3]])
def test_compiles_without_a_break(mean):
    module = MeanSubtraction(mean, [1, 2, 3])
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), module(images))


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="3 means but 2 deviations"):
        MeanSubtraction([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"std must be above 0, got \[1, 0\]"):
        MeanSubtraction([1, 2], [1, 0])
