"""What a training starts from, beside the weights themselves: a checkpoint of other classes."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch

from detkit.engine.checkpoint import FORMAT
from detkit.engine.data import short_list

logger = logging.getLogger(__name__)


def compare_start(path: str | Path, class_names: Sequence[str]) -> None:
    """Warn where the checkpoint that a training starts from is not what its shapes look like.

    Args:
        path: of the weights; a file that is no checkpoint of detkit says nothing.
        class_names: of the training that starts.
    """
    try:  # mapped: what was read for its weights a moment ago is not read again for its names
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):  # of an older format of torch
        return
    if not isinstance(content, dict) or "format" not in content:
        return
    if content["format"] != FORMAT:
        logger.warning(
            "%s has checkpoint format %s, this version writes %d: its weights are taken by name "
            "and shape, nothing else is",
            *(path, content["format"], FORMAT),
        )
    theirs, ours = tuple(content.get("class_names", ())), tuple(class_names)
    if len(theirs) == len(ours) and theirs != ours:
        kind = "the same classes in another order" if set(theirs) == set(ours) else "other classes"
        logger.warning(
            "%s was trained on %s, its last layers are taken over all the same: %s; now: %s",
            *(path, kind, short_list(theirs), short_list(ours)),
        )
