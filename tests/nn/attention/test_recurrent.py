"""RAM: glimpses against crops cut by hand, and REINFORCE against gradients known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.attention.recurrent import (
    Episode,
    RecurrentAttention,
    log_normal,
    reinforce_loss,
    take_glimpses,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def at(x: float, y: float, *, width: int, height: int) -> Tensor:
    """The location of a point given in pixels from the left and top edge of the image."""
    return torch.tensor([[2 * x / width - 1, 2 * y / height - 1]], dtype=torch.float64)


# ------------------------------------------------------------------------------------- the sensor


@pytest.mark.parametrize(
    ("x", "y"),
    [(5, 4), (2, 2), (10, 6), (4, 6)],  # corners between pixels: a side of 4 covers whole ones
)
def test_glimpse_is_a_crop(x: int, y: int) -> None:
    image = torch.rand(1, 3, 8, 12, dtype=torch.float64)
    glimpse = take_glimpses(image, at(x, y, width=12, height=8), patches=(4,))
    torch.testing.assert_close(glimpse, image[:, :, y - 2 : y + 2, x - 2 : x + 2])


def test_glimpse_of_an_odd_side_is_centred_on_a_pixel() -> None:
    image = torch.rand(1, 1, 8, 12, dtype=torch.float64)
    glimpse = take_glimpses(image, at(5.5, 3.5, width=12, height=8), patches=(3,))
    torch.testing.assert_close(glimpse, image[:, :, 2:5, 4:7])


def test_glimpse_between_pixels_is_interpolated() -> None:
    image = torch.tensor([[[[0.0, 1.0, 5.0]]]], dtype=torch.float64)
    glimpse = take_glimpses(image, at(1.75, 0.5, width=3, height=1), patches=(1,))
    assert glimpse.item() == pytest.approx(0.75 * 1 + 0.25 * 5)


@pytest.mark.parametrize(
    ("location", "rows", "columns"),
    [((-1, -1), (2, 4), (2, 4)), ((1, 1), (0, 2), (0, 2)), ((1, -1), (2, 4), (0, 2))],
)
def test_glimpse_sees_zeros_beyond_the_border(
    location: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """At a corner of the image a quarter of the glimpse is inside."""
    image = torch.rand(1, 1, 8, 12, dtype=torch.float64) + 1
    glimpse = take_glimpses(image, torch.tensor([location]).double(), patches=(4,))
    expected = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    top, left = (0 if location[1] < 0 else 6), (0 if location[0] < 0 else 10)
    expected[..., slice(*rows), slice(*columns)] = image[..., top : top + 2, left : left + 2]
    torch.testing.assert_close(glimpse, expected)


def test_larger_patches_are_averaged_and_follow_the_first() -> None:
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    glimpse = take_glimpses(image, torch.zeros(2, 2).double(), patches=(2, 4, 16))
    assert glimpse.shape == (2, 9, 2, 2)
    torch.testing.assert_close(glimpse[:, :3], image[..., 7:9, 7:9])
    middle = image[..., 6:10, 6:10].reshape(2, 3, 2, 2, 2, 2).mean(dim=(3, 5))
    torch.testing.assert_close(glimpse[:, 3:6], middle)
    whole = image.reshape(2, 3, 2, 8, 2, 8).mean(dim=(3, 5))
    torch.testing.assert_close(glimpse[:, 6:], whole)


def test_each_image_has_its_own_location() -> None:
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    places = torch.cat([at(2, 6, width=8, height=8), at(6, 2, width=8, height=8)])
    glimpse = take_glimpses(images, places, patches=(4,))
    torch.testing.assert_close(glimpse[0], images[0, :, 4:8, 0:4])
    torch.testing.assert_close(glimpse[1], images[1, :, 0:4, 4:8])


# -------------------------------------------------------------------------------------- the model


def small(**settings: object) -> RecurrentAttention:
    given = {"in_channels": 2, "glimpses": 3, "patches": (2, 4), "hidden": 6, **settings}
    return RecurrentAttention(5, **given).double()  # type: ignore[arg-type]


def test_shapes_and_count() -> None:
    model = small()
    episode = model.look(torch.rand(4, 2, 8, 9).double(), sample=True)
    assert [tuple(part.shape) for part in episode] == [(4, 5), (4, 3, 2), (4, 3), (4, 3)]
    # what 16 -> 3, where 2 -> 3, both -> 6; core 6 -> 6 twice; locations 2, baseline 1, classes 5
    count = (16 + 1) * 3 + (2 + 1) * 3 + 2 * (3 + 1) * 6 + 2 * (6 + 1) * 6 + (6 + 1) * (2 + 1 + 5)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_defaults() -> None:
    model = RecurrentAttention(10)
    assert (model.glimpses, model.patches, model.hidden, model.std) == (6, (8,), 256, 0.17)
    assert (model.glimpse.what.in_features, model.glimpse.what.out_features) == (64, 128)


def test_state_follows_the_equations() -> None:
    """Written out for two glimpses."""
    model = small(glimpses=2)
    images = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    state = torch.zeros(3, 6, dtype=torch.float64)
    parts = dict(model.named_parameters())

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ parts[f"{name}.weight"].T + parts[f"{name}.bias"]

    for _ in range(2):
        where = linear("locate", state).tanh()
        seen = take_glimpses(images, where, patches=(2, 4)).flatten(1)
        what = linear("glimpse.from_what", linear("glimpse.what", seen).relu())
        vector = (what + linear("glimpse.from_where", linear("glimpse.where", where).relu())).relu()
        state = (linear("from_state", state) + linear("from_glimpse", vector)).relu()
    torch.testing.assert_close(model.eval()(images), linear("classify", state))


def test_evaluation_is_the_mean_without_chance() -> None:
    model = small().eval()
    images = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(images), model(images), rtol=0, atol=0)
    episode = model.look(images, sample=False)
    assert episode.locations[:, 0].abs().max() == 0  # the first look is at the centre
    assert episode.locations[:, 1:].std(dim=0).min() > 0  # the others are of the image


def test_training_draws_locations_around_the_mean() -> None:
    model = small(std=0.3).train()
    image = torch.rand(1, 2, 8, 8, dtype=torch.float64).expand(4000, -1, -1, -1)
    assert not torch.equal(model(image), model(image))
    first = model.look(image, sample=True).locations[:, 0]
    assert first.mean(dim=0).abs().max() < 4 * 0.3 / math.sqrt(4000)
    torch.testing.assert_close(first.std(dim=0), torch.full((2,), 0.3).double(), rtol=0.06, atol=0)


def test_locations_that_are_not_learnt_are_uniform_also_in_evaluation() -> None:
    model = small(learn_where=False).eval()
    images = torch.rand(1, 2, 8, 8, dtype=torch.float64).expand(4000, -1, -1, -1)
    episode = model.look(images, sample=False)
    assert episode.log_probabilities.abs().max() == 0
    for quantile in (0.25, 0.5, 0.75):
        found = torch.quantile(episode.locations, quantile, dim=0)
        assert (found - (2 * quantile - 1)).abs().max() < 0.07


def test_number_of_glimpses_is_how_often_it_looks() -> None:
    """One more glimpse at the same place changes the state, and no parameter."""
    one, two = small(glimpses=1).eval(), small(glimpses=2).eval()
    two.load_state_dict(one.state_dict())
    images = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    assert not torch.allclose(one(images), two(images))
    first = two.look(images, sample=False).locations[:, :1]
    torch.testing.assert_close(first, one.look(images, sample=False).locations)


def test_no_image() -> None:
    model = small()
    assert model(torch.zeros(0, 2, 8, 8).double()).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = small().eval().to(dtype)
    assert model(torch.rand(2, 2, 8, 8).to(dtype)).isfinite().all()


def test_evaluation_can_be_exported() -> None:
    model = small().eval()
    images = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"glimpses": 0}, "glimpses must be at least 1, got 0"),
        ({"patches": ()}, r"patches \(\): give sides in pixels, all multiples of the first"),
        ({"patches": (8, 12)}, r"patches \(8, 12\): give sides"),
        ({"hidden": 5}, "hidden must be an even number from 2, got 5"),
        ({"std": 0.0}, "std must be above 0, got 0"),
    ],
)
def test_mistake(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**settings)


# ------------------------------------------------------------------------------------- the losses


def episode_of(
    logits: list[list[float]], log_probabilities: list[list[float]], baselines: list[list[float]]
) -> Episode:
    given = (logits, log_probabilities, baselines)
    parts = [torch.tensor(part, dtype=torch.float32).requires_grad_() for part in given]
    return Episode(parts[0], torch.zeros(len(logits), len(baselines[0]), 2), parts[1], parts[2])


def test_losses_by_hand() -> None:
    """Two images, two glimpses; the first is answered right (R = 1), the second wrong (R = 0)."""
    episode = episode_of([[2, 0], [3, 0]], [[-1, -2], [-3, -4]], [[0.5, 0.25], [0.5, 1.0]])
    losses = reinforce_loss(episode, torch.tensor([0, 1]))
    assert list(losses) == ["class", "policy", "baseline"]
    entropy = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(3))]
    assert losses["class"].item() == pytest.approx(sum(entropy) / 2)
    # -(R - b) log p: 0.5 * 1 + 0.75 * 2, and -0.5 * 3 - 1.0 * 4
    assert losses["policy"].item() == pytest.approx((0.5 + 1.5 - 1.5 - 4.0) / 2)
    assert losses["baseline"].item() == pytest.approx((0.25 + 0.5625 + 0.25 + 1.0) / 4)


def test_baseline_learns_from_its_own_loss_alone() -> None:
    episode = episode_of([[2, 0]], [[-1, -2]], [[0.5, 0.25]])
    losses = reinforce_loss(episode, torch.tensor([0]))
    assert torch.autograd.grad(losses["policy"], episode.baselines, allow_unused=True)[0] is None
    (gradient,) = torch.autograd.grad(losses["baseline"], episode.baselines)
    assert gradient.tolist() == [[-0.5, -0.75]]  # 2 (b - R) / 2


def test_which_loss_moves_what() -> None:
    """REINFORCE the locations, squared error the baseline, cross entropy the rest."""
    model = small().train()
    losses = reinforce_loss(
        model.look(torch.rand(4, 2, 8, 8).double(), sample=True), torch.arange(4)
    )
    moved = {}
    for name, loss in losses.items():
        gradients = torch.autograd.grad(
            loss, list(model.parameters()), retain_graph=True, allow_unused=True
        )
        moved[name] = {
            parameter.split(".")[0]
            for (parameter, _), gradient in zip(model.named_parameters(), gradients, strict=True)
            if gradient is not None and gradient.abs().sum() > 0
        }
    assert moved["policy"] == {"locate"}
    assert moved["baseline"] == {"baseline"}
    assert moved["class"] == {"glimpse", "from_state", "from_glimpse", "classify"}


def test_no_gradient_flows_through_a_location() -> None:
    episode = small().train().look(torch.rand(4, 2, 8, 8).double(), sample=True)
    assert not episode.locations.requires_grad


def test_log_density_is_torchs() -> None:
    values, means = torch.randn(5, 3, 2).double(), torch.randn(5, 3, 2).double()
    expected = torch.distributions.Normal(means, 0.3).log_prob(values).sum(dim=-1)
    torch.testing.assert_close(log_normal(values, means, 0.3), expected)


# ------------------------------------------------------ REINFORCE against the gradient it estimates

EDGE, STD = 0.25, 0.4
Finder = Callable[..., RecurrentAttention]


@pytest.fixture
def edge_finder() -> Finder:
    """A model that answers 0, the right class, exactly where it looks right of an edge.

    The image is dark left and bright right of x = EDGE, dark outside, and interpolation passes
    1/2 at these edges. The brightness v of the last glimpse goes through all layers into the logits
    (v - 1/2, 0), whatever was seen before.
    """

    def make(*, glimpses: int = 1, bias: tuple[float, float] = (0.1, -0.2), baseline: float = 0.0):
        model = RecurrentAttention(2, glimpses=glimpses, patches=(1,), hidden=2, std=STD).double()
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            for layer in (model.glimpse.what, model.glimpse.from_what, model.from_glimpse):
                layer.weight[0, 0] = 1
            model.classify.weight[0, 0], model.classify.bias[0] = 1, -0.5
            model.locate.bias.copy_(torch.tensor(bias))
            model.baseline.bias.fill_(baseline)
        return model

    return make


def bright_right(count: int) -> Tensor:
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    image[..., round((EDGE + 1) * 4) :] = 1
    return image.expand(count, -1, -1, -1)


def sampled_gradient(model: RecurrentAttention, count: int) -> tuple[Tensor, Tensor]:
    """Mean over the draws of the gradient of "policy" by the bias of locate, and its error."""
    episode = model.look(bright_right(count), sample=True)
    loss = reinforce_loss(episode, torch.zeros(count, dtype=torch.long))["policy"]
    (gradient,) = torch.autograd.grad(loss, model.locate.bias)
    right = (episode.logits.argmax(dim=1) == 0).double()
    mean = model.locate.bias.tanh()
    scores = (episode.locations - mean) / STD**2 * (1 - mean**2)  # of each draw, [B, T, 2]
    advantage = right[:, None] - episode.baselines
    each = -(advantage[..., None] * scores).sum(dim=1)  # [B, 2]
    torch.testing.assert_close(gradient, each.mean(dim=0))  # the estimator is the textbook's
    return gradient, each.std(dim=0) / math.sqrt(count)


def exact_gradient(bias: tuple[float, float]) -> Tensor:
    """Of minus the probability of the bright part, EDGE < x < 1 and -1 < y < 1.

    Each coordinate is N(tanh(bias), STD), and the gradient of what it has between two limits is
    the difference of its densities there. Outside the image it is dark.
    """
    means = [math.tanh(b) for b in bias]
    normals = [torch.distributions.Normal(m, STD) for m in means]
    limits = torch.tensor([[EDGE, 1.0], [-1.0, 1.0]])
    inside = [float(n.cdf(b) - n.cdf(a)) for n, (a, b) in zip(normals, limits, strict=True)]
    slopes = [
        float(n.log_prob(a).exp() - n.log_prob(b).exp())
        for n, (a, b) in zip(normals, limits, strict=True)
    ]
    by_mean = [slopes[0] * inside[1], inside[0] * slopes[1]]
    chained = [-slope * (1 - mean**2) for slope, mean in zip(by_mean, means, strict=True)]
    return torch.tensor(chained, dtype=torch.float64)


@pytest.mark.parametrize("bias", [(0.1, -0.2), (0.5, 0.0), (-0.3, 0.3)])
def test_policy_gradient_is_that_of_the_expected_reward(
    edge_finder: Finder, bias: tuple[float, float]
) -> None:
    found, error = sampled_gradient(edge_finder(bias=bias), 50000)
    expected = exact_gradient(bias)
    assert error.max() < 0.05 * expected[0].abs() + 0.01
    assert ((found - expected).abs() < 4 * error).all(), (found, expected, error)


@pytest.mark.parametrize("baseline", [-1.0, 0.5, 3.0])
def test_baseline_leaves_the_mean_of_the_gradient(edge_finder: Finder, baseline: float) -> None:
    found, error = sampled_gradient(edge_finder(baseline=baseline), 50000)
    assert ((found - exact_gradient((0.1, -0.2))).abs() < 4 * error).all()


def test_good_baseline_lowers_the_variance(edge_finder: Finder) -> None:
    errors = [
        sampled_gradient(edge_finder(baseline=b, bias=(0.5, 0)), 5000)[1][1]
        for b in (-1.0, 0.0, 0.6)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_later_reward_is_credited_to_each_glimpse_without_bias(edge_finder: Finder) -> None:
    """Two glimpses share one mean, and only the last one decides: the sum has the same gradient."""
    found, error = sampled_gradient(edge_finder(glimpses=2, baseline=0.4), 50000)
    assert ((found - exact_gradient((0.1, -0.2))).abs() < 4 * error).all()


def test_policy_learns_to_look_where_the_answer_is(edge_finder: Finder) -> None:
    model = edge_finder(bias=(-0.5, 0.0))
    optimizer = torch.optim.SGD([model.locate.bias], lr=0.5)
    for _ in range(60):
        loss = reinforce_loss(model.look(bright_right(64), sample=True), torch.zeros(64).long())
        optimizer.zero_grad()
        loss["policy"].backward()
        optimizer.step()
    where = model.eval().look(bright_right(1), sample=False).locations[0, 0, 0].item()
    assert 0.4 < where < 0.85  # the middle between the edge and the border is 0.625
