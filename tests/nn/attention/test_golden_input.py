"""The waves that the golden values were computed with."""

from __future__ import annotations

import pytest
import torch


def test_the_input_is_the_published_one(golden_input, report):
    total, absolute, _ = report(golden_input((2, 32, 8, 8)))
    assert total == pytest.approx(101.759815, abs=1e-6)
    assert absolute == pytest.approx(2773.297820, abs=1e-6)


def test_fill_counts_floating_tensors_only(fill):
    norm = fill(torch.nn.BatchNorm2d(3))
    assert norm.weight[1].item() == pytest.approx(0.5 * torch.tensor(1.7).sin().item())
    assert norm.running_var[0].item() == pytest.approx(
        1 + 0.5 * torch.tensor(4.0).sin().item() ** 2
    )
    assert norm.num_batches_tracked == 0 and not norm.training
