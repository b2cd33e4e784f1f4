"""Proposals from the disk cache and from files, and their way through transforms into batches."""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from detkit.data import (
    CocoDataset,
    EvalTransform,
    ProposalFileError,
    Sample,
    SearchedProposals,
    TrainTransform,
    collate,
    create_loader,
    proposal_records,
    proposals,
    read_coco,
    read_proposals,
)
from detkit.proposals import SearchSettings, selective_search

SETTINGS = SearchSettings(min_size=30)


class TinyData(NamedTuple):
    annotations: Path
    images: Path


@pytest.fixture(scope="module")
def dataset(tiny_data: TinyData) -> CocoDataset:
    return read_coco(*tiny_data)


@pytest.fixture
def source(tmp_path: Path) -> SearchedProposals:
    return SearchedProposals(SETTINGS, cache=tmp_path / "cache")


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each search."""
    calls: list[int] = []

    def counted(image: np.ndarray, settings: SearchSettings) -> np.ndarray:
        calls.append(1)
        return selective_search(image, settings)

    monkeypatch.setattr(proposals, "selective_search", counted)
    return calls


# ------------------------------------------------------------------------------------------ cache


def test_kept_result_is_the_fresh_one(
    dataset: CocoDataset, source: SearchedProposals, searches: list[int]
) -> None:
    image = dataset[0].image
    fresh, kept = source(3, image), source(3, image)
    assert len(searches) == 1
    assert fresh.dtype == kept.dtype == np.float32
    assert np.array_equal(fresh, kept)
    assert np.array_equal(fresh, selective_search(image, SETTINGS))
    kept[:] = 0  # is the caller's own
    assert np.array_equal(source(3, image), fresh)


def test_pixels_and_settings_are_the_key(
    dataset: CocoDataset, source: SearchedProposals, searches: list[int]
) -> None:
    image = dataset[0].image
    source(3, image)
    source(99, image)  # the same picture under another id
    assert len(searches) == 1
    changed = image.copy()
    changed[5, 5, 1] += 1
    source(3, changed)
    source(3, np.ascontiguousarray(image.reshape(32, 128, 3)))
    replace(source, settings=replace(SETTINGS, sigma=0.5))(3, image)
    assert len(searches) == 4


def test_limit_takes_the_best_and_needs_no_new_search(
    dataset: CocoDataset, source: SearchedProposals, searches: list[int]
) -> None:
    image = dataset[0].image
    everything = source(3, image)
    assert np.array_equal(replace(source, limit=5)(3, image), everything[:5])
    assert len(searches) == 1


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_damaged_file_is_made_again(
    dataset: CocoDataset,
    source: SearchedProposals,
    caplog: pytest.LogCaptureFixture,
    damage: bytes | None,
) -> None:
    image = dataset[0].image
    expected = source(3, image)
    path = source.path(image)
    content = bytearray(path.read_bytes())
    content[40] ^= 1  # None: a flipped bit
    path.write_bytes(content if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(source(3, image), expected)
    assert "damaged" in caplog.text and str(path) in caplog.text
    caplog.clear()
    source(3, image)
    assert not caplog.text


def test_many_at_once_leave_whole_files(dataset: CocoDataset, source: SearchedProposals) -> None:
    image = dataset[0].image
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: source(3, image), range(8)))
    assert all(np.array_equal(result, results[0]) for result in results)
    files = [path for path in source.folder().rglob("*") if path.is_file()]
    assert files == [source.path(image)]


def test_cache_is_where_the_user_has_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DETKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = SearchedProposals(SETTINGS).folder()
    assert folder.parent == tmp_path / "detkit" / "proposals"
    assert folder.name.startswith("selective_search-v")


# ------------------------------------------------------------------------------------------ files


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "proposals.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def records(dataset: CocoDataset, **changes: Any) -> list[dict[str, Any]]:
    """One proposal for each image, the first of them changed."""
    found = [{"image_id": int(i), "bbox": [1, 2, 10, 20]} for i in dataset.image_ids]
    return [found[0] | changes, *found[1:]]


def test_written_and_read_again(
    dataset: CocoDataset, source: SearchedProposals, write: Callable[[Any], Path]
) -> None:
    searched = {int(i): source(int(i), dataset[n].image) for n, i in enumerate(dataset.image_ids)}
    stored = read_proposals(write(proposal_records(searched)), dataset)
    for index in range(len(dataset)):
        sample = dataset.with_proposals(stored)[index]
        assert sample.proposals is not None
        assert np.array_equal(sample.proposals, searched[sample.image_id])
    fewer = read_proposals(write(proposal_records(searched, limit=3)), dataset)
    assert np.array_equal(fewer(3, dataset[0].image), searched[3][:3])


def test_npz_says_the_same(dataset: CocoDataset, tmp_path: Path) -> None:
    ids = np.repeat(dataset.image_ids, 2)
    boxes = np.arange(len(ids) * 4).reshape(-1, 4) % 7 + np.array([0, 0, 20, 20])
    scores = np.tile([0.1, 0.9], len(dataset))
    np.savez(tmp_path / "a.npz", image_ids=ids, boxes=boxes, scores=scores)
    stored = read_proposals(tmp_path / "a.npz", dataset)
    assert np.array_equal(stored(int(ids[0]), np.zeros((1, 1, 3))), boxes[[1, 0]])
    np.savez(tmp_path / "b.npz", image_ids=ids, boxes=boxes)
    stored = read_proposals(tmp_path / "b.npz", dataset)
    assert np.array_equal(stored(int(ids[0]), np.zeros((1, 1, 3))), boxes[[0, 1]])


def test_best_first_clipped_and_other_images_left_out(
    dataset: CocoDataset, write: Callable[[Any], Path]
) -> None:
    content = [
        *records(dataset, score=0.5),
        {"image_id": 3, "bbox": [-5, 50, 20, 40], "score": 0.9},  # the picture is 64 x 64
        {"image_id": 3, "bbox": [70, 0, 20, 40], "score": 1.0},  # outside
        {"image_id": 4444, "bbox": [0, 0, 1, 1], "score": 1.0},
    ]
    stored = read_proposals(write(content), dataset)
    boxes = stored(3, dataset[0].image)
    assert boxes.tolist() == [[0, 50, 15, 64], [1, 2, 11, 22]]
    assert boxes.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": "3"}, "image_id of entry 0 is '3'"),
        ({"bbox": [1, 2, 3]}, r"bbox of entry 0 \(image 3\) must be four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, r"proposal 0 \(image 3\) must have finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "sides not below 0"),
        ({"bbox": [1, 2, None, 4]}, "must be four numbers"),
        ({"score": "high"}, "score of entry 0 is 'high'"),
        ({"score": float("inf")}, "score inf"),
    ],
)
def test_mistakes_in_an_entry(
    dataset: CocoDataset, write: Callable[[Any], Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProposalFileError, match=message) as raised:
        read_proposals(write(records(dataset, **changes)), dataset)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid JSON"), ({"a": 1}, "holds a dict, not a list"), ([4], "entry 0 must be")],
)
def test_mistakes_of_a_file(
    dataset: CocoDataset, write: Callable[[Any], Path], content: Any, message: str
) -> None:
    with pytest.raises(ProposalFileError, match=message):
        read_proposals(write(content), dataset)


def test_missing_images_and_no_file(dataset: CocoDataset, write: Callable[[Any], Path]) -> None:
    with pytest.raises(ProposalFileError, match=r"no proposals for 2 of 9 images: ids 3, 13; is"):
        read_proposals(write(records(dataset)[2:]), dataset)
    with pytest.raises(ProposalFileError, match=r"cannot read proposals nowhere.json: No such"):
        read_proposals("nowhere.json", dataset)
    with pytest.raises(ProposalFileError, match="for 9 of 9 images"):
        read_proposals(write([]), dataset)


def test_npz_is_read_safely(dataset: CocoDataset, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, image_ids=np.array([object()] * 2), boxes=np.zeros((2, 4)))
    with pytest.raises(ProposalFileError, match="allow_pickle=False"):
        read_proposals(path, dataset)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ProposalFileError, match=r"is no \.npz file"):
        read_proposals(path, dataset)
    np.savez(path, image_ids=np.array([3]))
    with pytest.raises(ProposalFileError, match="boxes"):
        read_proposals(path, dataset)
    np.savez(path, image_ids=np.array([3, 4]), boxes=np.zeros((1, 4)))
    with pytest.raises(ProposalFileError, match=r"got \[2\] int64, \[1, 4\]"):
        read_proposals(path, dataset)
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    path.write_bytes(plain.getvalue())
    with pytest.raises(ProposalFileError, match=r"is no \.npz file"):
        read_proposals(path, dataset)


# ------------------------------------------------------------------------------- into the batches


PLACES = np.array([[0, 0, 90, 60], [12, 9, 40, 30], [50, 20, 80, 44], [5, 40, 20, 58]], np.float32)
COLORS = [(0, 0, 0), (250, 20, 20), (20, 250, 20), (20, 20, 250)]


def marked() -> Sample:
    """Coloured rectangles on grey, each where a proposal is; one truth."""
    image = np.full((60, 90, 3), 128, np.uint8)
    for (x1, y1, x2, y2), color in list(zip(PLACES.astype(int), COLORS, strict=True))[1:]:
        image[y1:y2, x1:x2] = color
    return Sample(
        image=image,
        boxes=PLACES[1:2].copy(),
        labels=np.zeros(1, np.int64),
        crowd=np.zeros(1, bool),
        area=np.array([588], np.float32),
        image_id=1,
        original_size=(60, 90),
        proposals=PLACES.copy(),
    )


def color_at_center(image: np.ndarray, box: np.ndarray) -> int:
    x, y = ((box[:2] + box[2:]) / 2).astype(int)
    return int(np.abs(np.array(COLORS) - image[y, x].astype(int)).sum(axis=1).argmin())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"horizontal_flip": 1.0},
        {"vertical_flip": 1.0},
        {"rotate90": 1.0},
        {"crop": 1.0},
        {"crop": 1.0, "rotate90": 0.5, "scale_jitter": (0.6, 1.6)},
    ],
)
def test_proposals_stay_on_the_picture(settings: dict[str, Any]) -> None:
    transform = TrainTransform(shortest=90, longest=150, **{"horizontal_flip": 0.0, **settings})
    counts = []
    for seed in range(12):
        sample = transform(marked(), seed)
        boxes = sample.proposals
        assert boxes is not None and boxes.dtype == np.float32
        height, width = sample.image.shape[:2]
        assert boxes[0] == pytest.approx([0, 0, width, height], abs=1e-3)  # clipped, still first
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        seen = [color_at_center(sample.image, box) for box in boxes[1:]]
        assert seen == sorted(set(seen))  # each on its colour, in the order they had
        for box, color in zip(boxes[1:], seen, strict=True):
            near = np.abs(sample.image.astype(int) - COLORS[color]).max(axis=2) < 80
            y, x = np.nonzero(near)
            assert box == pytest.approx([x.min(), y.min(), x.max() + 1, y.max() + 1], abs=1.6)
        counts.append(len(boxes))
    assert (min(counts) < 4) == ("crop" in settings)
    assert max(counts) == 4


def test_proposals_change_no_draw() -> None:
    transform = TrainTransform(
        shortest=64, longest=100, crop=0.7, color=0.5, scale_jitter=(0.7, 1.3), rotate90=0.5
    )
    for seed in range(8):
        one = transform(marked(), seed)
        other = transform(replace(marked(), proposals=None), seed)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.boxes, other.boxes)
        assert other.proposals is None


def test_no_proposal_is_a_list_of_none() -> None:
    empty = replace(marked(), proposals=np.zeros((0, 4), np.float32))
    for transform in (
        TrainTransform(shortest=64, longest=100),
        EvalTransform(shortest=64, longest=100),
    ):
        sample = transform(empty, 0)
        assert sample.proposals is not None and sample.proposals.shape == (0, 4)


def test_resizing_scales_proposals() -> None:
    sample = EvalTransform(shortest=120, longest=None)(marked())
    assert np.array_equal(sample.proposals, PLACES * 2)
    assert EvalTransform(shortest=9, longest=9)(replace(marked(), proposals=None)).proposals is None


def test_collate() -> None:
    none = replace(marked(), proposals=None)
    assert collate([none, none]).proposals is None
    empty = replace(marked(), proposals=np.zeros((0, 4), np.float32))
    batch = collate([marked(), empty, marked()])
    assert batch.proposals is not None
    assert [len(each) for each in batch.proposals] == [4, 0, 4]
    assert torch.equal(batch.proposals[2], torch.from_numpy(PLACES))
    assert batch.proposals[0].untyped_storage().data_ptr() == (
        batch.proposals[2].untyped_storage().data_ptr()
    )
    with pytest.raises(ValueError, match="only 1 of 2 images have proposals"):
        collate([marked(), none])


def test_workers_hand_over_the_same_proposals(
    dataset: CocoDataset, source: SearchedProposals
) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        loader = create_loader(
            dataset.with_proposals(replace(source, limit=20)),
            TrainTransform(shortest=48, longest=64, crop=0.5),
            batch_size=4,
            seed=0,
            shuffle=True,
            workers=workers,
        )
        return [boxes for batch in loader for boxes in batch.proposals]

    alone, shared = batches(0), batches(2)
    assert len(alone) == 9
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert 0 < max(map(len, alone)) <= 20


def test_subset_keeps_proposals_and_the_original_has_none(
    dataset: CocoDataset, source: SearchedProposals
) -> None:
    with_them = dataset.with_proposals(source)
    assert with_them.subset(2)[1].proposals is not None
    assert dataset.proposals is None and dataset[1].proposals is None
