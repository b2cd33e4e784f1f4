"""tools/cluster_anchors.py: both fits, an override to paste, one line for each mistake."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from detkit.analysis import find_subject, fit_anchors
from detkit.config import load_recipe
from detkit.detectors import create_detector


@pytest.fixture
def command(load_command):
    return load_command("cluster_anchors")


def test_the_line_to_paste_is_a_detector_with_these_anchors(command, recipe):
    code, out, err = command(recipe)
    assert (code, err) == (0, "")
    *_, given, clustered, line = out.splitlines()
    before, after = (float(re.search(r"0\.\d+", text)[0]) for text in (given, clustered))
    assert 0.3 < before < after < 1
    assert given.endswith("the recipe's 6") and clustered.endswith("for 6 clusters")
    pasted = load_recipe(recipe, shlex.split(line))
    boxes = pasted.model.rpn.anchor_boxes
    assert [len(level) for level in boxes] == [3, 3]
    areas = [h * w for level in boxes for h, w in level]
    assert areas == sorted(areas)
    anchors = create_detector(pasted.model, num_classes=3).rpn.anchors
    assert anchors.num_anchors == 3
    h, w = boxes[1][0]
    corner = torch.tensor([-w / 2, -h / 2, w / 2, h / 2])
    torch.testing.assert_close(anchors.get_buffer("cell1")[0], corner)
    again = fit_anchors(find_subject(str(recipe), shlex.split(line)))
    assert again.given_iou == pytest.approx(after, abs=6e-4)


def test_boxes_are_clustered_as_the_recipe_resizes_them(recipe):
    fits = [
        fit_anchors(find_subject(str(recipe), [f"data.resize.longest={side}"]), k=2)
        for side in (64, 128)
    ]
    small, large = (torch.tensor(fit.clustered) for fit in fits)
    torch.testing.assert_close(2 * small, large, rtol=0.1, atol=2)
    assert fits[0].objects == fits[1].objects > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RECIPE", "--k", 5], "k 5 does not divide into 2 levels; give a multiple of 2"),
        (["RECIPE", "--k", 0], "k 0 is not a number of clusters; give a multiple of 2"),
        (["RECIPE", "--k", 4000], r"data.train has \d+ objects for 4000 clusters; give a smaller"),
        (["resnet18"], "resnet18 has no anchors that model.rpn.anchor_boxes could set; give a"),
        (["RECIPE", "model.proposals=grid", "model.rpn=null"], "tiny has no anchors that"),
        (["run/best.pt"], "run/best.pt is a checkpoint; give its recipe, run/recipe.yaml"),
        (["nowhere.yaml"], "no recipe at nowhere.yaml"),
    ],
)
def test_mistakes_end_in_one_line(command, recipe, arguments, message):
    code, out, err = command(*[recipe if each == "RECIPE" else each for each in arguments])
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(message, err)
