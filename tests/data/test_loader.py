"""Every image once, the same batches whatever the number of workers, equal shares for all ranks."""

from __future__ import annotations

import gc
import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit.data import CocoDataset, EvalTransform, TrainTransform, create_loader, read_coco
from detkit.data.dataset import Sample
from detkit.data.loader import AspectBatchSampler, aspect_groups, collate, read_batches, sample_seed
from detkit.structures import Batch

SHAPES = [(48, 64), (64, 48), (50, 50)]  # height, width


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Eleven noisy pictures of three shapes; the n-th has n % 4 boxes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for n in range(11):
        height, width = SHAPES[n % 3]
        coarse = rng.integers(0, 255, (6, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{n}.jpg"), cv2.resize(coarse, (width, height)))
        images.append({"id": 100 + n, "file_name": f"{n}.jpg", "width": width, "height": height})
        for k in range(n % 4):
            annotations.append(
                {"id": len(annotations), "image_id": 100 + n, "category_id": 1 + k}
                | {"bbox": [4 * k, 5, 20, 10 + k], "iscrowd": int(k == 2)}
            )
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1 + k, "name": f"class {k}"} for k in range(4)]
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return read_coco(path, folder)


AUGMENT = TrainTransform(shortest=40, longest=64, crop=0.5, color=0.5, scale_jitter=(0.8, 1.25))


def batches(dataset: CocoDataset, *, epoch: int = 0, transform=AUGMENT, **settings) -> list[Batch]:
    settings = {"batch_size": 4, "seed": 0, "shuffle": True, "workers": 0, **settings}
    loader = create_loader(dataset, transform, **settings)
    loader.batch_sampler.set_epoch(epoch)
    result = list(loader)
    assert len(result) == len(loader)
    return result


def flat(batches: list[Batch]) -> list[object]:
    """Everything in the batches, to be compared."""
    return [
        (
            batch.images.tolist(),
            batch.sizes,
            batch.original_sizes,
            [
                (t.image_id, t.boxes.tolist(), t.labels.tolist(), t.crowd.tolist(), t.area.tolist())
                for t in batch.targets
            ],
        )
        for batch in batches
    ]


def image_ids(batches: list[Batch]) -> list[int]:
    return [target.image_id for batch in batches for target in batch.targets]


def test_workers_seed_and_epoch(dataset: CocoDataset):
    alone = flat(batches(dataset))
    assert alone == flat(batches(dataset))
    assert alone == flat(batches(dataset, workers=2))
    assert alone != flat(batches(dataset, seed=1))
    assert alone != flat(batches(dataset, epoch=1))


def _frozen_objects(sample: Sample, seed: int) -> Sample:
    return replace(sample, image_id=gc.get_freeze_count())


def test_workers_leave_the_objects_of_their_parent_alone(dataset: CocoDataset):
    """A collection of garbage in a worker would copy all of them, page by page."""
    settings = {"batch_size": 4, "seed": 0, "shuffle": True}
    (first, *_) = create_loader(dataset, _frozen_objects, workers=1, **settings)
    assert all(target.image_id > 10_000 for target in first.targets)
    assert gc.get_freeze_count() < 10_000  # here they are not


def test_persistent_workers_follow_the_epoch(dataset: CocoDataset):
    settings = {"batch_size": 4, "seed": 3, "shuffle": True}
    loader = create_loader(dataset, AUGMENT, workers=1, **settings)
    for epoch in (0, 1, 5):
        loader.batch_sampler.set_epoch(epoch)
        assert flat(list(loader)) == flat(batches(dataset, epoch=epoch, seed=3))


