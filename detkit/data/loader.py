"""Batches from a data set: which images go together, padding, worker processes.

B images in a batch, H and W the padded size, M truths of an image.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from detkit.data.dataset import CocoDataset, Sample
from detkit.data.mixing import TransformPlan
from detkit.data.reading import Reader
from detkit.data.sampling import draw_epoch
from detkit.data.transforms import Transform
from detkit.structures import Batch, Target

# (index of the image, seed of its augmentation, epoch, turn of its batch in the epoch)
Key = tuple[int, int, int, int]


def create_loader(  # noqa: PLR0913 (each is a choice of the caller)
    dataset: CocoDataset,
    transform: Transform | TransformPlan,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    workers: int = 0,
    divisor: int = 32,
    group_by_aspect: bool = True,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    pin_memory: bool = False,
    often: np.ndarray | None = None,
    skip_unreadable: bool = False,
) -> DataLoader[Batch]:
    """A loader whose batches depend on seed, epoch and rank alone, not on the number of workers.

    Call `loader.batch_sampler.set_epoch(epoch)` before each epoch of training.

    Args:
        dataset: where samples come from.
        transform: from a sample and a seed to a sample, or a plan of such.
        batch_size: images in a batch of this rank.
        seed: of order and augmentation.
        shuffle: True for training: a new order each epoch, and every rank gets the same number of
            batches (images repeat to fill up). False for evaluation: every image exactly once over
            all ranks.
        workers: processes that read ahead; 0 reads in this process.
        divisor: padded sides are multiples of it.
        group_by_aspect: images of similar shape share a batch, which saves padding.
        rank: of this process, in `0..world_size-1`.
        world_size: number of processes.
        drop_last: leave out a last batch that is not full.
        pin_memory: put batches into page-locked memory for the way to a GPU.
        often: `[N]` how often each image is seen in an epoch of training (see `sampling`); None
            is once.
        skip_unreadable: another picture takes the place of one that cannot be read, and the
            batch's `skipped` names the file; False: it is an error.

    Raises:
        ValueError: a number is out of its range.
    """
    sampler = AspectBatchSampler(
        dataset.sizes(),
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        group_by_aspect=group_by_aspect,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        often=often,
    )
    return DataLoader(
        _Transformed(Reader(dataset, skip=skip_unreadable), transform),
        batch_sampler=sampler,
        collate_fn=partial(collate, divisor=divisor),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        # its own generator: each epoch draws a seed, which must not move the global random state
        generator=torch.Generator().manual_seed(seed),
    )


def read_batches(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The batches of one pass over the data.

    Raises:
        RuntimeError: a worker process has died; torch says so itself, unless the worker was just
            handing over a batch, which shows as a broken connection.
    """
    try:
        yield from loader
    except (ConnectionError, EOFError) as error:
        raise RuntimeError(f"DataLoader worker has ended: {error or 'no answer'}") from error


