"""Which proposals go with the pictures of a recipe, and where they come from."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from detkit.config import ConfigError, ModelConfig, SelectiveSearchConfig
from detkit.data import CocoDataset, SearchedProposals
from detkit.engine import distributed
from detkit.engine.device import usable_cores
from detkit.files import write_atomically
from detkit.proposals import SearchSettings, selective_search, strategies_of

logger = logging.getLogger(__name__)


def search_settings(config: SelectiveSearchConfig) -> SearchSettings:
    """The settings of a search from the config.

    Raises:
        ValueError: a colour space or similarity that there is not.
    """
    values = config.model_dump()
    parts = {name: values.pop(name) for name in ("color_spaces", "scales", "similarities")}
    return SearchSettings(strategies=strategies_of(values.pop("mode"), **parts), **values)


def with_proposals(model: ModelConfig, dataset: CocoDataset, *, role: str) -> CocoDataset:
    """The data set with the proposals that the detector asks for; searched now, where it is new.

    Args:
        model: the detector.
        dataset: with the proposals of its file, where one was named.
        role: where the recipe names that file, for messages.

    Raises:
        ConfigError: the detector needs a file, and none was named.
    """
    if model.proposals == "file":
        if dataset.proposals is None:
            raise ConfigError(
                f"model.proposals=file looks at regions from a file, and none is named; set {role}."
                "proposals=FILE (COCO results JSON or .npz; tools/proposals.py writes such)"
            )
        return dataset
    if dataset.proposals is not None and distributed.is_main():
        why = f"{model.detector} has no proposals; leave it out"
        if model.proposals is not None:
            why = f"model.proposals is {model.proposals}; set it to file, or leave this out"
        logger.warning("%s.proposals is not used: %s", role, why)
    if model.selective_search is None or model.roi is None:
        return dataset.with_proposals(None) if dataset.proposals is not None else dataset
    source = SearchedProposals(search_settings(model.selective_search), limit=model.roi.max_regions)
    search_ahead(dataset, source)
    return dataset.with_proposals(source)


def search_ahead(dataset: CocoDataset, source: SearchedProposals) -> None:
    """Search every picture that is not known yet, on all cores, each process its share.

    All processes of a training must call it.
    """
    stamp = source.folder() / f"complete-{_fingerprint(dataset)}"
    if all(distributed.gather(stamp.exists())):
        return
    share = range(distributed.rank(), len(dataset), distributed.world_size())
    cores = usable_cores() // distributed.local_world_size()
    loader: DataLoader[int] = DataLoader(
        _Searches(dataset, source),
        batch_size=None,
        sampler=share,
        num_workers=cores if cores > 1 else 0,
        worker_init_fn=_start_worker,
        # its own generator: the seed of the workers must not move the global random state
        generator=torch.Generator().manual_seed(0),
    )
    bar = tqdm(loader, "selective search", disable=not distributed.is_main(), dynamic_ncols=True)
    for _ in bar:
        pass
    distributed.barrier()
    if distributed.is_main():
        write_atomically(stamp, b"")


class _Searches(Dataset[int]):
    """Each item is a picture that has been searched."""

    def __init__(self, dataset: CocoDataset, source: SearchedProposals) -> None:
        self.dataset = dataset.with_proposals(source)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:
        self.dataset[index]
        return index


def _start_worker(worker_id: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _fingerprint(dataset: CocoDataset) -> str:
    """Changes with the list of pictures, and with the length or date of any."""
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(dataset)):
        path = dataset.path(index)
        try:
            state = path.stat()
        except OSError:  # whoever reads the picture says so better
            continue
        facts: tuple[Any, ...] = (os.fspath(path.absolute()), state.st_size, state.st_mtime_ns)
        digest.update(repr(facts).encode())
    return digest.hexdigest()


def picture_proposals(model: ModelConfig) -> Callable[[np.ndarray], np.ndarray] | None:
    """From one picture `[H, W, 3]` uint8 RGB to its proposals `[P, 4]`; None where none are needed.

    What it gives for proposals from a file raises a ValueError: they are of a data set's images.
    """
    if model.proposals == "file":
        return _refuse
    if model.selective_search is None or model.roi is None:
        return None
    settings, limit = search_settings(model.selective_search), model.roi.max_regions
    return lambda image: selective_search(image, settings)[:limit]


def _refuse(image: np.ndarray) -> np.ndarray:
    raise ValueError(
        "model.proposals=file has regions for the images of a data set, none for other pictures; "
        "use tools/test.py, or a detector with proposals rpn, selective_search or grid"
    )