def test_reading_does_not_move_the_global_random_state(dataset: CocoDataset):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(dataset)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("group_by_aspect", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 20])
def test_every_image_once_an_epoch(
    dataset: CocoDataset, shuffle: bool, group_by_aspect: bool, batch_size: int
):
    given = batches(
        dataset, shuffle=shuffle, group_by_aspect=group_by_aspect, batch_size=batch_size
    )
    assert sorted(image_ids(given)) == list(range(100, 111))
    assert len(given) == -(-11 // batch_size)


def test_the_order_changes_with_the_epoch_only_when_shuffled(dataset: CocoDataset):
    orders = {tuple(image_ids(batches(dataset, epoch=epoch))) for epoch in range(3)}
    assert len(orders) == 3
    fixed = {tuple(image_ids(batches(dataset, shuffle=False, epoch=e))) for e in range(3)}
    assert len(fixed) == 1
    ungrouped = batches(dataset, shuffle=False, group_by_aspect=False)
    assert image_ids(ungrouped) == list(range(100, 111))


def test_batches_hold_one_shape_where_they_can(dataset: CocoDataset):
    eval_transform = EvalTransform(shortest=None, longest=None)
    for shuffle in (True, False):
        given = batches(dataset, transform=eval_transform, shuffle=shuffle, batch_size=3)
        mixed = sum(len(set(batch.original_sizes)) > 1 for batch in given)
        assert mixed <= 2  # 4, 4 and 3 images: one left over from each of two shapes
    order = range(11)
    mixed = sum(len({SHAPES[n % 3] for n in order[k : k + 3]}) > 1 for k in range(0, 11, 3))
    assert mixed == 4  # what it would be in the file's order


def test_shapes_come_in_random_order():
    sampler = AspectBatchSampler(
        np.array([[30, 40]] * 16 + [[40, 30]] * 16), batch_size=4, seed=0, shuffle=True
    )
    first = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        first.add(next(iter(sampler))[0][0] < 16)
    assert first == {True, False}


def test_aspect_groups_by_hand():
    sizes = np.array([[480, 640], [400, 600], [640, 480], [720, 1280], [500, 500], [100, 400]])
    assert aspect_groups(sizes).tolist() == [1, 1, -1, 2, 0, 4]


def rank_indices(shuffle: bool, world_size: int, **settings) -> list[list[list[int]]]:
    """Indices by rank and batch for 23 images of two shapes."""
    sizes = np.array([[30, 40]] * 16 + [[40, 30]] * 7)
    return [
        [
            [index for index, *_ in batch]
            for batch in AspectBatchSampler(
                sizes,
                batch_size=2,
                seed=0,
                shuffle=shuffle,
                rank=rank,
                world_size=world_size,
                **settings,
            )
        ]
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 40])
def test_training_shares_are_equal_and_complete(world_size: int):
    ranks = rank_indices(True, world_size)
    for step in zip(*ranks, strict=True):  # the same number of batches ...
        assert len({len(batch) for batch in step}) == 1  # ... of the same size
    counts = Counter(index for rank in ranks for batch in rank for index in batch)
    assert set(counts) == set(range(23))
    assert sum(counts.values()) == -(-23 // world_size) * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
def test_evaluation_shares_are_disjoint_and_complete(world_size: int):
    ranks = rank_indices(False, world_size)
    given = [index for rank in ranks for batch in rank for index in batch]
    assert sorted(given) == list(range(23))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_ranks_split_the_batches_of_one_process():
    sizes = np.array([[30, 40]] * 16 + [[40, 30]] * 8)
    whole = AspectBatchSampler(sizes, batch_size=4, seed=0, shuffle=True)
    halves = [
        AspectBatchSampler(sizes, batch_size=2, seed=0, shuffle=True, rank=rank, world_size=2)
        for rank in range(2)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert sorted(batch) == sorted(parts[0] + parts[1])


def test_drop_last():
    for shuffle in (True, False):
        given = rank_indices(shuffle, 1, drop_last=True)[0]
        assert [len(batch) for batch in given] == [2] * 11
        assert len({index for batch in given for index in batch}) == 22
    assert rank_indices(True, 40, drop_last=True)[0] == []


def test_drop_last_drops_images_of_every_shape():
    sizes = np.array([[30, 40]] * 20 + [[30, 120]])  # the only wide one is the one too many
    seen = 0
    for epoch in range(20):
        sampler = AspectBatchSampler(sizes, batch_size=4, seed=0, shuffle=True, drop_last=True)
        sampler.set_epoch(epoch)
        seen += any(index == 20 for batch in sampler for index, *_ in batch)
    assert seen > 10


def test_no_images():
    for shuffle in (True, False):
        sampler = AspectBatchSampler(np.zeros((0, 2), int), batch_size=2, seed=0, shuffle=shuffle)
        assert (len(sampler), list(sampler)) == (0, [])


def test_sample_seeds_differ():
    keys = [(s, e, i) for s in range(3) for e in range(10) for i in range(100)]
    assert len({sample_seed(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank 2 not in 0\.\.1"),
    ],
)
def test_settings_out_of_range(dataset: CocoDataset, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        batches(dataset, **settings)


def sample(height: int, width: int, boxes: int, value: int) -> Sample:
    return Sample(
        image=np.full((height, width, 3), (value, value + 1, value + 2), np.uint8),
        boxes=np.arange(boxes * 4, dtype=np.float32).reshape(boxes, 4),
        labels=np.arange(boxes),
        crowd=np.arange(boxes) % 2 == 1,
        area=np.arange(boxes, dtype=np.float32),
        image_id=value,
        original_size=(2 * height, 2 * width),
    )


def test_collate_by_hand():
    batch = collate([sample(5, 9, 2, 10), sample(8, 3, 0, 20)], divisor=4)
    assert batch.images.shape == (2, 3, 8, 12)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images[0, :, 4, 8].tolist() == [10, 11, 12]
    assert batch.images[1, :, 7, 2].tolist() == [20, 21, 22]
    assert batch.images[0, :, 5:].sum() == batch.images[0, :, :, 9:].sum() == 0
    assert batch.images[1, :, :, 3:].sum() == 0
    assert batch.sizes == ((5, 9), (8, 3))
    assert batch.original_sizes == ((10, 18), (16, 6))
    first, second = batch.targets
    assert first.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (first.labels.tolist(), first.crowd.tolist()) == ([0, 1], [False, True])
    assert (first.area.tolist(), first.image_id, second.image_id) == ([0, 1], 10, 20)
    assert (second.boxes.shape, second.labels.shape) == ((0, 4), (0,))
    dtypes = [first.boxes.dtype, first.labels.dtype, first.crowd.dtype, first.area.dtype]
    assert dtypes == [torch.float32, torch.int64, torch.bool, torch.float32]


def test_targets_of_a_batch_share_their_storage():
    """Between processes each storage costs an open file; systems allow 1024."""
    batch = collate([sample(5, 9, n, n) for n in range(1, 30)])
    storages = {
        tensor.untyped_storage().data_ptr()
        for target in batch.targets
        for tensor in (target.boxes, target.labels, target.crowd, target.area)
    }
    assert len(storages) == 4


def test_the_loader_can_be_sent_to_a_spawned_worker(dataset: CocoDataset):
    loader = create_loader(dataset, AUGMENT, batch_size=2, seed=0, shuffle=True)
    copy = pickle.loads(pickle.dumps(loader.dataset))
    np.testing.assert_array_equal(copy[(3, 1, 0, 0)].image, loader.dataset[(3, 1, 0, 0)].image)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(dataset: CocoDataset, tmp_path: Path, workers: int):
    content = {
        "images": [{"id": 1, "file_name": "broken.jpg", "width": 8, "height": 8}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "broken.jpg").write_bytes(dataset.path(0).read_bytes()[:-100])
    broken = read_coco(tmp_path / "a.json", tmp_path)
    with pytest.raises(ValueError, match=r"broken\.jpg: truncated JPEG"):
        batches(broken, workers=workers)


def test_real_pictures(shared_data: Path):
    dataset = read_coco(shared_data / "coco128/coco.json", shared_data / "coco128").subset(24)
    given = batches(dataset, transform=EvalTransform(shortest=160, longest=224), shuffle=False)
    assert sorted(image_ids(given)) == sorted(dataset.image_ids)
    assert sum(len(target) for batch in given for target in batch.targets) == dataset.report.boxes


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()]
)
def test_a_worker_that_dies_while_it_hands_over_is_named(error: Exception):
    """What torch does not say itself: the command line explains errors of a 'DataLoader worker'."""

    def broken():
        yield "batch"
        raise error

    read = read_batches(broken())  # type: ignore[arg-type]
    assert next(read) == "batch"
    with pytest.raises(RuntimeError, match="DataLoader worker has ended"):
        next(read)
