"""Many pictures: in any form and any number, in order, with bounded memory."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detkit.data import ImageReadError
from detkit.detectors.torchvision_weights import PUBLISHED
from detkit.inference import Predictor, list_pictures, load
from detkit.inference import predictor as predictor_module
from detkit.structures import Batch, Detections

# Of the same picture in batches of one and of several: sums of float32 in another order
PIXELS, SCORE = 1e-3, 1e-5


def check_close(found: Detections, expected: Detections) -> None:
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=PIXELS)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=SCORE)
    assert torch.equal(found.labels, expected.labels)


def check_all_close(found: list[Detections], expected: list[Detections]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        check_close(one, other)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> Predictor:
    return load(tiny_checkpoint, device="cpu")  # batches of 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pictures of three shapes in turn."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(11):
        shape = [(90, 60), (50, 80), (64, 64)][index % 3]
        cv2.imwrite(str(folder / f"{index:02d}.png"), noise(*shape, seed=index))
    return folder


@pytest.fixture(scope="module")
def one_by_one(predictor: Predictor, folder: Path) -> list[Detections]:
    found = [predictor(path) for path in sorted(folder.iterdir())]
    assert all(len(each) > 3 for each in found)
    return found


def batches_of(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What the detector is given from now on."""
    batches: list[Batch] = []
    predict = predictor.detector.predict

    def recorded(batch: Batch) -> list[Detections]:
        batches.append(batch)
        return predict(batch)

    monkeypatch.setattr(predictor.detector, "predict", recorded)
    return batches


def test_a_list_gives_what_its_pictures_give_one_by_one(
    predictor: Predictor,
    folder: Path,
    one_by_one: list[Detections],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = batches_of(predictor, monkeypatch)
    check_all_close(predictor(sorted(folder.iterdir())), one_by_one)
    assert sorted(len(batch) for batch in batches) == [3, 4, 4]  # each of one shape
    check_all_close(predictor(tuple(sorted(folder.iterdir()))[::-1]), one_by_one[::-1])


@pytest.mark.parametrize("kind", ["folder", "folder/", "pattern", "path", "in a list"])
def test_folders_and_patterns(
    predictor: Predictor, folder: Path, one_by_one: list[Detections], kind: str
) -> None:
    assert list_pictures(folder) == sorted(folder.iterdir())
    given = {
        "folder": str(folder),
        "folder/": f"{folder}/",
        "pattern": f"{folder}/*.png",
        "path": folder / "*",
        "in a list": [folder / "0*", f"{folder}/10.png"],
    }[kind]
    found = predictor(given)
    assert isinstance(found, list)
    check_all_close(found, one_by_one)


def test_forms_can_be_mixed(
    predictor: Predictor, folder: Path, one_by_one: list[Detections]
) -> None:
    paths = sorted(folder.iterdir())
    pixels = [cv2.imread(str(path))[..., ::-1] for path in paths]
    mixed = [
        str(paths[0]),
        paths[1],
        pixels[2],
        torch.tensor(pixels[3].copy()).permute(2, 0, 1),
        Image.fromarray(pixels[4]),
        Image.open(paths[5]),
        f"{folder}/0[6-9].png",
        *pixels[10:],
    ]
    check_all_close(predictor(mixed), one_by_one)
    check_all_close(list(predictor(each for each in mixed)), one_by_one)


def test_a_generator_is_read_as_its_results_are_taken(
    predictor: Predictor, folder: Path, one_by_one: list[Detections]
) -> None:
    drawn = 0

    def pictures() -> Iterator[Path]:
        nonlocal drawn
        for path in sorted(folder.iterdir()) * 20:
            drawn += 1
            yield path

    found = predictor(pictures(), score_threshold=0.0)
    assert isinstance(found, Iterator) and drawn == 0
    for index in range(30):
        check_close(next(found), one_by_one[index % 11])
        assert drawn - index <= 4 * 4 + 4 + 1  # waiting for their like, read ahead, in use
    found.close()  # type: ignore[attr-defined]
    assert not [each for each in threading.enumerate() if each.name.startswith("detkit-read")]


def test_memory_does_not_grow_with_the_number_of_pictures(predictor: Predictor) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def pictures() -> Iterator[np.ndarray]:
        for index in range(60):
            picture = noise(40 + 16 * (index % 7), 64, seed=index)
            alive.append(weakref.ref(picture))
            yield picture

    most = 0
    for count, _ in enumerate(predictor(pictures()), start=1):
        gc.collect() if count % 20 == 0 else None
        most = max(most, sum(ref() is not None for ref in alive))
    assert count == 60 and most <= 4 * 4 + 4 + 2


def test_what_comes_before_a_broken_picture_is_given_first(
    predictor: Predictor, folder: Path, one_by_one: list[Detections]
) -> None:
    paths = sorted(folder.iterdir())
    found = predictor(iter([*paths[:3], folder / "gone.png", *paths[3:]]))
    check_all_close([next(found) for _ in range(3)], one_by_one[:3])
    with pytest.raises(ImageReadError, match=r"cannot read image .*gone\.png"):
        next(found)
    assert next(found, None) is None
    with pytest.raises(ImageReadError, match=r"gone\.png"):
        predictor([paths[0], folder / "gone.png"])


def test_nothing_at_all(predictor: Predictor, tmp_path: Path) -> None:
    assert predictor([]) == predictor(()) == list(predictor(iter(()))) == []
    with pytest.raises(ValueError, match="no pictures directly in folder"):
        predictor(tmp_path)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 2), (2, 1), (1, 3000), (3000, 1), (3, 3)]
)
def test_smallest_and_thinnest_pictures(predictor: Predictor, height: int, width: int) -> None:
    image = np.full((height, width, 3), 99, np.uint8)
    for form in (
        image,
        image[..., 0],
        Image.fromarray(image),
        torch.tensor(image).permute(2, 0, 1),
    ):
        found = predictor(form)
        assert (found.boxes >= 0).all() and found.class_names == predictor.class_names
        assert (found.boxes[:, 2] <= width + 1e-3).all()
        assert (found.boxes[:, 3] <= height + 1e-3).all()
    check_close(predictor([image, noise(64, 64)])[0], predictor(image))


