"""Boxes as pictures: each in its square, and somewhere on a canvas."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit.data import CocoDataset, read_coco
from detkit.data.crops import GREY, crop_boxes, place_on_canvas

BLUE, RED = (10, 20, 200), (230, 30, 20)  # RGB


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """A black picture of 40 x 30 with a blue box 8 x 4, a red one at the corner and a crowd.

    An empty one follows.
    """
    folder = tmp_path_factory.mktemp("pictures")
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[10:14, 20:28] = BLUE[::-1]
    picture[:6, :6] = RED[::-1]
    boxes = [([20, 10, 8, 4], 2, 0), ([0, 0, 6, 6], 1, 0), ([5, 5, 20, 20], 1, 1)]
    annotations = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": crowd}
        for i, (b, c, crowd) in enumerate(boxes)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)]
    for image, pixels in zip(images, (picture, picture * 0), strict=True):
        cv2.imwrite(str(folder / str(image["file_name"])), pixels)
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return read_coco(path, folder)


def test_crop_is_the_square_around_a_box(dataset: CocoDataset) -> None:
    crops = crop_boxes(dataset, size=8)
    assert crops.images.shape == (2, 3, 8, 8)  # the crowd is none
    assert crops.labels.tolist() == [1, 0]
    assert len(crops) == 2
    expected = torch.zeros(3, 8, 8, dtype=torch.uint8)
    expected[:, 2:6] = torch.tensor(BLUE, dtype=torch.uint8)[:, None, None]
    assert torch.equal(crops.images[0], expected)


def test_crop_is_scaled_to_its_size(dataset: CocoDataset) -> None:
    small, large = crop_boxes(dataset, size=4), crop_boxes(dataset, size=16)
    assert small.images[0, :, :, 0].T.tolist() == [[0] * 3, list(BLUE), list(BLUE), [0] * 3]
    assert small.images[1, :, 2, 2].tolist() == list(RED)
    assert large.images[0, :, 8, 8].tolist() == list(BLUE)


def test_context_is_a_margin_on_each_side(dataset: CocoDataset) -> None:
    """8 x 4 with half of 8 on each side is 16 x 16."""
    (first, second) = crop_boxes(dataset, size=16, context=0.5).images
    assert (first[2] == 200).nonzero().min(dim=0).values.tolist() == [6, 4]
    assert (first[2] == 200).sum() == 8 * 4
    # beyond the corner of the picture it is grey: of the box's 12 x 12 that are a quarter inside
    assert (second[:, :3] == GREY).all() and (second[:, :, :3] == GREY).all()
    assert second[:, 8, 8].tolist() == list(RED)


def test_grey(dataset: CocoDataset) -> None:
    crops = crop_boxes(dataset, size=8, grey=True)
    assert crops.images.shape == (2, 1, 8, 8)
    red, green, blue = BLUE
    assert crops.images[0, 0, 4, 4].item() == round(0.299 * red + 0.587 * green + 0.114 * blue)


def test_data_without_boxes(dataset: CocoDataset, tmp_path: Path) -> None:
    images = [{"id": 2, "file_name": "2.png", "width": 40, "height": 30}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "red"}]}
    (tmp_path / "empty.json").write_text(json.dumps(content))
    crops = crop_boxes(read_coco(tmp_path / "empty.json", dataset.images), size=8, grey=True)
    assert (crops.images.shape, crops.labels.shape) == ((0, 1, 8, 8), (0,))


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 8, "context": -0.1}])
def test_mistaken_number(dataset: CocoDataset, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"size -?\d+ must be at least 1 and context"):
        crop_boxes(dataset, **settings)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- the canvas


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crop_lies_whole_on_the_canvas_anywhere() -> None:
    crops = torch.full((300, 2, 3, 3), 7, dtype=torch.uint8)
    canvas = place_on_canvas(crops, 5, clutter=0, generator=generator())
    assert canvas.shape == (300, 2, 5, 5)
    assert canvas.dtype == torch.uint8
    assert ((canvas == 7).sum(dim=(1, 2, 3)) == 2 * 9).all()
    assert ((canvas == 7) | (canvas == GREY)).all()
    corners = {tuple((picture[0] == 7).nonzero()[0].tolist()) for picture in canvas}
    assert corners == {(y, x) for y in range(3) for x in range(3)}


def test_clutter_is_of_other_crops_and_under_the_crop() -> None:
    crops = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 14, 14)
    canvas = place_on_canvas(crops, 40, clutter=3, generator=generator())
    foreign = []
    for number, picture in enumerate(canvas):
        assert (picture == number).sum() >= 14 * 14  # nothing lies upon it
        values = set(picture.unique().tolist()) - {number, GREY}
        assert all((picture == value).sum() <= 3 * 4 * 4 for value in values)
        foreign.append(len(values))
    assert max(foreign) == 3


def test_places_follow_the_generator() -> None:
    crops = torch.randint(255, (6, 1, 4, 4), dtype=torch.uint8)
    one, same, other = (
        place_on_canvas(crops, 12, clutter=2, generator=generator(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_canvas_of_no_crop() -> None:
    crops = torch.zeros(0, 1, 4, 4, dtype=torch.uint8)
    canvas = place_on_canvas(crops, 6, clutter=2, generator=generator())
    assert canvas.shape == (0, 1, 6, 6)


def test_canvas_too_small() -> None:
    crops = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="a canvas of 3 pixels is too small for crops of 4"):
        place_on_canvas(crops, 3, clutter=0, generator=generator())
