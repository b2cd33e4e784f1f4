"""Logistic and MLP heads: on vectors and maps, alone and under a classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detkit.backbones import create_backbone
from detkit.backbones.base import Classifier
from detkit.nn import LogisticHead, MLPHead, classifier_head


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("logistic", {}, 20 * 5 + 5),
        # linear 20x8, batch norm 2x8, PReLU 1, linear 8x5+5
        ("mlp", {"hidden": [8]}, 160 + 16 + 1 + 45),
        ("mlp", {"hidden": [8], "activation": "leaky_relu"}, 160 + 16 + 45),
        ("mlp", {"hidden": [8], "batch_norm": False}, 168 + 1 + 45),
        ("mlp", {"hidden": [8, 6]}, 160 + 16 + 1 + 48 + 12 + 1 + 35),
        ("mlp", {"hidden": []}, 105),
    ],
)
def test_parameter_count(name, settings, expected):
    head = classifier_head(name, 20, 5, **settings)
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_vectors_maps_and_lists_of_maps(name):
    head = classifier_head(name, 6, 4).eval()
    maps = torch.rand(3, 6, 5, 7)
    logits = head(maps)
    assert logits.shape == (3, 4)
    torch.testing.assert_close(head(maps.mean((2, 3))), logits)
    torch.testing.assert_close(head([torch.rand(3, 2, 10, 14), maps]), logits)
    assert head(maps[:0]).shape == (0, 4)
    with pytest.raises(
        ValueError, match=r"vectors \[B, C\] or maps .* got a tensor of \[6, 5, 7\]"
    ):
        head(maps[0])


def test_logistic_head_is_one_linear_layer():
    head = LogisticHead(6, 4)
    assert list(head.state_dict()) == ["fc.weight", "fc.bias"]
    x = torch.rand(3, 6)
    torch.testing.assert_close(head(x), x @ head.fc.weight.T + head.fc.bias)


def test_mlp_head_layer_by_layer():
    head = MLPHead(6, 4, hidden=[5]).double().eval()
    linear, norm, activation, dropout = head.hidden[0]
    assert isinstance(dropout, nn.Dropout) and dropout.p == 0.5
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var, activation.weight):
        value.data.uniform_(0.5, 1.5)
    x = torch.randn(3, 6, dtype=torch.float64)
    hidden = x @ linear.weight.T
    hidden = (hidden - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    hidden = hidden * norm.weight + norm.bias
    hidden = torch.where(hidden > 0, hidden, activation.weight * hidden)
    torch.testing.assert_close(head(x), hidden @ head.fc.weight.T + head.fc.bias)
    assert isinstance(MLPHead(6, 4, activation="leaky_relu").hidden[0][2], nn.LeakyReLU)


def test_one_sample():
    head = MLPHead(6, 4)
    x = torch.rand(1, 6)
    with pytest.raises(ValueError, match="cannot train on 1 sample: use larger batches"):
        head(x)
    assert (head.hidden[0][1].running_mean == 0).all()  # nothing learnt from it
    assert head.eval()(x).shape == (1, 4)
    assert MLPHead(6, 4, batch_norm=False)(x).shape == (1, 4)
    assert MLPHead(6, 4, hidden=[])(x).shape == (1, 4)
    head.train().hidden.eval()  # frozen
    assert head(x).shape == (1, 4)


def test_no_sample_while_training():
    head = MLPHead(6, 4)
    head(torch.rand(0, 6)).sum().backward()
    assert all(torch.isfinite(buffer).all() for buffer in head.buffers())


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_every_parameter_learns(name):
    head = classifier_head(name, 6, 4)
    F.cross_entropy(head(torch.randn(8, 6, 2, 3)), torch.arange(8) % 4).backward()
    for key, parameter in head.named_parameters():
        assert torch.isfinite(parameter.grad).all() and (parameter.grad != 0).any(), key


def test_both_learn_what_they_can():
    """One linear layer cannot separate XOR, a perceptron with a hidden layer can."""
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).repeat(8, 1)
    labels = torch.tensor([0, 1, 1, 0]).repeat(8)
    right = {}
    for name, settings in (("logistic", {}), ("mlp", {"hidden": [16], "dropout": 0.0})):
        head = classifier_head(name, 2, 2, **settings)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(head(x), labels).backward()
            optimizer.step()
        right[name] = (head.eval()(x).argmax(1) == labels).float().mean().item()
    assert right["logistic"] <= 0.75
    assert right["mlp"] == 1


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_under_a_classifier(name):
    body = create_backbone("resnet18", width=8, out_indices=(-1,))
    head = classifier_head(name, body.feature_info[-1].channels, 5)
    net = Classifier(body, head).eval()
    images = torch.rand(2, 3, 40, 56)
    logits = net(images)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(logits, head(body(images)))
    again = Classifier(
        create_backbone("resnet18", width=8, out_indices=(-1,)), classifier_head(name, 64, 5)
    ).eval()
    again.load_state_dict(net.state_dict(), strict=True)
    torch.testing.assert_close(again(images), logits)


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_heads_compile_without_a_break(name):
    head = classifier_head(name, 6, 4).eval()
    maps = torch.rand(3, 6, 5, 7)
    torch.testing.assert_close(
        torch.compile(head, fullgraph=True, backend="eager")(maps), head(maps)
    )


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown classifier head 'logistics'; did you mean 'log"):
        classifier_head("logistics", 2, 2)
    with pytest.raises(ValueError, match="'mlp' has no setting 'hiden'; did you mean 'hidden'"):
        classifier_head("mlp", 2, 2, hiden=[3])
    with pytest.raises(ValueError, match="'logistic' has no setting 'hidden'; it has none"):
        classifier_head("logistic", 2, 2, hidden=[3])
