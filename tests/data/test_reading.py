"""Pictures that cannot be read: an error, or another one in their place, always the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from detkit.data import CocoDataset, EvalTransform, ImageReadError, create_loader, read_coco
from detkit.data.loader import sample_seed
from detkit.data.reading import ATTEMPTS, Reader


def broken_data(tiny_data, folder: Path, names: list[str]) -> CocoDataset:
    """The tiny data set with some files cut off."""
    shutil.copytree(tiny_data.images, folder)
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes()[:60])
    return read_coco(tiny_data.annotations, folder)


@pytest.fixture
def broken(tiny_data, tmp_path: Path) -> CocoDataset:
    return broken_data(tiny_data, tmp_path / "images", ["1.png", "6.png"])


def test_an_error_unless_asked_otherwise(broken: CocoDataset):
    with pytest.raises(ImageReadError, match=r"1\.png"):
        Reader(broken)(1, 0)
    assert Reader(broken)(0, 0).skipped == ()


def test_the_seed_alone_says_which_takes_its_place(broken: CocoDataset):
    read = Reader(broken, skip=True)
    chosen = [read(1, seed) for seed in range(40)]
    for seed, sample in enumerate(chosen):
        again = Reader(broken, skip=True)(1, seed)
        np.testing.assert_array_equal(sample.image, again.image)
        assert sample.skipped == again.skipped
        assert sample.skipped[0].endswith("1.png")
    ids = {sample.image_id for sample in chosen}
    assert ids <= set(broken.image_ids.tolist()) - {13, 63}
    assert len(ids) > 4
    assert any(len(sample.skipped) > 1 for sample in chosen)  # the second choice was broken too
    assert read(0, 3).skipped == ()


def test_all_unreadable(tiny_data, tmp_path: Path):
    dataset = broken_data(tiny_data, tmp_path / "images", [f"{n}.png" for n in range(9)])
    with pytest.raises(ImageReadError, match=rf"^{ATTEMPTS} pictures in a row .*\.png"):
        Reader(dataset, skip=True)(0, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_say_what_was_skipped(broken: CocoDataset, workers: int):
    transform = EvalTransform(shortest=None, longest=None)
    settings = {"batch_size": 3, "seed": 4, "shuffle": True, "workers": workers}
    loader = create_loader(broken, transform, skip_unreadable=True, **settings)
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch) for batch in batches] == [3, 3, 3]
        skipped = [Path(path).name for batch in batches for path in batch.skipped]
        assert {"1.png", "6.png"} == set(skipped)
        # what came instead follows from seed, epoch and index
        expected = [
            Reader(broken, skip=True)(index, sample_seed(4, epoch, index)).image_id
            for index in range(9)
        ]
        assert sorted(t.image_id for b in batches for t in b.targets) == sorted(expected)