@contextmanager
def objects_left_alone() -> Iterator[None]:
    """Within the block collections of garbage pass over what is there already.

    Workers share the pages of their parent until one of both writes to them. A collection writes to
    every object that it looks at, in the parent as in a worker (see `_start_worker`): its pages
    would be there twice.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Transformed(Dataset[Any]):
    """The key of a sample says all about its place in training: workers need not know the epoch."""

    def __init__(self, reader: Reader, transform: Transform | TransformPlan) -> None:
        self.reader, self.transform = reader, transform

    def __len__(self) -> int:
        return len(self.reader.dataset)

    def __getitem__(self, key: Key) -> Sample:
        index, seed, epoch, turn = key
        transform = self.transform
        if isinstance(transform, TransformPlan):
            transform = transform.at(epoch, turn)
        return transform(self.reader(index, seed), seed)


def _start_worker(worker_id: int) -> None:
    """One thread for each worker: more would fight for the same cores."""
    # A collection marks every object that it looks at, and so would copy all those that came from
    # the parent: 100 MB in each worker after reading a hundred thousand images
    gc.freeze()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    sys.excepthook = _without_broken_connections


def _without_broken_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say nothing in a thread that hands over a batch to a parent that has gone."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


class AspectBatchSampler(Sampler[list[Key]]):
    """Batches of keys, grouped by aspect ratio and split over ranks.

    Ranks share one order: a global batch of `batch_size * world_size` images is dealt out to them,
    so that they work on images of similar shape at the same time.

    Args:
        sizes: `[N, 2]` (height, width) of the images.
        batch_size: images in a batch of this rank.
        seed: of order and augmentation.
        shuffle: a new order each epoch; else the order is fixed and nothing is repeated.
        group_by_aspect: images of similar shape share a batch.
        rank: of this process.
        world_size: number of processes.
        drop_last: leave out a last batch that is not full.
        often: `[N]` how often each image is seen in a shuffled epoch; None is once.
    """

    def __init__(  # noqa: PLR0913 (each is a choice of the caller)
        self,
        sizes: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        group_by_aspect: bool = True,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        often: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} not in 0..{world_size - 1}")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.often = often
        self.epoch, self.start = 0, 0
        ratio = aspect_groups(sizes)
        self._groups = ratio if group_by_aspect else np.zeros_like(ratio)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the order and the augmentations of an epoch, and with which batch to begin."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[Key]]:
        for turn, batch in enumerate(self._batches()[self.start :], start=self.start):
            yield [
                (int(index), self._sample_seed(int(index), turn, place), self.epoch, turn)
                for place, index in enumerate(batch)
            ]

    def _sample_seed(self, index: int, turn: int, place: int) -> int:
        """Of an image that comes at most once by its index, else also by where it comes."""
        if self.often is None:
            return sample_seed(self.seed, self.epoch, index)
        return sample_seed(self.seed, self.epoch, index, turn, place * self.world_size + self.rank)

    def _batches(self) -> list[np.ndarray]:
        """Indices of this rank's batches in this epoch."""
        if self.shuffle:
            batches = self._shuffled_batches()
            return [batch[self.rank :: self.world_size] for batch in batches]
        order = np.argsort(self._groups, kind="stable")
        return self._split(order, self.batch_size)[self.rank :: self.world_size]

    def _shuffled_batches(self) -> list[np.ndarray]:
        """Global batches: full ones of one group each, then what is left over, mixed."""
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.often is None:
            order = rng.permutation(len(self._groups))
        else:
            order = draw_epoch(self.often, rng)
        size = self.batch_size * self.world_size
        if self.drop_last:  # random images, not those of the rarest shape
            order = order[: len(order) // size * size]
        else:  # repeat some images, so that every rank has one for each step
            order = np.resize(order, -(-len(order) // self.world_size) * self.world_size)
        batches: list[np.ndarray] = []
        leftovers: list[np.ndarray] = []
        for group in np.unique(self._groups):
            members = order[self._groups[order] == group]
            full = len(members) // size * size
            batches += np.split(members[:full], full // size) if full else []
            leftovers.append(members[full:])
        # neighbours in shape stay together in the mixed batches
        batches += self._split(np.concatenate([np.zeros(0, np.int64), *leftovers]), size)
        return [batches[index] for index in rng.permutation(len(batches))]

    def _split(self, order: np.ndarray, size: int) -> list[np.ndarray]:
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        if self.drop_last and batches and len(batches[-1]) < size:
            batches.pop()
        return batches


def aspect_groups(sizes: np.ndarray) -> np.ndarray:
    """`[N]` int64: width / height in half octaves (square 0, 4:3 and 3:2 1, 16:9 2, 3:4 -1)."""
    ratio = sizes[:, 1] / np.maximum(sizes[:, 0], 1)
    return np.round(2 * np.log2(np.maximum(ratio, 1e-6))).astype(np.int64)


def sample_seed(*key: int) -> int:
    """The seed of one image's augmentation: of the run, the epoch, the image, and its place."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def collate(samples: Sequence[Sample], *, divisor: int = 32) -> Batch:
    """Pad bottom and right with zeros to one size, a multiple of the divisor.

    The buffer is laid out `[B, H, W, 3]` as pictures are, so that the `[B, 3, H, W]` view of it is
    in channels_last format without a copy.
    """
    height = -(-max(sample.image.shape[0] for sample in samples) // divisor) * divisor
    width = -(-max(sample.image.shape[1] for sample in samples) // divisor) * divisor
    images = np.zeros((len(samples), height, width, 3), dtype=np.uint8)
    for image, sample in zip(images, samples, strict=True):
        image[: sample.image.shape[0], : sample.image.shape[1]] = sample.image
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),  # [B, 3, H, W]
        sizes=tuple((sample.image.shape[0], sample.image.shape[1]) for sample in samples),
        original_sizes=tuple(sample.original_size for sample in samples),
        targets=to_targets(samples),
        dropped=sum(sample.dropped for sample in samples),
        proposals=_to_proposals(samples),
        skipped=tuple(path for sample in samples for path in sample.skipped),
    )


def _to_proposals(samples: Sequence[Sample]) -> tuple[torch.Tensor, ...] | None:
    """The proposals of a batch, views of one tensor (see `to_targets`); None without any."""
    given = [sample.proposals for sample in samples if sample.proposals is not None]
    if not given:
        return None
    if len(given) < len(samples):
        raise ValueError(f"only {len(given)} of {len(samples)} images have proposals; give all")
    lengths = [len(proposals) for proposals in given]
    return torch.from_numpy(np.concatenate(given)).split(lengths)


def to_targets(samples: Sequence[Sample]) -> tuple[Target, ...]:
    """The truths of a batch as tensors.

    All targets are views of four shared tensors: between processes each storage costs an open
    file, and four for every image would reach the usual limit of 1024 with a few workers.
    """
    lengths = [len(sample) for sample in samples]
    boxes, labels, crowd, area = (
        torch.from_numpy(np.concatenate([getattr(sample, name) for sample in samples])).split(
            lengths
        )
        for name in ("boxes", "labels", "crowd", "area")
    )
    return tuple(
        Target(boxes[i], labels[i], sample.image_id, crowd[i], area[i])
        for i, sample in enumerate(samples)
    )
