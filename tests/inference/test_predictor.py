"""A predictor gives what testing gives, from pictures in any form."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.models import get_model
from torchvision.models.detection import fasterrcnn_resnet50_fpn

import detkit
from detkit.data import CocoDataset, read_coco
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.data import eval_loader
from detkit.engine.evaluate import detect_with, evaluate
from detkit.inference import Predictor, load
from detkit.inference import predictor as predictor_module
from detkit.structures import Batch, Detections


def same(first: Detections, second: Detections) -> bool:
    return all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("boxes", "scores", "labels")
    )


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> Predictor:
    return load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """One upright and four alike."""
    rng = np.random.default_rng(0)
    shapes = [(90, 60)] + [(50, 80)] * 4  # the order in which the loader groups them
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.fixture(scope="module")
def files(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{index}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        cv2.imwrite(str(path), picture[..., ::-1])
    return paths


def as_dataset(files: list[Path], pictures: list[np.ndarray]) -> CocoDataset:
    """These files as a data set without objects."""
    content = {
        "images": [
            {"id": i, "file_name": path.name, "height": len(image), "width": len(image[0])}
            for i, (path, image) in enumerate(zip(files, pictures, strict=True))
        ],
        "annotations": [],
        "categories": [
            {"id": i, "name": name} for i, name in ((2, "cat"), (5, "Füße"), (9, "dog"))
        ],
    }
    annotations = files[0].parent / "annotations.json"
    annotations.write_text(json.dumps(content), encoding="utf-8")
    return read_coco(annotations, files[0].parent)


def engine_finds(
    checkpoint: Path, files: list[Path], pictures: list[np.ndarray], batch_size: int
) -> list:
    """What the engine finds in these files, as tools/test.py calls it."""
    dataset = as_dataset(files, pictures)
    loaded = load_checkpoint(checkpoint, [f"test.batch_size={batch_size}", "data.workers=0"])
    loader = eval_loader(loaded.recipe, dataset, pin_memory=False)
    outcome = evaluate(loaded.detector(), loader, dataset, device=torch.device("cpu"))
    return [outcome.detections[index] for index in range(len(files))]


def test_a_picture_gives_what_testing_gives(
    predictor: Predictor, tiny_checkpoint: Path, files: list[Path], pictures: list[np.ndarray]
) -> None:
    expected = engine_finds(tiny_checkpoint, files, pictures, batch_size=1)
    assert all(len(found) > 5 for found in expected)
    for path, found in zip(files, expected, strict=True):
        assert same(predictor(path), found)


def test_a_list_gives_what_testing_gives(
    predictor: Predictor, tiny_checkpoint: Path, files: list[Path], pictures: list[np.ndarray]
) -> None:
    alike, images = files[1:], pictures[1:]
    expected = engine_finds(tiny_checkpoint, alike, images, batch_size=4)  # as in the checkpoint
    found = predictor(alike)
    assert len(found) == 4 and all(map(same, found, expected))


def test_path_array_and_tensor_give_the_same(
    predictor: Predictor, files: list[Path], pictures: list[np.ndarray]
) -> None:
    expected = predictor(files[0])
    picture = pictures[0].copy()
    bgr = np.ascontiguousarray(picture[..., ::-1])
    picture.flags.writeable = False
    for form in (str(files[0]), picture, bgr[..., ::-1], torch.tensor(picture).permute(2, 0, 1)):
        assert same(predictor(form), expected)
    assert not same(predictor(bgr), expected)  # the order of channels matters


def test_pictures_are_resized_and_padded_as_the_recipe_says(
    predictor: Predictor, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Batch] = []

    def predict(batch: Batch) -> list[Detections]:
        batches.append(batch)
        return [Detections.empty() for _ in batch.sizes]

    monkeypatch.setattr(predictor.detector, "predict", predict)
    assert len(predictor(pictures)) == 5
    first, second = batches  # batch_size 4; shortest 64, longest 96
    assert first.sizes == ((60, 96),) * 4 and first.original_sizes == ((50, 80),) * 4
    assert first.images.shape == (4, 3, 64, 96) and first.images.dtype == torch.uint8
    assert first.targets is None and not first.images[:, :, 60:].any()
    assert second.sizes == ((96, 64),) and second.original_sizes == ((90, 60),)
    assert second.images.shape == (1, 3, 96, 64)
    predictor(np.zeros((30, 80, 3), np.uint8))
    assert batches[2].sizes == ((36, 96),) and batches[2].images.shape == (1, 3, 64, 96)


def test_no_pictures_give_no_detections(predictor: Predictor) -> None:
    assert predictor([]) == []


def test_threshold_keeps_scores_that_reach_it(
    predictor: Predictor, pictures: list[np.ndarray]
) -> None:
    everything = predictor(pictures[0])
    limit = float(everything.scores[3])
    found = predictor(pictures[0], score_threshold=limit)
    assert same(found, everything[:4])
    (in_list,) = predictor([pictures[0]], score_threshold=limit)
    assert same(in_list, found)
    assert len(predictor(pictures[0], score_threshold=1.0)) == 0


def test_thresholds_by_class(
    predictor: Predictor, pictures: list[np.ndarray], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    everything = predictor(pictures[0])
    limit = float(everything.scores.median())
    given = {"cat": limit, "Füße": 1.0}
    found = predictor(pictures[0], score_threshold=given)
    least = torch.tensor([limit, 1.0, 0.0])[everything.labels]
    assert same(found, everything[everything.scores >= least])
    assert 0 < len(found) < len(everything)
    path = tmp_path / "thresholds.yaml"
    path.write_text(json.dumps(given), encoding="utf-8")
    assert same(predictor(pictures[0], score_threshold=path), found)
    assert same(predictor(pictures[0], score_threshold=str(path)), found)

    strict = load(tiny_checkpoint, device="cpu", overrides=[f"test.thresholds={path}"])
    assert same(strict(pictures[0]), found)
    assert same(strict(pictures[0], score_threshold=0), everything)  # takes its place
    with pytest.raises(ValueError, match="unknown class 'cats'; did you mean 'cat'"):
        predictor(pictures[0], score_threshold={"cats": 0.5})
    with pytest.raises(ValueError, match="unknown class 'cats'"):
        load(tiny_checkpoint, device="cpu", overrides="test.thresholds={cats: 0.5}")


@pytest.mark.parametrize(
    "overrides",
    [
        ["test.scales=[0.5,1,2]", "test.flip=true"],
        ["test.tile=48", "test.tile_overlap=0.3", "test.tile_whole=true"],
        ["model.select.max_detections=3"],
    ],
)
def test_looks_are_those_of_testing(
    tiny_checkpoint: Path,
    predictor: Predictor,
    files: list[Path],
    pictures: list[np.ndarray],
    overrides: list[str],
) -> None:
    looking = load(tiny_checkpoint, device="cpu", overrides=overrides)
    found = looking(pictures)
    assert not any(map(same, found, predictor(pictures)))
    # one by one, without padding for the others' sake
    one = ["data.workers=0", "test.batch_size=1", *overrides]
    checkpoint = load_checkpoint(tiny_checkpoint, one)
    expected = detect_with(checkpoint, as_dataset(files, pictures), device=torch.device("cpu"))
    for index, each in expected.items():
        assert torch.equal(found[index].labels, each.labels)
        torch.testing.assert_close(found[index].boxes, each.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(found[index].scores, each.scores, rtol=0, atol=1e-5)
    assert len(expected) == len(found) == 5


def test_results_may_be_changed(predictor: Predictor, pictures: list[np.ndarray]) -> None:
    found = predictor(pictures[0])
    found.boxes[:, 2:] -= found.boxes[:, :2]
    assert not found.boxes.requires_grad


def test_smallest_picture(predictor: Predictor) -> None:
    found = predictor(np.zeros((1, 1, 3), np.uint8))
    assert found.boxes.numel() == 0 or found.boxes.max() <= 1


def test_detections_know_the_names_of_their_classes(
    predictor: Predictor, pictures: list[np.ndarray]
) -> None:
    found = predictor(pictures[0], score_threshold=0.2)
    assert len(found) and found.names == [("cat", "Füße", "dog")[i] for i in found.labels.tolist()]
    assert predictor(pictures[0], score_threshold=1.0).class_names == ("cat", "Füße", "dog")


def test_what_a_predictor_knows(predictor: Predictor) -> None:
    assert predictor.class_names == ("cat", "Füße", "dog")
    assert predictor.category_ids == (2, 5, 9)
    assert predictor.device == torch.device("cpu") and not predictor.detector.training


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 5, 2), np.uint8), r"\[4, 5, 2\] uint8, a picture is \[H, W, 3\] uint8"),
        (np.zeros((4, 5, 4), np.uint8), r"array is \[4, 5, 4\] uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"array is \[3, 4, 5\] uint8"),
        (np.zeros((0, 5, 3), np.uint8), "it has no pixels"),
        (np.zeros((4, 0, 3), np.uint8), "it has no pixels"),
        (np.zeros(0, np.uint8), r"array is \[0\] uint8"),
        (np.zeros((4, 5, 3), np.float32), r"float32, a picture is .* uint8 in 0..255; scale"),
        (np.zeros((4, 5, 3), np.uint16), "uint16"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"give several as list\(array\)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"tensor is \[4, 5, 3\] uint8, .* \[3, H, W\]"),
        (torch.zeros(3, 4, 5), r"tensor is \[3, 4, 5\] float32"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), r"give several as list\(tensor\)"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), "it has no pixels"),
        (None, "cannot take a NoneType for a picture .cv2.imread returns None"),
        (b"GIF89a", "cannot take a bytes for a picture; give a path"),
        ({"image": "a.jpg"}, "cannot take a dict for a picture"),
        ("https://example.org/a.jpg", "is a URL; download"),
        ("no/*.jpg", r"no picture fits the pattern no/\*\.jpg; known are .*\.jpg"),
        (0, "cannot take a int for a picture"),
        ("no/such.jpg", "cannot read image no/such.jpg"),
    ],
)
def test_other_things_are_refused(predictor: Predictor, picture: object, message: str) -> None:
    for given in (picture, [picture]):
        with pytest.raises(ValueError, match=message) as caught:
            predictor(given)  # type: ignore[call-overload]
        assert "\n" not in str(caught.value)


def test_load_is_offered_at_the_top() -> None:
    assert detkit.load is load


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("no/best.pt", {}, "no checkpoint at no/best.pt"),
        ("fasterrcnn_resnet50", {}, "did you mean 'fasterrcnn_resnet50_fpn'"),
        ("https://example.org/best.pt", {}, "is a URL; download"),
        ("no/best.onnx", {}, "no exported file at no/best.onnx"),
        ("fasterrcnn_resnet50_fpn", {"weights": "no.pth"}, "'no.pth': no such file"),
        ("no/best.pt", {"weights": "coco"}, "has its own"),
        ("no/best.pt", {"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_load_explains_what_is_wrong(model: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(model, **settings)  # type: ignore[arg-type]


def test_load_names_the_checkpoints_of_a_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name a checkpoint .* in it: .*best\.pt"):
        load(tiny_checkpoint.parent)
    with pytest.raises(ValueError, match="it holds none"):
        load(tmp_path)


def test_published_model_has_the_ids_and_names_of_coco(
    monkeypatch: pytest.MonkeyPatch, pictures: list[np.ndarray]
) -> None:
    torch.manual_seed(0)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    state = theirs.state_dict()
    monkeypatch.setattr(predictor_module, "read_weights", lambda model, weights: state)
    predictor = load("fasterrcnn_resnet50_fpn", weights="coco", device="cpu")
    assert len(predictor.class_names) == 90 and predictor.category_ids == tuple(range(1, 91))
    names = dict(zip(predictor.category_ids, predictor.class_names, strict=True))
    assert (names[1], names[18], names[90]) == ("person", "dog", "toothbrush")
    own = predictor.detector.state_dict()
    score = state["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(own["roi.head.cls_score.weight"], torch.cat([score[1:], score[:1]]))

    sizes: list[tuple[tuple[int, int], ...]] = []
    monkeypatch.setattr(
        predictor.detector, "predict", lambda b: sizes.append(b.sizes) or [Detections.empty()]
    )
    predictor(pictures[1])
    assert sizes == [((800, 1280),)]  # 50 x 80: shortest 800, longest at most 1333


@pytest.mark.parametrize(
    ("name", "anchors"), [("retinanet_resnet50_fpn_v2", 9), ("fcos_resnet50_fpn", 1)]
)
def test_published_model_of_one_stage(
    name: str, anchors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class that nothing ever is goes, so that labels mean what they mean in the others."""
    state = get_model(name, weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr(predictor_module, "read_weights", lambda model, weights: state)
    predictor = load(name, weights="coco", device="cpu")
    assert predictor.category_ids == tuple(range(1, 91))
    assert predictor.class_names[0] == "person"
    given = state["head.classification_head.cls_logits.weight"].view(anchors, 91, 256, 3, 3)
    own = predictor.detector.state_dict()["head.cls_logits.weight"]
    assert torch.equal(own.view(anchors, 90, 256, 3, 3), given[:, 1:])


def test_published_model_refuses_weights_for_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(4, 1024)}
    monkeypatch.setattr(predictor_module, "read_weights", lambda model, weights: state)
    with pytest.raises(ValueError, match=r"mine\.pth do not fit .* \[4, 1024\] instead of \[91, 1"):
        load("fasterrcnn_resnet50_fpn", weights="mine.pth", device="cpu")


def test_real_photos(predictor: Predictor, shared_data: Path) -> None:
    for path in sorted((shared_data / "photos").glob("*.jpg")):
        found = predictor(path)
        height, width = cv2.imread(str(path)).shape[:2]
        assert len(found) and (found.boxes >= 0).all()
        assert (found.boxes[:, 2] <= width + 1e-3).all()
        assert (found.boxes[:, 3] <= height + 1e-3).all()