def test_different_shapes_do_not_pad_each_other(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strip of 2000 x 16 beside one of 16 x 2000 would be 250 times as large."""
    unlimited = load(
        tiny_checkpoint,
        device="cpu",
        overrides=["data.resize.shortest=16", "data.resize.longest=null"],
    )
    batches = batches_of(unlimited, monkeypatch)
    unlimited([noise(2000, 16), noise(16, 2000), noise(30, 32), noise(2000, 16)])
    assert sorted(tuple(batch.images.shape) for batch in batches) == [
        *((1, 3, 32, 32), (1, 3, 32, 2016), (2, 3, 2016, 32))
    ]


def test_tiles_of_many_pictures(tiny_checkpoint: Path, folder: Path) -> None:
    tiled = load(tiny_checkpoint, device="cpu", overrides=["test.tile=48"])
    paths = sorted(folder.iterdir())[:4]
    check_all_close(list(tiled(iter(paths))), [tiled(path) for path in paths])


def test_odd_files(predictor: Predictor, shared_data: Path) -> None:
    """Every file is either read, alone and among others alike, or named in one line."""
    good, found = [], []
    for path in sorted((shared_data / "odd").glob("*.*")):
        try:
            found.append(predictor(path))
            good.append(path)
        except ImageReadError as error:
            assert path.name in str(error) and "\n" not in str(error)
    assert len(good) >= 15
    check_all_close(predictor(good), found)


def test_pillow_gives_what_the_file_gives(predictor: Predictor, shared_data: Path) -> None:
    for name in ("exif_orientation_6.jpg", "palette.png", "gray16.tif", "xmp_orientation_3.png"):
        path = shared_data / "odd" / name
        check_close(predictor(Image.open(path)), predictor(path))


# ------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_names_stand_for_weights_of_coco(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def read_weights(model: str, weights: str | Path) -> None:
        raise Asked(model, weights)

    monkeypatch.setattr(predictor_module, "read_weights", read_weights)
    for given, read in ((None, "coco"), ("coco", "coco"), (Path("a.pth"), Path("a.pth"))):
        with pytest.raises(Asked) as asked:
            load(name, weights=given, device="cpu")
        assert asked.value.args == (name, read)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"just text\n", "it is no file that torch.save wrote"),
        ({"fc.weight": torch.ones(2)}, "is not a detkit checkpoint; train one with tools/train.py"),
        ({"model": torch.nn.Linear(1, 1)}, "objects of another program, torch.nn.modules.linear"),
        ({"format": 1, "kind": "classifier", "recipe": {}, "model": {}}, "is of a classifier"),
        ("truncated", "is damaged or no checkpoint"),
        ("TorchScript", "it is TorchScript; where tools/export.py wrote it, it ends in"),
    ],
)
def test_wrong_checkpoints_are_named_in_one_line(
    tmp_path: Path, tiny_checkpoint: Path, content: object, message: str
) -> None:
    path = tmp_path / "best.pt"
    if content == "truncated":
        path.write_bytes(tiny_checkpoint.read_bytes()[:-1000])
    elif content == "TorchScript":
        torch.jit.trace(torch.nn.Identity(), torch.ones(1)).save(str(path))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path, device="cpu")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
